//! What lies inside the messages of `v4.channel.k8s.io`, the protocol before the tunnel: pure, no I/O.
//!
//! Every message is one channel byte and payload: channel 0 is the data of the one port we ask for, 1 its error text. The
//! first message of each channel from the server is the port, two bytes, little-endian. There is no end of one
//! channel, only the WebSocket's Close. Source: k8s.io/cri-streaming `portforward/websocket.go`.
//!
//! It is told in the events of `spdy.rs`, so that `pair.rs` gives them the same meaning: the port is the
//! stream's confirmation, and Close 1000 the end of both streams.

use thiserror::Error;

use super::{
    pair::{DATA_STREAM, ERROR_STREAM},
    spdy::{Event, StreamId},
};

/// The channel byte of what we send; the error channel is never written to.
pub(super) const DATA_CHANNEL: u8 = 0;
const ERROR_CHANNEL: u8 = 1;

/// The peer broke `v4.channel.k8s.io`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ChannelError {
    /// Only the two channels of one port were asked for.
    #[error("message on channel {0}, expected 0 or 1")]
    Channel(u8),
    /// The first message of a channel is not two bytes long.
    #[error("the first message of channel {0} is not a port")]
    Preamble(u8),
    /// The first message of a channel names another port.
    #[error("channel {channel} is of port {got}, expected {expected}")]
    Port {
        /// The channel byte.
        channel: u8,
        /// The port asked for.
        expected: u16,
        /// The port named.
        got: u16,
    },
}

/// Incremental decoder; gives the same events for every split of the messages.
#[derive(Debug)]
pub(super) struct Decoder {
    port: u16,
    /// Whose port has come: data, error.
    confirmed: [bool; 2],
    state: State,
}

#[derive(Debug)]
enum State {
    /// Before the first message.
    Start,
    /// In the first message of a channel.
    Preamble { channel: u8, have: usize, bytes: [u8; 2] },
    /// In any other.
    Payload { stream: StreamId },
}

impl Decoder {
    /// For a connection that asked for `port`.
    pub(super) fn new(port: u16) -> Self {
        Decoder { port, confirmed: [false; 2], state: State::Start }
    }

    /// Takes bytes of one message from the front of `input`; `begins` says that the first is the channel byte.
    ///
    /// Consumes at least one byte unless `input` is empty. No event means: call again with what follows.
    pub(super) fn next<'a>(
        &mut self,
        input: &'a [u8],
        begins: bool,
    ) -> Result<(usize, Option<Event<'a>>), ChannelError> {
        let Some(first) = input.first().copied() else { return Ok((0, None)) };
        if begins {
            return self.begin(first).map(|()| (1, None));
        }
        match &mut self.state {
            State::Start => Ok((input.len(), None)), // not reached: a message always begins
            State::Preamble { channel, have: 2, .. } => Err(ChannelError::Preamble(*channel)),
            State::Preamble { channel, have, bytes } => {
                bytes[*have] = first;
                *have += 1;
                if *have < 2 {
                    return Ok((1, None));
                }
                let (channel, got) = (*channel, u16::from_le_bytes(*bytes));
                if got != self.port {
                    return Err(ChannelError::Port { channel, expected: self.port, got });
                }
                self.confirmed[usize::from(channel)] = true;
                Ok((1, Some(Event::SynReply { stream: stream(channel), fin: false })))
            }
            State::Payload { stream } => {
                Ok((input.len(), Some(Event::Data { stream: *stream, bytes: input, fin: false })))
            }
        }
    }

    /// The stream whose payload comes next, unless a message begins.
    pub(super) fn in_data(&self) -> Option<StreamId> {
        match self.state {
            State::Payload { stream } => Some(stream),
            _ => None,
        }
    }

    fn begin(&mut self, channel: u8) -> Result<(), ChannelError> {
        if let State::Preamble { channel, have: 1, .. } = self.state {
            return Err(ChannelError::Preamble(channel));
        }
        let confirmed = *self.confirmed.get(usize::from(channel)).ok_or(ChannelError::Channel(channel))?;
        self.state = if confirmed {
            State::Payload { stream: stream(channel) }
        } else {
            State::Preamble { channel, have: 0, bytes: [0; 2] }
        };
        Ok(())
    }
}

/// The stream a channel stands for.
fn stream(channel: u8) -> StreamId {
    if channel == ERROR_CHANNEL { ERROR_STREAM } else { DATA_STREAM }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Payloads of both streams and how often each was confirmed, for messages in parts of `size`.
    fn decode(messages: &[&[u8]], size: usize) -> Result<([Vec<u8>; 2], [u32; 2]), ChannelError> {
        let mut decoder = Decoder::new(8000);
        let (mut payloads, mut confirmed) = ([Vec::new(), Vec::new()], [0, 0]);
        let index = |stream| usize::from(stream == ERROR_STREAM);
        for message in messages {
            let mut begins = true;
            for mut part in message.chunks(size) {
                while !part.is_empty() {
                    let (taken, event) = decoder.next(part, begins)?;
                    assert!(taken > 0, "the decoder must make progress");
                    begins = false;
                    part = &part[taken..];
                    match event {
                        Some(Event::Data { stream, bytes, .. }) => payloads[index(stream)].extend(bytes),
                        Some(Event::SynReply { stream, .. }) => confirmed[index(stream)] += 1,
                        Some(other) => panic!("{other:?}"),
                        None => {}
                    }
                }
            }
        }
        Ok((payloads, confirmed))
    }

    #[test]
    fn ports_then_payload_of_both_channels() {
        let messages: [&[u8]; 8] =
            [b"\x00\x40\x1f", b"\x00one ", b"\x00", b"\x01", b"\x01\x40\x1f", b"", b"\x01text", b"\x00two"];
        for size in [1, 2, 3, 100] {
            let (payloads, confirmed) = decode(&messages, size).unwrap();
            assert_eq!(payloads, [b"one two".to_vec(), b"text".to_vec()]);
            assert_eq!(confirmed, [1, 1]);
        }
    }

    #[test]
    fn wrong_beginnings_are_errors() {
        let port = |channel, got| ChannelError::Port { channel, expected: 8000, got };
        let cases: [(&[&[u8]], ChannelError); 6] = [
            (&[b"\x00\x1f\x40"], port(0, 0x401f)), // big-endian
            (&[b"\x01hello"], port(1, u16::from_le_bytes(*b"he"))),
            (&[b"\x00\x40\x1f!"], ChannelError::Preamble(0)),
            (&[b"\x00\x40", b"\x00\x1f"], ChannelError::Preamble(0)),
            (&[b"\x02\x40\x1f"], ChannelError::Channel(2)),
            (&[b"\x00\x40\x1f", b"\xff"], ChannelError::Channel(255)),
        ];
        for (messages, error) in cases {
            for size in [1, 2, 100] {
                assert_eq!(decode(messages, size).unwrap_err(), error, "{messages:02x?}");
            }
        }
    }
}
