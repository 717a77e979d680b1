//! A pod in memory, links to it, and bytes over them.

use std::io;

use kshuttle_test_support::{pattern, within};
use kshuttle_wire::link::server::{Links, ServeError};
use kshuttle_wire::link::{Attachment, Detached, End, Limits, LinkHandle, LinkStream, Token, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex};
use tokio::sync::mpsc;

/// Bytes a connection in memory holds per direction.
pub(super) const CONNECTION: usize = 64 << 10;

/// A server whose new links come out of the channel.
pub(super) struct Pod {
    pub(super) links: Links,
    pub(super) new: mpsc::UnboundedSender<LinkStream>,
    streams: mpsc::UnboundedReceiver<LinkStream>,
}

impl Pod {
    pub(super) fn new(limits: Limits) -> Self {
        let (new, streams) = mpsc::unbounded_channel();
        Self { links: Links::new(limits), new, streams }
    }

    /// A fresh connection to it, and what becomes of it there.
    pub(super) fn dial(&self) -> (DuplexStream, tokio::task::JoinHandle<Result<Detached, ServeError>>) {
        let (near, far) = duplex(CONNECTION);
        let (links, new) = (self.links.clone(), self.new.clone());
        let served =
            tokio::spawn(async move { links.serve(far, move |stream| new.send(stream).unwrap()).await });
        (near, served)
    }

    pub(super) async fn accept(&mut self) -> LinkStream {
        within(self.streams.recv()).await.unwrap()
    }
}

/// A link with both its streams, attached over a connection that stands until the attachment is dropped.
pub(super) async fn linked(pod: &mut Pod) -> (LinkHandle, LinkStream, LinkStream, Attachment<DuplexStream>) {
    let (near, handle) = connect(Token::generate().unwrap(), Limits::default());
    let attachment = handle.attach(pod.dial().0).await.unwrap();
    let far = pod.accept().await;
    (handle, near, far, attachment)
}

/// The pattern both ways at once.
pub(super) async fn exchange(near: LinkStream, far: LinkStream, length: usize) -> (LinkStream, LinkStream) {
    let (mut near_read, mut near_write) = tokio::io::split(near);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let (up, mut up_receipts) = mpsc::unbounded_channel();
    let (down, mut down_receipts) = mpsc::unbounded_channel();
    tokio::join!(
        send(length, &mut near_write, &mut up_receipts),
        send(length, &mut far_write, &mut down_receipts),
        receive(length, &mut far_read, up),
        receive(length, &mut near_read, down),
    );
    (near_read.unsplit(near_write), far_read.unsplit(far_write))
}

/// What the layer above leaves unread at the peer, as SSH's window does.
const WINDOW: usize = 1 << 20;

/// Sends the pattern, at most [`WINDOW`] ahead of the one-byte receipts that [`receive`] sends per 64 KiB.
async fn send(
    length: usize,
    write: &mut WriteHalf<LinkStream>,
    receipts: &mut mpsc::UnboundedReceiver<usize>,
) {
    let (whole, mut sent, mut received) = (pattern(length), 0, 0);
    while sent < length {
        while sent >= received + WINDOW {
            received += receipts.recv().await.unwrap();
        }
        let next = (sent + 50_000).min(length);
        write.write_all(&whole[sent..next]).await.unwrap();
        sent = next;
    }
}

async fn receive(length: usize, read: &mut ReadHalf<LinkStream>, receipts: mpsc::UnboundedSender<usize>) {
    let whole = pattern(length);
    let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
    while at < length {
        let count = within(read.read(&mut buffer)).await.unwrap();
        assert!(count > 0 && buffer[..count] == whole[at..at + count], "wrong bytes at {at}");
        at += count;
        let _ = receipts.send(count); // the sender is done before its last receipts
    }
}

/// The error of a read and why.
pub(super) fn end_of(error: &io::Error) -> End {
    *error.get_ref().and_then(|inner| inner.downcast_ref()).unwrap_or_else(|| panic!("{error:?}"))
}
