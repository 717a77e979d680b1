//! UDP payloads (RFC 9298 §5) as DATAGRAM capsules (RFC 9297 §3) in a byte stream.
//!
//! ```text
//! type = 0 │ length of what follows │ context id = 0 │ payload      numbers as in RFC 9000 §16
//! ```
//!
//! Capsules of other types are skipped, datagrams of other contexts dropped: a newer end may send them (RFC 9297 §3.2,
//! RFC 9298 §4).

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest UDP payload in bytes (RFC 9298 §5): UDP's length field less its own header.
pub const MAX_PAYLOAD: usize = 65_527;

/// Longest number in bytes.
const MAX_NUMBER: usize = 8;

/// Type of a DATAGRAM capsule, and the context of a UDP payload.
const ZERO: u8 = 0;

/// Longest DATAGRAM capsule's value, and the most a [`Decoder`] holds.
const MAX_DATAGRAM: u64 = (MAX_NUMBER + MAX_PAYLOAD) as u64;

/// Longest capsule of another type. None that is defined comes near; one that is longer is no capsule but a stream out of
/// step, which would swallow everything else.
const MAX_SKIPPED: u64 = 1 << 20;

/// A stream that is no sequence of capsules.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapsuleError {
    /// More than anybody may send.
    #[error("a capsule of {0} bytes")]
    TooLong(u64),
    /// A datagram without a whole context id.
    #[error("a datagram without a context id")]
    NoContext,
}

/// Appends the capsule of one `payload`, which must not be longer than [`MAX_PAYLOAD`].
pub fn encode(payload: &[u8], out: &mut BytesMut) {
    debug_assert!(payload.len() <= MAX_PAYLOAD);
    let length = payload.len() + 1; // of the context id
    out.reserve(2 + MAX_NUMBER + payload.len());
    out.put_u8(ZERO);
    match length {
        0..=0x3f => out.put_u8(length as u8),
        0x40..=0x3fff => out.put_u16(length as u16 | 1 << 14),
        _ => out.put_u32(length as u32 | 2 << 30),
    }
    out.put_u8(ZERO);
    out.put_slice(payload);
}

/// Takes capsules from a stream that arrives in pieces of any size. Holds at most one unfinished datagram (65,535 bytes).
#[derive(Default)]
pub struct Decoder {
    state: State,
    /// What has come of the header or the datagram. Copied, as a slice would keep the whole piece it came in.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// Type and length are to come.
    #[default]
    Header,
    /// A datagram of so many bytes, its context id included.
    Datagram(usize),
    /// So many bytes of no interest are to come.
    Skip(u64),
}

