//! HTTP/1.1 by hand, one request per connection: what the tests need and nothing that hides an error.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sha2::{Digest, Sha256};

/// A hang fails the test as a timeout of the socket.
const SILENCE: Duration = Duration::from_secs(60);

/// An answer, its body only counted and summed.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The server's `X-Sha256`, if it sent one.
    pub announced: Option<String>,
    /// Length of the body in bytes.
    pub length: u64,
    /// SHA-256 of the body, hexadecimal.
    pub sha256: String,
    /// The body, if it has at most 4 KiB.
    pub text: String,
}

/// A connection on which silence is an error.
///
/// # Errors
/// As `connect(2)`.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, SILENCE)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.set_write_timeout(Some(SILENCE))?;
    Ok(socket)
}

/// `GET path`.
///
/// # Errors
/// When the connection fails, or ends before the answer is complete.
pub fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut socket = connect(address)?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
    answer(socket)
}

/// `PUT path` with `blocks` times `block` as its body.
///
/// # Errors
/// As [`get`].
pub fn put(address: SocketAddr, path: &str, block: &[u8], blocks: usize) -> io::Result<Answer> {
    let mut socket = connect(address)?;
    let length = block.len() * blocks;
    write!(
        socket,
        "PUT {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    for _ in 0..blocks {
        socket.write_all(block)?;
    }
    answer(socket)
}

/// SHA-256 of `blocks` times `block`, hexadecimal.
pub fn sha256(block: &[u8], blocks: usize) -> String {
    let mut sum = Sha256::new();
    for _ in 0..blocks {
        sum.update(block);
    }
    hex(&sum.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(socket: TcpStream) -> io::Result<Answer> {
    let mut from = BufReader::with_capacity(256 << 10, socket);
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let status = head.first().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or_else(malformed)?;
    let header = |name: &str| {
        head.iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    };
    let expected: Option<u64> = header("content-length").and_then(|length| length.parse().ok());
    let announced = header("x-sha256").map(str::to_owned);
    let (mut sum, mut length, mut text) = (Sha256::new(), 0, String::new());
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        sum.update(&buffer[..n]);
        length += n as u64;
        if length <= 4096 {
            text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    }
    if expected.is_some_and(|expected| expected != length) {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{length} of {expected:?} bytes")));
    }
    Ok(Answer { status, announced, length, sha256: hex(&sum.finalize()), text })
}
