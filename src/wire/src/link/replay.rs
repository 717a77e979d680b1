//! What was written and is not yet acknowledged: the queue that is sent from, and sent from again after a cut.
//!
//! Each chunk is kept as the DATA frame it travels in, header included, so it leaves in one piece and without another
//! copy; small writes that cannot leave at once share a frame.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{self, HEADER, MAX_DATA};

/// What a chunk costs beside its bytes (its place in the queue, its allocation): many tiny writes must not hide behind
/// their small sum.
const CHUNK_COST: usize = 128;

/// A frame of this size grows no more, because growing may copy again what it holds …
const OWN_FRAME: usize = 16 << 10;

/// … unless that is next to nothing: a header that was written before its payload.
const SMALL: usize = 1 << 10;

/// Bytes from `acked` to `end`, and where sending stands.
#[derive(Debug)]
pub(super) struct Replay {
    /// Complete frames, oldest first.
    chunks: VecDeque<Bytes>,
    /// The frame that may still grow; empty or with its header's place.
    open: BytesMut,
    /// Offset of the first byte of the first chunk.
    front: u64,
    acked: u64,
    /// Offset after what was sent over this attachment.
    at: u64,
    /// Offset after everything that was ever sent.
    sent: u64,
    end: u64,
    /// The chunk to send next.
    next: usize,
    /// Bytes of that chunk the peer has already.
    skip: usize,
    limit: usize,
}

/// More than the limit would have to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// The peer acknowledged what it cannot have received, or less than before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadOffset {
    pub(super) claimed: u64,
    pub(super) lowest: u64,
    pub(super) highest: u64,
}

