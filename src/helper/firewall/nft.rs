//! Linux: one nft table of our own, conntrack entries, and the order in which both come and go.
//!
//! Apply: the child that will own the table → the watchdog → list the connections that stand → the table in one
//! transaction, which leaves them alone → read it back → delete conntrack entries that were there before (a re-used
//! source port would follow the old entry, past the rules), except those of standing connections.
//!
//! Undo, after the user side has reset the redirected connections: flush `capture` → wait until the resets are through
//! → delete our entries → the table → the child. Why in this order: see [`rules`]. Every step is run, whatever became
//! of the ones before.

mod child;
mod rules;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::unistd::geteuid;

use super::conntrack::{self, Conntrack, Entry, Tuple};
use super::standing;
use super::watchdog::Watchdog;
use crate::error_chain;
use crate::plan::Plan;
use crate::protocol::{StepFailure, UndoReport};
use child::Nft;

/// How we redirect, for [`crate::protocol::Reply::Ready`].
pub(super) const METHOD: &str = "nft";

/// How long the undo waits for redirected connections to end. A reset over loopback takes microseconds; an application
/// that was sent the end of a stream instead may never answer.
const QUIET_PATIENCE: Duration = Duration::from_secs(2);

/// How long between two looks at them.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// `CAP_NET_ADMIN` in the kernel's `uapi/linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;

