//! macOS: an anchor of our own, that the system's own rules evaluate, and pf switched on for as long as it stands.
//!
//! Apply: is our anchor evaluated at all → pf on, for which we get a token → the watchdog, which must know it → the rules → read
//! them back → the lookout. pf runs before the rules come, so that whoever kills us leaves nothing that nobody knows of.
//!
//! Undo, after the user side has reset the redirected connections: empty the anchor → the token back → end the translations
//! that are left. Every step is run, whatever became of the ones before.
//!
//! Texts, arguments and the judging of answers are in [`crate::macos`].

mod lookout;

use std::error::Error as StdError;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::unistd::geteuid;

use super::UpdateError;
use super::watchdog::Watchdog;
use crate::error_chain;
use crate::macos::pfctl::{self, Lacking};
use crate::macos::program::{ProgramError, Said, run};
use crate::macos::rules::{self, Refused};
use crate::plan::Plan;
use crate::protocol::{StepFailure, UndoReport};
use lookout::Lookout;

/// How long the undo may spend on ending translations, one call for each subnet. The user side waits 10 s for all of the undo.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing is redirected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// We may not.
    #[error("changing the firewall needs root; start kshuttle-helper by sudo")]
    Privilege,
    /// pf cannot do this.
    #[error("the plan is refused")]
    Refused(#[source] Refused),
    /// The addresses of this machine.
    #[error("listing this machine's addresses failed")]
    Addresses(#[source] io::Error),
    /// pf would not ask our rules, or they do not stand.
    #[error(transparent)]
    Lacking(#[from] Lacking),
    /// pf said nothing of the token that switches it off again.
    #[error("pfctl gave no token for switching pf on; it said: {0}")]
    Token(String),
    /// A call failed.
    #[error(transparent)]
    Pfctl(#[from] ProgramError),
    /// One of the copies of this process.
    #[error("starting the watchdog failed")]
    Watchdog(#[source] io::Error),
}

impl Error {
    /// The name in [`crate::protocol::Reply::Failed`].
    pub(crate) fn step(&self) -> &'static str {
        match self {
            Self::Privilege => "privilege",
            Self::Refused(_) => "plan",
            Self::Addresses(_) => "standing",
            Self::Lacking(_) => "verify",
            Self::Token(_) | Self::Pfctl(_) => "rules",
            Self::Watchdog(_) => "watchdog",
        }
    }
}

/// Rules that stand.
#[derive(Debug)]
pub(crate) struct Rules {
    plan: Plan,
    rules: rules::Rules,
    token: u64,
    watchdog: Watchdog,
    lookout: Lookout,
}

/// May this process change the firewall?
pub(super) fn permitted() -> Result<(), Error> {
    if geteuid().is_root() { Ok(()) } else { Err(Error::Privilege) }
}

/// Puts the rules in; all or nothing.
pub(super) fn apply(plan: Plan) -> Result<Rules, Error> {
    let local = local_addresses().map_err(Error::Addresses)?;
    let rules = rules::Rules::new(&plan, &local).map_err(Error::Refused)?;
    is_evaluated()?;
    let remarks = pfctl(&pfctl::enable(), "")?.remarks;
    let token = pfctl::token(&remarks).ok_or(Error::Token(remarks))?;
    let watchdog = match Watchdog::start(|| undo(&rules, token).is_empty()) {
        Ok(watchdog) => watchdog,
        Err(error) => {
            let _ = undo(&rules, token); // the first failure is the one to report
            return Err(Error::Watchdog(error));
        }
    };
    match put_in(&rules) {
        Ok(lookout) => Ok(Rules { plan, rules, token, watchdog, lookout }),
        Err(error) => {
            let _ = undo(&rules, token);
            let _ = watchdog.dismiss();
            Err(error)
        }
    }
}

impl Rules {
    /// Who redirects.
    pub(super) fn method(&self) -> &'static str {
        "pf"
    }

    pub(super) fn table(&self) -> &str {
        &self.rules.anchor
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What could not be had, a sentence each: a plan with that is refused.
    pub(super) fn notes(&self) -> &[String] {
        &[]
    }

    /// pf's timeouts `udp.single` and `udp.multiple` (pf.conf(5)), for a plan with datagrams, which is refused yet.
    pub(super) fn datagram_seconds(&self) -> [u32; 2] {
        [60, 60]
    }

    /// The first step to other ranges: their rules.
    pub(super) fn prepare(&self, plan: &Plan) -> Result<rules::Rules, Error> {
        let local = local_addresses().map_err(Error::Addresses)?;
        rules::Rules::new(plan, &local).map_err(Error::Refused)
    }

    /// The second: pf exchanges the whole anchor at once. On an error the old ranges stand.
    pub(super) fn exchange(&mut self, plan: Plan, rules: &rules::Rules) -> Result<(), Error> {
        pfctl(&pfctl::load(&rules.anchor), &rules.text())?;
        self.plan = plan;
        Ok(())
    }

    /// The last: proof that they stand, and somebody else who looks whether they go on standing.
    pub(super) fn settle(&mut self, rules: &rules::Rules) -> Result<(), Error> {
        stands(rules)?;
        let lookout = lookout(rules)?;
        let before = std::mem::replace(&mut self.lookout, lookout);
        self.rules = rules.clone();
        before.dismiss().map_err(Error::Watchdog)
    }

    /// Not yet.
    pub(super) fn names(&mut self, _: Plan) -> Result<(), UpdateError> {
        Err(UpdateError::Kept(Error::Refused(Refused::NotYet("name servers"))))
    }

    /// Not yet.
    pub(super) fn sockets(&self, _: bool, _: bool, _: u8) -> io::Result<Vec<OwnedFd>> {
        Err(io::Error::other(Refused::NotYet("name servers")))
    }

    /// Nobody asks: a plan with datagrams is refused.
    pub(super) fn origin(&mut self, _: SocketAddr, _: SocketAddr) -> Result<Option<SocketAddr>, Error> {
        Err(Error::Refused(Refused::NotYet("datagrams")))
    }

    /// Hangs up when the rules are gone without us.
    pub(super) fn lost(&self) -> Option<BorrowedFd<'_>> {
        Some(self.lookout.ending())
    }

    /// The lookout looks after the rules.
    pub(super) fn mend_every(&self) -> Option<Duration> {
        None
    }

    pub(super) fn mend(&mut self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    pub(super) fn undo(self) -> UndoReport {
        let mut failures = Vec::new();
        // First, or it would tell that the rules are gone.
        note(&mut failures, "lookout", self.lookout.dismiss());
        failures.extend(undo(&self.rules, self.token));
        note(&mut failures, "watchdog", self.watchdog.dismiss());
        UndoReport { failures, ..UndoReport::default() }
    }
}

/// The rules, and proof that they stand; then somebody who looks whether they go on standing.
fn put_in(rules: &rules::Rules) -> Result<Lookout, Error> {
    pfctl(&pfctl::load(&rules.anchor), &rules.text())?;
    stands(rules)?;
    lookout(rules)
}

fn lookout(rules: &rules::Rules) -> Result<Lookout, Error> {
    Lookout::start(|| stands(rules).is_ok() && is_evaluated().is_ok()).map_err(Error::Watchdog)
}

/// Would rules in our anchor be asked for packets on lo0?
fn is_evaluated() -> Result<(), Error> {
    let translation = pfctl(&pfctl::translation(None), "")?.output;
    let filter = pfctl(&pfctl::filter(None), "")?.output;
    pfctl::parents(&translation, &filter)?;
    pfctl::not_skipped(&pfctl(&pfctl::interface(), "")?.output)?;
    Ok(())
}

/// pf is on and has in our anchor what we wrote, and nothing else.
fn stands(rules: &rules::Rules) -> Result<(), Error> {
    pfctl::is_on(&pfctl(&pfctl::info(), "")?.output)?;
    let translation = pfctl(&pfctl::translation(Some(&rules.anchor)), "")?.output;
    let filter = pfctl(&pfctl::filter(Some(&rules.anchor)), "")?.output;
    pfctl::rules_stand(rules, &translation, &filter)?;
    pfctl::tables_stand(rules, |table| Ok(pfctl(&pfctl::table(&rules.anchor, table), "")?.output))
}

fn undo(rules: &rules::Rules, token: u64) -> Vec<StepFailure> {
    let mut failures = Vec::new();
    note(&mut failures, "flush", pfctl(&pfctl::flush(&rules.anchor), ""));
    note(&mut failures, "token", pfctl(&pfctl::release(token), ""));
    let deadline = Instant::now() + KILL_PATIENCE;
    for net in &rules.nets {
        if Instant::now() >= deadline {
            let message = format!("{net} and those after it were not reached in time");
            failures.push(StepFailure { step: "states".into(), message });
            break;
        }
        note(&mut failures, "states", pfctl(&pfctl::kill_states(net), ""));
    }
    failures
}

fn pfctl(arguments: &[String], input: &str) -> Result<Said, ProgramError> {
    run(pfctl::PROGRAM, arguments, input)
}

fn local_addresses() -> io::Result<Vec<Ipv4Addr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| Some(interface.address?.as_sockaddr_in()?.ip());
    Ok(getifaddrs()?.filter_map(address).collect())
}

fn note<T, E: StdError + 'static>(failures: &mut Vec<StepFailure>, step: &str, result: Result<T, E>) {
    if let Err(error) = result {
        failures.push(StepFailure { step: step.into(), message: error_chain(&error) });
    }
}