impl Decoder {
    /// Takes the next payload off the front of `piece`; `None` when all of `piece` is used up.
    ///
    /// # Errors
    /// When the stream is out of step. It stays so: nothing more can be read from it.
    pub fn next(&mut self, piece: &mut Bytes) -> Result<Option<Bytes>, CapsuleError> {
        loop {
            match self.state {
                State::Header => {
                    let Some((kind, length)) = self.header(piece) else { return Ok(None) };
                    let datagram = kind == u64::from(ZERO);
                    if length > if datagram { MAX_DATAGRAM } else { MAX_SKIPPED } {
                        return Err(CapsuleError::TooLong(length));
                    }
                    self.state = if datagram {
                        self.held = Vec::with_capacity(length as usize);
                        State::Datagram(length as usize)
                    } else {
                        State::Skip(length)
                    };
                }
                State::Datagram(length) => {
                    let part = piece.split_to(piece.len().min(length - self.held.len()));
                    self.held.extend_from_slice(&part);
                    if self.held.len() < length {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    if let Some(payload) = payload(std::mem::take(&mut self.held))? {
                        return Ok(Some(payload));
                    }
                }
                State::Skip(0) => self.state = State::Header,
                State::Skip(_) if piece.is_empty() => return Ok(None),
                State::Skip(left) => {
                    let skipped = left.min(piece.len() as u64);
                    piece.advance(skipped as usize);
                    self.state = State::Skip(left - skipped);
                }
            }
        }
    }

    /// Type and length, once both are there.
    fn header(&mut self, piece: &mut Bytes) -> Option<(u64, u64)> {
        while piece.has_remaining() {
            self.held.push(piece.get_u8());
            let mut rest = &self.held[..];
            if let Some(kind) = number(&mut rest)
                && let Some(length) = number(&mut rest)
            {
                self.held.clear();
                return Some((kind, length));
            }
        }
        None
    }
}

/// What a datagram carries, if it is a UDP payload.
fn payload(datagram: Vec<u8>) -> Result<Option<Bytes>, CapsuleError> {
    let mut rest = &datagram[..];
    let context = number(&mut rest).ok_or(CapsuleError::NoContext)?;
    let length = rest.len();
    if context != u64::from(ZERO) {
        return Ok(None);
    }
    if length > MAX_PAYLOAD {
        return Err(CapsuleError::TooLong(datagram.len() as u64));
    }
    let start = datagram.len() - length;
    Ok(Some(Bytes::from(datagram).slice(start..)))
}

/// Takes a number off the front, if it is whole.
fn number(from: &mut &[u8]) -> Option<u64> {
    let first = *from.first()?;
    let (bytes, rest) = from.split_at_checked(1 << (first >> 6))?;
    *from = rest;
    Some(bytes[1..].iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(payloads: &[Vec<u8>]) -> Vec<u8> {
        let mut out = BytesMut::new();
        payloads.iter().for_each(|payload| encode(payload, &mut out));
        out.to_vec()
    }

    /// Everything in `stream`, fed in pieces of these sizes, one after the other and again.
    fn decode(stream: &[u8], sizes: &[usize]) -> Result<Vec<Bytes>, CapsuleError> {
        let (mut decoder, mut payloads, mut rest) = (Decoder::default(), Vec::new(), stream);
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at(rest.len().min(*size));
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(payload) = decoder.next(&mut piece)? {
                payloads.push(payload);
            }
            assert!(piece.is_empty());
            assert!(decoder.held.capacity() as u64 <= MAX_DATAGRAM);
            rest = after;
        }
        Ok(payloads)
    }

    #[test]
    fn capsules_are_those_of_the_rfcs() {
        assert_eq!(encoded(&[b"hello".to_vec()]), b"\x00\x06\x00hello");
        assert_eq!(encoded(&[vec![]]), [0, 1, 0]);
        assert_eq!(encoded(&[vec![7; 63]])[..4], [0, 0x40, 64, 0]);
        assert_eq!(encoded(&[vec![7; 16_383]])[..6], [0, 0x80, 0, 0x40, 0, 0]);
        // RFC 9000 §A.1: the same number in more bytes than it needs is the same number.
        assert_eq!(decode(&[0x40, 0, 0xc0, 0, 0, 0, 0, 0, 0, 2, 0x40, 0], &[3]).unwrap(), [Bytes::new()]);
    }

    #[test]
    fn the_longest_payload_passes_and_one_byte_more_does_not() {
        let payloads = [vec![7; MAX_PAYLOAD]];
        assert_eq!(decode(&encoded(&payloads), &[1_000]).unwrap(), payloads);
        let mut longer = vec![0, 0x80, 0, 0xff, 0xf9, 0];
        longer.resize(longer.len() + MAX_PAYLOAD + 1, 7);
        assert_eq!(decode(&longer, &[1_000]), Err(CapsuleError::TooLong(MAX_PAYLOAD as u64 + 2)));
    }

    #[test]
    fn what_a_newer_end_may_send_is_passed_over() {
        let mut stream = vec![0x37, 0x44, 0];
        stream.resize(3 + 1_024, 0); // a capsule of another type
        stream.extend([0x29, 0]); // an empty one
        stream.extend([0, 3, 2, 1, 1]); // a datagram of another context
        stream.extend(encoded(&[b"x".to_vec()]));
        for size in [1, 7, 4_096] {
            assert_eq!(decode(&stream, &[size]).unwrap(), ["x"]);
        }
    }

    #[test]
    fn a_stream_out_of_step_is_an_error() {
        assert_eq!(decode(&[0, 0], &[1]), Err(CapsuleError::NoContext));
        assert_eq!(decode(&[0, 1, 0x40], &[1]), Err(CapsuleError::NoContext));
        assert_eq!(decode(&[0, 0x80, 1, 0, 0], &[1]), Err(CapsuleError::TooLong(1 << 16)));
        assert_eq!(decode(&[1, 0x80, 0x10, 0, 1], &[1]), Err(CapsuleError::TooLong(MAX_SKIPPED + 1)));
    }

    proptest! {
        #[test]
        fn payloads_come_back_whatever_the_pieces(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..40),
            pieces in prop::collection::vec(1usize..900, 1..20),
        ) {
            prop_assert_eq!(decode(&encoded(&payloads), &pieces).unwrap(), payloads);
        }

        /// [`decode`] looks at the bound of what is held.
        #[test]
        fn garbage_neither_panics_nor_grows(
            stream: Vec<u8>,
            pieces in prop::collection::vec(1usize..50, 1..20),
            datagram_first: bool,
        ) {
            let mut garbage = if datagram_first { vec![ZERO] } else { vec![] };
            garbage.extend(stream);
            let at_once = decode(&garbage, &[garbage.len().max(1)]);
            prop_assert_eq!(decode(&garbage, &pieces), at_once);
        }
    }
}
