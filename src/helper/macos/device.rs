//! `/dev/pf`, asked by ioctl(2): the only unsafe code of this crate beside `process`.

#![allow(unsafe_code, reason = "ioctl has no safe form")]

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

use super::natlook::{self, DIOCNATLOOK};

/// pf's device. Everybody may open it who may read it, but at every question the kernel looks whether the asker is root: it is
/// of no use to pass the open file to somebody else.
#[derive(Debug)]
pub struct Pf(File);

impl Pf {
    /// Opens it for questions only.
    ///
    /// # Errors
    /// When this process may not, or there is no pf.
    pub fn open() -> io::Result<Self> {
        File::open("/dev/pf").map(Self)
    }

    /// Where the connection wanted to go that our socket `own` has with `peer`.
    ///
    /// # Errors
    /// `EPERM` for everybody but root, `ENOENT` when pf knows no such connection, `E2BIG` when it knows several.
    pub fn original_destination(&self, peer: SocketAddr, own: SocketAddr) -> io::Result<SocketAddr> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let mut bytes = natlook::question(peer, own).map_err(invalid)?;
        let request = libc::c_ulong::from(DIOCNATLOOK);
        // SAFETY: the kernel reads and writes as many bytes as the request's number says, and so many there are (asserted
        // in `natlook`); the descriptor is open.
        Errno::result(unsafe { libc::ioctl(self.0.as_raw_fd(), request, bytes.as_mut_ptr()) })?;
        natlook::destination(&bytes).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
