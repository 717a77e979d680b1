//! A front's sockets: a task per question, and per connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer::Arrival;
use super::sockets::Sockets;
use super::{Front, Stub, Transport, Upstream, framed, message};
use crate::tunnel::Connect;

/// A connection without a question, or whose client does not read, is closed (RFC 7766 §6.2.3: "a few seconds").
const IDLE: Duration = Duration::from_secs(10);

/// Questions of one connection under way at one time; the next is read when one is answered.
const PIPELINE_MAX: usize = 32;

/// Pause after a failed receive or `accept` (most often no memory or descriptor), so that it is no busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Room for a datagram: the longest that UDP over IP has.
const LONGEST: usize = 65_535;

pub(super) async fn serve<C: Connect, S: Sockets>(stub: &Stub<C, S>, front: Front) {
    let Front { datagrams, connections, upstream } = front;
    tokio::join!(
        serve_datagrams(stub, Arc::new(datagrams), &upstream),
        serve_connections(stub, connections, &upstream)
    );
}

async fn serve_datagrams<C: Connect, S: Sockets>(
    stub: &Stub<C, S>,
    socket: Arc<UdpSocket>,
    upstream: &Upstream,
) {
    let Ok(at) = socket.local_addr() else { return }; // a bound socket has an address
    let mut buffer = vec![0; LONGEST];
    let mut tasks = JoinSet::new();
    loop {
        let (length, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "receive a question");
                    sleep(ERROR_PAUSE).await;
                    continue;
                }
            },
            Some(_) = tasks.join_next() => continue,
        };
        let query = &buffer[..length];
        let Ok(place) = stub.0.room.clone().try_acquire_owned() else {
            // Not silence: that would cost the program 5 s at least, and this costs us one datagram.
            if let Some(busy) = message::failure(query, ResponseCode::ServFail, Transport::Udp) {
                let _ = socket.try_send_to(&busy, from); // lost like any datagram
            }
            continue;
        };
        let (stub, socket, upstream, query) =
            (stub.clone(), socket.clone(), upstream.clone(), query.to_vec());
        tasks.spawn(async move {
            let arrival = Arrival { transport: Transport::Udp, from, at };
            if let Some(answer) = stub.answer(&query, &arrival, &upstream).await {
                let _ = socket.send_to(&answer, from).await; // lost like any datagram
            }
            drop(place);
        });
    }
}

async fn serve_connections<C: Connect, S: Sockets>(
    stub: &Stub<C, S>,
    listener: TcpListener,
    upstream: &Upstream,
) {
    let Ok(at) = listener.local_addr() else { return }; // a bound socket has an address
    let mut tasks = JoinSet::new();
    loop {
        let Ok(place) = stub.0.clients.clone().acquire_owned().await else { return };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                Some(_) = tasks.join_next() => {}
            }
        };
        match accepted {
            Ok((stream, from)) => {
                let (stub, upstream) = (stub.clone(), upstream.clone());
                tasks.spawn(async move {
                    client(stub, stream, from, at, upstream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept a connection with questions");
                sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// One connection: questions are answered as their answers come, in any order (RFC 7766 §6.2.1.1).
async fn client<C: Connect, S: Sockets>(
    stub: Stub<C, S>,
    stream: TcpStream,
    from: SocketAddr,
    at: SocketAddr,
    upstream: Upstream,
) {
    let (mut read, write) = stream.into_split();
    let write = Arc::new(Mutex::new(write));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.len() >= PIPELINE_MAX {
            tasks.join_next().await;
        }
        // End, error and silence are the same: what is under way is answered, then the connection closes.
        let Ok(Ok(Some(query))) = timeout(IDLE, framed::read(&mut read)).await else { break };
        let Ok(place) = stub.0.room.clone().acquire_owned().await else { break };
        while tasks.try_join_next().is_some() {}
        let (stub, write, upstream) = (stub.clone(), write.clone(), upstream.clone());
        tasks.spawn(async move {
            let arrival = Arrival { transport: Transport::Tcp, from, at };
            if let Some(answer) = stub.answer(&query, &arrival, &upstream).await {
                send(&write, &answer).await;
            }
            drop(place);
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Whoever does not read gets no more: half a message would make nonsense of what follows it.
async fn send(write: &Mutex<OwnedWriteHalf>, answer: &[u8]) {
    let mut write = write.lock().await;
    if !matches!(timeout(IDLE, framed::write(&mut *write, answer)).await, Ok(Ok(()))) {
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut *write).await;
    }
}
