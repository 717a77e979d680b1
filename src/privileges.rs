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
    /// The user who called sudo, doas or pkexec.
    User(String),
    /// Still uid 0, for its files, but without capabilities: there was no user to become.
    RootWithoutCapabilities,
}

/// Why the rights could not be given up. The program must not go on.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegesError {
    /// sudo's or pkexec's variables are malformed.
    #[error("{0} is not a number: become the user who called")]
    Variable(&'static str),
    /// There is no such user.
    #[error("become user {0}: there is no such user")]
    NoUser(String),
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

/// Becomes the user who called sudo, doas or pkexec, if one did, and gives up every capability and the way to new ones.
///
/// # Errors
/// When any step fails.
pub fn drop_all() -> Result<Became, PrivilegesError> {
    let became = if !geteuid().is_root() {
        Became::Unchanged
    } else if let Some((user, gid)) = caller(|name| env::var(name).ok())? {
        Became::User(become_user(user, gid)?)
    } else {
        Became::RootWithoutCapabilities
    };
    system::give_up_rights()?;
    Ok(became)
}

/// Who called sudo, doas or pkexec, if it was somebody else than root: each leaves a trace in the environment.
fn caller(variable: impl Fn(&str) -> Option<String>) -> Result<Option<(User, Gid)>, PrivilegesError> {
    let number = |name: &'static str| {
        let number = variable(name).map(|text| text.parse::<u32>());
        number.transpose().map_err(|_| PrivilegesError::Variable(name))
    };
    let look_up = |error| PrivilegesError::Call("look up the user who called", error);
    let by_uid = |uid: u32| {
        let user = User::from_uid(Uid::from_raw(uid)).map_err(look_up)?;
        user.ok_or_else(|| PrivilegesError::NoUser(uid.to_string()))
    };
    let user = if let (Some(uid), Some(gid)) = (number("SUDO_UID")?, number("SUDO_GID")?) {
        (by_uid(uid)?, Gid::from_raw(gid))
    } else if let Some(name) = variable("DOAS_USER") {
        let user = User::from_name(&name).map_err(look_up)?.ok_or(PrivilegesError::NoUser(name))?;
        let gid = user.gid;
        (user, gid)
    } else if let Some(uid) = number("PKEXEC_UID")? {
        let user = by_uid(uid)?;
        let gid = user.gid;
        (user, gid)
    } else {
        return Ok(None);
    };
    Ok(Some(user).filter(|(user, _)| !user.uid.is_root()))
}

/// Groups first: a user may not change them. Of root, setgid(2) and setuid(2) set the real, the effective and the saved id.
/// Returns the user's name.
fn become_user(user: User, gid: Gid) -> Result<String, PrivilegesError> {
    let uid = user.uid;
    let name = CString::new(user.name.clone()).map_err(|_| PrivilegesError::NoUser(uid.to_string()))?;
    system::take_on_groups(&name, gid)
        .map_err(|error| PrivilegesError::Call("take on the user's groups", error))?;
    setgid(gid).map_err(|error| PrivilegesError::Call("take on the user's group", error))?;
    setuid(uid).map_err(|error| PrivilegesError::Call("become the user who called", error))?;
    if setuid(Uid::from_raw(0)).is_ok() || getuid().is_root() {
        return Err(PrivilegesError::Regained);
    }
    // HOME is root's by now; the kubeconfig and its plugins' caches are the user's.
    // SAFETY: called before the first thread is started (see the module's documentation).
    unsafe { env::set_var("HOME", &user.dir) };
    Ok(user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(variables: &[(&str, &str)]) -> Result<Option<(String, u32)>, PrivilegesError> {
        let value =
            |name: &str| variables.iter().find(|(is, _)| *is == name).map(|(_, value)| (*value).to_owned());
        Ok(caller(value)?.map(|(user, gid)| (user.name, gid.as_raw())))
    }

    #[test]
    fn who_called_is_found_in_the_environment() {
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let uid = nobody.uid.to_string();
        let own = Some(("nobody".to_owned(), nobody.gid.as_raw()));
        assert_eq!(who(&[("SUDO_UID", &uid), ("SUDO_GID", "7")]).unwrap(), Some(("nobody".to_owned(), 7)));
        assert_eq!(who(&[("DOAS_USER", "nobody")]).unwrap(), own);
        assert_eq!(who(&[("PKEXEC_UID", &uid)]).unwrap(), own);
        for nobody_else in [
            &[][..],
            &[("SUDO_UID", "0"), ("SUDO_GID", "0")],
            &[("SUDO_UID", uid.as_str())],
            &[("DOAS_USER", "root")],
            &[("PKEXEC_UID", "0")],
        ] {
            assert_eq!(who(nobody_else).unwrap(), None, "{nobody_else:?}");
        }
    }

    #[test]
    fn who_cannot_be_found_ends_it() {
        for (variables, says) in [
            (&[("SUDO_UID", "x"), ("SUDO_GID", "1")][..], "SUDO_UID is not a number"),
            (&[("PKEXEC_UID", "-1")], "PKEXEC_UID is not a number"),
            (&[("PKEXEC_UID", "4294967294")], "become user 4294967294: there is no such user"),
            (&[("DOAS_USER", "no such user")], "become user no such user: there is no such user"),
        ] {
            let error = who(variables).unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