/// Why nothing is redirected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// We may not.
    #[error("changing the firewall needs root with CAP_NET_ADMIN; start kshuttle-helper by sudo")]
    Privilege,
    /// The program nft.
    #[error("starting nft failed")]
    Nft(#[source] child::Error),
    /// The watchdog.
    #[error("starting the watchdog failed")]
    Watchdog(#[source] io::Error),
    /// The connections that stand.
    #[error("listing the connections that are open failed")]
    Standing(#[source] standing::Error),
    /// The transaction; nothing of it was carried out.
    #[error("putting the rules in failed")]
    Rules(#[source] child::Error),
    /// The read-back failed.
    #[error("reading the rules back failed")]
    ReadBack(#[source] child::Error),
    /// The read-back shows something else.
    #[error("the rules read back lack {0}")]
    Lacking(String),
    /// Connection tracking.
    #[error("clearing the way for new connections failed")]
    Conntrack(#[source] conntrack::Error),
    /// The addresses of this machine.
    #[error("listing this machine's addresses failed")]
    Addresses(#[source] io::Error),
}

impl Error {
    /// The name in [`crate::protocol::Reply::Failed`].
    pub(crate) fn step(&self) -> &'static str {
        match self {
            Self::Privilege => "privilege",
            Self::Nft(_) => "nft",
            Self::Watchdog(_) => "watchdog",
            Self::Rules(_) => "rules",
            Self::ReadBack(_) | Self::Lacking(_) => "verify",
            Self::Standing(_) | Self::Addresses(_) => "standing",
            Self::Conntrack(_) => "conntrack",
        }
    }
}

/// Rules that stand.
#[derive(Debug)]
pub(crate) struct Rules {
    plan: Plan,
    nft: Nft,
    watchdog: Watchdog,
}

/// What this machine had when the rules came.
struct Before {
    /// Its own addresses.
    local: HashSet<IpAddr>,
    /// Its connections with what is included.
    standing: HashSet<Tuple>,
}

/// May this process change the firewall?
pub(super) fn permitted() -> Result<(), Error> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if geteuid().is_root() && has_net_admin(&status) { Ok(()) } else { Err(Error::Privilege) }
}

/// Puts the rules in; all or nothing.
pub(super) fn apply(plan: Plan) -> Result<Rules, Error> {
    let mut nft = Nft::start(plan.table()).map_err(Error::Nft)?;
    let watchdog = match Watchdog::start(|| undo_as_watchdog(&mut nft, &plan)) {
        Ok(watchdog) => watchdog,
        Err(error) => {
            let _ = nft.end(true); // it made nothing yet
            return Err(Error::Watchdog(error));
        }
    };
    let mut rules = Rules { plan, nft, watchdog };
    let before = match rules.put_in() {
        Ok(before) => before,
        Err(error) => {
            // All or none, and it was none; if nft only was silent, the kernel clears up behind it.
            let _ = rules.leave();
            return Err(error);
        }
    };
    match rules.settle(&before) {
        Ok(()) => Ok(rules),
        Err(error) => {
            let _ = rules.undo(); // the first failure is the one to report
            Err(error)
        }
    }
}

impl Rules {
    pub(super) fn table(&self) -> &str {
        self.plan.table()
    }

    /// Hangs up when the rules are gone without us.
    pub(super) fn lost(&self) -> BorrowedFd<'_> {
        self.nft.ending()
    }

    pub(super) fn undo(mut self) -> UndoReport {
        let mut report = undo(&mut self.nft, &self.plan);
        report.failures.extend(self.leave());
        report
    }

    /// The transaction. What was there before is listed as late as possible: a connection made in between is unknown.
    fn put_in(&mut self) -> Result<Before, Error> {
        let local = local_addresses().map_err(Error::Addresses)?;
        let standing =
            standing::connections(|to| is_covered(to, &self.plan, &local)).map_err(Error::Standing)?;
        self.nft.run(&rules::apply(&self.plan, &standing)).map_err(Error::Rules)?;
        Ok(Before { local, standing: standing.into_iter().collect() })
    }

    /// Proof that the rules stand, then nothing from before may bypass them.
    fn settle(&mut self, before: &Before) -> Result<(), Error> {
        let listing = self.nft.list(&["table", "inet", self.plan.table()]).map_err(Error::ReadBack)?;
        verify(&listing, &self.plan)?;
        let mut conntrack = Conntrack::open().map_err(Error::Conntrack)?;
        let stale =
            conntrack.entries(|entry| is_stale(entry, &self.plan, before)).map_err(Error::Conntrack)?;
        for entry in &stale {
            conntrack.delete(entry).map_err(Error::Conntrack)?;
        }
        Ok(())
    }

    /// The two children: first the watchdog, which shares the pipe that nft lives by.
    fn leave(self) -> Vec<StepFailure> {
        let mut failures = Vec::new();
        note(&mut failures, "watchdog", self.watchdog.dismiss());
        note(&mut failures, "nft", self.nft.end(true));
        failures
    }
}

/// The helper was killed. Its connection to the user side is closed, so the resets are on their way.
fn undo_as_watchdog(nft: &mut Nft, plan: &Plan) -> bool {
    // nft itself ends with this process, which holds the last end of its input.
    undo(nft, plan).failures.is_empty()
}

fn undo(nft: &mut Nft, plan: &Plan) -> UndoReport {
    let mut report = UndoReport::default();
    let mut failures = Vec::new();
    note(&mut failures, "flush", nft.run(&[rules::flush(plan.table())]));
    match Conntrack::open() {
        Ok(mut conntrack) => {
            let started = Instant::now();
            report.still_open =
                note(&mut failures, "wait", wait_until_quiet(&mut conntrack, plan)).unwrap_or(0);
            report.waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            report.entries_deleted =
                note(&mut failures, "entries", delete_ours(&mut conntrack, plan)).unwrap_or(0);
        }
        Err(error) => note(&mut failures, "wait", Err::<(), _>(error)).unwrap_or(()),
    }
    report.guard_dropped = note(&mut failures, "counter", guard_dropped(nft, plan)).unwrap_or(0);
    note(&mut failures, "table", nft.run(&[rules::delete(plan.table())]));
    report.failures = failures;
    report
}

/// How many connections are still open when patience is over.
fn wait_until_quiet(conntrack: &mut Conntrack, plan: &Plan) -> Result<u64, conntrack::Error> {
    let deadline = Instant::now() + QUIET_PATIENCE;
    loop {
        let open = conntrack.entries(|entry| is_ours(entry, plan) && entry.is_live())?.len();
        if open == 0 || Instant::now() >= deadline {
            return Ok(open as u64);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn delete_ours(conntrack: &mut Conntrack, plan: &Plan) -> Result<u64, conntrack::Error> {
    let mut deleted = 0;
    for entry in conntrack.entries(|entry| is_ours(entry, plan))? {
        deleted += u64::from(conntrack.delete(&entry)?);
    }
    Ok(deleted)
}

fn guard_dropped(nft: &Nft, plan: &Plan) -> Result<u64, child::Error> {
    let listing = nft.list(&["counter", "inet", plan.table(), rules::DROPPED])?;
    let packets = listing.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets.and_then(|packets| packets.parse().ok()).ok_or(child::Error::Refused(listing))
}

/// Redirected to one of our listeners; a connection made to it directly is not.
fn is_ours(entry: &Entry, plan: &Plan) -> bool {
    let v4 = plan.listener_v4().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let v6 = plan.listener_v6().map(|port| SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    entry.translated_to().is_some_and(|to| Some(to) == v4 || Some(to) == v6)
}

/// Made on this machine towards what is ours now, and neither by our rules nor still in use. Connections of containers
/// that pass through this machine, and those that came in from outside, are not touched.
fn is_stale(entry: &Entry, plan: &Plan, before: &Before) -> bool {
    before.local.contains(&entry.source().ip())
        && is_covered(entry.destination().ip(), plan, &before.local)
        && !is_ours(entry, plan)
        && !(entry.is_standing() && before.standing.contains(&entry.original()))
}

/// Would the rules redirect a new connection to this address?
fn is_covered(to: IpAddr, plan: &Plan, local: &HashSet<IpAddr>) -> bool {
    plan.include().contains(to) && !plan.exclude().contains(to) && !to.is_loopback() && !local.contains(&to)
}

fn local_addresses() -> io::Result<HashSet<IpAddr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    Ok(getifaddrs()?.filter_map(address).collect())
}

/// Every chain at its hook with as many rules as we wrote, the owner, and full sets. Not the words of each rule: they
/// differ between versions of nft. Nor what is in the sets of standing connections: it may have become less already.
fn verify(listing: &str, plan: &Plan) -> Result<(), Error> {
    let lacking = |what: String| Err(Error::Lacking(what));
    let lines: Vec<&str> = listing.lines().map(str::trim).collect();
    let block = |head: &str| -> Option<Vec<&str>> {
        let start = lines.iter().position(|line| *line == format!("{head} {{"))? + 1;
        Some(lines[start..].iter().copied().take_while(|line| *line != "}").collect())
    };
    if !lines.contains(&"flags owner") {
        return lacking("the owner".into());
    }
    for (chain, kind, priority) in rules::chains() {
        let block = block(&format!("chain {chain}")).unwrap_or_default();
        let hook = format!("type {kind} hook output priority {priority};");
        if !block.first().is_some_and(|line| line.starts_with(&hook)) {
            return lacking(format!("the chain {chain} ({hook})"));
        }
        let (there, wanted) = (block.len() - 1, rules::rules(plan, chain).len());
        if there != wanted {
            return lacking(format!("rules in the chain {chain}: {there} instead of {wanted}"));
        }
    }
    for (set, empty) in [
        ("include4", plan.include().v4.is_empty()),
        ("include6", plan.include().v6.is_empty()),
        ("exclude4", plan.exclude().v4.is_empty()),
        ("exclude6", plan.exclude().v6.is_empty()),
    ] {
        let full =
            block(&format!("set {set}")).unwrap_or_default().iter().any(|line| line.starts_with("elements"));
        if full == empty {
            return lacking(format!("the subnets of the set {set}"));
        }
    }
    Ok(())
}

fn has_net_admin(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits >> CAP_NET_ADMIN & 1 == 1)
}

fn note<T, E: std::error::Error + 'static>(
    failures: &mut Vec<StepFailure>,
    step: &str,
    result: Result<T, E>,
) -> Option<T> {
    result
        .map_err(|error| failures.push(StepFailure { step: step.into(), message: error_chain(&error) }))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol;

    /// `nft -n list table` of nft 1.0.6, after `only-ipv4.nft` was carried out.
    const LISTING: &str = include_str!("../../../fixtures/firewall/only-ipv4.listing");

    fn plan() -> Plan {
        let include = vec!["10.0.0.0/16".parse().unwrap()];
        let said = protocol::Plan {
            session: "golden".into(),
            include,
            exclude: vec![],
            listener_v4: Some(40001),
            listener_v6: None,
        };
        Plan::check(said).unwrap()
    }

    #[test]
    fn a_captured_listing_is_complete() {
        verify(LISTING, &plan()).unwrap();
    }

    #[test]
    fn whatever_lacks_is_named() {
        for (part, instead, lacking) in [
            ("flags owner", "", "the owner"),
            ("chain guard {", "chain other {", "the chain guard (type filter hook output priority 0;)"),
            ("priority -110", "priority -100", "the chain capture (type nat hook output priority -110;)"),
            ("ct state", "}\nct state", "rules in the chain keep: 0 instead of 1"),
            ("ct status", "ct status\nct status", "rules in the chain guard: 11 instead of 10"),
            ("elements", "", "the subnets of the set include4"),
        ] {
            let listing = LISTING.replacen(part, instead, 1);
            assert_ne!(listing, LISTING, "{part} is in the listing");
            assert_eq!(
                verify(&listing, &plan()).unwrap_err().to_string(),
                format!("the rules read back lack {lacking}")
            );
        }
    }

    #[test]
    fn the_capability_is_one_bit() {
        assert!(has_net_admin("Name:\tx\nCapEff:\t0000000000001000\n"));
        assert!(!has_net_admin("CapEff:\t000001ffffffefff\n"));
        assert!(!has_net_admin(""));
    }
}
