//! Root's rights are capabilities here: they can be cleared, also of uid 0 (capabilities(7)).

use std::ffi::CStr;

use caps::CapSet;
use nix::sys::prctl;
use nix::unistd::{Gid, initgroups};

use super::PrivilegesError;

/// Whatever rights there are, for good.
pub(super) fn give_up_rights() -> Result<(), PrivilegesError> {
    // Without this, uid 0 would get its capabilities back with the next program it executes (capabilities(7)).
    prctl::set_no_new_privs().map_err(|error| PrivilegesError::Call("set no_new_privs", error))?;
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set).map_err(|error| PrivilegesError::Capabilities(error.into()))?;
    }
    Ok(())
}

/// The groups of this user, and `gid`.
pub(super) fn take_on_groups(user: &CStr, gid: Gid) -> nix::Result<()> {
    initgroups(user, gid)
}
