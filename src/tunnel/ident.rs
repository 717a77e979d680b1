//! Who answers? Both ends of SSH begin with a line that says so (RFC 4253 §4.2); ours names kshuttle and can do more.
//!
//! A link's greeting would look like an attack to any other server, so where it is not known whose server it is, the lines
//! are exchanged first. What was read and written here is then kept from russh, which does it again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use kshuttle_wire::ssh;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Time for the server's line: a round trip, and the far end of a port-forward may still be connecting.
const IDENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes before and with the server's line. RFC 4253 allows a line 255 and any number of others before it; OpenSSH gives up
/// after 8 KiB, too.
const IDENT_MAX: usize = 8 << 10;

/// Why it is not known who answers.
#[derive(Debug, thiserror::Error)]
pub enum IdentError {
    /// The stream failed.
    #[error("ask the pod's server who it is")]
    Io(#[source] io::Error),
    /// Nothing listens there, or it ended at once.
    #[error("the pod's server ended the connection without a word: does anything listen on this port?")]
    Ended,
    /// It listens and says nothing.
    #[error("the pod's server did not say who it is within {} s", IDENT_TIMEOUT.as_secs())]
    Timeout,
    /// It is something else.
    #[error("what listens on the pod's port is no SSH server")]
    NotSsh,
}

/// A stream on which both ends have said who they are.
pub(super) struct Greeted<S> {
    stream: S,
    /// Read already, for russh to read.
    read: BytesMut,
    /// How much of what russh writes was written already.
    written: usize,
    server: String,
}

impl<S> Greeted<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    /// Exchanges the lines.
    ///
    /// # Errors
    /// See [`IdentError`].
    pub(super) async fn ask(mut stream: S) -> Result<Self, IdentError> {
        let ours = format!("{}\r\n", ssh::CLIENT_ID);
        let ask = async {
            stream.write_all(ours.as_bytes()).await.map_err(IdentError::Io)?;
            stream.flush().await.map_err(IdentError::Io)?;
            let mut read = BytesMut::new();
            let server = loop {
                if let Some(line) = find(&read) {
                    break line;
                }
                if read.len() > IDENT_MAX {
                    return Err(IdentError::NotSsh);
                }
                if stream.read_buf(&mut read).await.map_err(IdentError::Io)? == 0 {
                    return Err(if read.is_empty() { IdentError::Ended } else { IdentError::NotSsh });
                }
            };
            Ok((read, server))
        };
        let (read, server) =
            tokio::time::timeout(IDENT_TIMEOUT, ask).await.unwrap_or(Err(IdentError::Timeout))?;
        Ok(Self { stream, read, written: ours.len(), server })
    }

    /// Whether the server is ours.
    pub(super) fn is_ours(&self) -> bool {
        self.server.starts_with(ssh::SERVER_ID_START)
    }

    /// What the server calls itself.
    pub(super) fn server(&self) -> &str {
        self.server.strip_prefix("SSH-2.0-").unwrap_or(&self.server)
    }
}

/// The server's line, once it is there, without its end.
fn find(read: &[u8]) -> Option<String> {
    let mut lines = read.split_inclusive(|byte| *byte == b'\n');
    let line = lines.find(|line| line.starts_with(b"SSH-"))?.strip_suffix(b"\n")?;
    // It is shown to people: nothing that moves their cursor.
    Some(String::from_utf8_lossy(line).trim_end().chars().filter(|letter| !letter.is_control()).collect())
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let skipped = self.written.min(data.len());
        self.written -= skipped;
        if skipped > 0 {
            return Poll::Ready(Ok(skipped));
        }
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, data))?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(server: &[u8]) -> Result<Greeted<tokio::io::DuplexStream>, IdentError> {
        let (near, mut far) = tokio::io::duplex(32 << 10);
        far.write_all(server).await.unwrap();
        far.shutdown().await.unwrap();
        Greeted::ask(near).await
    }

    #[tokio::test]
    async fn the_server_is_told_by_its_line() {
        let openssh = answered(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n\0\0rest").await.unwrap();
        assert!(!openssh.is_ours());
        assert_eq!(openssh.server(), "OpenSSH_9.2p1 Debian-2");
        assert!(answered(b"hello\r\nSSH-2.0-kshuttle_9.9.9\r\n").await.unwrap().is_ours());
        assert!(matches!(answered(b"").await, Err(IdentError::Ended)));
        assert!(matches!(answered(b"HTTP/1.1 400 Bad Request\r\n\r\n").await, Err(IdentError::NotSsh)));
        assert!(matches!(answered(&vec![b'x'; 20 << 10]).await, Err(IdentError::NotSsh)));
    }

    #[tokio::test]
    async fn russh_reads_what_was_read_and_does_not_write_again_what_was_written() {
        let (near, mut far) = tokio::io::duplex(1 << 10);
        far.write_all(b"SSH-2.0-x\r\nnext").await.unwrap();
        let mut greeted = Greeted::ask(near).await.unwrap();
        let mut read = [0; 15];
        greeted.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"SSH-2.0-x\r\nnext");
        let ours = format!("{}\r\n", ssh::CLIENT_ID);
        greeted.write_all(format!("{ours}after").as_bytes()).await.unwrap();
        drop(greeted);
        let mut got = String::new();
        far.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, format!("{ours}after"));
    }
}
