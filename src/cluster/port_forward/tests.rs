//! The stream against a scripted server over an in-memory pipe, in paused time: waits cost nothing and are exact.
//!
//! The server speaks with its own few lines of SPDY and WebSocket, not with the code under test.

mod alive;
mod channels;
mod endings;
mod flush;
mod transfer;

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    time::{Instant, sleep, timeout},
};

use super::{
    ChannelError, PortForwardError, PortForwardStream, SpdyError,
    Transport::{self, Spdy, V4, Websocket},
    connection::{BACKLOG, CLOSE_WAIT, ERROR_WAIT, HALF_CLOSED, STREAM_WAIT},
    liveness::{DEAD_AFTER, PING_EVERY},
};

const REFUSED: &[u8] =
    b"failed to connect to localhost:9: dial tcp4 127.0.0.1:9: connect: connection refused";
/// Bytes that fit into the pipe each way: stands for all socket buffers on the way.
const PIPE: usize = 64 * 1024;

/// What the server got.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Syn { id: u32, block: Vec<u8> },
    Data { id: u32, fin: bool, bytes: Vec<u8> },
    Rst { id: u32, status: u32 },
    Ping(u32),
    WsPing(Vec<u8>),
    WsPong(Vec<u8>),
    WsClose(Vec<u8>),
    Eof,
}

struct Reader {
    io: ReadHalf<DuplexStream>,
    websocket: bool,
    payload: Vec<u8>,
    /// Payload sizes of WebSocket messages, in order.
    messages: Vec<usize>,
}

struct Writer {
    io: WriteHalf<DuplexStream>,
    websocket: bool,
}

fn open(transport: Transport) -> (PortForwardStream<DuplexStream>, Reader, Writer) {
    let (ours, theirs) = duplex(PIPE);
    let stream = PortForwardStream::start(ours, transport, 8000);
    let websocket = transport != Spdy;
    let (read, write) = split(theirs);
    let reader = Reader { io: read, websocket, payload: Vec::new(), messages: Vec::new() };
    (stream, reader, Writer { io: write, websocket })
}

impl Reader {
    /// More payload; `Err` is a control frame or the end.
    async fn fill(&mut self) -> Result<(), Got> {
        if !self.websocket {
            let mut buf = vec![0; 32 * 1024];
            let count = self.io.read(&mut buf).await.unwrap();
            self.payload.extend(&buf[..count]);
            return if count == 0 { Err(Got::Eof) } else { Ok(()) };
        }
        let Ok(first) = self.io.read_u8().await else { return Err(Got::Eof) };
        let second = self.io.read_u8().await.unwrap();
        assert_eq!(second & 0x80, 0x80, "client frames are masked");
        let length = match second & 0x7f {
            126 => {
                let length = usize::from(self.io.read_u16().await.unwrap());
                assert!(length > 125, "the shortest form of a length must be used");
                length
            }
            127 => panic!("a message of 64 KiB or more"),
            short => usize::from(short),
        };
        let mut key = [0; 4];
        self.io.read_exact(&mut key).await.unwrap();
        let mut bytes = vec![0; length];
        self.io.read_exact(&mut bytes).await.unwrap();
        bytes.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        match first {
            0x82 => {
                self.messages.push(length);
                self.payload.extend(bytes);
                Ok(())
            }
            0x89 => Err(Got::WsPing(bytes)),
            0x8a => Err(Got::WsPong(bytes)),
            0x88 => Err(Got::WsClose(bytes)),
            other => panic!("unexpected first byte {other:#x}"),
        }
    }

    async fn next(&mut self) -> Got {
        loop {
            if let Some(header) = self.payload.first_chunk::<8>().copied() {
                let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
                if self.payload.len() >= 8 + length {
                    let body: Vec<u8> = self.payload.drain(..8 + length).skip(8).collect();
                    let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
                    let id = u32::from_be_bytes(header[..4].try_into().unwrap());
                    return match id {
                        0x8003_0001 => Got::Syn { id: word(0), block: body[10..].to_vec() },
                        0x8003_0003 => Got::Rst { id: word(0), status: word(4) },
                        0x8003_0006 => Got::Ping(word(0)),
                        id if id >> 31 == 0 => Got::Data { id, fin: header[4] == 1, bytes: body },
                        other => panic!("unexpected frame {other:#x}"),
                    };
                }
            }
            if let Err(got) = self.fill().await {
                return got;
            }
        }
    }

    /// The next WebSocket message as it is: a control frame, or data of a channel.
    async fn message(&mut self) -> Got {
        if let Err(got) = self.fill().await {
            return got;
        }
        let mut bytes = std::mem::take(&mut self.payload);
        let id = u32::from(bytes.remove(0));
        Got::Data { id, fin: false, bytes }
    }

    /// Skips the three frames of the opening, after checking them.
    async fn opening(&mut self) {
        assert!(matches!(self.next().await, Got::Syn { id: 1, .. }));
        assert_eq!(self.next().await, Got::Data { id: 1, fin: true, bytes: vec![] });
        assert!(matches!(self.next().await, Got::Syn { id: 3, .. }));
    }

    /// Skips pings.
    async fn beside_pings(&mut self) -> Got {
        loop {
            match self.next().await {
                Got::Ping(_) => {}
                other => return other,
            }
        }
    }
}

impl Writer {
    async fn send(&mut self, frames: &[Vec<u8>]) {
        let bytes = frames.concat();
        let bytes = if self.websocket { message(0x82, &bytes) } else { bytes };
        self.io.write_all(&bytes).await.unwrap();
    }

    /// Each as a message of its own.
    async fn messages(&mut self, messages: &[&[u8]]) {
        for bytes in messages {
            self.io.write_all(&message(0x82, bytes)).await.unwrap();
        }
    }

    async fn close(&mut self, code: u16) {
        self.io.write_all(&message(0x88, &code.to_be_bytes())).await.unwrap();
    }
}

fn message(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 127];
    frame.extend((payload.len() as u64).to_be_bytes());
    if payload.len() < 126 {
        frame = vec![first, payload.len() as u8];
    }
    frame.extend(payload);
    frame
}

fn data(id: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = id.to_be_bytes().to_vec();
    frame.extend(((u32::from(fin) << 24) | bytes.len() as u32).to_be_bytes());
    frame.extend(bytes);
    frame
}

fn control(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3, 0, kind];
    frame.extend((body.len() as u32).to_be_bytes());
    frame.extend(body);
    frame
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn reply(id: u32) -> Vec<u8> {
    control(2, &[&words(&[id])[..], &[0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x62, 0x60]].concat())
}

fn rst(id: u32, status: u32) -> Vec<u8> {
    control(3, &words(&[id, status]))
}

fn ping(id: u32) -> Vec<u8> {
    control(6, &words(&[id]))
}

fn goaway() -> Vec<u8> {
    control(7, &words(&[3, 0]))
}

/// Both streams finished without an error text.
fn clean_end() -> Vec<u8> {
    [data(3, b"", true), data(1, b"", true)].concat()
}

fn typed(error: io::Error) -> PortForwardError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<PortForwardError>());
    inner.unwrap_or_else(|| panic!("no typed error in {error:?}")).clone()
}

/// Everything until the end: data and how it ended.
async fn drain(stream: &mut PortForwardStream<DuplexStream>) -> (Vec<u8>, Result<(), PortForwardError>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await;
    (bytes, end.map(drop).map_err(typed))
}
