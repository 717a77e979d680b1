//! The client's side of RFC 6455 framing for a tunnel: pure, no I/O, no message is ever assembled.
//!
//! In a Kubernetes tunnel message and frame borders mean nothing: the payload of all binary messages is one byte
//! stream. So the decoder only finds the payload bytes in the input, wherever fragments, empty continuations and pings
//! between them lie; for `channel.rs` it tells where messages begin. An own framing of this size instead of a library, because it lets one buffer be
//! read into, unwrapped and handed on in place, and one buffer be filled, masked and written in place.

use rustls::crypto::{SecureRandom, ring};
use thiserror::Error;

/// Bytes that must be free before a message's payload: 2 fixed, 2 length, 4 mask. Messages stay under 64 KiB.
pub(super) const HEADER_MAX: usize = 8;
/// Payload of a control frame (RFC 6455, section 5.5).
pub(super) const CONTROL_MAX: usize = 125;

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// Close code of an end as planned.
pub(super) const NORMAL_CLOSURE: u16 = 1000;

/// The peer broke RFC 6455, or sent what a tunnel never carries.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WebSocketError {
    /// Reserved bits without an extension that would give them a meaning.
    #[error("WebSocket frame with reserved bits set")]
    Reserved,
    /// A server must not mask.
    #[error("WebSocket frame masked by the server")]
    Masked,
    /// Text, or an opcode nobody defined.
    #[error("WebSocket frame with opcode {0}")]
    Opcode(u8),
    /// A continuation without a beginning, or a beginning inside a message.
    #[error("WebSocket fragments out of order")]
    Fragments,
    /// A control frame in fragments or longer than 125 bytes, or a length of more than 2^63 - 1.
    #[error("WebSocket frame of a length that is not allowed")]
    Length,
}

/// What the next bytes of the input are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// `count` bytes at the front are payload; take them and say so by [`Decoder::took`]. `begins`: the first of them is
    /// the first of its message.
    Payload { count: usize, begins: bool },
    /// Answer with a pong of the same bytes.
    Ping(Vec<u8>),
    /// The peer closes, with its code (1005 when it gave none) and reason.
    Close { code: u16, reason: String },
}

/// Finds the payload in a stream of frames; gives the same payload for every split.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
    /// A message has begun and its final fragment is still to come.
    fragmented: bool,
    /// No payload of the message was taken yet.
    begins: bool,
}

#[derive(Debug)]
enum State {
    Header { have: usize, bytes: [u8; 10] },
    Payload { left: u64 },
    Control { opcode: u8, length: usize, bytes: Vec<u8> },
}

impl Default for State {
    fn default() -> Self {
        State::Header { have: 0, bytes: [0; 10] }
    }
}

impl Decoder {
    /// A control frame's payload.
    pub(super) const MEMORY_MAX: usize = CONTROL_MAX;

    #[cfg(any(test, fuzzing))]
    pub(super) fn memory(&self) -> usize {
        match &self.state {
            State::Control { bytes, .. } => bytes.capacity(),
            _ => 0,
        }
    }

    /// Takes envelope bytes from the front of `input`; returns how many, and what they announce.
    ///
    /// For [`Event::Payload`] nothing is taken: the bytes follow. No event means: call again with what follows.
    pub(super) fn next(&mut self, input: &[u8]) -> Result<(usize, Option<Event>), WebSocketError> {
        if input.is_empty() {
            return Ok((0, None));
        }
        match &mut self.state {
            State::Payload { left } => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                Ok((0, Some(Event::Payload { count: here, begins: self.begins })))
            }
            State::Header { have, bytes } => {
                let mut taken = 0;
                while *have < header_length(&bytes[..*have]) && taken < input.len() {
                    bytes[*have] = input[taken];
                    *have += 1;
                    taken += 1;
                }
                if *have < header_length(&bytes[..*have]) {
                    return Ok((taken, None));
                }
                let header = *bytes;
                let event = self.header(&header)?;
                Ok((taken, event))
            }
            State::Control { opcode, length, bytes } => {
                let take = input.len().min(*length - bytes.len());
                bytes.extend_from_slice(&input[..take]);
                if bytes.len() < *length {
                    return Ok((take, None));
                }
                let event = control(*opcode, std::mem::take(bytes));
                self.state = State::default();
                Ok((take, event))
            }
        }
    }

    /// That many bytes of the announced payload were taken.
    pub(super) fn took(&mut self, count: usize) {
        if let State::Payload { left } = &mut self.state {
            *left -= count as u64;
            self.begins &= count == 0;
            if *left == 0 {
                self.state = State::default();
            }
        }
    }

    fn header(&mut self, header: &[u8; 10]) -> Result<Option<Event>, WebSocketError> {
        let (is_final, opcode) = (header[0] & FINAL != 0, header[0] & 0x0f);
        if header[0] & 0x70 != 0 {
            return Err(WebSocketError::Reserved);
        }
        if header[1] & MASKED != 0 {
            return Err(WebSocketError::Masked);
        }
        let length = match header[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes([header[2], header[3]])),
            127 => u64::from_be_bytes(header[2..].try_into().expect("a header has 10 bytes")),
            short => u64::from(short),
        };
        if length >> 63 != 0 {
            return Err(WebSocketError::Length);
        }
        match opcode {
            CONTINUATION | BINARY => {
                if (opcode == CONTINUATION) != self.fragmented {
                    return Err(WebSocketError::Fragments);
                }
                self.fragmented = !is_final;
                self.begins |= opcode == BINARY;
                self.state = if length == 0 { State::default() } else { State::Payload { left: length } };
                Ok(None)
            }
            CLOSE | PING | PONG => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if !is_final || length > CONTROL_MAX {
                    return Err(WebSocketError::Length);
                }
                if length == 0 {
                    self.state = State::default();
                    return Ok(control(opcode, Vec::new()));
                }
                self.state = State::Control { opcode, length, bytes: Vec::with_capacity(length) };
                Ok(None)
            }
            TEXT.. => Err(WebSocketError::Opcode(opcode)),
        }
    }
}

