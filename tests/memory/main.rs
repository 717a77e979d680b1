//! What connections cost in memory, at both ends: idle ones, ones that are opened and closed, ones that nobody reads.
//!
//! Three processes, so that each end's memory is its own: this one makes the connections and is their target; two more of this
//! program are the laptop's end (SOCKS5, pool, link) and the pod's (its server).
//!
//! Arguments: `--flows N` (5,000), connections opened and closed; `--idle N` (1,000); `--rounds N` (3) and `--length MIB` (64) of the
//! transfers beside idle connections. `scripts/soak --opened` runs it longer.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of this is a test")]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use kshuttle::proxy::{Connections, listen, socks};
use kshuttle::tunnel::identity::{HostKey, Identity};
use kshuttle::tunnel::pool::{DialError, Dialed, Pool, Route, Settings};
use kshuttle_test_support::net::{connect_through, echo, flood, ping, server};
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Memory an idle connection may take at the laptop's end, in kB.
const IDLE_MAX: f64 = 12.0;

/// What either end may grow by, in kB, while connections come and go.
const GROWTH_MAX: i64 = 5 << 10;

/// Connections that nobody reads, and what they may take at an end in kB: stream windows grow with the session's rate, but all
/// unread bytes together stay within 256 MiB and what arrives meanwhile (`flow/windows.rs`).
const STUCK: usize = 20;
const STUCK_MAX: i64 = (256 + 32) << 10;

/// At the same time, while they are opened and closed.
const AT_ONCE: usize = 50;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |flag: &str, default: usize| {
        let place = arguments.iter().position(|argument| argument == flag);
        place.map_or(default, |place| arguments[place + 1].parse().unwrap())
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match arguments.first().map(String::as_str) {
        Some("pod") => runtime.block_on(pod(&arguments[1])),
        Some("laptop") => runtime.block_on(laptop(arguments[1].parse().unwrap())),
        Some("--list") => {} // of cargo and its like
        _ => runtime.block_on(measure(&Sizes {
            flows: number("--flows", 5_000),
            idle: number("--idle", 1_000),
            rounds: number("--rounds", 3),
            length: number("--length", 64) << 20,
        })),
    }
}

/// The arguments, see above; `length` in bytes.
struct Sizes {
    flows: usize,
    idle: usize,
    rounds: usize,
    length: usize,
}

/// Another process of this program; ends with its standard input.
struct Role {
    child: Child,
    said: String,
}

impl Role {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        Self { child, said: said.trim().to_owned() }
    }

    /// Resident memory of its own in kB; pages of files are the program itself.
    fn memory(&self) -> i64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

/// The pod's end.
async fn pod(key: &str) {
    let sshd = Sshd::start(key).await;
    say(&sshd.address.to_string());
    std::future::pending::<()>().await;
}

/// The laptop's end: says its key, is told the pod's address, says where it serves SOCKS5.
async fn laptop(listening: SocketAddr) {
    let identity = Identity::generate().unwrap();
    let mut told = TcpStream::connect(listening).await.unwrap();
    told.write_all(format!("{}\n", identity.authorized_key().unwrap()).as_bytes()).await.unwrap();
    let mut address = String::new();
    told.read_to_string(&mut address).await.unwrap();
    let address: SocketAddr = address.parse().unwrap();
    let dial = move || {
        async move {
            let stream = TcpStream::connect(address).await.map_err(DialError::passing)?;
            stream.set_nodelay(true).map_err(DialError::passing)?;
            Ok(Dialed { stream: Box::new(stream), way: "loopback".into() })
        }
        .boxed()
    };
    let (name, user) = ("pod".to_owned(), "kshuttle".to_owned());
    let pool = Pool::start(Settings::default());
    pool.lead(Some(Route {
        name,
        dial: Arc::new(dial),
        identity,
        user,
        host_key: HostKey::default(),
        ours: true,
    }));
    within(pool.first_up(Duration::from_secs(60))).await.unwrap();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    say(&listener.local_addr().unwrap().to_string());
    socks::serve(listener, &Connections::default(), pool).await;
}

/// Both ends, and this one's own.
struct Ends {
    laptop: Role,
    pod: Role,
    socks: SocketAddr,
}

impl Ends {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().to_string();
        let laptop = tokio::task::spawn_blocking(move || Role::start(&["laptop", &here]));
        let (mut told, _) = within(listener.accept()).await.unwrap();
        let mut key = Vec::new();
        while !key.ends_with(b"\n") {
            key.push(within(told.read_u8()).await.unwrap());
        }
        let pod = Role::start(&["pod", std::str::from_utf8(&key).unwrap().trim()]);
        told.write_all(pod.said.as_bytes()).await.unwrap();
        drop(told);
        let laptop = laptop.await.unwrap();
        let socks = laptop.said.parse().unwrap();
        Self { laptop, pod, socks }
    }

    /// A connection to `to` that is answered.
    async fn connect(&self, to: SocketAddr) -> TcpStream {
        connect_through(self.socks, to).await
    }

    fn memory(&self) -> [i64; 2] {
        [self.laptop.memory(), self.pod.memory()]
    }

    /// What both have grown by since `before`.
    fn growth(&self, before: [i64; 2]) -> [i64; 2] {
        let now = self.memory();
        [now[0] - before[0], now[1] - before[1]]
    }
}

