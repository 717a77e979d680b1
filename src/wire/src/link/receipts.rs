//! What arrived, and when to say so.

use std::time::Duration;

use super::observer::TimedAck;

/// Bytes after which an acknowledgement is due: at 64 KiB pacing loses 7 % on a 20 Mbit/s line because it hears too
/// rarely, below 32 KiB nothing is gained.
const ACK_BYTES: u64 = 32 << 10;

/// Time after which the first unacknowledged byte is acknowledged at the latest; 20 ms costs pacing 4 %.
const ACK_TIME: Duration = Duration::from_millis(5);

/// Age from which an acknowledgement joins other bytes that leave anyway.
const JOIN_TIME: Duration = Duration::from_millis(1);

/// Received bytes and the acknowledgements of them.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    received: u64,
    last: Duration,
    told: u64,
    /// When the first byte not yet acknowledged arrived.
    oldest: Option<Duration>,
}

impl Receipts {
    /// Link bytes received.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// A greeting told the peer all that was received.
    pub(super) fn told_all(&mut self) {
        self.told = self.received;
        self.oldest = None;
    }

    pub(super) fn count(&mut self, bytes: usize, now: Duration) {
        self.received += bytes as u64;
        self.last = now;
        self.oldest.get_or_insert(now);
    }

    /// The acknowledgement to send now, if one is due; `joins` when other bytes leave now.
    pub(super) fn take(&mut self, now: Duration, joins: bool) -> Option<TimedAck> {
        let age = now.saturating_sub(self.oldest?);
        let due = self.received - self.told >= ACK_BYTES || age >= ACK_TIME || joins && age >= JOIN_TIME;
        if !due {
            return None;
        }
        self.told_all();
        let held = now.saturating_sub(self.last);
        Some(TimedAck { offset: self.received, received_at: self.last, held })
    }

    /// When an acknowledgement is due, if nothing more comes.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.oldest.map(|oldest| oldest + ACK_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn bytes_are_acknowledged_by_count_by_age_and_by_the_way() {
        let mut receipts = Receipts::default();
        assert_eq!(receipts.take(ms(0), true), None);
        receipts.count(100, ms(10));
        receipts.count(50, ms(12));
        assert_eq!(receipts.deadline(), Some(ms(15)));
        assert_eq!(receipts.take(ms(14), false), None);
        let ack = TimedAck { offset: 150, received_at: ms(12), held: ms(2) };
        assert_eq!(receipts.take(ms(14), true), Some(ack));
        assert_eq!(receipts.deadline(), None);

        receipts.count(32 << 10, ms(20));
        let ack = TimedAck { offset: 150 + (32 << 10), received_at: ms(20), held: ms(0) };
        assert_eq!(receipts.take(ms(20), false), Some(ack));

        receipts.count(1, ms(30));
        assert_eq!(receipts.take(ms(30), true), None, "younger than a millisecond");
        assert!(receipts.take(ms(35), false).is_some());
        receipts.count(1, ms(40));
        receipts.told_all();
        assert_eq!(receipts.take(ms(99), false), None, "the greeting said it");
    }
}
