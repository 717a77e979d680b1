//! Redirecting connections to our listeners: the portable verbs. `apply` takes a checked plan and either all of it
//! stands or nothing does; `undo` returns the machine to what it was, and says what it could not return.

#[cfg(target_os = "linux")]
mod conntrack;
#[cfg(target_os = "linux")]
mod nft;
#[cfg(target_os = "macos")]
mod pf;
#[cfg(target_os = "linux")]
mod standing;
mod watchdog;

#[cfg(target_os = "linux")]
use nft as system;
#[cfg(target_os = "macos")]
use pf as system;

use std::os::fd::BorrowedFd;

use crate::plan::Plan;
use crate::protocol::UndoReport;

pub(crate) use system::Error;

/// How connections are redirected on this system.
pub(crate) const METHOD: &str = system::METHOD;

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

    /// The name under which people find it in the system's listings.
    pub(crate) fn table(&self) -> &str {
        self.0.table()
    }

    /// Hangs up if the redirection vanishes without us.
    pub(crate) fn lost(&self) -> BorrowedFd<'_> {
        self.0.lost()
    }

    /// Takes it out. The user side has reset its connections, or does so now.
    pub(crate) fn undo(self) -> UndoReport {
        self.0.undo()
    }
}
