//! Linux: rules of nft or iptables, conntrack entries, and the order in which both come and go.
//!
//! Apply: what dead helpers left is taken out → a [`rank`] → the backend gets ready, and the link for [`routes`] → the watchdog → list the
//! connections that stand → the rules in one transaction, which leave those alone → read them back → delete conntrack
//! entries that were there before (a re-used source port would follow the old entry, past the rules), except those of standing
//! connections → the routes.
//!
//! Update: the same from the listing on, with what is new.
//!
//! Other name servers: [`names`].
//!
//! Undo, after the user side has reset the redirected connections: nothing new is redirected → wait until the resets are
//! through → delete our entries → the routes → the rules → the backend's own. Why in this order: see
//! [`nft::text`](super::nft). Every step is run, whatever became of the ones before. It is in [`undo`].

mod names;
mod permission;
mod rank;
mod routes;
mod undo;

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;

use super::UpdateError;
use super::backend::{self, Backend};
use super::conntrack::{self, Conntrack, Entry, Tuple};
use super::iptables::{self, Iptables};
use super::nft::{self, Nft};
use super::standing;
use super::watchdog::Watchdog;
use crate::error_chain;
use crate::plan::Plan;
use crate::protocol::{Method, StepFailure, UndoReport};
use rank::Rank;
use routes::Routes;
use undo::note;

pub(super) use permission::permitted;

