//! SPDY/3 frames as the Kubernetes streaming servers speak them: pure encoding and decoding, no I/O.
//!
//! Only what a port-forward client needs. Source: draft-mbelshe-httpbis-spdy-00 and github.com/moby/spdystream
//! (the server side of every container runtime). Two facts keep this small: header blocks may be *stored*
//! deflate blocks, so sending needs no zlib; and the only header blocks we receive (SYN_REPLY) are empty, so they are
//! skipped by their length and never inflated.
//!
//! The decoder is fed whatever bytes are there and keeps at most [`PREFIX`] of them; payload is handed through
//! as it comes, so an announced length never costs memory. Next: `pair.rs` gives the events their meaning.

use thiserror::Error;

/// A stream's id; ours are odd.
pub(super) type StreamId = u32;

/// Bytes before every frame's payload, control and data alike.
pub(super) const HEADER: usize = 8;
/// Largest control frame we accept, in bytes. Real ones stay under 100; this is room for a server that sends headers.
const CONTROL_MAX: usize = 64 * 1024;
/// The fixed part of any control frame we look into (GOAWAY, RST_STREAM: two u32).
const PREFIX: usize = 8;

/// FLAG_FIN: the sender's last frame of this stream.
pub(super) const FIN: u8 = 1;
/// RST_STREAM status for a stream we refuse to serve.
pub(super) const REFUSED_STREAM: u32 = 3;
/// RST_STREAM status for a stream no longer wanted; the only one Kubernetes servers use in practice.
pub(super) const CANCEL: u32 = 5;

const CONTROL_BIT: u8 = 0x80;
const VERSION: u8 = 3;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

/// The peer broke the protocol; nothing more can be read from this connection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SpdyError {
    /// A control frame of a version other than 3.
    #[error("SPDY control frame of version {0}, expected 3")]
    Version(u16),
    /// A control frame longer than anything a Kubernetes server sends.
    #[error("SPDY control frame of type {kind} with {length} bytes, at most 65536 are accepted")]
    TooLong {
        /// Frame type, section 2.6 of the draft.
        kind: u16,
        /// Announced length in bytes.
        length: usize,
    },
    /// A control frame whose length cannot be right for its type.
    #[error("SPDY control frame of type {kind} with {length} bytes")]
    Length {
        /// Frame type, section 2.6 of the draft.
        kind: u16,
        /// Announced length in bytes.
        length: usize,
    },
}

/// What the peer said. `Data` may come in several pieces for one frame; only the last carries the frame's FIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    SynStream { stream: StreamId },
    SynReply { stream: StreamId, fin: bool },
    Reset { stream: StreamId, status: u32 },
    Ping { id: u32 },
    GoAway { status: u32 },
    Data { stream: StreamId, bytes: &'a [u8], fin: bool },
}

/// Incremental frame decoder; gives the same events for every split of the byte stream.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Header { have: usize, bytes: [u8; HEADER] },
    Control { kind: u16, flags: u8, length: usize, seen: usize, prefix: [u8; PREFIX] },
    Data { stream: StreamId, left: usize, fin: bool },
}

impl Default for State {
    fn default() -> Self {
        State::Header { have: 0, bytes: [0; HEADER] }
    }
}

impl Decoder {
    /// Takes bytes from the front of `input`; returns how many, and what they completed.
    ///
    /// Consumes at least one byte unless `input` is empty. No event means: call again with what follows.
    pub(super) fn next<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Option<Event<'a>>), SpdyError> {
        match &mut self.state {
            State::Header { have, bytes } => {
                let take = input.len().min(HEADER - *have);
                bytes[*have..*have + take].copy_from_slice(&input[..take]);
                *have += take;
                if *have < HEADER {
                    return Ok((take, None));
                }
                let header = *bytes;
                let event = self.header(header)?;
                Ok((take, event))
            }
            State::Control { kind, flags, length, seen, prefix } => {
                let take = input.len().min(*length - *seen);
                if *seen < PREFIX {
                    let part = take.min(PREFIX - *seen);
                    prefix[*seen..*seen + part].copy_from_slice(&input[..part]);
                }
                *seen += take;
                if *seen < *length {
                    return Ok((take, None));
                }
                let event = control(*kind, *flags, prefix);
                self.state = State::default();
                Ok((take, event))
            }
            State::Data { stream, left, fin } => {
                let take = input.len().min(*left);
                *left -= take;
                let done = *left == 0;
                let event = Event::Data { stream: *stream, bytes: &input[..take], fin: *fin && done };
                if done {
                    self.state = State::default();
                }
                Ok((take, Some(event)))
            }
        }
    }

    /// The stream whose payload comes next, while inside a DATA frame: lets the caller limit what it takes.
    pub(super) fn in_data(&self) -> Option<StreamId> {
        match self.state {
            State::Data { stream, .. } => Some(stream),
            _ => None,
        }
    }

    /// Whether the bytes so far end between two frames.
    pub(super) fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    fn header(&mut self, header: [u8; HEADER]) -> Result<Option<Event<'static>>, SpdyError> {
        let flags = header[4];
        let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        if header[0] & CONTROL_BIT == 0 {
            let stream = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            let fin = flags & FIN != 0;
            if length == 0 {
                self.state = State::default();
                return Ok(Some(Event::Data { stream, bytes: &[], fin }));
            }
            self.state = State::Data { stream, left: length, fin };
            return Ok(None);
        }
        let version = u16::from_be_bytes([header[0] & !CONTROL_BIT, header[1]]);
        if version != u16::from(VERSION) {
            return Err(SpdyError::Version(version));
        }
        let kind = u16::from_be_bytes([header[2], header[3]]);
        if length > CONTROL_MAX {
            return Err(SpdyError::TooLong { kind, length });
        }
        let right = match kind {
            SYN_STREAM => length >= 10,
            SYN_REPLY => length >= 4,
            RST_STREAM | GOAWAY => length == 8,
            PING => length == 4,
            _ => true,
        };
        if !right {
            return Err(SpdyError::Length { kind, length });
        }
        self.state = match length {
            0 => State::default(),
            _ => State::Control { kind, flags, length, seen: 0, prefix: [0; PREFIX] },
        };
        Ok(None)
    }
}

