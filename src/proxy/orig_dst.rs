//! Where did a redirected connection want to go? Asked of the system; never guessed.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as imp;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as imp;

/// A part of kshuttle that is still to be made for this system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("redirecting on this system is not finished")]
pub struct NotFinished;

/// Why a connection's original destination is not known.
#[derive(Debug, thiserror::Error)]
pub enum OrigDstError {
    /// The system has no translation for this connection.
    #[error("ask for the original destination")]
    Unknown(#[source] io::Error),
    /// It was made to our listener itself: forwarding it would come back here.
    #[error("the connection was made to our own listener")]
    Ourselves,
}

/// Whether this program can ask at all; without that nothing must be redirected to it.
///
/// # Errors
/// When it cannot on this system.
pub fn available() -> Result<(), NotFinished> {
    imp::available()
}

/// The destination `socket` was connected to before it was redirected to us.
///
/// # Errors
/// When the system does not know, or the connection was not redirected at all.
pub fn orig_dst(socket: &TcpStream) -> Result<SocketAddr, OrigDstError> {
    let local = socket.local_addr().map_err(OrigDstError::Unknown)?;
    let destination = imp::orig_dst(socket).map_err(OrigDstError::Unknown)?;
    if destination == local { Err(OrigDstError::Ourselves) } else { Ok(destination) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_direct_connection_is_refused() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (socket, _) = listener.accept().await.unwrap();
            // Whether the kernel tracks loopback connections depends on the machine's rules.
            let error = orig_dst(&socket).unwrap_err();
            assert!(matches!(error, OrigDstError::Ourselves | OrigDstError::Unknown(_)), "{error:?}");
        }
    }
}
