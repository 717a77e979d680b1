//! There is nothing between root and a user here: who is uid 0 has every right, so it must not stay that.

use std::ffi::CStr;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, geteuid};

use super::PrivilegesError;

/// The rights went with the user id, or cannot go.
pub(super) fn give_up_rights() -> Result<(), PrivilegesError> {
    if geteuid().is_root() { Err(PrivilegesError::Root) } else { Ok(()) }
}

/// The groups of this user, and `gid`.
pub(super) fn take_on_groups(user: &CStr, gid: Gid) -> nix::Result<()> {
    // The C interface of macOS takes a group's id as an int and reads the same bits.
    let gid = gid.as_raw().cast_signed();
    // SAFETY: the name ends with a NUL and outlives the call, which keeps nothing of it (initgroups(3)).
    Errno::result(unsafe { libc::initgroups(user.as_ptr(), gid) }).map(drop)
}
