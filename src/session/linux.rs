//! Processes, as `/proc` shows them (proc(5)).

/// This boot (so neither another machine nor an earlier boot) and this namespace of process ids.
pub(super) fn place() -> Option<Vec<u8>> {
    let mut place = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    place.extend_from_slice(namespace.as_os_str().as_encoded_bytes());
    Some(place)
}

/// Field 22 of `stat`: clock ticks since the boot. None when there is no such process or it is hidden.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}
