//! One local connection and one stream to a pod's port joined: FIN as FIN, everything else as RST.
//!
//! The protocol has no half-close: the runtime closes the pod's socket at most 1 s after our FIN, whatever the pod still has
//! to say. So the application's FIN is held back until both directions were quiet for [`QUIET`]: an answer that flows, or waits
//! for the application to read, is not cut. If one is cut all the same, the application is told by a reset. What the application sent before the pod's first byte is kept ([`Sent`]), so that it can be sent to another pod
//! when this one turns out to have refused the connection.

use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use kshuttle_wire::relay::{disarm, read_some, reset_by_peer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The application's FIN waits until nothing went either way for this long. Longer than a round trip with one loss;
/// a connection that is over stays open this much longer.
const QUIET: Duration = Duration::from_millis(500);

/// The runtime closes the pod's socket this long after our FIN, if the pod has not.
const CUT_AFTER: Duration = Duration::from_secs(1);

/// After the pod's end and ours an application may keep its direction open for this long, as the kernel would let it
/// (`tcp_fin_timeout`).
const FIN_WAIT: Duration = Duration::from_secs(60);

/// First bytes of an application that are kept, at most. A request with its head fits; who sends more before any
/// answer came is not taken to another pod.
const KEPT_MAX: usize = 64 << 10;

/// Read from the pod at once: two of the 32 KiB messages that the way is made of.
const READ_SIZE: usize = 64 << 10;

/// Why a connection ended other than by both directions' end.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    /// The application's side.
    #[error("local connection")]
    Local(#[source] io::Error),
    /// The pod's side, or the way there.
    #[error(transparent)]
    Pod(io::Error),
    /// After our FIN, in an answer. Ends that the pod means come earlier, or without a byte since.
    #[error("the node closed the connection {} s after the application's end, perhaps in the middle of an answer", CUT_AFTER.as_secs())]
    Cut,
}

/// What the application has sent so far, as long as it may have to be sent again. Lives as long as its connection.
#[derive(Default)]
pub(super) struct Sent {
    kept: Vec<Bytes>,
    length: usize,
    finished: bool,
    /// The pod answered.
    answered: bool,
    /// It answered, or what was sent is too much to keep.
    forgotten: bool,
}

impl Sent {
    /// Whether another pod can take the connection over without having missed anything.
    pub(super) fn is_complete(&self) -> bool {
        !self.forgotten
    }

    /// Whether the pod sent anything.
    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }

    fn keep(&mut self, data: &Bytes) {
        self.finished |= data.is_empty();
        if self.forgotten {
            return;
        }
        self.length += data.len();
        if self.length > KEPT_MAX {
            self.forget();
        } else {
            self.kept.push(data.clone());
        }
    }

    fn forget(&mut self) {
        self.kept = Vec::new();
        self.forgotten = true;
    }
}

/// What both directions know. Locked for moments only, by one task.
struct Common<'a> {
    sent: &'a mut Sent,
    last_byte: Instant,
    /// The application has not taken yet what the pod sent.
    is_behind: bool,
    /// When the application's FIN went to the pod.
    finished: Option<Instant>,
    /// Something came from the pod since.
    answered_since: bool,
}

impl Common<'_> {
    fn answered(&mut self) {
        if !self.sent.answered {
            self.sent.answered = true;
            self.sent.forget();
        }
        self.answered_since = self.finished.is_some();
        self.is_behind = true;
    }

    /// The application took it.
    fn passed_on(&mut self) {
        self.is_behind = false;
        self.last_byte = Instant::now();
    }

    /// From when on the pod may be told the application's end, as far as is known now.
    fn quiet_at(&self) -> Instant {
        let busy_until = if self.is_behind { Instant::now() } else { self.last_byte };
        busy_until + QUIET
    }

    /// Whether the runtime may have made the pod's end.
    fn is_cut(&self) -> bool {
        self.answered_since && self.finished.is_some_and(|at| at.elapsed() >= CUT_AFTER)
    }
}

