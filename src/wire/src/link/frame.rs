//! Frames of an attached link, as pure functions. [`super::hello`] is what comes before them.
//!
//! ```text
//! type(1) length(3) payload
//! 1 DATA    1..=131072 bytes of the link's stream
//! 2 ACK     offset(8) received_at(8, µs) held(4, µs)
//! 3 PING    number(8)
//! 4 PONG    number(8)
//! 5 CLOSE   reason(1)
//! 6 FENCED  nothing
//! ```
//!
//! DATA carries no offset: it is counted from what the greeting said. Numbers are big endian.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::observer::TimedAck;

/// Bytes of a frame's header.
pub const HEADER: usize = 4;

/// Largest payload of a DATA frame in bytes: room for one largest SSH packet with its overhead, so that it is not cut
/// in two.
pub const MAX_DATA: usize = 128 << 10;

const DATA: u8 = 1;
const ACK: u8 = 2;
const PING: u8 = 3;
const PONG: u8 = 4;
const CLOSE: u8 = 5;
const FENCED: u8 = 6;

const ACK_LENGTH: usize = 20;
const PING_LENGTH: usize = 8;
const CLOSE_LENGTH: usize = 1;

/// What a peer says. The payload of one DATA frame may come in several pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The next bytes of the stream; never empty.
    Data(Bytes),
    /// Bytes that arrived.
    Ack(TimedAck),
    /// Answer with the same number.
    Ping(u64),
    /// The answer to a ping.
    Pong(u64),
    /// The link is over; everything sent before is still valid.
    Close(CloseReason),
    /// A newer connection carries the link; nobody listens on this one any more.
    Fenced,
}

/// Why an end closes a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The layer above has ended. The only reason that is a clean end for the other side's layer above.
    #[error("the session ended")]
    Done,
    /// The process leaves.
    #[error("the other end leaves")]
    Leaving,
    /// The other side said something impossible.
    #[error("the other end saw an impossible offset")]
    Protocol,
    /// More had to be kept than allowed.
    #[error("the other end's buffer overflowed")]
    Overflow,
    /// A reason of a newer peer.
    #[error("the other end closed for a reason unknown here ({0})")]
    Other(u8),
}

/// Bytes that are no frame. The connection cannot be used any further; the link can, over another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such frame.
    #[error("the peer sent a frame of the unknown type {0}")]
    Type(u8),
    /// Not the length a frame of this type has.
    #[error("the peer sent a frame of type {0} with a length of {1}")]
    Length(u8, usize),
}

impl CloseReason {
    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Leaving => 1,
            Self::Protocol => 2,
            Self::Overflow => 3,
            Self::Other(code) => code,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Done,
            1 => Self::Leaving,
            2 => Self::Protocol,
            3 => Self::Overflow,
            code => Self::Other(code),
        }
    }
}

/// The header of a DATA frame with `length` bytes, at most [`MAX_DATA`].
pub fn data_header(length: usize) -> [u8; HEADER] {
    debug_assert!((1..=MAX_DATA).contains(&length));
    header(DATA, length)
}

/// Appends an acknowledgement.
pub fn ack(ack: TimedAck, out: &mut BytesMut) {
    out.put_slice(&header(ACK, ACK_LENGTH));
    out.put_u64(ack.offset);
    out.put_u64(u64::try_from(ack.received_at.as_micros()).unwrap_or(u64::MAX));
    out.put_u32(u32::try_from(ack.held.as_micros()).unwrap_or(u32::MAX));
}

/// Appends a ping.
pub fn ping(number: u64, out: &mut BytesMut) {
    out.put_slice(&header(PING, PING_LENGTH));
    out.put_u64(number);
}

/// Appends the answer to a ping.
pub fn pong(number: u64, out: &mut BytesMut) {
    out.put_slice(&header(PONG, PING_LENGTH));
    out.put_u64(number);
}

/// Appends the end of the link.
pub fn close(reason: CloseReason, out: &mut BytesMut) {
    out.put_slice(&header(CLOSE, CLOSE_LENGTH));
    out.put_u8(reason.code());
}

/// Appends the end of this attachment.
pub fn fenced(out: &mut BytesMut) {
    out.put_slice(&header(FENCED, 0));
}

fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [_, high, middle, low] = (length as u32).to_be_bytes();
    [kind, high, middle, low]
}

/// Finds the frames in a byte stream.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes of the current DATA frame still to come: they are handed on as they arrive.
    data_left: usize,
}

impl Decoder {
    /// Takes the next frame, or the next piece of one, off the front of `input`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// When the bytes are no frame; nothing sensible can follow.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if self.data_left == 0 {
            let Some(header) = input.first_chunk::<HEADER>() else { return Ok(None) };
            let &[kind, high, middle, low] = header;
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            let fits = match kind {
                DATA => (1..=MAX_DATA).contains(&length),
                ACK => length == ACK_LENGTH,
                PING | PONG => length == PING_LENGTH,
                CLOSE => length == CLOSE_LENGTH,
                FENCED => length == 0,
                _ => return Err(FrameError::Type(kind)),
            };
            if !fits {
                return Err(FrameError::Length(kind, length));
            }
            if kind != DATA {
                if input.len() < HEADER + length {
                    return Ok(None);
                }
                input.advance(HEADER);
                return Ok(Some(control(kind, input)));
            }
            input.advance(HEADER);
            self.data_left = length;
        }
        if input.is_empty() {
            return Ok(None);
        }
        let piece = input.split_to(self.data_left.min(input.len()));
        self.data_left -= piece.len();
        Ok(Some(Frame::Data(piece.freeze())))
    }
}

