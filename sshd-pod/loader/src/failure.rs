//! Why there is no server: one line for people, one number for the client.

use core::fmt;

use crate::sys::Errno;

/// Every way to end without becoming the server.
pub(crate) enum Failure {
    Usage,
    Directory(Errno),
    Part { number: usize, errno: Errno },
    TooMuch(&'static str),
    Hash { found: [u8; 32], wanted: [u8; 32] },
    Gzip(&'static str),
    Memory(Errno),
    Execute(Errno),
}

impl Failure {
    /// Outside what shells (126, 127), signals (128 and above) and the server itself use. The client knows the
    /// meanings too (`src/cluster/sshd_pod/wait.rs`), for when no line arrives.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage => 110,
            Self::Directory(_) | Self::Part { .. } => 111,
            Self::TooMuch(_) => 112,
            Self::Hash { .. } => 113,
            Self::Gzip(_) => 114,
            Self::Memory(_) => 115,
            Self::Execute(_) => 116,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage => write!(f, "usage: kshuttle-loader DIR SHA256 [ARG...]"),
            Self::Directory(errno) => write!(f, "cannot open the directory of the server's parts: {errno}"),
            Self::Part { number, errno } => write!(f, "cannot read server.{number}: {errno}"),
            Self::TooMuch(what) => write!(f, "refusing {what}"),
            Self::Hash { found, wanted } => {
                write!(f, "the server's parts have SHA-256 {}, not {}", Hex(found), Hex(wanted))
            }
            Self::Gzip(why) => write!(f, "cannot unpack the server: {why}"),
            Self::Memory(errno) => write!(f, "cannot hold the server in memory: {errno}"),
            Self::Execute(errno) => write!(f, "cannot execute the server from memory: {errno}"),
        }
    }
}

struct Hex<'a>(&'a [u8; 32]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