/// Meaning of a whole control frame. Types we have no use for (SETTINGS, HEADERS, WINDOW_UPDATE, unknown) are skipped.
fn control(kind: u16, flags: u8, prefix: &[u8; PREFIX]) -> Option<Event<'static>> {
    let first = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]);
    let second = u32::from_be_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
    let stream = first & 0x7fff_ffff;
    match kind {
        SYN_STREAM => Some(Event::SynStream { stream }),
        SYN_REPLY => Some(Event::SynReply { stream, fin: flags & FIN != 0 }),
        RST_STREAM => Some(Event::Reset { stream, status: second }),
        PING => Some(Event::Ping { id: first }),
        GOAWAY => Some(Event::GoAway { status: second }),
        _ => None,
    }
}

/// Start of the one zlib stream of a connection: 32 KiB window, preset dictionary of the draft (Adler-32 e3c6a7c2).
/// Nothing we send refers to the dictionary, but a server checks that it is named.
const ZLIB_HEADER: [u8; 6] = [0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
/// An empty stored block, what zlib's sync flush ends with. Go's reader drops the connection at the second header
/// block when it is missing.
const SYNC_FLUSH: [u8; 5] = [0x00, 0x00, 0x00, 0xff, 0xff];

/// The sender's half of a connection's header compression: remembers whether the zlib stream has begun.
#[derive(Debug, Default)]
pub(super) struct HeaderBlocks {
    begun: bool,
}

impl HeaderBlocks {
    /// Appends a SYN_STREAM of priority 0. Names must be lower case: the server drops the connection otherwise.
    pub(super) fn syn_stream(
        &mut self,
        out: &mut Vec<u8>,
        stream: StreamId,
        fin: bool,
        headers: &[(&str, &str)],
    ) {
        let mut plain = be32(headers.len()).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(be32(text.len()));
            plain.extend(text.as_bytes());
        }
        let stored =
            u16::try_from(plain.len()).expect("our three short headers fit a stored block of 64 KiB");
        let zlib: &[u8] = if self.begun { &[] } else { &ZLIB_HEADER };
        self.begun = true;
        let length = 10 + zlib.len() + 5 + plain.len() + SYNC_FLUSH.len();
        control_header(out, SYN_STREAM, if fin { FIN } else { 0 }, length);
        out.extend(stream.to_be_bytes());
        out.extend([0; 6]); // associated stream, priority, credential slot
        out.extend(zlib);
        out.push(0); // stored block, not the last
        out.extend(stored.to_le_bytes());
        out.extend((!stored).to_le_bytes());
        out.extend(plain);
        out.extend(SYNC_FLUSH);
    }
}

/// Appends a RST_STREAM.
pub(super) fn rst_stream(out: &mut Vec<u8>, stream: StreamId, status: u32) {
    control_header(out, RST_STREAM, 0, 8);
    out.extend(stream.to_be_bytes());
    out.extend(status.to_be_bytes());
}

/// Appends a PING; also the answer to one, which repeats its id.
pub(super) fn ping(out: &mut Vec<u8>, id: u32) {
    control_header(out, PING, 0, 4);
    out.extend(id.to_be_bytes());
}

/// The header of a DATA frame with `length` bytes of payload, at most 2^24 - 1.
pub(super) fn data_header(stream: StreamId, flags: u8, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [_, x, y, z] = be32(length);
    [a, b, c, d, flags, x, y, z]
}

fn control_header(out: &mut Vec<u8>, kind: u16, flags: u8, length: usize) {
    let [_, x, y, z] = be32(length);
    out.extend([CONTROL_BIT, VERSION]);
    out.extend(kind.to_be_bytes());
    out.extend([flags, x, y, z]);
}

fn be32(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("lengths here are bounded far below 4 GiB").to_be_bytes()
}

#[cfg(test)]
mod tests;
