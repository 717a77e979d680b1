//! What waits to be written: frames gathered into messages, without I/O.
//!
//! Two buffers that change places: `current` is being written, `open` still grows. While the socket takes everything a
//! write leaves at once in a message of its own; while it does not, small writes join the open message, and its last
//! DATA frame is extended rather than a new one begun. So every byte is copied once (and masked in place), header and
//! payload leave in one write, and memory is bounded by two messages.
//!
//! What is said without data differs by [`Dialect`]; the old protocol has no words for most of it.

use super::{
    Transport,
    channel::DATA_CHANNEL,
    pair::{DATA_STREAM, ERROR_STREAM},
    spdy::{self, FIN, HeaderBlocks, StreamId},
    websocket::{self, HEADER_MAX, MaskKeys},
};

/// Bytes of a message with room for its envelope. Go's copy loops on the way take 32 KiB: more is cut up again, less
/// costs every hop; and it is two full TLS records, while a byte more would be a third.
pub(super) const MESSAGE: usize = 32 * 1024;
/// Payload of the largest DATA frame, which fills a message alone.
#[cfg(test)]
pub(super) const PAYLOAD: usize = MESSAGE - HEADER_MAX - spdy::HEADER;
/// Room beyond that which only control frames use, so that they never wait for data; more of them are dropped.
const CONTROL_ROOM: usize = 4 * 1024;

/// What messages are made of, and how they travel.
#[derive(Debug)]
pub(super) enum Dialect {
    /// SPDY frames as they are.
    Spdy,
    /// SPDY frames, each message in one masked binary WebSocket frame.
    Tunnel(MaskKeys),
    /// Payload behind a channel byte, likewise.
    Channels(MaskKeys),
}

impl Dialect {
    /// Of a way that was agreed on.
    pub(super) fn new(transport: Transport) -> Self {
        match transport {
            Transport::Spdy => Dialect::Spdy,
            Transport::V4 => Dialect::Channels(MaskKeys::new()),
            Transport::Websocket | Transport::Auto => Dialect::Tunnel(MaskKeys::new()),
        }
    }

