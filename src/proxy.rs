//! The ways in: connections the kernel redirected here, and SOCKS5. Both end in [`forward`]: one way through.

pub mod datagrams;
pub mod orig_dst;
pub mod redirect;
pub mod socks;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use kshuttle_wire::flow::{Flow, MAX_FLOWS};
use kshuttle_wire::relay;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that may wait to be accepted; the kernel's own bound is `net.core.somaxconn` (4,096).
const BACKLOG: u32 = 4096;

/// Pause after a failed `accept`, so that running out of descriptors is no busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often the same warning is given.
const TELL_AGAIN: Duration = Duration::from_secs(10);

/// Listens on `address`; port 0 lets the kernel choose.
///
/// # Errors
/// When the address is taken or not permitted.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?; // a restart must not wait for TIME_WAIT
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Connections of all listeners: how many, and their common end.
#[derive(Clone)]
pub struct Connections {
    most: usize,
    room: Arc<Semaphore>,
    /// When it was last said that there are too many.
    told: Arc<Mutex<Option<Instant>>>,
    tasks: TaskTracker,
    reset: CancellationToken,
}

impl Default for Connections {
    fn default() -> Self {
        Self::through(1)
    }
}

impl Connections {
    /// As many as this many tunnels carry.
    pub fn through(tunnels: usize) -> Self {
        let most = tunnels * MAX_FLOWS;
        let (tasks, reset) = (TaskTracker::new(), CancellationToken::new());
        Self { most, room: Arc::new(Semaphore::new(most)), tasks, reset, told: Arc::default() }
    }

    /// Accepts for ever, one task per connection. A connection too many is reset.
    pub async fn accept<F, R>(&self, listener: TcpListener, serve: F)
    where
        F: Fn(TcpStream) -> R,
        R: Future<Output = ()> + Send + 'static,
    {
        loop {
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                // Most often no descriptor is free: what waits is taken when one is.
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            relay::arm(&socket);
            let Ok(place) = self.room.clone().try_acquire_owned() else {
                self.tell_that_it_is_full();
                continue;
            };
            let served = serve(socket);
            let reset = self.reset.clone();
            self.tasks.spawn(async move {
                // Dropping the connection early resets it, because it is armed.
                reset.run_until_cancelled(served).await;
                drop(place);
            });
        }
    }

    /// Once in a while: a storm of connections must not become one of lines.
    fn tell_that_it_is_full(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
            *told = Some(Instant::now());
            tracing::warn!(
                "connections reset: {} are open already (--tunnels makes room for more)",
                self.most
            );
        }
    }

    /// Resets every open connection and waits until all are closed.
    pub async fn reset_all(&self) {
        self.reset.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Joins a connection and its flow. Every end but an orderly one resets both.
async fn forward(socket: TcpStream, flow: Flow, target: impl fmt::Display) {
    match relay::relay(socket, flow).await {
        Ok(()) => tracing::debug!(%target, "closed"),
        Err(error) => tracing::debug!(%target, error = &error as &dyn std::error::Error, "reset"),
    }
}
