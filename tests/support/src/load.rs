//! What applications see while transfers run: pings and new connections beside them, and what the transfers carry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use crate::net::{echo, flood, server};

/// Bytes of a ping, there and back.
const PING: usize = 64;

/// Between an answer and the next ping.
const PING_PAUSE: Duration = Duration::from_millis(10);

/// Between two new connections.
const NEW_EVERY: Duration = Duration::from_millis(200);

/// How finely bytes are counted.
pub const GRAIN: Duration = Duration::from_millis(100);

/// Bytes of one read and write.
const BLOCK: usize = 64 << 10;

/// Servers on loopback: one sends without end, one takes what comes and counts it, one echoes.
#[derive(Debug, Clone)]
pub struct Servers {
    /// Where they are, or where they are reached: source, sink, echo.
    pub addresses: [SocketAddr; 3],
    taken: Arc<AtomicU64>,
}

/// What runs beside the pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Transfers from the servers.
    pub down: usize,
    /// Transfers to them.
    pub up: usize,
}

/// What was seen. Moments are counted from the start of the transfers.
#[derive(Debug, Default)]
pub struct Seen {
    /// When a ping was sent, and how long its answer took; or, at the end, how long it has taken so far.
    pub pings: Vec<(Duration, Duration)>,
    /// The same of new connections, from connecting to the first answer.
    pub connections: Vec<(Duration, Duration)>,
    /// Bytes that arrived at the application in each [`GRAIN`].
    pub down: Vec<u64>,
    /// Bytes that arrived at the sink.
    pub up: Vec<u64>,
}

impl Servers {
    /// Starts them; they live as long as the runtime.
    pub async fn start() -> Self {
        let taken = Arc::<AtomicU64>::default();
        let counter = taken.clone();
        let sink = server(move |mut socket: TcpStream| {
            let counter = counter.clone();
            async move {
                let mut block = vec![0; BLOCK];
                while let Ok(length @ 1..) = socket.read(&mut block).await {
                    counter.fetch_add(length as u64, Ordering::Relaxed);
                }
            }
        });
        Self { addresses: [server(flood).await, sink.await, server(echo).await], taken }
    }

    /// The same servers, reached through these addresses.
    pub fn through(&self, addresses: [SocketAddr; 3]) -> Self {
        Self { addresses, taken: self.taken.clone() }
    }

    /// Runs the load for `time`.
    pub async fn run(&self, load: Load, time: Duration) -> Seen {
        let [source, sink, echo] = self.addresses;
        let (start, got) = (Instant::now(), Arc::<AtomicU64>::default());
        let mut transfers = JoinSet::new();
        for _ in 0..load.down {
            transfers.spawn(download(source, got.clone()));
        }
        for _ in 0..load.up {
            transfers.spawn(upload(sink));
        }
        let end = start + time;
        let (pings, connections, (down, up)) = tokio::join!(
            ping(echo, start, end),
            connect_again_and_again(echo, start, end),
            count([&got, &self.taken], end)
        );
        Seen { pings, connections, down, up }
    }
}

async fn download(source: SocketAddr, got: Arc<AtomicU64>) {
    let Ok(mut socket) = TcpStream::connect(source).await else { return };
    let mut block = vec![0; BLOCK];
    while let Ok(length @ 1..) = socket.read(&mut block).await {
        got.fetch_add(length as u64, Ordering::Relaxed);
    }
}

async fn upload(sink: SocketAddr) {
    let Ok(mut socket) = TcpStream::connect(sink).await else { return };
    let block = vec![7; BLOCK];
    while socket.write_all(&block).await.is_ok() {}
}

async fn exchange(socket: &mut TcpStream) -> std::io::Result<()> {
    socket.write_all(&[1; PING]).await?;
    socket.read_exact(&mut [0; PING]).await.map(drop)
}

