//! Host keys of servers that live longer than a session: pinned at the first use, as ssh does it, in a file of ours.
//!
//! One line each: what the server is called, the key's algorithm and the key. Names hold the cluster, namespace and target,
//! because a pod's address says nothing.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use russh::keys::PublicKey;

/// Larger is not ours.
const SIZE_MAX: u64 = 1 << 20;

/// The file.
#[derive(Debug, Clone)]
pub struct KnownHosts {
    file: PathBuf,
}

/// Why a key is not known, or not remembered.
#[derive(Debug, thiserror::Error)]
pub enum KnownHostsError {
    /// It exists and cannot be read.
    #[error("read {file}")]
    Read {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody edited it.
    #[error("line {line} of {file} holds no key")]
    Malformed {
        /// The file.
        file: String,
        /// Which line, from 1.
        line: usize,
    },
    /// No room, or no right.
    #[error("remember the host key in {file}")]
    Write {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl KnownHosts {
    /// The user's: `kshuttle/known_hosts` in `$XDG_STATE_HOME`, else in `~/.local/state` (XDG Base Directory Specification).
    pub fn of_user() -> Self {
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let state = state.unwrap_or_else(|| std::env::home_dir().unwrap_or_default().join(".local/state"));
        Self::at(state.join("kshuttle/known_hosts"))
    }

    /// Another one.
    pub fn at(file: PathBuf) -> Self {
        Self { file }
    }

    /// Where it is.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The key of `name`, if it was remembered.
    ///
    /// # Errors
    /// When the file or its line cannot be read: then nothing must be trusted.
    pub fn find(&self, name: &str) -> Result<Option<PublicKey>, KnownHostsError> {
        let error = |source| KnownHostsError::Read { file: self.words(), source };
        match fs::metadata(&self.file) {
            Ok(found) if found.len() > SIZE_MAX => return Err(error(io::ErrorKind::FileTooLarge.into())),
            Ok(_) => {}
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(error(source)),
        }
        let text = fs::read_to_string(&self.file).map_err(error)?;
        for (number, line) in text.lines().enumerate() {
            let Some((_, key)) = line.split_once(' ').filter(|(known, _)| *known == name) else { continue };
            let key = PublicKey::from_openssh(key.trim());
            return key
                .map(Some)
                .map_err(|_| KnownHostsError::Malformed { file: self.words(), line: number + 1 });
        }
        Ok(None)
    }

    /// Remembers the key of `name`, which is not known yet.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, name: &str, key: &PublicKey) -> Result<(), KnownHostsError> {
        let write = || {
            if let Some(folder) = self.file.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            }
            let words = key.to_openssh().map_err(io::Error::other)?;
            let key = words.split(' ').take(2).collect::<Vec<_>>().join(" "); // no comment
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.file)?;
            // One write, so that lines of two processes do not mix.
            file.write_all(format!("{name} {key}\n").as_bytes())
        };
        write().map_err(|source| KnownHostsError::Write { file: self.words(), source })
    }

    fn words(&self) -> String {
        self.file.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    #[test]
    fn what_is_added_is_found_again_and_nobody_else_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = KnownHosts::at(folder.path().join("a/b/known_hosts"));
        let key = PublicKey::from_openssh(&format!("{KEY} a comment")).unwrap();
        assert!(hosts.find("one").unwrap().is_none());
        hosts.add("one", &key).unwrap();
        hosts.add("other", &key).unwrap();
        assert_eq!(fs::read_to_string(hosts.file()).unwrap(), format!("one {KEY}\nother {KEY}\n"));
        assert_eq!(hosts.find("one").unwrap().unwrap().key_data(), key.key_data());
        assert!(hosts.find("on").unwrap().is_none());
        assert_eq!(fs::metadata(hosts.file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(hosts.file().parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_damaged_line_is_no_unknown_key() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = KnownHosts::at(folder.path().join("known_hosts"));
        fs::write(hosts.file(), "other x\none ssh-ed25519 AAAA\n").unwrap();
        assert!(matches!(hosts.find("one"), Err(KnownHostsError::Malformed { line: 2, .. })));
        assert!(hosts.find("two").unwrap().is_none());
        let none = KnownHosts::at(folder.path().join("known_hosts/impossible"));
        assert!(matches!(none.find("one"), Err(KnownHostsError::Read { .. })));
        assert!(matches!(
            none.add("one", &PublicKey::from_openssh(KEY).unwrap()),
            Err(KnownHostsError::Write { .. })
        ));
    }
}
