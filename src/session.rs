//! Which run of kshuttle this is, and whether another one of this machine still runs: what its pod may be deleted by.
//!
//! A session is named by the place where its process id means something, the id, and when the process started. Only of
//! a session of the very same place can be said that it is dead; of all others nothing is known.

pub mod ticket;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
use macos as system;

use std::fmt;
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

/// One run of kshuttle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// A boot of a machine and, on Linux, a namespace of processes in it, as 16 hexadecimal digits.
    place: String,
    pid: u32,
    /// In the system's own unit, to tell processes with the same id.
    started: u64,
}

impl Session {
    /// This one; none when the system does not tell.
    pub fn current() -> Option<Self> {
        let pid = std::process::id();
        Some(Self { place: place()?, pid, started: system::started(pid)? })
    }

    /// Whether it is certain that this session is over.
    pub fn is_dead(&self) -> bool {
        place().is_some_and(|place| place == self.place)
            && (!exists(self.pid) || system::started(self.pid).is_some_and(|started| started != self.started))
    }
}

/// Whether it is certain that the session of this name is over.
pub fn is_dead(name: &str) -> bool {
    name.parse().is_ok_and(|session: Session| session.is_dead())
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.place, self.pid, self.started)
    }
}

impl FromStr for Session {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let [place, pid, started] = text.split('/').collect::<Vec<_>>()[..] else { return Err(()) };
        Ok(Self {
            place: place.to_owned(),
            pid: pid.parse().map_err(drop)?,
            started: started.parse().map_err(drop)?,
        })
    }
}

/// Where process ids mean what they do here. Hashed: it is written where others read it.
fn place() -> Option<String> {
    Some(Sha256::digest(system::place()?)[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether the kernel knows this process; also one that is hidden from us (`hidepid`) or of another user.
fn exists(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn this_one_lives_and_survives_being_written_down() {
        let this = Session::current().unwrap();
        assert!(!this.is_dead());
        assert_eq!(this.to_string().parse(), Ok(this));
    }

    #[test]
    fn a_process_that_is_gone_or_another_is_dead() {
        let this = Session::current().unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(Session { pid, ..this.clone() }.is_dead(), "gone");
        assert!(Session { started: this.started + 1, ..this.clone() }.is_dead(), "its id was given again");
    }

    #[test]
    fn of_other_machines_and_older_versions_nothing_is_known() {
        let this = Session::current().unwrap();
        let elsewhere = Session { place: "0123456789abcdef".to_owned(), pid: u32::MAX, ..this };
        assert!(!elsewhere.is_dead());
        for name in ["4711", "", "a/b/c", "a/1/2/3"] {
            assert!(!is_dead(name), "{name}");
        }
    }
}
