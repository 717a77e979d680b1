//! One socket and one flow joined: bytes both ways, FIN as FIN, RST as RST.
//!
//! The socket is *armed* from the start: closing it resets the connection (`SO_LINGER` 0). Only an orderly end of
//! both directions disarms it. So whatever ends us early, be it a panic, a cancelled task or SIGKILL, the application
//! sees a reset and never takes half a download for a whole one.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::TcpStream;

use crate::flow::{ConnectError, Flow, FlowRecv, FlowSend};

/// Largest read from a socket. Bigger ones gain nothing: HTTP/2 frames and SSH packets end at 64 KiB.
const READ_SIZE: usize = 64 << 10;

/// A flow whose last read was at least this long is taken for a bulk transfer and read into a buffer of its own;
/// shorter ones are copied out of a shared buffer, so that an idle flow owns no buffer at all.
const BULK_READ: usize = 16 << 10;

/// Why a relay ended other than by both directions' end. Ordinary: somebody reset the connection.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The socket on our side.
    #[error("local connection")]
    Socket(#[source] io::Error),
    /// The flow: never opened, reset by the far side, or its session ended.
    #[error("flow")]
    Flow(#[source] ConnectError),
}

/// Makes the socket reset its connection when it is closed, until [`relay`] ends orderly.
pub fn arm(socket: &TcpStream) {
    // Fails only for a socket that is no TCP socket.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Undoes [`arm`]: closing sends what is queued, then FIN.
pub fn disarm(socket: &TcpStream) {
    // Fails only for a socket that is no TCP socket.
    let _ = SockRef::from(socket).set_linger(None);
}

/// Copies until both directions have ended.
///
/// # Errors
/// When either side ended early; both sides have then been reset.
pub async fn relay(mut socket: TcpStream, flow: Flow) -> Result<(), RelayError> {
    arm(&socket);
    let _ = socket.set_nodelay(true); // an optimisation; without it only small writes wait
    let Flow { mut send, mut recv } = flow;
    // `split`, not `into_split`: an owned write half sends FIN when dropped, which would hide the reset.
    let (read, mut write) = socket.split();
    let read: &TcpStream = read.as_ref();
    let result = tokio::try_join!(upload(read, &mut send), download(read, &mut write, &mut recv));
    match result {
        Ok(_) => {
            disarm(&socket);
            Ok(())
        }
        Err(error) => {
            send.reset();
            Err(error)
        }
    }
}

/// Socket to flow.
async fn upload(socket: &TcpStream, send: &mut FlowSend) -> Result<(), RelayError> {
    let mut last_read = 0;
    loop {
        let data = tokio::select! {
            data = read_some(socket, last_read) => data.map_err(RelayError::Socket)?,
            // An idle upload must learn of a reset too.
            error = poll_fn(|cx| send.poll_reset(cx)) => return Err(RelayError::Flow(ConnectError::Session(error))),
        };
        last_read = data.len();
        let sent = if data.is_empty() { send.finish() } else { send.send(data).await };
        sent.map_err(|error| RelayError::Flow(ConnectError::Session(error)))?;
        if last_read == 0 {
            return Ok(());
        }
    }
}

/// Flow to socket.
async fn download(
    socket: &TcpStream,
    write: &mut tokio::net::tcp::WriteHalf<'_>,
    recv: &mut FlowRecv,
) -> Result<(), RelayError> {
    loop {
        let data = tokio::select! {
            biased; // while data flows the socket's errors show in the writes
            data = recv.data() => data.map_err(RelayError::Flow)?,
            // The application is gone, though its FIN came long ago and nothing is there to be written.
            error = reset_by_peer(socket) => return Err(RelayError::Socket(error)),
        };
        let Some(data) = data else {
            return write.shutdown().await.map_err(RelayError::Socket);
        };
        write.write_all(&data).await.map_err(RelayError::Socket)?;
        recv.release(data.len());
    }
}

/// Next bytes of the socket, at most 64 KiB; empty after FIN. `last_read` is the length of the read before: short
/// ones share a buffer, so that an idle connection owns none. Safe to cancel.
///
/// # Errors
/// As `read(2)`; the peer's reset among them.
pub async fn read_some(socket: &TcpStream, last_read: usize) -> io::Result<Bytes> {
    thread_local! {
        static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_SIZE].into_boxed_slice());
    }
    loop {
        socket.readable().await?;
        let read = if last_read >= BULK_READ {
            let mut own = BytesMut::with_capacity(READ_SIZE);
            socket.try_read_buf(&mut own).map(|_| own.freeze())
        } else {
            SHARED.with_borrow_mut(|shared| {
                let length = socket.try_read(shared)?;
                Ok(Bytes::copy_from_slice(&shared[..length]))
            })
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// Ready once the kernel has recorded an error on the socket: the only way to learn of a reset when nothing is read
/// or written. Safe to cancel.
pub async fn reset_by_peer(socket: &TcpStream) -> io::Error {
    loop {
        match socket.ready(Interest::ERROR).await {
            Ok(ready) if ready.is_error() => {
                return match socket.take_error() {
                    Ok(Some(error)) | Err(error) => error,
                    Ok(None) => io::ErrorKind::ConnectionReset.into(),
                };
            }
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => return error,
        }
    }
}
