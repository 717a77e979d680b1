//! The ways in: connections the kernel redirected here, and SOCKS5. Both end in [`forward`]: one way through.

pub mod datagrams;
pub mod orig_dst;
pub mod redirect;
pub mod socks;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
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
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    reset: CancellationToken,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MAX_FLOWS)),
            tasks: TaskTracker::new(),
            reset: CancellationToken::new(),
        }
    }
}

impl Connections {
    /// Accepts for ever, one task per connection. A connection too many is reset.
    pub async fn accept<F, R>(&self, listener: TcpListener, serve: F)
    where
        F: Fn(TcpStream) -> R,
        R: Future<Output = ()> + Send + 'static,
    {
        loop {
            let socket = match listener.accept().await {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            relay::arm(&socket);
            let Ok(place) = self.room.clone().try_acquire_owned() else {
                tracing::warn!("connection reset: {MAX_FLOWS} are open already");
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