/// On one lasting connection.
async fn ping(echo: SocketAddr, start: Instant, end: Instant) -> Vec<(Duration, Duration)> {
    let mut seen = Vec::new();
    let mut socket = TcpStream::connect(echo).await.expect("the ping's connection");
    let _ = socket.set_nodelay(true);
    while Instant::now() < end {
        let sent = Instant::now();
        let answer = tokio::time::timeout_at(end, exchange(&mut socket)).await;
        seen.push((sent - start, sent.elapsed()));
        if let Ok(answer) = answer {
            answer.expect("the ping's connection lasts");
        }
        sleep(PING_PAUSE).await;
    }
    seen
}

async fn connect_again_and_again(
    echo: SocketAddr,
    start: Instant,
    end: Instant,
) -> Vec<(Duration, Duration)> {
    let (mut connections, mut clock) = (JoinSet::new(), interval(NEW_EVERY));
    while Instant::now() < end {
        clock.tick().await;
        connections.spawn(async move {
            let began = Instant::now();
            let connection = async {
                let mut socket = TcpStream::connect(echo).await?;
                exchange(&mut socket).await
            };
            if let Ok(answer) = tokio::time::timeout_at(end, connection).await {
                answer.expect("a new connection works");
            }
            (began - start, began.elapsed())
        });
    }
    connections.join_all().await
}

async fn count(counters: [&AtomicU64; 2], end: Instant) -> (Vec<u64>, Vec<u64>) {
    let (mut clock, mut seen) = (interval(GRAIN), [Vec::new(), Vec::new()]);
    clock.tick().await;
    let mut before = counters.map(|counter| counter.load(Ordering::Relaxed));
    while Instant::now() < end {
        clock.tick().await;
        let now = counters.map(|counter| counter.load(Ordering::Relaxed));
        for (seen, (now, before)) in seen.iter_mut().zip(now.iter().zip(before)) {
            seen.push(now - before);
        }
        before = now;
    }
    seen.into()
}

impl Seen {
    /// What was seen from `from` to `to`.
    pub fn between(&self, from: Duration, to: Duration) -> Self {
        // What waits all the time was seen, too.
        let seen = |at: Duration, took| (from..to).contains(&at) || at < from && at + took >= to;
        let within = |times: &[(Duration, Duration)]| {
            times.iter().copied().filter(|&(at, took)| seen(at, took)).collect()
        };
        let grains = |bytes: &[u64]| {
            let index = |at: Duration| ((at.as_millis() / GRAIN.as_millis()) as usize).min(bytes.len());
            bytes[index(from)..index(to)].to_vec()
        };
        Self {
            pings: within(&self.pings),
            connections: within(&self.connections),
            down: grains(&self.down),
            up: grains(&self.up),
        }
    }
}

/// The percentile of how long something took, in milliseconds; `None` of nothing.
pub fn percentile(seen: &[(Duration, Duration)], percent: usize) -> Option<f64> {
    let mut times: Vec<Duration> = seen.iter().map(|&(_, took)| took).collect();
    times.sort_unstable();
    let last = times.len().checked_sub(1)?;
    Some(times[(times.len() * percent / 100).min(last)].as_secs_f64() * 1e3)
}

/// Bytes per second.
pub fn rate(grains: &[u64]) -> f64 {
    grains.iter().sum::<u64>() as f64 / (grains.len().max(1) as f64 * GRAIN.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_load_without_a_tunnel_is_seen() {
        let seen = Servers::start().await.run(Load { down: 1, up: 1 }, Duration::from_millis(500)).await;
        assert!(rate(&seen.down) > 0.0 && rate(&seen.up) > 0.0);
        assert!(seen.pings.len() > 1 && !seen.connections.is_empty());
        assert!(percentile(&seen.pings, 50) <= percentile(&seen.pings, 99));
        let none = seen.between(Duration::from_secs(7), Duration::from_secs(8));
        assert_eq!((percentile(&none.pings, 99), rate(&none.down)), (None, 0.0));
    }
}