/// Opened, used and closed in order, `count` times.
async fn come_and_go(ends: &Ends, to: SocketAddr, count: usize) {
    let socks = ends.socks;
    let mut open = JoinSet::new();
    for _ in 0..count {
        if open.len() >= AT_ONCE {
            open.join_next().await.unwrap().unwrap();
        }
        open.spawn(async move {
            let mut socket = connect_through(socks, to).await;
            ping(&mut socket).await;
            socket.shutdown().await.unwrap();
            assert_eq!(within(socket.read(&mut [0; 1])).await.unwrap(), 0);
        });
    }
    while let Some(done) = open.join_next().await {
        done.unwrap();
    }
}

async fn measure(sizes: &Sizes) {
    let &Sizes { flows, idle, .. } = sizes;
    let ends = Ends::start().await;
    let (echo, flood) = (server(echo).await, server(flood).await);
    come_and_go(&ends, echo, AT_ONCE).await;
    say(&format!("in kB, laptop and pod: {:?} in the beginning", ends.memory()));

    let before = ends.memory();
    let mut held = Vec::new();
    for _ in 0..idle {
        let mut socket = ends.connect(echo).await;
        ping(&mut socket).await;
        held.push(socket);
    }
    let [laptop, pod] = ends.growth(before).map(|kb| kb as f64 / idle as f64);
    say(&format!("{idle} idle connections: {laptop:.1} and {pod:.1} kB each"));
    assert!(laptop <= IDLE_MAX, "an idle connection takes {laptop} kB at the laptop");
    compare(&ends, flood, sizes).await;
    for socket in &mut held {
        ping(socket).await;
    }
    drop(held);

    // Enough for every pool and table to have its size.
    let warm = (flows / 10).max(1_000);
    come_and_go(&ends, echo, warm).await;
    let (before, began) = (ends.memory(), Instant::now());
    come_and_go(&ends, echo, flows).await;
    let growth = ends.growth(before);
    let rate = flows as f64 / began.elapsed().as_secs_f64();
    say(&format!("{flows} connections opened and closed: {growth:?} kB more, {rate:.0} connections/s"));
    assert!(growth.iter().all(|kb| *kb <= GROWTH_MAX), "{growth:?}");

    let before = ends.memory();
    let mut beside = ends.connect(echo).await;
    let mut stuck = Vec::new();
    for _ in 0..STUCK {
        let mut socket = ends.connect(flood).await;
        within(socket.read_exact(&mut [0; 1 << 10])).await.unwrap();
        stuck.push(socket);
        ping(&mut beside).await;
    }
    // Enough goes past them to fill whatever fills.
    download(&ends, flood, 64 << 20).await;
    ping(&mut beside).await;
    let growth = ends.growth(before);
    say(&format!("{STUCK} connections that nobody reads: {growth:?} kB"));
    assert!(growth.iter().all(|kb| *kb <= STUCK_MAX), "{growth:?}");
}

/// Says how fast transfers are in a session with idle connections beside one without; in turn, as the machine's speed varies.
async fn compare(idle: &Ends, from: SocketAddr, sizes: &Sizes) {
    let alone = Ends::start().await;
    // Windows and budgets grow first.
    for ends in [&alone, idle] {
        download(ends, from, sizes.length).await;
    }
    let mut ratios = Vec::new();
    for round in 0..sizes.rounds {
        // Who comes second may find another machine than who comes first.
        let (first, second) = if round % 2 == 0 { (&alone, idle) } else { (idle, &alone) };
        let first = download(first, from, sizes.length).await.as_secs_f64();
        let second = download(second, from, sizes.length).await.as_secs_f64();
        ratios.push(if round % 2 == 0 { first / second } else { second / first });
    }
    ratios.sort_by(f64::total_cmp);
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    say(&format!(
        "transfers beside them: {:.2} times as fast as alone ({least:.2} to {most:.2}, {} rounds of {} MiB)",
        ratios[ratios.len() / 2],
        ratios.len(),
        sizes.length >> 20
    ));
}

/// How long `length` bytes take.
async fn download(ends: &Ends, from: SocketAddr, length: usize) -> Duration {
    let mut socket = ends.connect(from).await;
    let began = Instant::now();
    let (mut left, mut buffer) = (length, vec![0; 256 << 10]);
    while left > 0 {
        let room = left.min(buffer.len());
        let count = within(socket.read(&mut buffer[..room])).await.unwrap();
        assert!(count > 0, "an early end");
        left -= count;
    }
    began.elapsed()
}