/// Why nothing is redirected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// We may not.
    #[error("changing the firewall needs root with CAP_NET_ADMIN; start kshuttle-helper by sudo")]
    Privilege,
    /// nft does not do it, or iptables.
    #[error(transparent)]
    Backend(#[from] backend::Error),
    /// Neither does.
    #[error("neither nft nor iptables can redirect here: {nft}; {iptables}")]
    Neither {
        /// Why nft does not.
        nft: String,
        /// Why iptables does not.
        iptables: String,
    },
    /// The watchdog.
    #[error("starting the watchdog failed")]
    Watchdog(#[source] io::Error),
    /// The connections that stand.
    #[error("listing the connections that are open failed")]
    Standing(#[source] standing::Error),
    /// Connection tracking.
    #[error("clearing the way for new connections failed")]
    Conntrack(#[source] conntrack::Error),
    /// The addresses of this machine.
    #[error("listing this machine's addresses failed")]
    Addresses(#[source] io::Error),
    /// Routes of our own to other ranges.
    #[error(transparent)]
    Routes(#[from] routes::Error),
    /// A place among the sessions.
    #[error(transparent)]
    Rank(#[from] rank::Error),
}

impl Error {
    /// The name in [`crate::protocol::Reply::Failed`].
    pub(crate) fn step(&self) -> &'static str {
        match self {
            Self::Privilege => "privilege",
            Self::Backend(error) => error.step(),
            Self::Neither { .. } => "rules",
            Self::Watchdog(_) => "watchdog",
            Self::Standing(_) | Self::Addresses(_) => "standing",
            Self::Conntrack(_) => "conntrack",
            Self::Routes(_) => "routes",
            Self::Rank(_) => "rank",
        }
    }
}

/// Rules that stand.
#[derive(Debug)]
pub(crate) struct Rules {
    plan: Plan,
    backend: Box<dyn Backend>,
    routes: Option<Routes>,
    watchdog: Watchdog,
    notes: Vec<String>,
    conntrack: Conntrack,
    _rank: Rank,
}

/// What this machine had when the rules came.
pub(super) struct Before {
    /// Its own addresses.
    local: HashSet<IpAddr>,
    /// Its connections with what is included.
    standing: HashSet<Tuple>,
}

/// Puts the rules in; all or nothing.
pub(super) fn apply(plan: Plan) -> Result<Rules, Error> {
    let swept = iptables::sweep();
    let (by_nft, by_iptables) = match plan.method() {
        Method::Nft => return apply_by(plan, |plan| Nft::start(plan).map(boxed), swept),
        Method::Iptables => return apply_by(plan, |plan| Iptables::start(plan).map(boxed), swept),
        Method::Auto => match apply_by(plan.clone(), |plan| Nft::start(plan).map(boxed), swept.clone()) {
            Err(Error::Backend(error)) if nft::is_lack(&error) => {
                (error, apply_by(plan, |plan| Iptables::start(plan).map(boxed), swept))
            }
            done => return done,
        },
    };
    match by_iptables {
        Ok(mut rules) => {
            rules.notes.push(format!("nft cannot be used: {}", error_chain(&by_nft)));
            Ok(rules)
        }
        Err(error) => Err(Error::Neither { nft: error_chain(&by_nft), iptables: error_chain(&error) }),
    }
}

fn boxed(backend: impl Backend + 'static) -> Box<dyn Backend> {
    Box::new(backend)
}

fn apply_by(
    plan: Plan,
    start: impl FnOnce(&Plan) -> Result<Box<dyn Backend>, backend::Error>,
    mut notes: Vec<String>,
) -> Result<Rules, Error> {
    let rank = Rank::take()?; // before the watchdog, which holds it, too
    let exempt = names::exempt_groups(&plan, rank.number());
    let plan = plan.with_exempt(exempt);
    let conntrack = Conntrack::open().map_err(Error::Conntrack)?;
    let mut backend = start(&plan)?;
    let routes = routes::noted(plan.routed().map(|_| Routes::start(plan.table())), &mut notes);
    let watchdog = match Watchdog::start(|| undo::as_watchdog(&mut *backend, &plan, routes.as_ref())) {
        Ok(watchdog) => watchdog,
        Err(error) => {
            // Neither made anything yet that others could see.
            let _ = routes.map(Routes::end);
            let _ = backend.end();
            return Err(Error::Watchdog(error));
        }
    };
    let mut rules = Rules { plan, backend, routes, watchdog, notes, conntrack, _rank: rank };
    let before = match rules.put_in() {
        Ok(before) => before,
        Err(error) => {
            // All or none, and it was none; if the backend only was silent, its end clears up.
            let _ = rules.leave();
            return Err(error);
        }
    };
    match rules.settle(&before) {
        Ok(()) => {
            let made = rules.routes.take().map(|routes| routes.make(&rules.plan.include().v6));
            rules.routes = routes::noted(made, &mut rules.notes);
            Ok(rules)
        }
        Err(error) => {
            let _ = rules.undo(); // the first failure is the one to report
            Err(error)
        }
    }
}

impl Rules {
    /// Who redirects.
    pub(super) fn method(&self) -> &'static str {
        self.backend.method()
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn table(&self) -> &str {
        self.plan.table()
    }

    /// What could not be had, a sentence each.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    pub(super) fn datagram_seconds(&self) -> [u32; 2] {
        self.backend.datagram_seconds().unwrap_or_else(system_datagram_seconds)
    }

    /// Hangs up when the rules are gone without us.
    pub(super) fn lost(&self) -> Option<BorrowedFd<'_>> {
        self.backend.lost()
    }

    pub(super) fn mend_every(&self) -> Option<Duration> {
        self.backend.mend_every()
    }

    pub(super) fn mend(&mut self) -> Result<Option<String>, Error> {
        let mended = self.backend.mend(&self.plan)?;
        if mended.is_some() {
            // What was made meanwhile went past the rules, and would go on to.
            let local = local_addresses().map_err(Error::Addresses)?;
            names::follow(&mut self.conntrack, &self.plan, self.plan.name_servers(), &local)?;
            self.settle(&Before { local, standing: HashSet::new() })?;
        }
        Ok(mended)
    }

    /// The first step to other ranges: what this machine has that only they cover.
    pub(super) fn prepare(&self, plan: &Plan) -> Result<Before, Error> {
        look(plan, |to| !self.plan.covers(to))
    }

    /// The second: the transaction. On an error the old ranges stand.
    pub(super) fn exchange(&mut self, plan: Plan, before: &Before) -> Result<(), Error> {
        let standing: Vec<Tuple> = before.standing.iter().copied().collect();
        let mut update = || Ok(self.backend.update(&plan, &standing)?);
        match &self.routes {
            Some(routes) => routes.follow(&self.plan.include().v6, &plan.include().v6, update)?,
            None => update()?,
        }
        self.plan = plan;
        Ok(())
    }

    /// The last: proof that the rules stand, then nothing from before may bypass them.
    pub(super) fn settle(&mut self, before: &Before) -> Result<(), Error> {
        self.backend.verify(&self.plan)?;
        let plan = &self.plan;
        let stale =
            self.conntrack.entries(|entry| is_stale(entry, plan, before)).map_err(Error::Conntrack)?;
        for entry in &stale {
            self.conntrack.delete(entry).map_err(Error::Conntrack)?;
        }
        Ok(())
    }

    /// Other name servers: the transaction, proof that they stand, and then everybody's queries follow at once.
    pub(super) fn names(&mut self, plan: Plan) -> Result<(), UpdateError> {
        let (backend, routes) = (&mut *self.backend, self.routes.as_ref());
        // A watchdog knows what was there when it began, so there is a new one, before what only it knows of.
        let watchdog = Watchdog::start(|| undo::as_watchdog(backend, &plan, routes));
        let watchdog = watchdog.map_err(Error::Watchdog).map_err(UpdateError::Kept)?;
        let before = std::mem::replace(&mut self.watchdog, watchdog);
        before.dismiss().map_err(Error::Watchdog).map_err(UpdateError::Broken)?;
        if let Err(error) = self.backend.names(&plan) {
            // iptables carries out one family and table after the other; the first failure is the one to report.
            let _ = self.backend.names(&self.plan);
            return Err(UpdateError::Kept(error.into()));
        }
        let changed = names::changed(&self.plan, &plan);
        self.plan = plan;
        self.backend.verify(&self.plan).map_err(Error::Backend).map_err(UpdateError::Broken)?;
        let local = local_addresses().map_err(Error::Addresses).map_err(UpdateError::Broken)?;
        names::follow(&mut self.conntrack, &self.plan, &changed, &local).map_err(UpdateError::Broken)
    }

    /// Sockets that the rules let past.
    pub(super) fn sockets(&self, v6: bool, stream: bool, count: u8) -> io::Result<Vec<OwnedFd>> {
        names::sockets(self.plan.own_group(), v6, stream, count)
    }

    /// Where datagrams wanted to go that came from there to this listener of ours.
    pub(super) fn origin(&mut self, from: SocketAddr, at: SocketAddr) -> Result<Option<SocketAddr>, Error> {
        let original = self.conntrack.original_of(from, at).map_err(Error::Conntrack)?;
        Ok(original.filter(|to| *to != at))
    }

    pub(super) fn undo(mut self) -> UndoReport {
        let mut report = undo::undo(&mut *self.backend, &self.plan, self.routes.as_ref());
        report.failures.extend(self.leave());
        report
    }

    /// The transaction. What was there before is listed as late as possible: a connection made in between is unknown.
    fn put_in(&mut self) -> Result<Before, Error> {
        let before = look(&self.plan, |_| true)?;
        let standing: Vec<Tuple> = before.standing.iter().copied().collect();
        self.notes.extend(self.backend.put_in(&self.plan, &standing)?);
        Ok(before)
    }

    /// The children: first the watchdog, which shares what the rules and the routes live by.
    fn leave(self) -> Vec<StepFailure> {
        let mut failures = Vec::new();
        let method = self.backend.method();
        note(&mut failures, "watchdog", self.watchdog.dismiss());
        if let Some(routes) = self.routes {
            note(&mut failures, "holder", routes.end());
        }
        note(&mut failures, method, self.backend.end());
        failures
    }
}

/// What this machine has now that the plan covers and that is `wanted`.
fn look(plan: &Plan, wanted: impl Fn(SocketAddr) -> bool) -> Result<Before, Error> {
    let local = local_addresses().map_err(Error::Addresses)?;
    let standing = standing::connections(|to| wanted(to) && is_covered(to, plan, &local));
    Ok(Before { standing: standing.map_err(Error::Standing)?.into_iter().collect(), local })
}

/// Redirected to one of our listeners; a connection made to it directly is not.
fn is_ours(entry: &Entry, plan: &Plan) -> bool {
    entry.translated_to().is_some_and(|to| plan.is_listener(to))
}

/// Made on this machine, or behind a bridge of ours, towards what is ours now, and neither by our rules nor still in use.
/// Other connections that pass through this machine, and those that came in from outside, are not touched.
fn is_stale(entry: &Entry, plan: &Plan, before: &Before) -> bool {
    let from = entry.source().ip();
    let bridged = plan.bridges().iter().any(|bridge| bridge.subnet.contains(&from));
    (bridged || before.local.contains(&from))
        && is_covered(entry.destination(), plan, &before.local)
        && !is_ours(entry, plan)
        && !(entry.is_standing() && (bridged || before.standing.contains(&entry.original())))
}

/// Would the rules redirect a new connection to this address?
fn is_covered(to: SocketAddr, plan: &Plan, local: &HashSet<IpAddr>) -> bool {
    plan.covers(to) && !to.ip().is_loopback() && !to.ip().is_multicast() && !local.contains(&to.ip())
}

fn local_addresses() -> io::Result<HashSet<IpAddr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    Ok(getifaddrs()?.filter_map(address).collect())
}

/// The kernel's `Documentation/networking/nf_conntrack-sysctl.rst`; its defaults where they cannot be read.
fn system_datagram_seconds() -> [u32; 2] {
    let read = |name: &str, default: u32| {
        let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default)
    };
    [read("udp_timeout", 30), read("udp_timeout_stream", 120)]
}
