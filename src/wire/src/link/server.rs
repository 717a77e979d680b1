//! The pod's end: the links that exist, and which of them a connection wants.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::end::End;
use super::frame::CloseReason;
use super::hello::{Answer, Hello, HelloError, Refusal, Token, VERSIONS, negotiate};
use super::pump::{Attachment, Detached, Role};
use super::shared::Shared;
use super::state::{Limits, Stop};
use super::stream::{GREETING_TIMEOUT, LinkStream};

/// Links at once, carried or not. A client keeps two tunnels, twice that while it rotates them; the rest is room for
/// one that was restarted while its dead links are still kept. Each may hold what [`Limits`] says.
pub const MAX_LINKS: usize = 16;

/// Time for a refusal to leave.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Time for all clients to be told that the server leaves: a little more than each connection takes for its last word.
const LEAVE_TIME: Duration = Duration::from_millis(1500);

/// All links of a server. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    links: Arc<Mutex<Vec<Known>>>,
    limits: Limits,
    /// Connections that carry a link now.
    carrying: Arc<watch::Sender<usize>>,
}

type Known = (Token, Arc<Shared>);

/// Why a connection was not attached.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another protocol, or a broken client.
    #[error("read the client's greeting")]
    Greeting(#[source] HelloError),
    /// The connection failed.
    #[error("read the client's greeting")]
    Io(#[source] io::Error),
    /// Nothing, or not everything, in time.
    #[error("no complete greeting within {} s", GREETING_TIMEOUT.as_secs())]
    Timeout,
    /// The client was told no.
    #[error("refuse the client's greeting")]
    Refused(#[source] Refusal),
}

impl Links {
    /// None yet; each will have these `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { links: Arc::default(), limits, carrying: Arc::default() }
    }

    /// Carries the link that `connection` asks for, until the connection is of no more use. A new link's stream is
    /// given to `start`, which must not block. May be dropped: that only cuts the connection.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn serve<S>(
        &self,
        mut connection: S,
        start: impl FnOnce(LinkStream),
    ) -> Result<Detached, ServeError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut input = BytesMut::new();
        let hello = timeout(GREETING_TIMEOUT, greeting(&mut connection, &mut input))
            .await
            .unwrap_or(Err(ServeError::Timeout))?;
        match self.admit(&hello, start) {
            Ok((shared, answer)) => {
                shared.observe(|observer| observer.attached(hello.received));
                let mut out = BytesMut::new();
                answer.encode(&mut out);
                let attachment = Attachment::new(shared, Role::Server, hello.attempt, connection, input, out);
                let _carrying = Carrying::begin(&self.carrying);
                Ok(attachment.run().await)
            }
            Err(reason) => {
                let mut out = BytesMut::new();
                Answer::Refused(reason).encode(&mut out);
                let tell = async {
                    connection.write_all(&out).await?;
                    connection.shutdown().await
                };
                let _ = timeout(REFUSAL_TIME, tell).await; // it will not be attached either way
                Err(ServeError::Refused(reason))
            }
        }
    }

    /// Ends all links, and waits until clients that are attached have been told, or a second and a half.
    pub async fn leave(&self) {
        let all = std::mem::take(&mut *self.lock());
        for (_, shared) in all {
            shared.change(|state| state.close(CloseReason::Leaving));
        }
        let mut carrying = self.carrying.subscribe();
        let _ = timeout(LEAVE_TIME, carrying.wait_for(|count| *count == 0)).await; // who was not told finds out
    }

    /// Links that exist, carried or not.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn admit(&self, hello: &Hello, start: impl FnOnce(LinkStream)) -> Result<(Arc<Shared>, Answer), Refusal> {
        let version = negotiate(&VERSIONS, &hello.versions).ok_or(Refusal::Version)?;
        let (shared, new) = self.find(hello)?;
        if new {
            start(LinkStream::new(shared.clone()));
        }
        let now = shared.now();
        let received = shared.change(|state| state.accept(hello.attempt, hello.received, now)).map_err(
            |stop| match stop {
                Stop::Ended(End::Offset { .. }) => Refusal::Offset,
                Stop::Ended(_) => Refusal::UnknownToken,
                _ => Refusal::Superseded,
            },
        )?;
        Ok((shared, Answer::Welcome { version, received }))
    }

    /// The link of this token, made if the client may begin one.
    fn find(&self, hello: &Hello) -> Result<(Arc<Shared>, bool), Refusal> {
        let mut links = self.lock();
        // All are compared, each in constant time: how long it takes says nothing about a token.
        let known =
            links.iter().fold(
                None,
                |found, (token, shared)| {
                    if token.ct_eq(&hello.token).into() { Some(shared) } else { found }
                },
            );
        if let Some(shared) = known {
            return Ok((shared.clone(), false));
        }
        if hello.resume {
            return Err(Refusal::UnknownToken);
        }
        if links.len() >= MAX_LINKS {
            return Err(Refusal::TooMany);
        }
        let shared = Shared::start(self.limits);
        links.push((hello.token, shared.clone()));
        drop(links);
        let (all, ended) = (self.clone(), shared.clone());
        tokio::spawn(async move {
            ended.ended().await;
            all.lock().retain(|(_, shared)| !Arc::ptr_eq(shared, &ended));
        });
        Ok((shared, true))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        // A panic while holding the lock cannot leave the list half changed.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the connections counted.
struct Carrying(Arc<watch::Sender<usize>>);

impl Carrying {
    fn begin(count: &Arc<watch::Sender<usize>>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for Carrying {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

async fn greeting<S>(connection: &mut S, input: &mut BytesMut) -> Result<Hello, ServeError>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some(hello) = Hello::decode(input).map_err(ServeError::Greeting)? {
            return Ok(hello);
        }
        if connection.read_buf(input).await.map_err(ServeError::Io)? == 0 {
            return Err(ServeError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}
