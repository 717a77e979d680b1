//! Sockets for asking name servers whose queries come to us: opened by the helper, whose rules let them past.
//!
//! One for datagrams is lent again and again: it is connected to a server for one exchange and to nobody after it, which gives it
//! a new port each time; it stays known to the runtime meanwhile, which saves half of the system calls. One for a TCP connection is
//! used once.

#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};

use super::PrivilegedError;
use super::questions::{Questions, UpdateError};

/// Most sockets for datagrams that are lent at once, of each family: queries to name servers that are near take some
/// milliseconds, so these carry thousands in a second.
const MOST_LENT: usize = 64;

/// How many are asked for when none is left.
const BATCH: u8 = 4;

/// Longest wait for a socket. Whoever asks us for a name waits 5 s (resolv.conf(5)), and the server needs some of them.
const PATIENCE: Duration = Duration::from_secs(1);

/// Most datagrams that are thrown away when a socket comes back: late answers of one exchange are few. With more, the socket
/// is not lent again.
const MOST_LATE: usize = 64;

/// Why a name server cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum SocketsError {
    /// All are lent, or the helper is slow.
    #[error("no socket to a name server within {} s: {MOST_LENT} may be in use", PATIENCE.as_secs())]
    Busy,
    /// The helper passes none.
    #[error("get a socket from the helper")]
    Helper(#[from] UpdateError),
    /// Fewer came than were asked for.
    #[error("this process may not have more open files")]
    TooManyFiles,
    /// The server cannot be reached.
    #[error("connect to the name server {server}")]
    Connect {
        /// The server.
        server: SocketAddr,
        /// Its cause.
        #[source]
        source: io::Error,
    },
}

/// Where they come from. Cheap to clone.
#[derive(Clone)]
pub struct Sockets(Arc<Stocks>);

struct Stocks {
    questions: Questions,
    /// For datagrams: of IPv4, of IPv6.
    datagrams: [Arc<Stock<UdpSocket>>; 2],
    /// The same for connections.
    streams: [Arc<Stock<OwnedFd>>; 2],
    /// How many for datagrams may still be lent.
    free: [Arc<Semaphore>; 2],
}

/// Those of one kind that nobody uses now.
struct Stock<T> {
    v6: bool,
    stream: bool,
    /// From what the helper passes.
    made: fn(OwnedFd) -> io::Result<T>,
    idle: Mutex<Vec<T>>,
    /// Held by whoever asks the helper.
    asking: AsyncMutex<()>,
}

impl Sockets {
    /// Asks the helper when the first is needed. Its answers come as long as [`Helper::lost`](super::Helper::lost) is
    /// waited for.
    pub fn new(questions: Questions) -> Self {
        let free = [MOST_LENT; 2].map(|most| Arc::new(Semaphore::new(most)));
        let datagrams = [false, true].map(|v6| Arc::new(Stock::new(v6, false, registered)));
        let streams = [false, true].map(|v6| Arc::new(Stock::new(v6, true, Ok)));
        Self(Arc::new(Stocks { questions, datagrams, streams, free }))
    }

    /// A socket connected to this server, from a port that nobody can guess.
    ///
    /// # Errors
    /// When there is none in time, or no way to the server.
    pub async fn datagrams(&self, server: SocketAddr) -> Result<Lent, SocketsError> {
        let (family, Stocks { questions, datagrams, free, .. }) = (usize::from(server.is_ipv6()), &*self.0);
        let stock = datagrams[family].clone();
        let lent = async {
            let permit = free[family].clone().acquire_owned().await.map_err(|_| SocketsError::Busy)?;
            Ok((stock.take(questions).await?, permit))
        };
        let (socket, permit) = within(lent).await?;
        // Kept if that fails: the next server may be one that can be reached.
        let lent = Lent { socket: Some(socket), stock, _permit: permit };
        lent.connect(server).await.map_err(|source| SocketsError::Connect { server, source })?;
        Ok(lent)
    }

    /// A connection to this server. Only the wait for the socket is bounded here.
    ///
    /// # Errors
    /// When there is none in time, or the server does not take it.
    pub async fn connect(&self, server: SocketAddr) -> Result<TcpStream, SocketsError> {
        let stock = &self.0.streams[usize::from(server.is_ipv6())];
        let socket = within(stock.take(&self.0.questions)).await?;
        let connect = async {
            let socket = std::net::TcpStream::from(socket);
            socket.set_nonblocking(true)?;
            TcpSocket::from_std_stream(socket).connect(server).await
        };
        connect.await.map_err(|source| SocketsError::Connect { server, source })
    }
}

async fn within<T>(wait: impl Future<Output = Result<T, SocketsError>>) -> Result<T, SocketsError> {
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or(Err(SocketsError::Busy))
}

/// Known to the runtime.
fn registered(socket: OwnedFd) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::from(socket);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

impl<T: Send + 'static> Stock<T> {
    fn new(v6: bool, stream: bool, made: fn(OwnedFd) -> io::Result<T>) -> Self {
        Self { v6, stream, made, idle: Mutex::default(), asking: AsyncMutex::default() }
    }

    async fn take(self: &Arc<Self>, questions: &Questions) -> Result<T, SocketsError> {
        let idle = self.idle().pop();
        match idle {
            Some(socket) => Ok(socket),
            // In a task, so that a question is not broken off in the middle by somebody who does not wait for it any more.
            None => match tokio::spawn(self.clone().ask(questions.clone())).await {
                Ok(asked) => asked,
                Err(_) => Err(UpdateError::Helper(PrivilegedError::Ended).into()), // the runtime ends
            },
        }
    }

    /// Asks the helper, unless somebody just did.
    async fn ask(self: Arc<Self>, questions: Questions) -> Result<T, SocketsError> {
        let _alone = self.asking.lock().await;
        let idle = self.idle().pop();
        if let Some(socket) = idle {
            return Ok(socket);
        }
        let passed = questions.sockets(self.v6, self.stream, BATCH).await?;
        let mut sockets: Vec<T> = passed.into_iter().filter_map(|socket| (self.made)(socket).ok()).collect();
        let one = sockets.pop().ok_or(SocketsError::TooManyFiles)?;
        self.idle().extend(sockets);
        Ok(one)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<T>> {
        // A panic while holding the lock cannot leave the list half changed.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket for one exchange with one server. Dropped, it is given back.
pub struct Lent {
    socket: Option<UdpSocket>,
    stock: Arc<Stock<UdpSocket>>,
    _permit: OwnedSemaphorePermit,
}

impl Deref for Lent {
    type Target = UdpSocket;

    fn deref(&self) -> &UdpSocket {
        self.socket.as_ref().expect("it is there until this is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // One that cannot be made as new is closed.
        if let Some(Ok(socket)) = self.socket.take().map(renewed) {
            self.stock.idle().push(socket);
        }
    }
}

/// Connected to nobody, bound to no port, with nothing in it that was sent to the one before.
fn renewed(socket: UdpSocket) -> io::Result<UdpSocket> {
    rustix::net::connect_unspec(&socket)?;
    for _ in 0..MOST_LATE {
        // The kernel is asked: the runtime may not have heard yet that there is something. What comes is a late answer, or
        // what ICMP said.
        if let Err(Errno::WOULDBLOCK) = rustix::net::recv(&socket, &mut [0], RecvFlags::DONTWAIT) {
            return Ok(socket);
        }
    }
    Err(io::ErrorKind::StorageFull.into())
}
