//! Servers of the Internet, whose answers no library of ours would make.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::scene::send;

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Plain,
    /// Sends nonsense before each answer.
    Hostile,
    /// REFUSED to everything.
    Refusing,
}

/// A running server, by UDP and TCP.
pub(super) struct Outside {
    pub(super) address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

/// The answer to these bytes: of a dozen kinds, always the same one.
pub(super) fn strange(query: &[u8]) -> Vec<u8> {
    let end = question_end(query);
    let seed =
        query[12..end].iter().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
    let mut answer = query[..end].to_vec();
    answer[2] |= 0x80; // a response
    answer[3] = 0x80 | if seed % 2 == 0 { 0x30 } else { 0 }; // recursion available; AD and CD
    answer[6..12].fill(0);
    let mut record = |section: usize, kind: u16, data: &[u8]| {
        answer[section + 1] += 1;
        answer.extend([0xc0, 12]); // the name that was asked
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1, 0, 0, 0, 60]);
        answer.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        answer.extend(data);
    };
    match seed % 8 {
        0 => answer[3] |= 3, // NXDOMAIN, without an SOA
        1 => answer[3] |= 2, // SERVFAIL
        2 => record(6, 46, &[0, 1, 8, 2, 0, 0, 0, 60, 0, 0, 0, 9, 0, 0, 0, 1, 0, 7, 0, 1, 2, 3]), // RRSIG
        3 => record(6, 65_280, &[0xff; 40]), // a type for private use
        4 => record(6, 16, &vec![0x11; 4_096 - end - 12]), // as long as it was allowed; no valid TXT
        5 => record(10, 41, &[0xfd, 0xe9, 0, 4, 1, 2, 3, 4]), // EDNS with a local option, its size and flags odd
        6 => answer[2] |= 2,                                  // truncated
        _ => record(8, 6, b"no SOA at all"),
    }
    answer
}

/// Where the question ends: a name, a type and a class.
fn question_end(query: &[u8]) -> usize {
    let mut at = 12;
    while query[at] != 0 {
        at += 1 + usize::from(query[at]);
    }
    at + 5
}

impl Outside {
    pub(super) async fn start() -> Self {
        Self::with(Manner::Plain).await
    }

    pub(super) async fn hostile() -> Self {
        Self::with(Manner::Hostile).await
    }

    pub(super) async fn refusing() -> Self {
        Self::with(Manner::Refusing).await
    }

    async fn with(manner: Manner) -> Self {
        let (socket, listener) = both().await;
        let (address, asked) = (socket.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        tokio::spawn(datagrams(socket, manner, asked.clone()));
        let counted = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connection(stream, manner, counted.clone()));
            }
        });
        Self { address, asked }
    }

    /// Questions so far.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// Both kinds of sockets on one port.
async fn both() -> (UdpSocket, TcpListener) {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(socket) = UdpSocket::bind(listener.local_addr().unwrap()).await {
            return (socket, listener);
        }
    }
}

/// What to send for a query, in turn.
fn answers(query: &[u8], manner: Manner) -> Vec<Vec<u8>> {
    let right = strange(query);
    match manner {
        Manner::Plain => vec![right],
        Manner::Refusing => {
            let mut refused = query.to_vec();
            (refused[2], refused[3]) = (refused[2] | 0x80, 0x85);
            vec![refused]
        }
        Manner::Hostile => {
            let changed = |at: usize| {
                let mut changed = right.clone();
                changed[at] ^= 1;
                changed
            };
            let (id, name) = (changed(1), changed(13));
            vec![id, name, query.to_vec(), right[..20].to_vec(), vec![0xff; 40], Vec::new(), right]
        }
    }
}

async fn datagrams(socket: UdpSocket, manner: Manner, asked: Arc<AtomicUsize>) {
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut query = vec![0; 65_535];
    let mut late = Vec::new();
    while let Ok((length, from)) = socket.recv_from(&mut query).await {
        asked.fetch_add(1, Ordering::Relaxed);
        let query = &query[..length];
        if manner == Manner::Hostile {
            let mut forged = strange(query);
            forged[3] |= 3;
            stranger.send_to(&forged, from).await.unwrap();
            socket.send_to(&std::mem::replace(&mut late, strange(query)), from).await.unwrap();
        }
        for answer in answers(query, manner) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn connection(mut stream: TcpStream, manner: Manner, asked: Arc<AtomicUsize>) {
    while let Ok(length) = stream.read_u16().await {
        let mut query = vec![0; length.into()];
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        asked.fetch_add(1, Ordering::Relaxed);
        for answer in answers(&query, manner) {
            send(&mut stream, &answer).await;
        }
    }
}
