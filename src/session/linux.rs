//! Processes, as `/proc` shows them (proc(5)).

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

/// This boot (so neither another machine nor an earlier boot) and this namespace of process ids. Hashed: it is written
/// where others read it.
pub(super) fn place() -> Option<String> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let mut hash = Sha256::new();
    hash.update(boot);
    hash.update(namespace.as_os_str().as_encoded_bytes());
    Some(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Field 22 of `stat`: clock ticks since the boot. None when there is no such process or it is hidden.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the kernel knows this process; also one that is hidden from us (`hidepid`) or of another user.
pub(super) fn exists(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}
