//! The helper of macOS passes no sockets yet.

use std::io;

use tokio::net::UnixStream;

use super::Received;

pub(super) async fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Received> {
    loop {
        stream.readable().await?;
        match stream.try_read(bytes) {
            Ok(length) => return Ok(Received { length, files: None }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
