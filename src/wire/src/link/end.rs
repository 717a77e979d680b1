//! How a link can end, for whoever uses it.

use super::frame::CloseReason;
use super::hello::Refusal;

/// How a link ended. Only [`Done`](Self::Done) is a clean end for the layer above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// One of the layers above ended, in order.
    #[error("the link is closed")]
    Done,
    /// The peer closed it.
    #[error("the peer closed the link")]
    Peer(#[source] CloseReason),
    /// This side closed it.
    #[error("the link was closed here")]
    Local(#[source] CloseReason),
    /// The server let us not attach again, and never will.
    #[error("attach to the link again")]
    Refused(#[source] Refusal),
    /// No attachment for too long.
    #[error("no connection carried the link for too long")]
    Expired,
    /// The layer above wrote more than its own window allows.
    #[error("more was written to the link than may wait for acknowledgement")]
    Unacknowledged,
    /// The layer above does not read.
    #[error("more arrived on the link than may wait for being read")]
    Unread,
    /// The peer acknowledged what was never sent, or took an acknowledgement back.
    #[error("the peer says it received {claimed} bytes, which is not within {lowest} to {highest}")]
    Offset {
        /// What it said.
        claimed: u64,
        /// What it had said before.
        lowest: u64,
        /// What was sent.
        highest: u64,
    },
}
