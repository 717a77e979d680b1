//! What the link costs: the same bytes through the same flow over loopback, with a link under it and without.
//!
//! `cargo run --release -p kshuttle-wire --example link_cost [MIB] [ROUNDS]` prints CPU seconds (user and system, all threads)
//! per round, in turns so that noise meets both.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measuring tool")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use kshuttle_wire::flow::client::FlowClient;
use kshuttle_wire::flow::server;
use kshuttle_wire::link::server::Links;
use kshuttle_wire::link::{Limits, Token, connect};
use kshuttle_wire::write_queue::decouple;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().unwrap());
    let (mib, rounds) = (arguments.next().unwrap_or(1024), arguments.next().unwrap_or(5));
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let mut cpu = [0.0; 2];
        for (name, link) in [("queue", false), ("link ", true)] {
            for down in [false, true] {
                let client = session(link).await;
                let before = (cpu_time(), Instant::now());
                transfer(&client, mib << 20, down).await;
                let (used, took) = (cpu_time() - before.0, before.1.elapsed());
                cpu[usize::from(link)] += used.as_secs_f64();
                let direction = if down { "down" } else { "up  " };
                println!("{name} {direction} {:.2} CPU s, {:.2} s", used.as_secs_f64(), took.as_secs_f64());
            }
        }
        ratios.push(cpu[1] / cpu[0]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("CPU with the link to CPU without, median: {:.3} of {ratios:.3?}", ratios[ratios.len() / 2]);
}

/// Flows over loopback TCP.
async fn session(link: bool) -> FlowClient {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (far, _) = listener.accept().await.unwrap();
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    if !link {
        tokio::spawn(server::serve(decouple(far)));
        return FlowClient::start(decouple(near)).await.unwrap();
    }
    let links = Links::new(Limits::default());
    tokio::spawn(async move {
        let _ = links.serve(far, |stream| drop(tokio::spawn(server::serve(stream)))).await;
    });
    let (stream, handle) = connect(Token::generate().unwrap(), Limits::default());
    let attachment = handle.attach(near).await.unwrap();
    tokio::spawn(attachment.run());
    FlowClient::start(stream).await.unwrap()
}

async fn transfer(client: &FlowClient, length: usize, down: bool) {
    let block = Bytes::from(vec![7; 64 << 10]);
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = target.local_addr().unwrap();
    let blocks = block.clone();
    let serve = tokio::spawn(async move {
        let (mut socket, _) = target.accept().await.unwrap();
        let mut left = length;
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            left -= if down {
                socket.write_all(&blocks).await.unwrap();
                blocks.len()
            } else {
                socket.read(&mut buffer).await.unwrap()
            };
        }
        let _ = socket.shutdown().await;
    });
    let mut flow = client.open(&address.to_string()).await.unwrap();
    let mut left = length;
    while left > 0 {
        if down {
            let data = flow.recv.data().await.unwrap().unwrap();
            flow.recv.release(data.len());
            left -= data.len();
        } else {
            flow.send.send(block.clone()).await.unwrap();
            left -= block.len();
        }
    }
    serve.await.unwrap();
}

/// User and system time of this process (proc(5)).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10) // USER_HZ is 100 on every Linux
}
