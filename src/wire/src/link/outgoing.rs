//! Bytes on their way to the connection: large frames as they are kept, small ones joined.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Bytes taken out of the queue at once: several frames per system call, and an acknowledgement waits for no more.
const BATCH: usize = 256 << 10;

/// Frames smaller than this are copied together, so that they leave in one piece.
const SMALL: usize = 4 << 10;

/// Bytes on their way to the connection, small frames joined.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    pieces: VecDeque<Bytes>,
    small: BytesMut,
    length: usize,
}

impl Outgoing {
    pub(super) fn push(&mut self, piece: Bytes) {
        self.length += piece.len();
        if piece.len() < SMALL {
            self.small.extend_from_slice(&piece);
        } else {
            self.join();
            self.pieces.push_back(piece);
        }
    }

    /// Where to append small frames.
    pub(super) fn small(&mut self) -> &mut BytesMut {
        &mut self.small
    }

    /// Whether another frame may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.length < BATCH
    }

    /// Makes a piece of the small frames gathered.
    pub(super) fn join(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
    }

    /// A frame of its own, after all others.
    pub(super) fn last_word(&mut self, encode: impl FnOnce(&mut BytesMut)) {
        encode(&mut self.small);
        self.join();
    }

    /// What is to leave, in order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter()
    }

    /// Copies all into one piece, for a connection that takes one at a time and makes a message of each.
    pub(super) fn merge(&mut self) {
        if self.pieces.len() > 1 {
            let mut whole = BytesMut::with_capacity(self.pieces.iter().map(Bytes::len).sum());
            self.pieces.drain(..).for_each(|piece| whole.extend_from_slice(&piece));
            self.pieces.push_back(whole.freeze());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// `count` bytes have left.
    pub(super) fn advance(&mut self, mut count: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            if count < piece.len() {
                let _ = piece.split_to(count);
                break;
            }
            count -= piece.len();
            self.pieces.pop_front();
        }
        if self.pieces.is_empty() {
            self.length = 0;
        }
    }
}