/// How long the header is, as far as the bytes so far tell.
fn header_length(bytes: &[u8]) -> usize {
    match bytes.get(1).map(|second| second & 0x7f) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    }
}

fn control(opcode: u8, bytes: Vec<u8>) -> Option<Event> {
    match opcode {
        PING => Some(Event::Ping(bytes)),
        CLOSE => {
            let code = bytes.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
            let reason = String::from_utf8_lossy(bytes.get(2..).unwrap_or_default()).into_owned();
            Some(Event::Close { code, reason })
        }
        _ => None,
    }
}

/// Writes a binary message's header into the [`HEADER_MAX`] bytes before `start`, masks what follows in place, and
/// returns where the message begins. The payload `buffer[start..]` must be shorter than 64 KiB.
pub(super) fn seal(buffer: &mut [u8], start: usize, key: [u8; 4]) -> usize {
    let length = buffer.len() - start;
    mask(&mut buffer[start..], key);
    let mut header = [FINAL | BINARY, MASKED, 0, 0, 0, 0, 0, 0];
    let size = if length < 126 {
        header[1] |= u8::try_from(length).expect("checked to be under 126");
        header[2..6].copy_from_slice(&key);
        6
    } else {
        header[1] |= 126;
        header[2..4]
            .copy_from_slice(&u16::try_from(length).expect("messages are under 64 KiB").to_be_bytes());
        header[4..8].copy_from_slice(&key);
        8
    };
    let begin = start - size;
    buffer[begin..start].copy_from_slice(&header[..size]);
    begin
}

/// A whole ping frame; `payload` is at most 125 bytes.
pub(super) fn ping(payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    control_frame(PING, payload, key)
}

/// A whole pong frame; `payload` is a ping's, so at most 125 bytes.
pub(super) fn pong(payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    control_frame(PONG, payload, key)
}

/// A whole close frame that says "normal closure".
pub(super) fn close(key: [u8; 4]) -> Vec<u8> {
    control_frame(CLOSE, &NORMAL_CLOSURE.to_be_bytes(), key)
}

fn control_frame(opcode: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("control frames have at most 125 bytes");
    let mut frame = vec![FINAL | opcode, MASKED | length];
    frame.extend(key);
    frame.extend(payload);
    mask(&mut frame[6..], key);
    frame
}

/// XOR with the repeated key, eight bytes at a time (the compiler makes vector instructions of it).
fn mask(bytes: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Fresh unpredictable masks (RFC 6455, section 10.3), drawn in batches so that a message costs no system call.
#[derive(Debug)]
pub(super) struct MaskKeys {
    random: &'static dyn SecureRandom,
    pool: Box<[u8]>,
    used: usize,
}

/// Bytes of random numbers drawn at once: 64 messages of 32 KiB, so 2 MiB of upload.
const MASK_POOL: usize = 256;

impl MaskKeys {
    pub(super) fn new() -> Self {
        let pool = vec![0; MASK_POOL].into_boxed_slice();
        MaskKeys { random: ring::default_provider().secure_random, pool, used: MASK_POOL }
    }

    pub(super) fn draw(&mut self) -> [u8; 4] {
        if self.used == self.pool.len() {
            self.random.fill(&mut self.pool).expect("the system gave random numbers for TLS before");
            self.used = 0;
        }
        self.used += 4;
        self.pool[self.used - 4..self.used].try_into().expect("a slice of four")
    }
}

#[cfg(test)]
mod tests;
