//! macOS: there is no systemd-resolved to tell.

use crate::protocol;

/// Always.
#[derive(Debug, thiserror::Error)]
#[error("macOS has no systemd-resolved")]
pub(crate) struct Error;

/// There is none.
#[derive(Debug)]
pub(super) enum Link {}

impl Link {
    pub(super) fn make(_: String, _: &protocol::Link) -> Result<Self, Error> {
        Err(Error)
    }

    pub(super) fn change(&mut self, _: &protocol::Link) -> Result<(), Error> {
        match *self {}
    }

    pub(super) fn stands(&self) -> bool {
        match *self {}
    }

    pub(super) fn end(self) -> Vec<(&'static str, Error)> {
        match self {}
    }
}
