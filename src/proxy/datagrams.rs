//! UDP that the kernel redirected to us: one socket takes all of it, each sender has a flow of its own.
//!
//! A redirected datagram does not say where it was meant to go; the helper asks the system ([`Origins`]). States of a
//! sender: asked about → flow → (20 s without a datagram: asked again before the next goes) → forgotten.
//!
//! Why it is asked again, and when it is forgotten: `datagrams/exchange.rs`.

mod exchange;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use kshuttle_wire::flow::udp::{DatagramFlow, Unsent};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::exchange::Exchange;
pub use self::exchange::Remembered;
use crate::addr::Target;
use crate::privileged::PrivilegedError;
use crate::privileged::questions::Questions;
use crate::tunnel::Connect;

/// Senders at once. Each is a flow in the tunnel, of which a session carries 3,000; a resolver makes one for each question.
const SENDERS_MAX: usize = 2_000;

/// Datagrams of one sender that wait until it is known where they go; DNS clients send two, QUIC about ten.
const WAITING_MAX: usize = 64;

/// Bytes of datagrams of all senders that wait so. A program that sends without end costs no more.
const WAITING_BYTES_MAX: usize = 16 << 20;

/// Who is no sender of ours is not asked about again for so long: a question costs root's time.
const REFUSED: Duration = Duration::from_secs(5);

/// Asked for in both directions: a burst of all senders together, which a program's own socket would take 208 KiB of each.
const SOCKET_BUFFER: usize = 4 << 20;

/// Pause after a failed receive (most often no memory), so that it is no busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Room for a datagram: the longest that UDP over IP has.
const LONGEST: usize = 65_535;

/// Knows where redirected datagrams were meant to go.
pub trait Origins: Clone + Send + Sync + 'static {
    /// Where the datagrams that came `from` there to our socket `at` were meant to go; none if the system does not know.
    fn origin(
        &self,
        from: SocketAddr,
        at: SocketAddr,
    ) -> impl Future<Output = Result<Option<SocketAddr>, PrivilegedError>> + Send;
}

impl Origins for Questions {
    async fn origin(&self, from: SocketAddr, at: SocketAddr) -> Result<Option<SocketAddr>, PrivilegedError> {
        self.origin(from, at).await
    }
}

/// A socket for [`serve`], on a port that the kernel chooses.
///
/// # Errors
/// When there is no such address, or no port.
pub fn bind(address: IpAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address((address, 0).into()), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    // The kernel may give less (net.core.rmem_max); then bursts lose more, as with any UDP.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&SocketAddr::new(address, 0).into())?;
    UdpSocket::from_std(socket.into())
}

/// Serves a socket that only the redirect rules lead to, for ever. `only` these senders, if it says so.
pub async fn serve(
    socket: UdpSocket,
    only: Option<IpNet>,
    remembered: Remembered,
    origins: impl Origins,
    tunnel: impl Connect,
) -> io::Error {
    let at = match socket.local_addr() {
        Ok(at) => at,
        Err(error) => return error,
    };
    let room = Arc::new(Semaphore::new(WAITING_BYTES_MAX));
    let shared = Arc::new(Shared { socket, at, remembered, room, senders: Mutex::default() });
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, from) = match shared.socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receive a datagram");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        if only.is_some_and(|net| !net.contains(&from.ip())) {
            continue;
        }
        // An empty one takes room, too.
        let bytes = u32::try_from(length.max(1)).expect("no datagram is longer");
        let Ok(room) = shared.room.clone().try_acquire_many_owned(bytes) else { continue };
        let datagram = Waiting { datagram: Bytes::copy_from_slice(&buffer[..length]), _room: room };
        if let Some((queue, number)) = shared.pass(from, datagram) {
            let sender = Sender { from, number, queue, shared: shared.clone() };
            let (origins, tunnel) = (origins.clone(), tunnel.clone());
            tasks.spawn(async move { sender.serve(origins, tunnel).await });
        }
    }
}

struct Shared {
    socket: UdpSocket,
    at: SocketAddr,
    remembered: Remembered,
    /// Bytes that may wait.
    room: Arc<Semaphore>,
    senders: Mutex<Senders>,
}

/// A datagram that waits for its way.
struct Waiting {
    datagram: Bytes,
    _room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Senders {
    known: HashMap<SocketAddr, Known>,
    /// How many there have been: tells a sender from an earlier one with its address.
    numbered: u64,
}

struct Known {
    number: u64,
    queue: mpsc::Sender<Waiting>,
    used: Instant,
}

impl Shared {
    /// Gives a datagram to its sender's task; for a new sender returns what the task needs.
    fn pass(&self, from: SocketAddr, datagram: Waiting) -> Option<(mpsc::Receiver<Waiting>, u64)> {
        let mut senders = self.lock();
        if let Some(known) = senders.known.get_mut(&from) {
            known.used = Instant::now();
            match known.queue.try_send(datagram) {
                Ok(()) => return None,
                Err(TrySendError::Full(_)) => {
                    tracing::debug!(%from, "datagram dropped: it is not known yet where it goes");
                    return None;
                }
                Err(TrySendError::Closed(again)) => return Some(senders.add(from, again)),
            }
        }
        if senders.known.len() >= SENDERS_MAX {
            senders.forget_one();
        }
        Some(senders.add(from, datagram))
    }

