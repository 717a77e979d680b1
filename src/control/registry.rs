//! Where the sessions of this user are found: one folder each, named by its process, with the socket in it.
//!
//! `$XDG_RUNTIME_DIR/kshuttle/PID/control`, else the same below `/run/user/UID`, else below a folder of our own in the temporary
//! one. All are looked at, since `sudo` and `cron` do not set the variable.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, Uid, getuid};

/// The socket's name in its folder.
const SOCKET: &str = "control";

/// Sessions that are looked at; nobody has so many.
const SESSIONS_MAX: usize = 256;

/// The folder of a session of this process; removed when dropped.
pub struct Registered {
    folder: PathBuf,
}

/// A session that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its socket.
    pub socket: PathBuf,
}

impl Registered {
    /// Makes the folder of this process, and removes those of processes that are no more.
    ///
    /// # Errors
    /// When there is no place that only this user can change.
    pub fn here() -> io::Result<Self> {
        in_first_place(Self::below)
    }

    fn below(place: &Place) -> io::Result<Self> {
        let all = place.prepare()?;
        remove_left_overs(&all);
        let folder = all.join(std::process::id().to_string());
        // Of an earlier process with our number.
        remove(&folder);
        DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    /// Where its socket belongs.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

/// All sessions of this user, by name.
pub fn sessions() -> Vec<Found> {
    let mut found: Vec<Found> = places()
        .iter()
        .filter(|place| place.is_ours())
        .flat_map(|place| entries(&place.all()))
        .map(|folder| Found {
            name: folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            socket: folder.join(SOCKET),
        })
        // One that nobody listens on is a left-over, or not there yet.
        .filter(|found| UnixStream::connect(&found.socket).is_ok())
        .collect();
    found.sort_by_key(|found| found.name.parse::<u32>().unwrap_or(u32::MAX));
    found.dedup_by(|one, other| one.name == other.name);
    found
}

/// A folder of this name beside those of the sessions, in the first place that only this user can change; made if needed.
///
/// # Errors
/// When there is no such place.
pub fn prepare(name: &str) -> io::Result<PathBuf> {
    in_first_place(|place| {
        let folder = place.prepare()?.join(name);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(folder),
        }
    })
}

/// What `make` makes in the first place where it can; else why it could not in the last.
fn in_first_place<T>(make: impl Fn(&Place) -> io::Result<T>) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for place in places() {
        match make(&place) {
            Ok(made) => return Ok(made),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Those that [`prepare`] may have made.
pub fn existing(name: &str) -> Vec<PathBuf> {
    places().iter().filter(|place| place.is_ours()).map(|place| place.all().join(name)).collect()
}

/// A folder under which ours belongs.
struct Place {
    folder: PathBuf,
    /// Everybody may write there: the name says whose ours is.
    shared: bool,
}

fn places() -> Vec<Place> {
    let own = |folder: PathBuf| Place { folder, shared: false };
    let variable = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{}", getuid()));
    let temporary = Place { folder: std::env::temp_dir(), shared: true };
    variable.into_iter().chain([usual]).map(own).chain([temporary]).collect()
}

impl Place {
    /// The folder of all sessions.
    fn all(&self) -> PathBuf {
        if self.shared {
            self.folder.join(format!("kshuttle-{}", getuid()))
        } else {
            self.folder.join("kshuttle")
        }
    }

    fn prepare(&self) -> io::Result<PathBuf> {
        let all = self.all();
        if !self.shared && !owned(&self.folder) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        match DirBuilder::new().mode(0o700).create(&all) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // In a folder that everybody may write to somebody else may have been first.
        if self.is_ours() { Ok(all) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }

    /// Whether nobody else can put sockets there.
    fn is_ours(&self) -> bool {
        owned(&self.all())
    }
}

/// A folder, no link to one, that this user has and nobody else may change.
fn owned(folder: &Path) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| {
        found.is_dir() && Uid::from_raw(found.uid()) == getuid() && found.permissions().mode() & 0o022 == 0
    })
}

fn entries(all: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(all).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).take(SESSIONS_MAX).collect()
}

fn remove_left_overs(all: &Path) {
    for folder in entries(all) {
        let id = folder.file_name().and_then(|name| name.to_str()?.parse().ok()).map(Pid::from_raw);
        if id.is_some_and(|id| id.as_raw() > 0 && kill(id, None) == Err(Errno::ESRCH)) {
            remove(&folder);
        }
    }
}

/// Only what we put there.
fn remove(folder: &Path) {
    // Either may be gone.
    let _ = fs::remove_file(folder.join(SOCKET));
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_private_and_left_overs_go() {
        let base = tempfile::tempdir().unwrap();
        let place = Place { folder: base.path().to_owned(), shared: true };
        let all = place.prepare().unwrap();
        // Above the largest process id (2^22), and not a session's name at all.
        for name in ["999999999", "notes"] {
            fs::create_dir(all.join(name)).unwrap();
            fs::write(all.join(name).join(SOCKET), "").unwrap();
        }
        let registered = Registered::below(&place).unwrap();
        assert_eq!(fs::metadata(&all).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&registered.folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!all.join("999999999").exists());
        assert!(all.join("notes").exists());
        let folder = registered.folder.clone();
        drop(registered);
        assert!(!folder.exists());
    }

    #[test]
    fn a_folder_of_somebody_else_is_not_used() {
        let base = tempfile::tempdir().unwrap();
        let place = Place { folder: base.path().to_owned(), shared: true };
        fs::create_dir(place.all()).unwrap();
        fs::set_permissions(place.all(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(place.prepare().is_err(), "others may put sockets there");
        fs::remove_dir(place.all()).unwrap();
        std::os::unix::fs::symlink(base.path().join("elsewhere"), place.all()).unwrap();
        fs::create_dir(base.path().join("elsewhere")).unwrap();
        assert!(place.prepare().is_err(), "a link leads anywhere");
    }
}
