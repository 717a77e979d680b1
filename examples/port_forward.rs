//! Checks and measures the port-forward client against the bench pod of a real cluster (`scripts/cluster`).
//!
//! ```text
//! port_forward NAMESPACE POD auto|websocket|spdy|v4 [MEBIBYTES]    through our client
//! port_forward NAMESPACE POD tcp [MEBIBYTES]                    through `kubectl port-forward`, same port numbers
//! ```
//!
//! Ports of the pod: 7001 sends the same 256 KiB for ever, 7002 takes a length, that many bytes, and answers one byte,
//! 7003 echoes, 7005 answers one byte with 64 and resets, 9999 is closed.
#![allow(clippy::print_stdout, reason = "its report")]

use std::{fmt, pin::Pin, time::Duration};

use anyhow::{Context as _, ensure};
use kshuttle::cluster::{
    client,
    port_forward::{Dialer, Transport},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::TcpStream,
    time::Instant,
};

const MEBIBYTE: usize = 1024 * 1024;
/// What the source repeats.
const PERIOD: usize = 256 * 1024;

trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

enum Way {
    Ours(Dialer, String),
    Tcp,
}

impl Way {
    async fn open(&self, port: u16) -> anyhow::Result<Pin<Box<dyn Stream>>> {
        Ok(match self {
            Way::Ours(dialer, pod) => Box::pin(dialer.open(pod, port).await?),
            Way::Tcp => {
                let socket = TcpStream::connect(("127.0.0.1", port)).await?;
                socket.set_nodelay(true)?;
                Box::pin(socket)
            }
        })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what| arguments.next().with_context(|| format!("missing {what}"));
    let (namespace, pod, way) = (next("NAMESPACE")?, next("POD")?, next("way")?);
    let total = arguments.next().map_or(Ok(64), |text| text.parse::<usize>())? * MEBIBYTE;
    let way = if way == "tcp" {
        Way::Tcp
    } else {
        let cluster = client::connect(&client::Options::default()).await?;
        Way::Ours(Dialer::new(cluster.client().clone(), &namespace, way.parse::<Transport>()?), pod)
    };

    if let Way::Ours(..) = way {
        for port in [9999, 7005] {
            let mut stream = way.open(port).await?;
            let mut bytes = Vec::new();
            let begin = Instant::now();
            stream.write_all(b"x").await?;
            stream.flush().await?;
            let end = stream.read_to_end(&mut bytes).await;
            println!("port {port}: {} bytes, then {:?} after {:?}", bytes.len(), end, begin.elapsed());
        }
    }
    measure("open and first echo", opens(&way)).await?;
    measure("echo of 64 bytes", echoes(&way, 1)).await?;
    measure("echo of 2 x 32 bytes", echoes(&way, 2)).await?;
    measure("download", download(&way, total)).await?;
    measure("upload", upload(&way, total)).await?;
    measure("both ways, compared", both_ways(&way, total)).await?;
    Ok(())
}

async fn measure<T: fmt::Display>(
    what: &str,
    run: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<()> {
    let before = processor_time()?;
    let result = run.await.context(what.to_owned())?;
    println!("{what:22} {result}, {:.2} s of processor", (processor_time()? - before).as_secs_f64());
    Ok(())
}

async fn opens(way: &Way) -> anyhow::Result<String> {
    let (mut opens, mut echoes) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        let begin = Instant::now();
        let mut stream = way.open(7003).await?;
        opens.push(begin.elapsed());
        stream.write_all(b"x").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        echoes.push(begin.elapsed() - opens[opens.len() - 1]);
    }
    Ok(format!("{}; then {}", spread(opens), spread(echoes)))
}

async fn echoes(way: &Way, writes: usize) -> anyhow::Result<String> {
    let mut stream = way.open(7003).await?;
    let mut times = Vec::new();
    let mut answer = [0; 64];
    for _ in 0..1000 {
        let begin = Instant::now();
        for _ in 0..writes {
            stream.write_all(&[7; 64][..64 / writes]).await?;
            stream.flush().await?;
        }
        stream.read_exact(&mut answer).await?;
        times.push(begin.elapsed());
    }
    Ok(spread(times))
}

async fn download(way: &Way, total: usize) -> anyhow::Result<String> {
    let mut stream = way.open(7001).await?;
    let mut first = vec![0; PERIOD];
    stream.read_exact(&mut first).await?;
    let mut buffer = vec![0; PERIOD];
    let begin = Instant::now();
    for number in 0..total / PERIOD {
        stream.read_exact(&mut buffer).await?;
        ensure!(buffer == first, "wrong bytes in block {number}");
    }
    Ok(rate(total, begin))
}

async fn upload(way: &Way, total: usize) -> anyhow::Result<String> {
    let mut stream = way.open(7002).await?;
    let begin = Instant::now();
    stream.write_u64(total as u64).await?;
    let buffer = vec![7; PERIOD];
    for _ in 0..total / PERIOD {
        stream.write_all(&buffer).await?;
    }
    stream.flush().await?;
    ensure!(stream.read_u8().await? == 1, "the sink's answer");
    Ok(rate(total, begin))
}

/// Every byte is compared: the pattern is a counter that never repeats within a run.
async fn both_ways(way: &Way, total: usize) -> anyhow::Result<String> {
    let (mut read, mut write) = split(way.open(7003).await?);
    let begin = Instant::now();
    let fill = |block: usize, buffer: &mut [u8]| {
        for (i, word) in buffer.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&((block * PERIOD + i) as u64).to_ne_bytes());
        }
    };
    let writer = tokio::spawn(async move {
        let mut buffer = vec![0; PERIOD];
        for block in 0..total / PERIOD {
            fill(block, &mut buffer);
            write.write_all(&buffer).await?;
        }
        write.flush().await?;
        anyhow::Ok(write)
    });
    let (mut buffer, mut expected) = (vec![0; PERIOD], vec![0; PERIOD]);
    for block in 0..total / PERIOD {
        read.read_exact(&mut buffer).await?;
        fill(block, &mut expected);
        ensure!(buffer == expected, "wrong bytes in block {block}");
    }
    writer.await??;
    Ok(rate(total, begin))
}

fn rate(bytes: usize, begin: Instant) -> String {
    format!("{:7.1} MB/s", bytes as f64 / 1e6 / begin.elapsed().as_secs_f64())
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100])
}

/// User and system time of this process so far.
fn processor_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace().skip(11).take(2);
    let ticks = fields.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10)) // USER_HZ is 100 on every Linux
}
