//! With a helper of the test's own at the other end, and servers on loopback.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::collections::BTreeSet;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, UdpSocket as StdUdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::mpsc;
use std::thread;

use kshuttle_helper::protocol::{self, Frames, Reply, Request};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sendmsg, socket,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use super::super::Helper;
use super::*;

/// What it was asked for; dropped when the other end is gone.
type Asked = mpsc::Receiver<Request>;

/// One message with files.
fn pass(to: &StdUnixStream, reply: &Reply, files: &[BorrowedFd]) {
    let mut frame = Vec::new();
    protocol::write(&mut frame, reply).unwrap();
    let mut room = [MaybeUninit::uninit(); 256];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)));
    let sent = sendmsg(to, &[IoSlice::new(&frame)], &mut ancillary, SendFlags::empty()).unwrap();
    assert_eq!(sent, frame.len());
}

/// A helper that answers by this, and its user side, which is heard until the test ends.
fn helper(
    answer: impl Fn(&StdUnixStream, u8, SocketType, AddressFamily) + Send + 'static,
) -> (Sockets, Questions, Asked) {
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let (sender, asked) = mpsc::channel();
    thread::spawn(move || {
        let mut frames = Frames::default();
        loop {
            while let Some(request) = frames.take::<Request>().unwrap() {
                if let Request::Sockets { v6, stream, count } = request {
                    let kind = if stream { SocketType::STREAM } else { SocketType::DGRAM };
                    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
                    let _ = sender.send(request); // not every test counts
                    answer(&theirs, count, kind, family);
                }
            }
            let mut bytes = [0; 1024];
            match (&theirs).read(&mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(length) => frames.push(&bytes[..length]),
            }
        }
    });
    ours.set_nonblocking(true).unwrap();
    let (stream, write) = UnixStream::from_std(ours).unwrap().into_split();
    let questions = Questions::over(write);
    let mut helper = Helper { stream, frames: Frames::default(), child: None, questions: questions.clone() };
    tokio::spawn(async move { helper.lost(|_| {}).await });
    (Sockets::new(questions.clone()), questions, asked)
}

/// As the real one does.
fn passes(to: &StdUnixStream, count: u8, kind: SocketType, family: AddressFamily) {
    let sockets: Vec<_> = (0..count).map(|_| socket(family, kind, None).unwrap()).collect();
    pass(to, &Reply::Sockets { count }, &sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>());
}

/// A server that answers nothing by itself.
fn server(address: &str) -> (StdUdpSocket, SocketAddr) {
    let server = StdUdpSocket::bind((address, 0)).unwrap();
    let at = server.local_addr().unwrap();
    (server, at)
}

/// One query, its answer, and where it came from.
async fn exchange(lent: &Lent, server: &StdUdpSocket) -> SocketAddr {
    lent.send(b"query").await.unwrap();
    let (length, from) = server.recv_from(&mut [0; 16]).unwrap();
    assert_eq!(length, 5);
    server.send_to(b"answer", from).unwrap();
    let mut bytes = [0; 16];
    let length = lent.recv(&mut bytes).await.unwrap();
    assert_eq!(&bytes[..length], b"answer");
    from
}

#[tokio::test]
async fn one_socket_serves_again_from_a_new_port() {
    let (sockets, _, asked) = helper(passes);
    for address in ["127.0.0.1", "::1"] {
        let (server, at) = server(address);
        let mut ports = BTreeSet::new();
        for _ in 0..8 {
            let lent = sockets.datagrams(at).await.unwrap();
            ports.insert(exchange(&lent, &server).await.port());
        }
        assert!(ports.len() > 4, "a new port each time: {ports:?}");
    }
    let asked: Vec<_> = asked.try_iter().collect();
    let of = |v6| Request::Sockets { v6, stream: false, count: BATCH };
    assert_eq!(asked, [of(false), of(true)]);
}

#[tokio::test]
async fn what_comes_late_is_not_read_by_the_next() {
    let (sockets, ..) = helper(passes);
    let ((first, at_first), (second, at_second)) = (server("127.0.0.1"), server("127.0.0.1"));
    // The one that is given back last is lent next.
    let late = sockets.datagrams(at_first).await.unwrap();
    late.send(b"query").await.unwrap();
    let (_, from) = first.recv_from(&mut [0; 16]).unwrap();
    for _ in 0..5 {
        first.send_to(b"late", from).unwrap();
    }
    drop(late);
    let next = sockets.datagrams(at_second).await.unwrap();
    exchange(&next, &second).await;
    // And one that has more than that is not lent again.
    let from = next.local_addr().unwrap();
    for _ in 0..=MOST_LATE {
        second.send_to(b"", from).unwrap();
    }
    let stock = sockets.0.datagrams[0].clone();
    let idle = stock.idle().len();
    drop(next);
    assert_eq!(stock.idle().len(), idle);
}

