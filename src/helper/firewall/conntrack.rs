//! The kernel's connection tracking, asked over netlink: which connections are translated, and which entries must go.
//!
//! Over netlink and not by the program `conntrack`, which is rarely installed. The messages themselves are in
//! [`message`].

mod message;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, sendto, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use message::{Answer, answers};

pub(super) use message::{Entry, Tuple};

/// Seconds the kernel may take for the next part of an answer. It answers while we ask; this is for a broken one.
const PATIENCE: i64 = 2;

/// How often a dump is asked again because the table changed under it. It happens when the table itself is resized.
const MOST_DUMPS: u32 = 5;

/// Longest part of an answer: the kernel fills at most 32 KiB (`net/netlink/af_netlink.c`, `netlink_recvmsg`).
const PART: usize = 64 * 1024;

/// Why conntrack does not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No netlink socket, or it failed.
    #[error("asking the kernel for its connections failed")]
    Talk(#[source] io::Error),
    /// The kernel refused; `EOPNOTSUPP` and `EINVAL` mean that it lacks the module nf_conntrack_netlink.
    #[error("the kernel refused to list or delete connections (is the module nf_conntrack_netlink there?)")]
    Refused(#[source] io::Error),
    /// The table changed under every dump.
    #[error("the kernel's list of connections kept changing while it was read")]
    Unsteady,
}

/// A conversation with conntrack.
#[derive(Debug)]
pub(super) struct Conntrack {
    socket: OwnedFd,
    sequence: u32,
    part: Vec<u8>,
}

impl Conntrack {
    pub(super) fn open() -> Result<Self, Error> {
        let open = || {
            let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC);
            let socket = socket(kind.0, kind.1, kind.2, SockProtocol::NetlinkNetFilter)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
            Ok(Self { socket, sequence: 0, part: vec![0; PART] })
        };
        open().map_err(talk)
    }

    /// Where datagrams were meant to go that arrive `at` our listener from `from`; none if there is no such entry.
    pub(super) fn original_of(
        &mut self,
        from: SocketAddr,
        at: SocketAddr,
    ) -> Result<Option<SocketAddr>, Error> {
        self.sequence += 1;
        self.send(&message::lookup(self.sequence, Tuple { src: at, dst: from }))?;
        let mut found = None;
        loop {
            for answer in self.receive()? {
                match answer {
                    Answer::Entry(entry) => found = Some(entry.destination()),
                    Answer::Done => return Ok(found),
                    Answer::Refused(code) if code == Errno::ENOENT as i32 => return Ok(None),
                    Answer::Refused(code) => return Err(Error::Refused(io::Error::from_raw_os_error(code))),
                    Answer::Other | Answer::Interrupted => {}
                }
            }
        }
    }

    /// The TCP and UDP entries of both families that `wanted` likes.
    pub(super) fn entries(&mut self, wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>, Error> {
        for _ in 0..MOST_DUMPS {
            self.sequence += 1;
            self.send(&message::dump(self.sequence))?;
            let mut entries = Vec::new();
            let mut steady = true;
            'parts: loop {
                for answer in self.receive()? {
                    match answer {
                        Answer::Entry(entry) if wanted(&entry) => entries.push(entry),
                        Answer::Entry(_) | Answer::Other => {}
                        Answer::Interrupted => steady = false,
                        Answer::Done => break 'parts,
                        Answer::Refused(code) => {
                            return Err(Error::Refused(io::Error::from_raw_os_error(code)));
                        }
                    }
                }
            }
            if steady {
                return Ok(entries);
            }
        }
        Err(Error::Unsteady)
    }

    /// Deletes this entry; false if it was gone already.
    pub(super) fn delete(&mut self, entry: &Entry) -> Result<bool, Error> {
        self.sequence += 1;
        self.send(&message::delete(self.sequence, entry))?;
        loop {
            for answer in self.receive()? {
                match answer {
                    Answer::Done => return Ok(true),
                    Answer::Refused(code) if code == Errno::ENOENT as i32 => return Ok(false),
                    Answer::Refused(code) => return Err(Error::Refused(io::Error::from_raw_os_error(code))),
                    Answer::Entry(_) | Answer::Other | Answer::Interrupted => {}
                }
            }
        }
    }

    fn send(&self, request: &[u8]) -> Result<(), Error> {
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), request, &kernel, MsgFlags::empty()).map(drop).map_err(talk)
    }

    fn receive(&mut self) -> Result<Vec<Answer>, Error> {
        loop {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut self.part) {
                // Only the kernel has the number 0.
                Ok((length, Some(sender))) if sender.pid() == 0 => {
                    return Ok(answers(&self.part[..length], self.sequence));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(talk(error)),
            }
        }
    }
}

impl Entry {
    /// Where its answers come from, if somebody translated its destination.
    pub(super) fn translated_to(&self) -> Option<SocketAddr> {
        (self.reply.src != self.original.dst).then_some(self.reply.src)
    }

    /// Both ends, as its maker sees them.
    pub(super) fn original(&self) -> Tuple {
        self.original
    }

    /// Where it was made.
    pub(super) fn source(&self) -> SocketAddr {
        self.original.src
    }

    /// Where its maker wanted to go.
    pub(super) fn destination(&self) -> SocketAddr {
        self.original.dst
    }

    /// An exchange of datagrams, not a TCP connection.
    pub(super) fn is_datagrams(&self) -> bool {
        self.state.is_none()
    }

    /// Did anything come back?
    pub(super) fn is_answered(&self) -> bool {
        self.answered
    }

    /// Could one side still be waiting for the other? Nobody waits for the end of datagrams.
    pub(super) fn is_live(&self) -> bool {
        self.state.is_some_and(message::TcpState::is_live)
    }

    /// Do both sides know each other, and is it not over?
    pub(super) fn is_standing(&self) -> bool {
        self.state.is_some_and(message::TcpState::is_standing)
    }
}

fn talk(error: Errno) -> Error {
    Error::Talk(error.into())
}