/// Copies until both directions have ended. The socket is left armed after an error: closing it is a reset.
///
/// # Errors
/// When either side ended early.
pub(super) async fn relay(
    socket: &mut TcpStream,
    pod: impl AsyncRead + AsyncWrite + Unpin,
    sent: &mut Sent,
) -> Result<(), RelayError> {
    let _ = socket.set_nodelay(true); // an optimisation; without it only small writes wait
    let common = Mutex::new(Common {
        sent,
        last_byte: Instant::now(),
        is_behind: false,
        finished: None,
        answered_since: false,
    });
    let (from_pod, to_pod) = tokio::io::split(pod);
    let (read, mut to_socket) = socket.split();
    let read: &TcpStream = read.as_ref();
    let download = async {
        let done = download(read, &mut to_socket, from_pod, &common).await;
        done.map(|()| Instant::now() + FIN_WAIT)
    };
    let upload = upload(read, to_pod, &common);
    let (mut download, mut upload) = (std::pin::pin!(download), std::pin::pin!(upload));
    let pod_closed = tokio::select! {
        uploaded = &mut upload => match uploaded {
            // The pod has closed; what it said before may still be on its way to the application.
            Err(RelayError::Pod(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                download.await?;
                return Err(RelayError::Pod(error));
            }
            uploaded => {
                uploaded?;
                download.await?;
                disarm(read);
                return Ok(());
            }
        },
        downloaded = &mut download => downloaded?,
    };
    // What still comes goes nowhere: `upload` fails then, and the application is told by a reset.
    tokio::time::timeout_at(pod_closed, upload).await.unwrap_or(Ok(()))?;
    disarm(read);
    Ok(())
}

/// Application to pod.
async fn upload(
    socket: &TcpStream,
    mut pod: impl AsyncWrite + Unpin,
    common: &Mutex<Common<'_>>,
) -> Result<(), RelayError> {
    let again = lock(common).sent.kept.clone();
    for data in again {
        pod.write_all(&data).await.map_err(RelayError::Pod)?;
    }
    let mut last_read = 0;
    while !lock(common).sent.finished {
        let data = read_some(socket, last_read).await.map_err(RelayError::Local)?;
        last_read = data.len();
        {
            let mut common = lock(common);
            common.sent.keep(&data);
            common.last_byte = Instant::now();
        }
        pod.write_all(&data).await.map_err(RelayError::Pod)?;
    }
    loop {
        let quiet_at = lock(common).quiet_at();
        if quiet_at <= Instant::now() {
            break;
        }
        tokio::time::sleep_until(quiet_at).await;
    }
    lock(common).finished = Some(Instant::now());
    pod.shutdown().await.map_err(RelayError::Pod)
}

/// Pod to application.
async fn download(
    socket: &TcpStream,
    write: &mut tokio::net::tcp::WriteHalf<'_>,
    mut pod: impl AsyncRead + Unpin,
    common: &Mutex<Common<'_>>,
) -> Result<(), RelayError> {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let length = tokio::select! {
            biased; // while data flows the socket's errors show in the writes
            read = pod.read(&mut buffer) => read.map_err(RelayError::Pod)?,
            // The application is gone, though its FIN came long ago and nothing is there to be written.
            error = reset_by_peer(socket) => return Err(RelayError::Local(error)),
        };
        if length == 0 {
            if lock(common).is_cut() {
                return Err(RelayError::Cut);
            }
            return write.shutdown().await.map_err(RelayError::Local);
        }
        lock(common).answered();
        write.write_all(&buffer[..length]).await.map_err(RelayError::Local)?;
        lock(common).passed_on();
    }
}

