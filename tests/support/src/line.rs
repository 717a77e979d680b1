//! A bad line between two programs: a TCP relay with a rate, a delay and faults.
//!
//! Each direction is one first-in-first-out queue that all connections share, as the narrowest link of a real path is:
//! bytes leave it at the line's rate and arrive a delay later. A full queue pushes back; nothing is lost inside a
//! connection, because TCP above a real line would send it again. Faults act on connections as firewalls, proxies and
//! dying hosts do.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// What the queue of one direction holds before it pushes back: a home router's.
pub const QUEUE: u64 = 4 << 20;

/// Bytes taken from a connection in one go, at most. Small against the queue, so that connections share the line.
const PIECE: usize = 16 << 10;

/// A piece arrives when its last byte does; on slow lines it is no longer than this on the line...
const PIECE_TIME: Duration = Duration::from_millis(1);

/// ...but no smaller than a packet.
const PACKET: usize = 1448;

/// Pieces of one connection that may be on their way: 64 MiB, more than rate times delay of any line tested.
const ON_THE_WAY: usize = 4096;

/// How one direction behaves. The default is a perfect line.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Quality {
    /// Bytes per second; `None` is as fast as the machine.
    pub rate: Option<f64>,
    /// From one end to the other.
    pub delay: Duration,
    /// Added at random to the delay; order is kept.
    pub jitter: Duration,
    /// Bytes go in and none come out.
    pub stalled: bool,
    /// At most this many bytes are written at once.
    pub piece: Option<usize>,
}

/// A running line; stops when dropped, and its connections with it.
pub struct Line {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// The two directions, as the side that connects sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From whoever connects to the target.
    Up,
    /// From the target.
    Down,
}

struct Shared {
    target: Mutex<SocketAddr>,
    up: Way,
    down: Way,
    connections: Mutex<Vec<watch::Sender<Fate>>>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Carried,
    /// Reset at both ends.
    Reset,
    /// Silent for ever: what comes is swallowed, nothing ends.
    Swallowed,
}

struct Way {
    quality: watch::Sender<Quality>,
    /// When the last byte given to the line will have left the queue.
    free_at: Mutex<Instant>,
    random: Mutex<Random>,
    carried: AtomicU64,
}

impl Line {
    /// Listens on a free loopback port and leads every connection to `target`. `seed` decides the jitter.
    ///
    /// # Panics
    /// When loopback does not work.
    pub async fn start(target: SocketAddr, seed: u64) -> Self {
        Self::listen("127.0.0.1:0".parse().expect("an address"), target, seed).await
    }

    /// The same on an address of the caller's.
    ///
    /// # Panics
    /// When the address is taken.
    pub async fn listen(address: SocketAddr, target: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind(address).await.expect("listen");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            up: Way::new(seed),
            down: Way::new(seed.wrapping_add(1)),
            connections: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, task }
    }

    /// Changes how `direction` behaves, for open connections too.
    pub fn set(&self, direction: Direction, quality: Quality) {
        self.shared.way(direction).quality.send_replace(quality);
    }

    /// Changes both directions.
    pub fn set_both(&self, quality: Quality) {
        self.set(Direction::Up, quality);
        self.set(Direction::Down, quality);
    }

    /// Leads new connections to another target.
    pub fn lead(&self, target: SocketAddr) {
        *lock(&self.shared.target) = target;
    }

    /// Resets every open connection, at both ends; returns how many.
    pub fn reset_all(&self) -> usize {
        // Those that ended by themselves have no receiver any more.
        lock(&self.shared.connections).drain(..).filter(|fate| fate.send(Fate::Reset).is_ok()).count()
    }

    /// Swallows what every open connection sends from now on, without a word; new ones are carried. Returns how many.
    pub fn black_hole_all(&self) -> usize {
        lock(&self.shared.connections).iter().filter(|fate| fate.send(Fate::Swallowed).is_ok()).count()
    }

    /// Bytes that have gone through, both directions.
    pub fn carried(&self) -> u64 {
        [&self.shared.up, &self.shared.down].iter().map(|way| way.carried.load(Ordering::Relaxed)).sum()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
        self.reset_all();
    }
}

impl Shared {
    fn way(&self, direction: Direction) -> &Way {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((near, _)) = listener.accept().await {
        let (fate, follow) = watch::channel(Fate::Carried);
        let mut connections = lock(&shared.connections);
        connections.retain(|connection| !connection.is_closed());
        connections.push(fate);
        drop(connections);
        tokio::spawn(carry(near, shared.clone(), follow));
    }
}

async fn carry(mut near: TcpStream, shared: Arc<Shared>, mut fate: watch::Receiver<Fate>) {
    let target = *lock(&shared.target);
    let Ok(mut far) = TcpStream::connect(target).await else { return reset(&near) };
    for socket in [&near, &far] {
        let _ = socket.set_nodelay(true); // the delay is ours to choose
    }
    let ended = {
        let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
        let both = async {
            tokio::try_join!(
                shared.way(Direction::Up).carry(near_read, far_write),
                shared.way(Direction::Down).carry(far_read, near_write),
            )
        };
        tokio::select! {
            _ = fate.wait_for(|fate| *fate != Fate::Carried) => None,
            ended = both => Some(ended),
        }
    };
    if let Some(Ok(_)) = ended {
        return;
    }
    if ended.is_none() {
        // Swallowed connections end with the line, too: its list holds the sender.
        let _ = fate.wait_for(|fate| *fate == Fate::Reset).await;
    }
    reset(&near);
    reset(&far);
}

impl Way {
    fn new(seed: u64) -> Self {
        Self {
            quality: watch::Sender::default(),
            free_at: Mutex::new(Instant::now()),
            random: Mutex::new(Random(seed)),
            carried: AtomicU64::new(0),
        }
    }

