//! The text that `pfctl` loads into our anchor: a pure function of the plan and of the machine's own addresses.
//! `fixtures/firewall/*.pf` shows whole examples.
//!
//! A packet to the cluster first leaves by some interface, where pf cannot translate what this machine sends. So:
//!
//! 1. `route-to lo0` turns it round, and its state lets the answers pass. `quick`, or a later rule would undo that silently.
//! 2. It leaves by lo0 (`no state`) and arrives by lo0, where `rdr` translates it: to the very address the listener is bound to.
//! 3. `pass in … reply-to lo0` makes the state of the translation. Without `reply-to`, the answers of somebody who has a VPN's
//!    address would leave through the VPN. Hence no `rdr pass`, which would make the state without it.
//!
//! pf insists on the order: tables, translation, filter. Of the translating rules the first that matches counts. The
//! destination is always a table: with `to any`, `rdr` would catch the answers of our own listener.
//!
//! Left alone are the excludes and the addresses of this machine, since packets to the latter use lo0, too.

use std::fmt::Write;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use crate::plan::Plan;

/// The table of what is redirected.
pub const NETS: &str = "kshuttle_nets";
/// The table of what is left alone in it.
pub const NOT: &str = "kshuttle_not";

/// Before the session in an anchor's name. The `/etc/pf.conf` of every Mac evaluates what is directly below `com.apple/`,
/// so no file needs to be changed. Not to begin with `com.apple/250.ApplicationFirewall`, `com.apple/200.AirDrop` or
/// `com.apple.internet-sharing`: XNU lets programs past rules that only such anchors have.
pub const ANCHOR_PREFIX: &str = "com.apple/kshuttle.";

/// Why pf gets no rules for a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The answers of ::1 to another address do not come back on macOS.
    #[error("include: {0} is IPv6, which cannot be redirected on macOS")]
    Ipv6(IpNet),
    /// It may come, but is not written.
    #[error("{0} cannot be redirected on macOS yet")]
    NotYet(&'static str),
    /// All that was included is excluded.
    #[error("exclude: nothing is left of what is included")]
    Nothing,
}

/// What is to be loaded, and to be found again when it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The anchor's name.
    pub anchor: String,
    /// The addresses of [`NETS`], sorted.
    pub nets: Vec<Ipv4Net>,
    /// The addresses of [`NOT`], sorted; that table exists only if there are some.
    pub not: Vec<Ipv4Net>,
    /// Translating rules, in order.
    pub translation: Vec<String>,
    /// Filtering rules, in order.
    pub filter: Vec<String>,
}

impl Rules {
    /// The rules for this plan on a machine with these addresses.
    ///
    /// # Errors
    /// When the plan asks for what pf cannot do here.
    pub fn new(plan: &Plan, local: &[Ipv4Addr]) -> Result<Self, Refused> {
        if let Some(subnet) = plan.include().v6.first() {
            return Err(Refused::Ipv6((*subnet).into()));
        }
        for (asked, what) in [
            (plan.listeners(false).datagrams.is_some(), "datagrams"),
            (!plan.who().is_anybody(), "what only some users send"),
            (!plan.bridges().is_empty(), "what comes in through bridges"),
            (!plan.exclude_ports().is_empty(), "all but single ports"),
            (plan.routed().is_some(), "routes"),
        ] {
            if asked {
                return Err(Refused::NotYet(what));
            }
        }
        let left_alone: Vec<Ipv4Net> =
            plan.exclude().v4.iter().copied().chain(local.iter().copied().map(Ipv4Net::from)).collect();
        let left_alone = Ipv4Net::aggregate(&left_alone);
        let covers = |nets: &[Ipv4Net], net: &Ipv4Net| nets.iter().any(|other| other.contains(net));
        let nets: Vec<_> =
            plan.include().v4.iter().copied().filter(|net| !covers(&left_alone, net)).collect();
        // Only what is inside a subnet concerns us: the rest of this machine's traffic is not ours to pass.
        let not: Vec<_> = left_alone.into_iter().filter(|net| covers(&nets, net)).collect();
        // The plan has a port if it includes IPv4, and IPv6 was refused.
        let (Some(port), false) = (plan.listeners(false).connections, nets.is_empty()) else {
            return Err(Refused::Nothing);
        };
        let mut rules = Self {
            anchor: anchor(plan),
            nets,
            not,
            translation: vec![format!(
                "rdr on lo0 inet proto tcp from any to <{NETS}> -> 127.0.0.1 port {port}"
            )],
            filter: vec![
                format!(
                    "pass out quick on ! lo0 route-to lo0 inet proto tcp from any to <{NETS}> keep state"
                ),
                format!("pass out quick on lo0 inet proto tcp from any to <{NETS}> no state"),
                format!(
                    "pass in quick on lo0 reply-to lo0 inet proto tcp from any to 127.0.0.1 port {port} keep state"
                ),
            ],
        };
        if !rules.not.is_empty() {
            rules.translation.insert(0, format!("no rdr on lo0 inet proto tcp from any to <{NOT}>"));
            rules.filter.insert(0, format!("pass out quick inet proto tcp from any to <{NOT}> no state"));
        }
        Ok(rules)
    }

    /// The text for `pfctl -f -`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, nets) in [(NETS, &self.nets), (NOT, &self.not)] {
            if !nets.is_empty() {
                let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
                let _ = writeln!(text, "table <{name}> const {{ {} }}", nets.join(", ")); // a String takes everything
            }
        }
        for rule in self.translation.iter().chain(&self.filter) {
            let _ = writeln!(text, "{rule}");
        }
        text
    }
}

/// The anchor of a plan's session.
fn anchor(plan: &Plan) -> String {
    // The plan knows its session as the name of a table, kshuttle_SESSION.
    let (_, session) = plan.table().split_once('_').unwrap_or_default();
    format!("{ANCHOR_PREFIX}{session}")
}

#[cfg(test)]
pub(super) mod tests;
