//! What arrived and waits for the layer above.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

/// Received bytes that wait for the layer above before the connection is read no further: TCP then slows the peer.
const PAUSE_ABOVE: usize = 1 << 20;

/// How long it may pause. A layer above that reads nothing for longer must not make the path look dead; from then on
/// only the hard limit bounds what is kept.
const PAUSE_TIME: Duration = Duration::from_secs(2);

/// Received bytes that nobody has read.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pieces: VecDeque<Bytes>,
    unread: usize,
    /// The layer above reads no more.
    discards: bool,
    /// Since when the connection is not read.
    paused: Option<Duration>,
}

impl Inbox {
    pub(super) fn put(&mut self, data: Bytes) {
        if !self.discards {
            self.unread += data.len();
            self.pieces.push_back(data);
        }
    }

    /// Moves what arrived into `ready`. True when reading had paused and may go on.
    pub(super) fn take(&mut self, ready: &mut VecDeque<Bytes>) -> bool {
        ready.append(&mut self.pieces);
        self.unread = 0;
        self.paused.take().is_some()
    }

    /// Whatever arrived or will arrive is of no use to anybody.
    pub(super) fn discard(&mut self) {
        self.discards = true;
        self.pieces.clear();
        self.unread = 0;
    }

    /// Bytes that wait.
    pub(super) fn unread(&self) -> usize {
        self.unread
    }

    /// Whether the connection may be read.
    pub(super) fn may_read(&mut self, now: Duration) -> bool {
        if self.unread <= PAUSE_ABOVE {
            self.paused = None;
            return true;
        }
        now >= *self.paused.get_or_insert(now) + PAUSE_TIME
    }

    /// When it may be read though nothing is taken.
    pub(super) fn pauses_until(&self) -> Option<Duration> {
        self.paused.map(|paused| paused + PAUSE_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEBIBYTE: Bytes = Bytes::from_static(&[0; 1 << 20]);
    const BYTE: Bytes = Bytes::from_static(&[0]);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_full_inbox_pauses_reading_until_it_is_taken_or_two_seconds_are_over() {
        let (mut inbox, mut ready) = (Inbox::default(), VecDeque::new());
        inbox.put(MEBIBYTE);
        assert!(inbox.may_read(ms(10)));
        assert!(!inbox.take(&mut ready), "it had not paused");

        inbox.put(MEBIBYTE);
        inbox.put(BYTE);
        assert!(!inbox.may_read(ms(20)));
        assert_eq!(inbox.pauses_until(), Some(ms(2_020)));
        assert!(!inbox.may_read(ms(2_019)));
        assert!(inbox.may_read(ms(2_020)));
        assert_eq!(inbox.unread(), (1 << 20) + 1);
        assert!(inbox.take(&mut ready));
        assert_eq!((inbox.unread(), inbox.pauses_until(), ready.len()), (0, None, 3));
    }

    #[test]
    fn what_nobody_will_read_is_not_kept() {
        let (mut inbox, mut ready) = (Inbox::default(), VecDeque::new());
        inbox.put(BYTE);
        inbox.discard();
        inbox.put(MEBIBYTE);
        assert_eq!(inbox.unread(), 0);
        inbox.take(&mut ready);
        assert!(ready.is_empty());
    }
}
