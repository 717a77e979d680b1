//! What the pacing learns from the link.

use std::time::Duration;

/// One acknowledgement of the peer, with the peer's own times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedAck {
    /// All link bytes before this offset arrived.
    pub offset: u64,
    /// The peer's monotonic clock when the last of these bytes arrived. The clocks' distance is unknown: only differences count.
    pub received_at: Duration,
    /// How long the peer kept the acknowledgement before sending it.
    pub held: Duration,
}

/// Hears what a link writes and what its peer acknowledges. Calls come from the link's tasks and must not block.
pub trait Observer: Send + Sync {
    /// Bytes up to the offset `end` were given to the link to send.
    fn written(&self, end: u64);
    /// The peer acknowledged.
    fn acknowledged(&self, ack: TimedAck);
    /// A new attachment carries the link: path, clocks and rates may all be different. The peer has received all bytes
    /// before the offset `received`, whatever became of its acknowledgements.
    fn attached(&self, received: u64);
}