    async fn carry(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
        let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
        let take = async move {
            loop {
                let mut piece = vec![0; self.piece()];
                let length = from.read(&mut piece).await?;
                if length == 0 {
                    return io::Result::Ok(()); // drops the sender: FIN follows the last byte
                }
                piece.truncate(length);
                let arrives = self.enter(length).await;
                if send.send((arrives, piece)).await.is_err() {
                    return Ok(());
                }
            }
        };
        let give = async {
            let mut quality = self.quality.subscribe();
            while let Some((arrives, piece)) = receive.recv().await {
                sleep_until(arrives).await;
                let _ = quality.wait_for(|quality| !quality.stalled).await;
                let most = quality.borrow().piece.unwrap_or(PIECE);
                for part in piece.chunks(most) {
                    to.write_all(part).await?;
                }
                self.carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            to.shutdown().await
        };
        tokio::try_join!(take, give).map(drop)
    }

    /// Bytes to take at once.
    fn piece(&self) -> usize {
        let rate = self.quality.borrow().rate.unwrap_or(f64::INFINITY);
        ((rate * PIECE_TIME.as_secs_f64()) as usize).clamp(PACKET, PIECE)
    }

    /// Waits for room in the queue and puts `length` bytes in; when they arrive at the other end.
    async fn enter(&self, length: usize) -> Instant {
        let quality = *self.quality.borrow();
        let rate = quality.rate.unwrap_or(f64::INFINITY);
        let time = |bytes: f64| Duration::from_secs_f64(bytes / rate);
        let leaves = loop {
            let room_at = {
                let mut free_at = lock(&self.free_at);
                let now = Instant::now();
                let start = (*free_at).max(now);
                let full_for = (start - now).saturating_sub(time(QUEUE as f64));
                if full_for.is_zero() {
                    *free_at = start + time(length as f64);
                    break *free_at;
                }
                now + full_for
            };
            sleep_until(room_at).await;
        };
        leaves + quality.delay + quality.jitter.mul_f64(lock(&self.random).share())
    }
}

/// The same numbers for the same seed (the generator of Numerical Recipes, §7.1).
pub struct Random(pub u64);

impl Random {
    /// The next number, from 0 to 1.
    pub fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Makes the close of `socket` a reset.
fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{echo, greet_and_hold, server};
    use crate::{pattern, within};

    async fn connect(line: &Line) -> TcpStream {
        TcpStream::connect(line.address).await.unwrap()
    }

    #[tokio::test]
    async fn bytes_and_ends_pass() {
        let line = Line::start(server(echo).await, 1).await;
        line.set_both(Quality { jitter: Duration::from_millis(3), piece: Some(7), ..Default::default() });
        let mut socket = connect(&line).await;
        let sent = pattern(100_000);
        let mut got = Vec::new();
        let (mut read, mut write) = socket.split();
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        tokio::join!(send, async { within(read.read_to_end(&mut got)).await.unwrap() });
        assert!(got == sent);
        assert_eq!(line.carried(), 200_000);
    }

    #[tokio::test(start_paused = true)]
    async fn all_connections_share_the_rate_and_wait_the_delay() {
        let way = Way::new(1);
        way.quality.send_replace(Quality {
            rate: Some(1e6),
            delay: Duration::from_millis(40),
            ..Default::default()
        });
        let start = Instant::now();
        for piece in 1..=10 {
            let arrives = way.enter(10_000).await - start;
            assert_eq!(arrives.as_millis(), 40 + 10 * piece);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        way.enter(QUEUE as usize).await;
        way.enter(1).await; // the queue was full
        assert_eq!(start.elapsed().as_millis(), 100);
    }

    #[tokio::test]
    async fn a_reset_is_a_reset_and_a_black_hole_is_silent() {
        let line = Line::start(server(greet_and_hold).await, 1).await;
        let mut swallowed = connect(&line).await;
        swallowed.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!(line.black_hole_all(), 1);
        let mut carried = connect(&line).await;
        carried.read_exact(&mut [0; 5]).await.unwrap();
        assert!(
            swallowed.try_read(&mut [0; 1]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        );
        assert_eq!(line.reset_all(), 2);
        for mut socket in [swallowed, carried] {
            let error = within(socket.read(&mut [0; 1])).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
