//! Questions that are not the cluster's: on to the system's own servers and back, byte for byte.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::message::Head;
use super::sockets::Sockets;
use super::{LIMIT, Transport, framed};

/// Room for a datagram: the longest that UDP over IP has.
const LONGEST: usize = 65_535;

/// Servers asked about one question; glibc uses three.
const SERVERS_MAX: usize = 6;

/// Answers that are not for us, of one socket. Whoever sends so many guesses IDs.
const STRANGE_MAX: usize = 64;

/// Response codes by which a server says that another one may know better, as glibc takes them: SERVFAIL, NOTIMP, REFUSED.
const ELSEWHERE: [u8; 3] = [2, 4, 5];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error("this machine has no name server of its own")]
    NoServer,
    #[error("ask {server}")]
    Io {
        server: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Asks the system's own servers.
pub(super) struct Relay<S> {
    sockets: S,
    own: Mutex<HashSet<Own>>,
}

/// A socket of ours in use, and the query that went out by it. Trap: the address alone is not enough, since a client's TCP
/// connection can have the same one; the kernel shares ports between connections to different peers.
type Own = (Transport, Address, Bytes);

/// Without what only IPv6 has beside that.
type Address = (IpAddr, u16);

impl<S: Sockets> Relay<S> {
    pub(super) fn new(sockets: S) -> Self {
        Self { sockets, own: Mutex::default() }
    }

    /// Did this query go out by one of our own sockets? Then it was redirected and came back.
    pub(super) fn is_own(&self, transport: Transport, from: SocketAddr, query: &[u8]) -> bool {
        let own = (transport, address(from), Bytes::copy_from_slice(query));
        lock(&self.own).contains(&own)
    }

    /// Asks `servers`, one after the other in steps that leave time for all, and takes the first answer of any: a server that
    /// is slow is still heard while the next one is asked. One server alone is asked twice by UDP: datagrams get lost.
    pub(super) async fn ask(
        &self,
        query: &[u8],
        head: &Head,
        transport: Transport,
        servers: &[SocketAddr],
    ) -> Result<(SocketAddr, Bytes), RelayError> {
        let twice = transport == Transport::Udp && servers.len() == 1;
        let mut next = servers.iter().take(SERVERS_MAX).chain(servers.iter().filter(|_| twice)).copied();
        let number = next.clone().count();
        let step = LIMIT / u32::try_from(number).unwrap_or(u32::MAX).max(1);
        let mut asked = FuturesUnordered::new();
        let mut worse = Err(RelayError::NoServer);
        let mut left = number;
        loop {
            if let Some(server) = next.next() {
                asked.push(self.ask_one(query, head, transport, server));
                left -= 1;
            } else if asked.is_empty() {
                return worse;
            }
            tokio::select! {
                Some(answer) = asked.next() => match answer {
                    Ok((server, answer)) if number > 1 && !twice && says_elsewhere(&answer) => worse = Ok((server, answer)),
                    Ok(answer) => return Ok(answer),
                    Err(error) if worse.is_err() => worse = Err(error),
                    Err(_) => {}
                },
                () = sleep(step), if left > 0 => {}
            }
        }
    }

    async fn ask_one(
        &self,
        query: &[u8],
        head: &Head,
        transport: Transport,
        server: SocketAddr,
    ) -> Result<(SocketAddr, Bytes), RelayError> {
        let answer = match transport {
            Transport::Udp => self.by_udp(query, head, server).await,
            Transport::Tcp => self.by_tcp(query, head, server).await,
        };
        answer.map(|answer| (server, answer)).map_err(|source| RelayError::Io { server, source })
    }

    async fn by_udp(&self, query: &[u8], head: &Head, server: SocketAddr) -> io::Result<Bytes> {
        let socket = self.sockets.udp(server).await?;
        let _own = self.register(Transport::Udp, socket.local_addr()?, query);
        socket.send(query).await?;
        let mut answer = Vec::with_capacity(LONGEST);
        for _ in 0..STRANGE_MAX {
            answer.clear();
            let (_, from) = socket.recv_buf_from(&mut answer).await?;
            // A lent socket may still hold what came for its last user.
            if address(from) == address(server) && head.is_answered_by(&answer) {
                return Ok(Bytes::copy_from_slice(&answer));
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "too many answers that are not to our question"))
    }

    async fn by_tcp(&self, query: &[u8], head: &Head, server: SocketAddr) -> io::Result<Bytes> {
        let mut stream: TcpStream = self.sockets.tcp(server).await?;
        let _own = self.register(Transport::Tcp, stream.local_addr()?, query);
        framed::write(&mut stream, query).await?;
        for _ in 0..STRANGE_MAX {
            let answer = framed::read(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if head.is_answered_by(&answer) {
                return Ok(answer.into());
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "too many answers that are not to our question"))
    }

    fn register(&self, transport: Transport, local: SocketAddr, query: &[u8]) -> Registered<'_> {
        let own = (transport, address(local), Bytes::copy_from_slice(query));
        lock(&self.own).insert(own.clone());
        Registered { all: &self.own, own }
    }
}

/// For as long as a socket is in use.
struct Registered<'a> {
    all: &'a Mutex<HashSet<Own>>,
    own: Own,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(self.all).remove(&self.own);
    }
}

fn lock(all: &Mutex<HashSet<Own>>) -> MutexGuard<'_, HashSet<Own>> {
    // A panic while holding the lock cannot leave the set half changed.
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

fn address(full: SocketAddr) -> Address {
    (full.ip(), full.port())
}

/// The response code stands in the lower half of the fourth byte (RFC 1035 §4.1.1).
fn says_elsewhere(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|byte| ELSEWHERE.contains(&(byte & 0xf)))
}

#[cfg(test)]
mod tests {
    use super::super::sockets::Ordinary;
    use super::*;

    #[test]
    fn only_what_went_out_came_back() {
        let relay = Relay::new(Ordinary);
        let [ours, other] = ["127.0.0.1:4000", "127.0.0.1:4001"].map(|text| text.parse().unwrap());
        let in_use = relay.register(Transport::Tcp, ours, b"query");
        let beside = relay.register(Transport::Tcp, ours, b"to another server");
        assert!(relay.is_own(Transport::Tcp, ours, b"query"));
        assert!(!relay.is_own(Transport::Tcp, ours, b"of a client whose port is the same"));
        assert!(!relay.is_own(Transport::Tcp, other, b"query"));
        assert!(!relay.is_own(Transport::Udp, ours, b"query"));
        drop(in_use);
        assert!(!relay.is_own(Transport::Tcp, ours, b"query"));
        assert!(relay.is_own(Transport::Tcp, ours, b"to another server"));
        drop(beside);
        assert!(lock(&relay.own).is_empty());
    }
}
