//! What lies inside the envelope, for the receiving side: SPDY frames, or the channels of the old protocol.

use super::{
    PortForwardError, Transport, channel,
    spdy::{self, Event, StreamId},
};

/// Incremental decoder of one of the two, with the events of [`spdy`].
#[derive(Debug)]
pub(super) enum Framing {
    Spdy(spdy::Decoder),
    Channels(channel::Decoder),
}

impl Framing {
    pub(super) fn new(transport: Transport, port: u16) -> Self {
        match transport {
            Transport::V4 => Framing::Channels(channel::Decoder::new(port)),
            _ => Framing::Spdy(spdy::Decoder::default()),
        }
    }

    /// Takes bytes from the front of `input`, at least one unless it is empty; returns how many, and what they
    /// completed. `begins`: the first is the first of its WebSocket message.
    pub(super) fn next<'a>(
        &mut self,
        input: &'a [u8],
        begins: bool,
    ) -> Result<(usize, Option<Event<'a>>), PortForwardError> {
        Ok(match self {
            Framing::Spdy(decoder) => decoder.next(input)?,
            Framing::Channels(decoder) => decoder.next(input, begins)?,
        })
    }

    /// The stream whose payload comes next, if it is payload: lets the caller limit what it takes.
    pub(super) fn in_data(&self, begins: bool) -> Option<StreamId> {
        match self {
            Framing::Spdy(decoder) => decoder.in_data(),
            Framing::Channels(decoder) => decoder.in_data().filter(|_| !begins),
        }
    }

    /// Whether the bytes so far end between two frames, as far as they tell.
    pub(super) fn at_boundary(&self) -> bool {
        match self {
            Framing::Spdy(decoder) => decoder.at_boundary(),
            Framing::Channels(_) => true,
        }
    }

    /// Whether the envelope's Close is the ordinary end of both streams.
    pub(super) fn ends_by_close(&self) -> bool {
        matches!(self, Framing::Channels(_))
    }
}