    fn keys(&mut self) -> Option<&mut MaskKeys> {
        match self {
            Dialect::Spdy => None,
            Dialect::Tunnel(keys) | Dialect::Channels(keys) => Some(keys),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Outbox {
    dialect: Dialect,
    current: Vec<u8>,
    written: usize,
    open: Vec<u8>,
    /// Where the last frame of `open` begins, if it is a DATA frame that may still grow.
    growing: Option<usize>,
    ping: Option<u32>,
    pong: Option<Vec<u8>>,
    close: bool,
}

impl Outbox {
    /// Both messages, and a pong that waits.
    pub(super) const MEMORY_MAX: usize = 2 * (MESSAGE + CONTROL_ROOM) + websocket::CONTROL_MAX;

    #[cfg(any(test, fuzzing))]
    pub(super) fn memory(&self) -> usize {
        self.current.capacity() + self.open.capacity() + self.pong.as_ref().map_or(0, Vec::capacity)
    }

    pub(super) fn new(dialect: Dialect) -> Self {
        let buffer = || Vec::with_capacity(MESSAGE + CONTROL_ROOM);
        let mut open = buffer();
        open.resize(HEADER_MAX, 0);
        Outbox {
            dialect,
            current: buffer(),
            written: 0,
            open,
            growing: None,
            ping: None,
            pong: None,
            close: false,
        }
    }

    /// Opens the stream pair: error stream first and finished at once (we never write to it), then the data stream.
    /// Over channels the request has said it all.
    pub(super) fn open_pair(&mut self, port: u16) {
        let port = port.to_string();
        let mut blocks = HeaderBlocks::default();
        self.control(|out| {
            for (stream, kind) in [(ERROR_STREAM, "error"), (DATA_STREAM, "data")] {
                let headers = [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
                blocks.syn_stream(out, stream, false, &headers);
                if stream == ERROR_STREAM {
                    out.extend(spdy::data_header(stream, FIN, 0));
                }
            }
        });
    }

    /// Takes as much payload as fits the open message; 0 means it is full.
    pub(super) fn data(&mut self, bytes: &[u8]) -> usize {
        let channels = matches!(self.dialect, Dialect::Channels(_));
        let header = match (self.growing, channels) {
            (Some(_), _) => 0,
            (None, true) => 1,
            (None, false) => spdy::HEADER,
        };
        let room = MESSAGE.saturating_sub(self.open.len() + header);
        let take = bytes.len().min(room);
        if take == 0 {
            return 0;
        }
        let start = *self.growing.get_or_insert(self.open.len());
        if channels {
            if header > 0 {
                self.open.push(DATA_CHANNEL);
            }
            self.open.extend_from_slice(&bytes[..take]);
            return take;
        }
        if header > 0 {
            self.open.extend(spdy::data_header(DATA_STREAM, 0, 0));
        }
        self.open.extend_from_slice(&bytes[..take]);
        let length = self.open.len() - start - spdy::HEADER;
        self.open[start..start + spdy::HEADER].copy_from_slice(&spdy::data_header(DATA_STREAM, 0, length));
        take
    }

    /// Ends our data. Channels have no end: see `HALF_CLOSED` of the connection.
    pub(super) fn fin(&mut self) {
        if matches!(self.dialect, Dialect::Channels(_)) {
            return;
        }
        match self.growing.take() {
            Some(start) => self.open[start + 4] |= FIN,
            None => self.open.extend(spdy::data_header(DATA_STREAM, FIN, 0)),
        }
    }

    /// Asks for a sign of life, in SPDY, or in WebSocket where that is the only way.
    pub(super) fn ping(&mut self, id: u32) {
        if matches!(self.dialect, Dialect::Channels(_)) {
            self.ping = Some(id);
        } else {
            self.control(|out| spdy::ping(out, id));
        }
    }

    /// Answers a SPDY ping. If there is no room for it the peer floods us; it may do without.
    pub(super) fn answer(&mut self, id: u32) {
        self.control(|out| spdy::ping(out, id));
    }

    /// Says that a stream is not, or no longer, wanted.
    pub(super) fn reset(&mut self, stream: StreamId, status: u32) {
        self.control(|out| spdy::rst_stream(out, stream, status));
    }

    /// Answers a WebSocket ping; only the latest one counts (RFC 6455, section 5.5.3).
    pub(super) fn pong(&mut self, payload: Vec<u8>) {
        self.pong = Some(payload);
    }

    /// Says goodbye after all that waits, where there is an envelope with a word for it.
    pub(super) fn close(&mut self) {
        self.close = true;
    }

    /// Whether all that was said has been written.
    pub(super) fn is_empty(&self) -> bool {
        let words = self.ping.is_some() || self.pong.is_some() || self.close;
        self.written == self.current.len() && self.open.len() == HEADER_MAX && !words
    }

    /// The bytes to write next; empty when there is nothing left.
    pub(super) fn next(&mut self) -> &[u8] {
        if self.written == self.current.len() {
            self.refill();
        }
        &self.current[self.written..]
    }

    /// That many of them were written.
    pub(super) fn wrote(&mut self, count: usize) {
        self.written += count;
    }

    /// Appends SPDY control frames; false if there was no room, which only a flood from the peer can bring about.
    fn control(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        if matches!(self.dialect, Dialect::Channels(_)) {
            return true; // nothing to be said there
        }
        if self.open.len() + CONTROL_ROOM / 4 > MESSAGE + CONTROL_ROOM {
            return false;
        }
        self.growing = None;
        write(&mut self.open);
        true
    }

    fn refill(&mut self) {
        self.current.clear();
        self.written = 0;
        let keys = self.dialect.keys();
        if let Some(payload) = self.pong.take() {
            if let Some(keys) = keys {
                self.current.extend(websocket::pong(&payload, keys.draw()));
            }
        } else if let Some(id) = self.ping.take() {
            if let Some(keys) = keys {
                self.current.extend(websocket::ping(&id.to_be_bytes(), keys.draw()));
            }
        } else if self.open.len() > HEADER_MAX {
            std::mem::swap(&mut self.current, &mut self.open);
            self.growing = None;
            self.open.clear();
            self.open.resize(HEADER_MAX, 0);
            self.written = match keys {
                None => HEADER_MAX,
                Some(keys) => websocket::seal(&mut self.current, HEADER_MAX, keys.draw()),
            };
        } else if std::mem::take(&mut self.close)
            && let Some(keys) = keys
        {
            self.current.extend(websocket::close(keys.draw()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(outbox: &mut Outbox) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        loop {
            let message = outbox.next().to_vec();
            if message.is_empty() {
                return messages;
            }
            outbox.wrote(message.len());
            messages.push(message);
        }
    }

    #[test]
    fn a_full_message_is_one_frame_of_32_kib() {
        let mut outbox = Outbox::new(Dialect::Spdy);
        assert_eq!(outbox.data(&[7; 100_000]), PAYLOAD);
        assert_eq!(outbox.data(&[7; 10]), 0);
        let messages = drain(&mut outbox);
        assert_eq!(messages.len(), 1);
        assert_eq!(messages[0].len(), MESSAGE - HEADER_MAX);
        assert_eq!(messages[0][..8], spdy::data_header(3, 0, PAYLOAD));
        let mut outbox = Outbox::new(Dialect::Tunnel(MaskKeys::new()));
        outbox.data(&[7; 100_000]);
        assert_eq!(drain(&mut outbox)[0].len(), MESSAGE);
    }

    #[test]
    fn small_writes_join_one_frame_while_another_is_written() {
        let mut outbox = Outbox::new(Dialect::Spdy);
        outbox.data(b"first");
        assert_eq!(outbox.next().len(), 13);
        outbox.data(b"sec");
        outbox.data(b"ond");
        outbox.wrote(13);
        assert_eq!(outbox.next(), [&spdy::data_header(3, 0, 6)[..], b"second"].concat());
    }

    #[test]
    fn control_frames_split_data_and_always_have_room() {
        let mut outbox = Outbox::new(Dialect::Spdy);
        while outbox.data(&[1; 1000]) > 0 {}
        outbox.ping(1);
        outbox.fin();
        let message = drain(&mut outbox).concat();
        assert!(message.ends_with(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 3, 1, 0, 0, 0]));
        let mut count = 0;
        while outbox.control(|out| spdy::ping(out, 2)) {
            count += 1;
        }
        assert!(count < 4000, "a flood is bounded");
    }

    #[test]
    fn the_end_marks_the_growing_frame() {
        let mut outbox = Outbox::new(Dialect::Spdy);
        outbox.data(b"bye");
        outbox.fin();
        assert_eq!(drain(&mut outbox), [[&spdy::data_header(3, FIN, 3)[..], b"bye"].concat()]);
    }

    #[test]
    fn websocket_order_is_pong_data_close() {
        let mut outbox = Outbox::new(Dialect::Tunnel(MaskKeys::new()));
        outbox.data(b"x");
        outbox.close();
        outbox.pong(b"old".to_vec());
        outbox.pong(b"p".to_vec());
        let firsts: Vec<u8> = drain(&mut outbox).iter().map(|m| m[0]).collect();
        assert_eq!(firsts, [0x8a, 0x82, 0x88]);
    }

    #[test]
    fn channels_carry_data_behind_one_byte_and_nothing_else() {
        let mut outbox = Outbox::new(Dialect::Channels(MaskKeys::new()));
        outbox.open_pair(8000);
        outbox.reset(1, 5);
        assert!(outbox.is_empty());
        outbox.data(b"some");
        outbox.ping(1);
        outbox.data(b"thing");
        outbox.fin();
        outbox.close();
        let messages: Vec<_> = drain(&mut outbox).iter().map(|message| unmask(message)).collect();
        let expected =
            [(0x89, b"\0\0\0\x01".to_vec()), (0x82, b"\0something".to_vec()), (0x88, vec![0x03, 0xe8])];
        assert_eq!(messages, expected);

        assert_eq!(outbox.data(&[7; 100_000]), MESSAGE - HEADER_MAX - 1);
        assert_eq!(drain(&mut outbox)[0].len(), MESSAGE);
        assert!(outbox.is_empty());
    }

    /// First byte and payload of a message under 126 bytes.
    fn unmask(message: &[u8]) -> (u8, Vec<u8>) {
        let (header, payload) = message.split_at(6);
        assert_eq!(usize::from(header[1] & 0x7f), payload.len());
        let key = header[2..6].iter().cycle();
        (header[0], payload.iter().zip(key).map(|(byte, key)| byte ^ key).collect())
    }
}
