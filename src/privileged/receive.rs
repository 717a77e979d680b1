//! Hearing the helper: bytes, and the sockets that come with them.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use macos as system;

use std::io;
use std::os::fd::OwnedFd;

use tokio::net::UnixStream;

/// What came at once.
pub(super) struct Received {
    /// How many bytes; none at the end.
    pub(super) length: usize,
    /// Files that belong to the last of the frames in these bytes, which may go on. Fewer than were sent where this
    /// process may not have so many.
    pub(super) files: Option<Vec<OwnedFd>>,
}

/// Waits for something.
pub(super) async fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Received> {
    system::receive(stream, bytes).await
}
