//! Rules that a killed helper left: chains of iptables belong to nobody, so a file in `/run` says who made them.
//!
//! The file is named as the chains and says this boot's id, the helper's process id and when that process started. The
//! next helper takes out what belongs to none that runs. Chains of a name without a file are an older version's, or their
//! file was lost: they stay as long as a process with the number in their name runs, which is the user side's.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{FAMILIES, text};
use crate::error_chain;

/// Root's, emptied at each boot. It goes with the last record.
const FOLDER: &str = "/run/kshuttle-helper";

/// How often the folder may go while a record is being made: as many helpers would have to end in that moment.
const FOLDER_TRIES: usize = 3;

/// The kernel's name of this boot.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Says that rules are ours, until it is removed.
#[derive(Debug)]
pub(super) struct Record(PathBuf);

impl Record {
    /// Before the rules: what is not written down is not found again.
    pub(super) fn write(name: &str) -> io::Result<Self> {
        let path = Path::new(FOLDER).join(name);
        remove(&path)?;
        let mut tries = 0;
        let mut file = loop {
            tries += 1;
            match create(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < FOLDER_TRIES => {}
                done => break done?,
            }
        };
        let pid = std::process::id();
        let started = started(pid).unwrap_or_default();
        writeln!(file, "{} {pid} {started}", fs::read_to_string(BOOT)?.trim())?;
        Ok(Self(path))
    }

    /// The rules are gone.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove(&self.0)
    }
}

fn create(path: &Path) -> io::Result<fs::File> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(FOLDER)?;
    // `create_new` follows no link.
    fs::File::options().write(true).create_new(true).mode(0o644).open(path)
}

/// It, and the folder if it was the last; it may never have been there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => {
            let _ = fs::remove_dir(FOLDER); // not while there is another record
            Ok(())
        }
    }
}

/// Takes out what dead helpers left; what was found or could not be taken out is said, a sentence each.
pub(in crate::firewall) fn sweep() -> Vec<String> {
    let mut said = Vec::new();
    for family in FAMILIES {
        // Where iptables is not installed, it left nothing.
        let Ok(saved) = family.saved() else { continue };
        for name in text::names(&saved).into_iter().filter(|name| !is_alive(name)) {
            said.push(match family.take_out(&name) {
                Ok(()) => format!("rules {name} of a session that was killed were taken out"),
                Err(error) => {
                    format!("rules {name} of a session that was killed remain: {}", error_chain(&error))
                }
            });
            let _ = remove(&Path::new(FOLDER).join(&name));
        }
    }
    said.dedup();
    said
}

fn is_alive(name: &str) -> bool {
    match fs::read_to_string(Path::new(FOLDER).join(name)) {
        Ok(record) => is_current(&record, &fs::read_to_string(BOOT).unwrap_or_default(), started),
        Err(_) => {
            name.rsplit('_').next().and_then(|pid| pid.parse().ok()).is_some_and(|pid| started(pid).is_some())
        }
    }
}

/// Of this boot, and of a process that runs.
fn is_current(record: &str, boot: &str, started: impl Fn(u32) -> Option<u64>) -> bool {
    let mut words = record.split_whitespace();
    let (of_boot, pid, since) = (words.next(), words.next(), words.next());
    let pid = pid.and_then(|pid| pid.parse().ok());
    let since = since.and_then(|since| since.parse().ok());
    of_boot == Some(boot.trim()) && pid.and_then(started).is_some_and(|started| Some(started) == since)
}

/// When this process started, in the kernel's clock ticks since the boot (proc_pid_stat(5), field 22).
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_holds_for_one_boot_and_one_process() {
        let started = |pid: u32| (pid == 7).then_some(123);
        assert!(is_current("boot 7 123\n", "boot\n", started));
        for record in ["boot 7 124", "boot 8 123", "other 7 123", "boot 7", "", "boot x 123", "boot 7 x"] {
            assert!(!is_current(record, "boot", started), "{record}");
        }
    }

    #[test]
    fn this_process_has_started() {
        assert!(super::started(std::process::id()).is_some());
        assert_eq!(super::started(u32::MAX), None);
    }
}