    fn lock(&self) -> MutexGuard<'_, Senders> {
        // A panic while holding the lock cannot leave the list half changed.
        self.senders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Senders {
    fn add(&mut self, from: SocketAddr, first: Waiting) -> (mpsc::Receiver<Waiting>, u64) {
        let (queue, datagrams) = mpsc::channel(WAITING_MAX);
        let _ = queue.try_send(first); // there is room
        self.numbered += 1;
        self.known.insert(from, Known { number: self.numbered, queue, used: Instant::now() });
        (datagrams, self.numbered)
    }

    /// The one that has been silent for longest; its task ends with its queue.
    fn forget_one(&mut self) {
        let oldest = self.known.iter().min_by_key(|(_, known)| known.used).map(|(from, _)| *from);
        if let Some(known) = oldest.and_then(|from| self.known.remove(&from)) {
            tracing::debug!(silent = ?known.used.elapsed(), "more than {SENDERS_MAX} senders of datagrams: one was forgotten");
        }
    }
}

struct Sender {
    from: SocketAddr,
    number: u64,
    queue: mpsc::Receiver<Waiting>,
    shared: Arc<Shared>,
}

/// What a sender's flow ended by.
enum End {
    /// Silence, or the tunnel: it is forgotten.
    Over,
    /// This datagram goes somewhere else.
    Elsewhere(SocketAddr, Bytes),
}

impl Sender {
    async fn serve(mut self, origins: impl Origins, tunnel: impl Connect) {
        let mut next = self.origin(&origins).await.map(|to| (to, None));
        if next.is_none() {
            tokio::time::sleep(REFUSED).await;
        }
        while let Some((to, first)) = next.take() {
            tracing::debug!(from = %self.from, %to, "datagrams redirected");
            // While there is no tunnel it waits, and what arrives meanwhile waits with it.
            match tunnel.connect_udp(&Target::from(to)).await {
                Ok(flow) => {
                    if let End::Elsewhere(to, datagram) = self.carry(flow, to, first, &origins).await {
                        next = Some((to, Some(datagram)));
                    }
                }
                Err(error) => {
                    tracing::debug!(%to, error = &error as &dyn std::error::Error, "no way for datagrams");
                }
            }
        }
        let mut senders = self.shared.lock();
        if senders.known.get(&self.from).is_some_and(|known| known.number == self.number) {
            senders.known.remove(&self.from);
        }
    }

    async fn origin(&self, origins: &impl Origins) -> Option<SocketAddr> {
        let from = self.from;
        match origins.origin(from, self.shared.at).await {
            Ok(Some(to)) => return Some(to),
            Ok(None) => tracing::debug!(%from, "datagrams dropped: the system did not redirect them to us"),
            Err(error) => {
                tracing::debug!(%from, error = &error as &dyn std::error::Error, "datagrams dropped");
            }
        }
        None
    }

    /// Both directions of a flow.
    async fn carry(
        &mut self,
        mut flow: DatagramFlow,
        to: SocketAddr,
        first: Option<Bytes>,
        origins: &impl Origins,
    ) -> End {
        let mut exchange = Exchange::with(to, self.shared.remembered);
        if let Some(first) = first {
            let _ = flow.send.send(first); // a new flow has room
        }
        loop {
            tokio::select! {
                waiting = self.queue.recv() => {
                    let Some(Waiting { datagram, .. }) = waiting else { return End::Over };
                    if exchange.is_doubtful() {
                        match self.origin(origins).await {
                            Some(still) if still == to => {}
                            Some(other) => return End::Elsewhere(other, datagram),
                            None => return End::Over,
                        }
                    }
                    exchange.sent();
                    match flow.send.send(datagram) {
                        Ok(()) => {}
                        Err(Unsent::Ended) => return End::Over,
                        Err(error) => tracing::debug!(%to, %error, "datagram dropped"),
                    }
                }
                answer = flow.recv.recv() => match answer {
                    Ok(Some(answer)) => {
                        exchange.answered();
                        // Lost like any datagram, if the program is gone or slow.
                        let _ = self.shared.socket.send_to(&answer, self.from).await;
                    }
                    Ok(None) => return End::Over,
                    Err(error) => {
                        tracing::debug!(%to, error = &error as &dyn std::error::Error, "datagrams end");
                        return End::Over;
                    }
                },
                () = tokio::time::sleep_until(exchange.end()) => return End::Over,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_one_that_was_silent_for_longest_makes_room() {
        let mut senders = Senders::default();
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let room = Arc::new(Semaphore::new(100));
        let datagram =
            || Waiting { datagram: Bytes::new(), _room: room.clone().try_acquire_owned().unwrap() };
        let mut queues = Vec::new();
        for port in 1..=3 {
            queues.push(senders.add(address(port), datagram()).0);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        senders.known.get_mut(&address(1)).unwrap().used = Instant::now();
        senders.forget_one();
        assert!(!senders.known.contains_key(&address(2)));
        assert!(queues[1].recv().await.is_some() && queues[1].recv().await.is_none(), "its task ends");
        assert_eq!(senders.known.len(), 2);
    }
}
