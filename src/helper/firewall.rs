//! Redirecting connections to our listeners: the portable verbs. `apply` takes a checked plan and either all of it
//! stands or nothing does; `undo` returns the machine to what it was, and says what it could not return.

#[cfg(target_os = "linux")]
mod backend;
#[cfg(target_os = "linux")]
mod conntrack;
#[cfg(target_os = "linux")]
mod hostile;
#[cfg(target_os = "linux")]
mod iptables;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
mod nft;
#[cfg(target_os = "macos")]
mod pf;
#[cfg(target_os = "linux")]
pub(crate) mod program;
#[cfg(target_os = "linux")]
mod standing;
mod watchdog;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use pf as system;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use ipnet::IpNet;

use crate::plan::{self, Plan};
use crate::protocol::{NameServer, UndoReport};

pub(crate) use system::Error;

/// Why other ranges, or other name servers, are not in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateError {
    /// They are refused.
    #[error("this change of the plan is refused")]
    Plan(#[from] plan::Error),
    /// They could not be put in; the old ones stand.
    #[error(transparent)]
    Kept(Error),
    /// They may stand or not: nobody can tell.
    #[error(transparent)]
    Broken(Error),
}

/// A redirection that stands.
#[derive(Debug)]
pub(crate) struct Firewall(system::Rules);

impl Firewall {
    /// May this process do it at all? Asked before a plan is waited for, so that the user hears it first.
    pub(crate) fn permitted() -> Result<(), Error> {
        system::permitted()
    }

    /// Puts the plan into force; on an error nothing of it is left.
    pub(crate) fn apply(plan: Plan) -> Result<Self, Error> {
        system::apply(plan).map(Self)
    }

    /// Who redirects.
    pub(crate) fn method(&self) -> &'static str {
        self.0.method()
    }

    /// The name under which people find it in the system's listings.
    pub(crate) fn table(&self) -> &str {
        self.0.table()
    }

    /// What could not be had, a sentence each.
    pub(crate) fn notes(&self) -> &[String] {
        self.0.notes()
    }

    /// Seconds that the system remembers an exchange of datagrams without an answer, and one with answers.
    pub(crate) fn datagram_seconds(&self) -> [u32; 2] {
        self.0.datagram_seconds()
    }

    /// The plan with other ranges, in force; on an error the old ones are.
    pub(crate) fn update(&mut self, include: &[IpNet], exclude: &[IpNet]) -> Result<(), UpdateError> {
        let plan = self.0.plan().with_ranges(include, exclude)?;
        let before = self.0.prepare(&plan).map_err(UpdateError::Kept)?;
        self.0.exchange(plan, &before).map_err(UpdateError::Kept)?;
        self.0.settle(&before).map_err(UpdateError::Broken)
    }

    /// The plan with other name servers, in force; on an error the old ones are.
    pub(crate) fn names(&mut self, servers: &[NameServer]) -> Result<(), UpdateError> {
        let plan = self.0.plan().with_names(servers)?;
        self.0.names(plan)
    }

    /// This many sockets that may ask name servers themselves.
    pub(crate) fn sockets(&self, v6: bool, stream: bool, count: u8) -> io::Result<Vec<OwnedFd>> {
        self.0.sockets(v6, stream, count)
    }

    /// Where datagrams wanted to go that came from there to this listener of ours; none if the system does not know.
    pub(crate) fn origin(&mut self, from: SocketAddr, at: SocketAddr) -> Result<Option<SocketAddr>, Error> {
        self.0.origin(from, at)
    }

    /// Hangs up if the redirection vanishes without us; none where it cannot.
    pub(crate) fn lost(&self) -> Option<BorrowedFd<'_>> {
        self.0.lost()
    }

    /// How often to [`Firewall::mend`]; none where nobody else can touch it.
    pub(crate) fn mend_every(&self) -> Option<Duration> {
        self.0.mend_every()
    }

    /// Puts back what somebody else took out, and says what it was.
    pub(crate) fn mend(&mut self) -> Result<Option<String>, Error> {
        self.0.mend()
    }

    /// Takes it out. The user side has reset its connections, or does so now.
    pub(crate) fn undo(self) -> UndoReport {
        self.0.undo()
    }
}
