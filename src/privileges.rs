//! Giving up root: once the helper runs, nothing else of this program needs any right.
//!
//! Must happen before the first thread exists: what one may do belongs, on Linux, to threads.

#![allow(unsafe_code, reason = "setting HOME is unsafe where other threads may read it; here is only one")]

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as system;

use std::env;
use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, geteuid, getuid, setgid, setuid};

/// Who the process is after it gave up its rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Became {
    /// It had no rights to give up.
    Unchanged,
    /// The user who called sudo.
    User(String),
    /// Still uid 0, for its files, but without capabilities: there was no user to become.
    RootWithoutCapabilities,
}

/// Why the rights could not be given up. The program must not go on.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegesError {
    /// sudo's variables are malformed.
    #[error("{0} is not a number: become the user who called sudo")]
    Variable(&'static str),
    /// There is no such user.
    #[error("become user {0}: there is no such user")]
    NoUser(Uid),
    /// A system call failed.
    #[error("{0}")]
    Call(&'static str, #[source] nix::Error),
    /// The system keeps root's rights as long as the user is root.
    #[error("give up root: there is no user to become; start kshuttle as a user, or by sudo as one")]
    Root,
    /// The capabilities could not be cleared.
    #[error("give up capabilities")]
    Capabilities(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// After giving up root it could be had again.
    #[error("root can be regained after giving it up")]
    Regained,
}

/// Becomes the user who called sudo, if one did, and gives up every capability and the way to new ones.
///
/// # Errors
/// When any step fails.
pub fn drop_all() -> Result<Became, PrivilegesError> {
    let became = match (geteuid().is_root(), sudo_user()?) {
        (true, Some((uid, gid))) => Became::User(become_user(uid, gid)?),
        (true, None) => Became::RootWithoutCapabilities,
        (false, _) => Became::Unchanged,
    };
    system::give_up_rights()?;
    Ok(became)
}

/// Who called sudo, if it was somebody else than root.
fn sudo_user() -> Result<Option<(Uid, Gid)>, PrivilegesError> {
    let number = |name: &'static str| match env::var(name) {
        Ok(text) => text.parse::<u32>().map(Some).map_err(|_| PrivilegesError::Variable(name)),
        Err(_) => Ok(None),
    };
    Ok(match (number("SUDO_UID")?, number("SUDO_GID")?) {
        (Some(uid), Some(gid)) if uid != 0 => Some((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => None,
    })
}

/// Groups first: a user may not change them. Of root, setgid(2) and setuid(2) set the real, the effective and the saved id.
/// Returns the user's name.
fn become_user(uid: Uid, gid: Gid) -> Result<String, PrivilegesError> {
    let user = User::from_uid(uid)
        .map_err(|error| PrivilegesError::Call("look up the user who called sudo", error))?
        .ok_or(PrivilegesError::NoUser(uid))?;
    let name = CString::new(user.name.clone()).map_err(|_| PrivilegesError::NoUser(uid))?;
    system::take_on_groups(&name, gid)
        .map_err(|error| PrivilegesError::Call("take on the user's groups", error))?;
    setgid(gid).map_err(|error| PrivilegesError::Call("take on the user's group", error))?;
    setuid(uid).map_err(|error| PrivilegesError::Call("become the user who called sudo", error))?;
    if setuid(Uid::from_raw(0)).is_ok() || getuid().is_root() {
        return Err(PrivilegesError::Regained);
    }
    // sudo sets HOME to root's; the kubeconfig and its plugins' caches are the user's.
    // SAFETY: called before the first thread is started (see the module's documentation).
    unsafe { env::set_var("HOME", &user.dir) };
    Ok(user.name)
}
