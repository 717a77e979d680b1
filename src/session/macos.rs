//! Processes, as the kernel tells of them (`bsd/sys/proc_info.h` and `sysctl.h` of XNU).

#![allow(unsafe_code, reason = "proc_pidinfo and sysctlbyname have no safe form")]

use std::mem::MaybeUninit;
use std::ptr;

use nix::libc;

/// Bytes of a UUID as text, with its NUL (`uuid_string_t`).
const UUID_LENGTH: usize = 37;

/// This boot, so neither another machine nor an earlier boot. There are no namespaces of process ids.
pub(super) fn place() -> Option<Vec<u8>> {
    let (mut uuid, mut length) = ([0_u8; UUID_LENGTH], UUID_LENGTH);
    // SAFETY: the name ends with a NUL; the kernel writes at most `length` bytes to `uuid`, and their number to `length`.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.bootsessionuuid".as_ptr(),
            uuid.as_mut_ptr().cast(),
            &raw mut length,
            ptr::null_mut(),
            0,
        )
    };
    let uuid = uuid.get(..length).filter(|uuid| result == 0 && !uuid.is_empty())?;
    Some(uuid.to_vec())
}

/// Microseconds from 1970 to its start. None when there is no such process or it is another user's.
pub(super) fn started(pid: u32) -> Option<u64> {
    let mut info = MaybeUninit::<libc::proc_bsdinfo>::uninit();
    let size = i32::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
    let pid = i32::try_from(pid).ok()?;
    // SAFETY: the kernel writes at most `size` bytes, which is what `info` has room for.
    let written =
        unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, info.as_mut_ptr().cast(), size) };
    if written != size {
        return None;
    }
    // SAFETY: all of it was written.
    let info = unsafe { info.assume_init() };
    info.pbi_start_tvsec.checked_mul(1_000_000)?.checked_add(info.pbi_start_tvusec)
}
