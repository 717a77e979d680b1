//! By recvmsg(2): the kernel ends a read behind the bytes that files came with (`net/unix/af_unix.c`,
//! `unix_stream_read_generic`).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use kshuttle_helper::plan::MAX_SOCKETS;
use rustix::cmsg_space;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::Received;

/// Room for as many as one answer has; the kernel closes what does not fit.
const ROOM: usize = cmsg_space!(ScmRights(MAX_SOCKETS as usize));

pub(super) async fn receive(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Received> {
    stream.async_io(Interest::READABLE, || now(stream, bytes)).await
}

fn now(stream: &UnixStream, bytes: &mut [u8]) -> io::Result<Received> {
    let mut room = [MaybeUninit::uninit(); ROOM];
    let mut ancillary = RecvAncillaryBuffer::new(&mut room);
    let parts = &mut [IoSliceMut::new(bytes)];
    // No program that we start inherits them.
    let received = recvmsg(stream, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut files: Option<Vec<OwnedFd>> = received.flags.contains(ReturnFlags::CTRUNC).then(Vec::new);
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            files.get_or_insert_default().extend(passed);
        }
    }
    Ok(Received { length: received.bytes, files })
}
