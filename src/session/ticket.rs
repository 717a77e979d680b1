//! Session tickets: what the next run needs to go on with the pod of one that was killed.
//!
//! A file for each pod, locked (flock(2)) by the run that uses the pod. However that run ends, the kernel takes the lock away:
//! whoever gets it then holds the only key the pod accepts, and the key the pod must show. An orderly end removes the file
//! with the pod.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control::registry;

/// The folder of the tickets, beside the sessions' own.
const FOLDER: &str = "tickets";

/// Larger is not ours.
const SIZE_MAX: u64 = 16 << 10;

/// Tickets that are looked at; nobody leaves so many behind.
const TICKETS_MAX: usize = 256;

/// No pod lives longer (`activeDeadlineSeconds`), so no older ticket is of use.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Runs that may go on with one pod. Each leaves links behind that the pod keeps for three minutes, 16 at most.
const RUNS_MAX: u32 = 5;

/// What a ticket says.
#[derive(Clone, Serialize, Deserialize)]
pub struct Contents {
    /// The API server's URL.
    pub server: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// Its uid: another of the same name is not it.
    pub uid: String,
    /// What the pod was made from: only who wants the same can use it.
    pub recipe: String,
    /// The private key it accepts, in OpenSSH's format.
    pub key: String,
    /// The host key it showed, in OpenSSH's format.
    pub host_key: String,
    /// Which run uses it, from 1.
    pub run: u32,
}

/// The right to use a pod, for as long as this is kept.
pub struct Ticket {
    contents: Contents,
    path: PathBuf,
    /// Locked.
    _file: File,
}

impl Ticket {
    /// Writes a ticket that this run holds.
    ///
    /// # Errors
    /// When there is no place for it that only this user can change.
    pub fn write(contents: Contents) -> io::Result<Self> {
        Self::write_in(&registry::prepare(FOLDER)?, contents)
    }

    fn write_in(folder: &Path, contents: Contents) -> io::Result<Self> {
        let path = folder.join(name(&contents.uid)?);
        let draft = path.with_extension("new");
        // Of one that was killed while it wrote.
        let _ = fs::remove_file(&draft);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        // Nobody sees it without its lock.
        file.try_lock()?;
        file.write_all(&serde_json::to_vec(&contents)?)?;
        fs::rename(&draft, &path)?;
        Ok(Self { contents, path, _file: file })
    }

    /// The first ticket that is `wanted` and that no run holds.
    pub fn take(wanted: impl Fn(&Contents) -> bool) -> Option<Self> {
        registry::existing(FOLDER).iter().find_map(|folder| Self::take_in(folder, &wanted))
    }

    fn take_in(folder: &Path, wanted: impl Fn(&Contents) -> bool) -> Option<Self> {
        let entries = fs::read_dir(folder).ok()?.flatten().take(TICKETS_MAX);
        for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_none()) {
            let Ok(mut file) = OpenOptions::new().read(true).open(&path) else { continue };
            if file.try_lock().is_err() {
                continue;
            }
            let Some(mut contents) = read(&mut file) else {
                let _ = fs::remove_file(&path); // not ours, or of no use
                continue;
            };
            // Who held it before us may have removed it.
            if path.exists() && contents.run < RUNS_MAX && wanted(&contents) {
                contents.run += 1;
                return Some(Self { contents, path, _file: file });
            }
        }
        None
    }

    /// Whether a run holds the ticket of this pod.
    pub fn is_held(uid: &str) -> bool {
        registry::existing(FOLDER).iter().any(|folder| Self::is_held_in(folder, uid))
    }

    fn is_held_in(folder: &Path, uid: &str) -> bool {
        let Ok(file) = name(uid).and_then(|name| File::open(folder.join(name))) else { return false };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// What it says.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Removes it: the pod is gone, or of no use.
    pub fn remove(self) {
        // It may be gone.
        let _ = fs::remove_file(&self.path);
    }
}

/// Uids come from the API server; ours must not lead to other files.
fn name(uid: &str) -> io::Result<&str> {
    let plain = !uid.is_empty() && uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if plain { Ok(uid) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// None when it is too old, too large or damaged.
fn read(file: &mut File) -> Option<Contents> {
    let found = file.metadata().ok()?;
    if found.len() > SIZE_MAX || found.modified().ok()?.elapsed().is_ok_and(|age| age > AGE_MAX) {
        return None;
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn contents(uid: &str) -> Contents {
        let word = |word: &str| word.to_owned();
        Contents {
            server: word("https://cluster"),
            namespace: word("dev"),
            pod: word("kshuttle-x"),
            uid: word(uid),
            recipe: word("11"),
            key: word("secret"),
            host_key: word("known"),
            run: 1,
        }
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn only_one_run_holds_a_ticket_and_the_next_may_take_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let first = Ticket::write_in(folder, contents("a-1")).unwrap();
        assert_eq!(first.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Ticket::is_held_in(folder, "a-1"));
        assert!(Ticket::take_in(folder, |_| true).is_none(), "it is held");
        drop(first); // as a kill does
        assert!(!Ticket::is_held_in(folder, "a-1"));
        assert!(Ticket::take_in(folder, |contents| contents.recipe == "12").is_none());
        let second = Ticket::take_in(folder, |contents| contents.recipe == "11").unwrap();
        assert!(Ticket::is_held_in(folder, "a-1"));
        assert_eq!((second.contents().key.as_str(), second.contents().run), ("secret", 2));
        second.remove();
        assert_eq!(files(folder), 0);
        assert!(!Ticket::is_held_in(folder, "a-1"));
    }

    #[test]
    fn what_is_damaged_or_used_up_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("b"), "{").unwrap();
        fs::write(folder.join("c"), vec![b' '; SIZE_MAX as usize + 1]).unwrap();
        drop(Ticket::write_in(folder, Contents { run: RUNS_MAX, ..contents("d") }).unwrap());
        let old = Ticket::write_in(folder, contents("e")).unwrap();
        let ago = std::time::SystemTime::now() - 2 * AGE_MAX;
        File::options().write(true).open(&old.path).unwrap().set_modified(ago).unwrap();
        drop(old);
        assert!(Ticket::take_in(folder, |_| true).is_none());
        assert_eq!(files(folder), 1, "what is of no use is removed");
    }

    #[test]
    fn a_uid_leads_to_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        for uid in ["", "../x", "a/b", ".", "a.new"] {
            assert!(Ticket::write_in(folder.path(), contents(uid)).is_err(), "{uid}");
            assert!(!Ticket::is_held_in(folder.path(), uid));
        }
    }
}
