//! What nft and iptables have in common: what they do for the rules, and why they cannot.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::conntrack::Tuple;
use super::program;
use crate::plan::Plan;

/// What puts rules into the kernel, and takes them out.
pub(super) trait Backend: std::fmt::Debug {
    /// For [`crate::protocol::Reply::Ready`].
    fn method(&self) -> &'static str;
    /// Everything, or nothing of it; what could not be had is said in a sentence each. These connections are left alone.
    fn put_in(&mut self, plan: &Plan, standing: &[Tuple]) -> Result<Vec<String>, Error>;
    /// Proof that the kernel has it.
    fn verify(&mut self, plan: &Plan) -> Result<(), Error>;
    /// Other ranges, in one step; these connections are left alone, too.
    fn update(&mut self, plan: &Plan, standing: &[Tuple]) -> Result<(), Error>;
    /// Other name servers, in one step.
    fn names(&mut self, plan: &Plan) -> Result<(), Error>;
    /// Nothing new is redirected any more; what is open stays translated.
    fn release(&mut self, plan: &Plan) -> Result<(), Error>;
    /// Packets that were not let past.
    fn dropped(&mut self, plan: &Plan) -> Result<u64, Error>;
    /// The end of the rules.
    fn take_out(&mut self, plan: &Plan) -> Result<(), Error>;
    /// What the backend itself holds. The watchdog is gone by then.
    fn end(self: Box<Self>) -> Result<(), Error>;
    /// Conntrack's timeouts of redirected datagrams, if they are not the system's.
    fn datagram_seconds(&self) -> Option<[u32; 2]>;
    /// Hangs up when the rules are gone without us.
    fn lost(&self) -> Option<BorrowedFd<'_>>;
    /// How often to ask [`Backend::mend`]; none where nobody else can touch the rules.
    fn mend_every(&self) -> Option<Duration>;
    /// Puts back what somebody else took out, and says what it was.
    fn mend(&mut self, plan: &Plan) -> Result<Option<String>, Error>;
}

/// Why nft or iptables does not redirect.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// This one cannot be used at all.
    #[error("starting {0} failed")]
    Start(&'static str, #[source] program::Error),
    /// The record of what iptables leaves when we are killed.
    #[error("writing down what we change failed")]
    Record(#[source] io::Error),
    /// There are rules with our name already.
    #[error("a session of this name redirects already")]
    Exists,
    /// More than iptables is given rules for.
    #[error("more than {0} connections with included addresses are open: exclude some of these addresses")]
    TooManyStanding(usize),
    /// The transaction; nothing of it was carried out. That is all of nft's rules, a table of iptables'.
    #[error("putting the rules in failed")]
    Rules(#[source] program::Error),
    /// The read-back failed.
    #[error("reading the rules back failed")]
    ReadBack(#[source] program::Error),
    /// The read-back shows something else.
    #[error("the rules read back lack {0}")]
    Lacking(String),
    /// This one's child did not end.
    #[error("ending {0} failed")]
    End(&'static str, #[source] program::Error),
}

impl Error {
    /// The name in [`crate::protocol::Reply::Failed`].
    pub(super) fn step(&self) -> &'static str {
        match self {
            Self::Start(backend, _) | Self::End(backend, _) => backend,
            Self::Record(_) => "leftovers",
            Self::Exists | Self::TooManyStanding(_) | Self::Rules(_) => "rules",
            Self::ReadBack(_) | Self::Lacking(_) => "verify",
        }
    }
}