/// Reads a complete payload whose type and length were checked.
fn control(kind: u8, input: &mut BytesMut) -> Frame {
    match kind {
        ACK => Frame::Ack(TimedAck {
            offset: input.get_u64(),
            received_at: Duration::from_micros(input.get_u64()),
            held: Duration::from_micros(input.get_u32().into()),
        }),
        PING => Frame::Ping(input.get_u64()),
        PONG => Frame::Pong(input.get_u64()),
        CLOSE => Frame::Close(CloseReason::from_code(input.get_u8())),
        _ => Frame::Fenced,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::Data(data) => {
                out.put_slice(&data_header(data.len()));
                out.put_slice(data);
            }
            Frame::Ack(timed) => ack(*timed, out),
            Frame::Ping(number) => ping(*number, out),
            Frame::Pong(number) => pong(*number, out),
            Frame::Close(reason) => close(*reason, out),
            Frame::Fenced => fenced(out),
        }
    }

    /// Decodes what arrives in pieces of these lengths, over and over; neighbouring data joined.
    fn decode(whole: &[u8], pieces: &[usize]) -> Result<Vec<Frame>, FrameError> {
        let (mut decoder, mut input, mut frames) = (Decoder::default(), BytesMut::new(), Vec::new());
        let mut rest = whole;
        for length in pieces.iter().copied().cycle() {
            let (now, later) = rest.split_at(length.min(rest.len()));
            input.put_slice(now);
            rest = later;
            while let Some(frame) = decoder.next(&mut input)? {
                match (frames.last_mut(), frame) {
                    (Some(Frame::Data(last)), Frame::Data(next)) => {
                        *last = [last.as_ref(), next.as_ref()].concat().into();
                    }
                    (_, frame) => frames.push(frame),
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        Ok(frames)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 1..300).prop_map(|data| Frame::Data(data.into())),
            (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(offset, at, held)| {
                Frame::Ack(TimedAck {
                    offset,
                    received_at: Duration::from_micros(at),
                    held: Duration::from_micros(held.into()),
                })
            }),
            any::<u64>().prop_map(Frame::Ping),
            any::<u64>().prop_map(Frame::Pong),
            any::<u8>().prop_map(|code| Frame::Close(CloseReason::from_code(code))),
            Just(Frame::Fenced),
        ]
    }

    #[test]
    fn frames_are_these_bytes_for_ever() {
        let mut out = BytesMut::new();
        out.put_slice(&data_header(MAX_DATA));
        assert_eq!(out, b"\x01\x02\0\0"[..]);
        out.clear();
        ack(
            TimedAck {
                offset: 0x0102_0304_0506_0708,
                received_at: Duration::from_micros(0x0a0b),
                held: Duration::from_micros(5),
            },
            &mut out,
        );
        assert_eq!(out, b"\x02\0\0\x14\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\x0a\x0b\0\0\0\x05"[..]);
        out.clear();
        ping(1, &mut out);
        pong(2, &mut out);
        close(CloseReason::Leaving, &mut out);
        fenced(&mut out);
        let golden =
            b"\x03\0\0\x08\0\0\0\0\0\0\0\x01\x04\0\0\x08\0\0\0\0\0\0\0\x02\x05\0\0\x01\x01\x06\0\0\0";
        assert_eq!(out, golden[..]);
    }

    #[test]
    fn wrong_types_and_lengths_are_told_from_the_header_alone() {
        for (header, error) in [
            ([0, 0, 0, 0], FrameError::Type(0)),
            ([7, 0, 0, 0], FrameError::Type(7)),
            (*b"SSH-", FrameError::Type(b'S')),
            ([DATA, 0, 0, 0], FrameError::Length(DATA, 0)),
            ([DATA, 2, 0, 1], FrameError::Length(DATA, MAX_DATA + 1)),
            ([ACK, 0, 0, 21], FrameError::Length(ACK, 21)),
            ([PING, 0, 0, 7], FrameError::Length(PING, 7)),
            ([CLOSE, 0, 0, 0], FrameError::Length(CLOSE, 0)),
            ([FENCED, 0, 0, 1], FrameError::Length(FENCED, 1)),
        ] {
            assert_eq!(Decoder::default().next(&mut BytesMut::from(&header[..])), Err(error));
        }
    }

    proptest! {
        #[test]
        fn any_split_of_the_stream_gives_the_same_frames(
            frames in prop::collection::vec(frame(), 0..40),
            pieces in prop::collection::vec(1usize..200, 1..20),
        ) {
            let mut whole = BytesMut::new();
            frames.iter().for_each(|frame| encode(frame, &mut whole));
            let at_once = decode(&whole, &[whole.len().max(1)]).unwrap();
            let mut again = BytesMut::new();
            at_once.iter().for_each(|frame| encode(frame, &mut again));
            prop_assert_eq!(decode(&whole, &pieces).unwrap(), at_once.clone());
            // Joined data aside, they are the frames that were sent.
            prop_assert_eq!(decode(&again, &[again.len().max(1)]).unwrap(), at_once);
            let data = |frames: &[Frame]| -> Vec<u8> {
                frames.iter().flat_map(|f| if let Frame::Data(d) = f { d.to_vec() } else { vec![] }).collect()
            };
            prop_assert_eq!(data(&frames), data(&decode(&whole, &pieces).unwrap()));
        }

        #[test]
        fn garbage_gives_an_error_or_waits_but_never_panics(
            garbage: Vec<u8>,
            pieces in prop::collection::vec(1usize..50, 1..9),
        ) {
            prop_assert_eq!(decode(&garbage, &pieces), decode(&garbage, &[garbage.len().max(1)]));
        }
    }
}
