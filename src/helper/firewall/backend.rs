//! Why the rules are not in, by whichever backend: most of it can befall both.

use std::io;

use super::program;

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