#[tokio::test]
async fn a_server_that_is_not_there_spoils_nothing() {
    let (sockets, ..) = helper(passes);
    let (server, at) = server("127.0.0.1");
    let nobody = {
        let gone = StdUdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        gone.local_addr().unwrap()
    };
    let lent = sockets.datagrams(nobody).await.unwrap();
    lent.send(b"query").await.unwrap();
    assert_eq!(lent.recv(&mut [0; 16]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    lent.send(b"query").await.unwrap(); // nobody reads what comes of this one
    drop(lent);
    exchange(&sockets.datagrams(at).await.unwrap(), &server).await;
}

#[tokio::test]
async fn who_finds_all_lent_waits_and_not_for_ever() {
    let (sockets, _, asked) = helper(passes);
    let (_server, at) = server("127.0.0.1");
    let mut lent = Vec::new();
    for _ in 0..MOST_LENT {
        lent.push(sockets.datagrams(at).await.unwrap());
    }
    assert_eq!(asked.try_iter().count(), MOST_LENT / usize::from(BATCH));
    let waits = tokio::spawn({
        let sockets = sockets.clone();
        async move { sockets.datagrams(at).await }
    });
    tokio::task::yield_now().await;
    drop(lent.pop());
    let _last = waits.await.unwrap().unwrap();
    tokio::time::pause();
    assert!(matches!(sockets.datagrams(at).await, Err(SocketsError::Busy)));
    assert_eq!(asked.try_iter().count(), 0);
}

#[tokio::test]
async fn a_connection_is_made_with_a_socket_of_its_own() {
    let (sockets, _, asked) = helper(passes);
    for address in ["127.0.0.1", "::1"] {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        for _ in 0..5 {
            let mut stream = sockets.connect(listener.local_addr().unwrap()).await.unwrap();
            let mut server = listener.accept().await.unwrap().0;
            stream.write_all(b"query").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, b"query");
        }
    }
    assert_eq!(asked.try_iter().count(), 4, "two of each family for five connections");
}

#[tokio::test]
async fn a_refusal_is_told() {
    let (sockets, ..) = helper(|to, _, _, _| {
        let mut frame = Vec::new();
        protocol::write(&mut frame, &Reply::Refused { message: "no".into() }).unwrap();
        std::io::Write::write_all(&mut &*to, &frame).unwrap();
    });
    let error = sockets.datagrams(server("127.0.0.1").1).await.err().unwrap();
    assert!(matches!(error, SocketsError::Helper(UpdateError::Refused(message)) if message == "no"));
}

#[tokio::test]
async fn a_helper_that_passes_nothing_is_told() {
    let (sockets, ..) = helper(|to, count, _, _| {
        let mut frame = Vec::new();
        protocol::write(&mut frame, &Reply::Sockets { count }).unwrap();
        std::io::Write::write_all(&mut &*to, &frame).unwrap();
    });
    let error = sockets.datagrams(server("127.0.0.1").1).await.err().unwrap();
    assert!(matches!(error, SocketsError::TooManyFiles), "{error}");
}

#[tokio::test]
async fn each_answer_has_its_own_files() {
    let (_, questions, _asked) = helper(passes);
    let kinds = |sockets: Result<Vec<OwnedFd>, UpdateError>| -> Vec<_> {
        sockets.unwrap().iter().map(|one| rustix::net::sockopt::socket_type(one).unwrap()).collect()
    };
    let (streams, datagrams) =
        tokio::join!(questions.sockets(false, true, 2), questions.sockets(true, false, 16));
    assert_eq!(
        (kinds(streams), kinds(datagrams)),
        (vec![SocketType::STREAM; 2], vec![SocketType::DGRAM; 16])
    );
}

#[tokio::test]
async fn files_that_nobody_asked_for_are_closed() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let unasked = Mutex::new(Some(writer));
    let (_, questions, _asked) = helper(move |to, count, kind, family| {
        passes(to, count, kind, family);
        let file = unasked.lock().unwrap().take().unwrap();
        pass(to, &Reply::Repaired { what: String::new() }, &[file.as_fd()]);
    });
    questions.sockets(false, false, 1).await.unwrap();
    let ended = tokio::task::spawn_blocking(move || reader.read(&mut [0; 1]).unwrap());
    assert_eq!(ended.await.unwrap(), 0);
}