fn lock<'a, 'b>(common: &'a Mutex<Common<'b>>) -> MutexGuard<'a, Common<'b>> {
    common.lock().expect("nothing panics under the lock")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Two ends of one connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// Relays between the two far ends in a task of its own; the near ends are the application and the pod.
    async fn scene(
        mut sent: Sent,
    ) -> (TcpStream, TcpStream, tokio::task::JoinHandle<(Result<(), RelayError>, Sent)>) {
        let ((application, mut socket), (pod, stream)) = (pair().await, pair().await);
        kshuttle_wire::relay::arm(&socket);
        let relayed = tokio::spawn(async move {
            let result = relay(&mut socket, stream, &mut sent).await;
            (result, sent)
        });
        (application, pod, relayed)
    }

    #[tokio::test]
    async fn both_ends_arrive_as_ends_and_an_answer_after_the_applications_is_whole() {
        let (mut application, mut pod, relayed) = scene(Sent::default()).await;
        application.write_all(b"ask").await.unwrap();
        application.shutdown().await.unwrap();
        let mut asked = [0; 3];
        pod.read_exact(&mut asked).await.unwrap();
        for _ in 0..100 {
            pod.write_all(&[7; 10_000]).await.unwrap();
        }
        pod.shutdown().await.unwrap();
        let mut answer = Vec::new();
        application.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, vec![7; 1_000_000]);
        assert_eq!(pod.read(&mut [0; 1]).await.unwrap(), 0, "the application's end, in its time");
        relayed.await.unwrap().0.unwrap();
    }

    #[tokio::test]
    async fn an_error_of_the_pod_is_a_reset_for_the_application() {
        let (mut application, mut pod, relayed) = scene(Sent::default()).await;
        pod.write_all(b"half").await.unwrap();
        application.read_exact(&mut [0; 4]).await.unwrap();
        kshuttle_wire::relay::arm(&pod);
        drop(pod);
        let error = application.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(matches!(relayed.await.unwrap().0, Err(RelayError::Pod(_))));
    }

    #[tokio::test]
    async fn a_reset_of_the_application_is_noticed_after_its_end_too() {
        let (mut application, mut pod, relayed) = scene(Sent::default()).await;
        application.shutdown().await.unwrap();
        assert_eq!(pod.read(&mut [0; 1]).await.unwrap(), 0);
        kshuttle_wire::relay::arm(&application);
        drop(application);
        pod.write_all(b"too late").await.unwrap();
        assert!(matches!(relayed.await.unwrap().0, Err(RelayError::Local(_))));
    }

    #[tokio::test]
    async fn what_was_sent_without_an_answer_goes_to_the_next_pod() {
        let (mut application, mut first, relayed) = scene(Sent::default()).await;
        application.write_all(b"hello").await.unwrap();
        first.read_exact(&mut [0; 5]).await.unwrap();
        kshuttle_wire::relay::arm(&first);
        drop(first);
        let (result, sent) = relayed.await.unwrap();
        assert!(result.is_err() && sent.is_complete() && !sent.is_answered());

        let (mut application, mut second, relayed) = scene(sent).await;
        application.write_all(b" again").await.unwrap();
        let mut got = [0; 11];
        second.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello again");
        second.write_all(b"!").await.unwrap();
        application.read_exact(&mut [0; 1]).await.unwrap();
        drop((application, second));
        let (_, sent) = relayed.await.unwrap();
        assert!(!sent.is_complete() && sent.is_answered() && sent.kept.is_empty());
    }

    #[tokio::test]
    async fn an_application_that_reads_late_is_not_done() {
        let (mut application, mut pod, relayed) = scene(Sent::default()).await;
        application.write_all(b"ask").await.unwrap();
        application.shutdown().await.unwrap();
        pod.read_exact(&mut [0; 3]).await.unwrap();
        // Until no more fits into the buffers on the way.
        let mut sent = 0;
        while let Ok(written) = tokio::time::timeout(QUIET, pod.write(&[7; 65536])).await {
            sent += written.unwrap();
        }
        let end = tokio::time::timeout(QUIET * 2, pod.read(&mut [0; 1])).await;
        assert!(end.is_err(), "the pod must not see an end while the answer is on its way");
        let reads = tokio::spawn(async move {
            let mut answer = Vec::new();
            application.read_to_end(&mut answer).await.map(|_| answer.len())
        });
        pod.shutdown().await.unwrap();
        assert_eq!(reads.await.unwrap().unwrap(), sent);
        drop(pod);
        relayed.await.unwrap().0.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_the_runtime_cut_is_not_whole() {
        for (answer, whole) in [(&b"half"[..], false), (b"", true)] {
            let (mut application, mut pod, relayed) = scene(Sent::default()).await;
            application.shutdown().await.unwrap();
            assert_eq!(pod.read(&mut [0; 1]).await.unwrap(), 0);
            pod.write_all(answer).await.unwrap();
            tokio::time::sleep(CUT_AFTER).await; // what the runtime does
            pod.shutdown().await.unwrap();
            let mut got = Vec::new();
            let end = application.read_to_end(&mut got).await;
            assert_eq!(end.is_ok(), whole, "{end:?} after {got:?}");
            drop((application, pod));
            assert_eq!(relayed.await.unwrap().0.is_ok(), whole);
        }
    }

    #[test]
    fn too_much_is_not_kept() {
        let mut sent = Sent::default();
        for _ in 0..4 {
            sent.keep(&Bytes::from(vec![0; KEPT_MAX / 4]));
        }
        assert!(sent.is_complete());
        sent.keep(&Bytes::from_static(b"x"));
        assert!(!sent.is_complete() && sent.kept.is_empty() && !sent.is_answered());
    }
}