impl Replay {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            chunks: VecDeque::new(),
            open: BytesMut::new(),
            front: 0,
            acked: 0,
            at: 0,
            sent: 0,
            end: 0,
            next: 0,
            skip: 0,
            limit,
        }
    }

    /// Offset after the last byte written.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes written and not acknowledged.
    pub(super) fn in_flight(&self) -> u64 {
        self.end - self.acked
    }

    /// What is kept, in bytes, and in cost.
    pub(super) fn held(&self) -> usize {
        // Bounded by `limit`, a `usize`.
        (self.end - self.front) as usize
            + CHUNK_COST * (self.chunks.len() + usize::from(!self.open.is_empty()))
    }

    pub(super) fn write(&mut self, mut data: &[u8]) -> Result<(), Overflow> {
        if self.held() + data.len() + CHUNK_COST > self.limit {
            return Err(Overflow);
        }
        self.end += data.len() as u64;
        while !data.is_empty() {
            let grows = self.open.len() < SMALL || self.open.len() + data.len() <= OWN_FRAME;
            if !self.open.is_empty() && !grows {
                self.seal();
            }
            if self.open.is_empty() {
                self.open = BytesMut::with_capacity(HEADER + data.len().min(MAX_DATA));
                self.open.put_bytes(0, HEADER);
            }
            let (now, later) = data.split_at(data.len().min(HEADER + MAX_DATA - self.open.len()));
            self.open.put_slice(now);
            data = later;
            if self.open.len() == HEADER + MAX_DATA {
                self.seal();
            }
        }
        Ok(())
    }

    /// Sending begins again after the bytes `received` by the peer.
    pub(super) fn rewind(&mut self, received: u64) -> Result<(), BadOffset> {
        self.release(received, self.sent)?;
        self.at = received;
        self.next = 0;
        self.skip = (received - self.front) as usize; // less than a chunk
        Ok(())
    }

    /// The peer has all bytes before `offset`.
    pub(super) fn acknowledge(&mut self, offset: u64) -> Result<(), BadOffset> {
        self.release(offset, self.at)
    }

    fn release(&mut self, offset: u64, highest: u64) -> Result<(), BadOffset> {
        if !(self.acked..=highest).contains(&offset) {
            return Err(BadOffset { claimed: offset, lowest: self.acked, highest });
        }
        self.acked = offset;
        while let Some(chunk) = self.chunks.front() {
            let after = self.front + (chunk.len() - HEADER) as u64;
            if after > offset {
                break;
            }
            self.front = after;
            self.next = self.next.saturating_sub(1);
            self.chunks.pop_front();
        }
        Ok(())
    }

    /// Whether something waits to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.next < self.chunks.len() || !self.open.is_empty()
    }

    /// Next bytes to send: a frame whole, or (after a rewind into it) its new header appended to `small` and the rest.
    pub(super) fn send(&mut self, small: &mut BytesMut) -> Option<Bytes> {
        if self.next == self.chunks.len() {
            self.seal();
        }
        let chunk = self.chunks.get(self.next)?;
        let piece = if self.skip == 0 {
            chunk.clone()
        } else {
            let rest = chunk.slice(HEADER + self.skip..);
            small.put_slice(&frame::data_header(rest.len()));
            rest
        };
        self.at += (chunk.len() - HEADER - self.skip) as u64;
        self.sent = self.sent.max(self.at);
        self.next += 1;
        self.skip = 0;
        Some(piece)
    }

    fn seal(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let header = frame::data_header(self.open.len() - HEADER);
        self.open[..HEADER].copy_from_slice(&header);
        self.chunks.push_back(std::mem::take(&mut self.open).freeze());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(replay: &mut Replay) -> Vec<u8> {
        let mut all = Vec::new();
        let mut small = BytesMut::new();
        while let Some(piece) = replay.send(&mut small) {
            all.extend_from_slice(&small.split());
            all.extend_from_slice(&piece);
        }
        all
    }

    #[test]
    fn small_writes_share_a_frame_and_large_ones_are_cut() {
        let mut replay = Replay::new(1 << 20);
        replay.write(b"ab").unwrap();
        replay.write(b"cd").unwrap();
        assert_eq!(sent(&mut replay), b"\x01\0\0\x04abcd");
        assert!(!replay.has_unsent());
        replay.write(&[7; MAX_DATA + 1]).unwrap();
        let mut small = BytesMut::new();
        assert_eq!(replay.send(&mut small).unwrap().len(), HEADER + MAX_DATA);
        assert_eq!(replay.send(&mut small).unwrap(), b"\x01\0\0\x01\x07"[..]);
        assert_eq!(replay.send(&mut small), None);
    }

    #[test]
    fn after_a_cut_sending_goes_on_exactly_behind_what_arrived() {
        let mut replay = Replay::new(1 << 20);
        for chunk in [b"abc", b"def", b"ghi"] {
            replay.write(chunk).unwrap();
            sent(&mut replay);
        }
        replay.acknowledge(2).unwrap();
        replay.write(b"jkl").unwrap();
        replay.rewind(4).unwrap();
        assert_eq!(replay.in_flight(), 8);
        assert_eq!(sent(&mut replay), b"\x01\0\0\x02ef\x01\0\0\x03ghi\x01\0\0\x03jkl");
        replay.acknowledge(12).unwrap();
        assert_eq!(replay.held(), 0);
        replay.rewind(12).unwrap();
        assert_eq!(sent(&mut replay), b"");
    }

    #[test]
    fn impossible_offsets_are_told() {
        let mut replay = Replay::new(1 << 20);
        replay.write(b"abcdef").unwrap();
        let never_sent = BadOffset { claimed: 1, lowest: 0, highest: 0 };
        assert_eq!(replay.acknowledge(1), Err(never_sent));
        sent(&mut replay);
        replay.acknowledge(3).unwrap();
        assert_eq!(replay.rewind(2), Err(BadOffset { claimed: 2, lowest: 3, highest: 6 }));
        assert_eq!(replay.rewind(7), Err(BadOffset { claimed: 7, lowest: 3, highest: 6 }));
        replay.rewind(3).unwrap();
        // Sent before the cut, not after it: the peer said it had only 3.
        assert_eq!(replay.acknowledge(4), Err(BadOffset { claimed: 4, lowest: 3, highest: 3 }));
    }

    #[test]
    fn tiny_writes_count_with_their_cost() {
        let mut replay = Replay::new(10_000);
        let mut written = 0;
        while replay.write(b"x").is_ok() {
            sent(&mut replay); // each in its own frame
            written += 1;
        }
        assert!((50..100).contains(&written), "{written}");
        replay.acknowledge(written).unwrap();
        replay.write(b"x").unwrap();
        assert_eq!(Replay::new(10_000).write(&[0; 10_000]), Err(Overflow));
    }
}
