//! The system calls of the loader, safe to use, without a C library. Linux, x86_64.
#![allow(unsafe_code)]

use core::arch::asm;
use core::convert::Infallible;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::ptr::null;

/// Numbers of arch/x86/entry/syscalls/syscall_64.tbl.
mod number {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const CLOSE: usize = 3;
    pub(super) const MMAP: usize = 9;
    #[cfg(feature = "freestanding")]
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const OPENAT: usize = 257;
    pub(super) const MEMFD_CREATE: usize = 319;
    pub(super) const EXECVEAT: usize = 322;
}

const AT_FDCWD: usize = -100_isize as usize; // linux/fcntl.h
const AT_EMPTY_PATH: usize = 0x1000; // linux/fcntl.h
const O_DIRECTORY: usize = 0o200_000; // asm-generic/fcntl.h, as O_CLOEXEC
const O_CLOEXEC: usize = 0o2_000_000;
const MFD_CLOEXEC: usize = 0x1; // linux/memfd.h, as MFD_EXEC
/// Since Linux 6.3; without it `vm.memfd_noexec=1` makes the file not executable.
const MFD_EXEC: usize = 0x10;
const STDERR: usize = 2;

/// A number of asm-generic/errno-base.h.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(i32);

impl Errno {
    pub(crate) const ENOENT: Self = Self(2);
    const EINTR: Self = Self(4);
    const EINVAL: Self = Self(22);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            1 => "Operation not permitted",
            2 => "No such file or directory",
            5 => "Input/output error",
            8 => "Exec format error",
            12 => "Out of memory",
            13 => "Permission denied",
            20 => "Not a directory",
            22 => "Invalid argument",
            38 => "Function not implemented",
            other => return write!(f, "errno {other}"),
        };
        write!(f, "{text} (errno {})", self.0)
    }
}

/// # Safety
/// The arguments must be what the call of that number wants.
unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize, Errno> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the caller's promise; the kernel clobbers rcx and r11 and keeps everything else.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // The kernel gives errors as -4095 to -1.
    if (-4095..0).contains(&result) { Err(Errno(-result as i32)) } else { Ok(result as usize) }
}

/// Ends the process.
#[cfg(feature = "freestanding")]
pub(crate) fn exit(status: u8) -> ! {
    // SAFETY: takes a number and does not come back.
    unsafe {
        let _ = call(number::EXIT_GROUP, [usize::from(status), 0, 0, 0, 0, 0]);
        core::hint::unreachable_unchecked()
    }
}

/// Zeroed memory for the rest of the process's life; pages never touched cost nothing.
pub(crate) fn memory(bytes: usize) -> Result<&'static mut [u8], Errno> {
    const PROT_READ_WRITE: usize = 0x3; // asm-generic/mman-common.h, as the others
    const MAP_PRIVATE_ANONYMOUS_NORESERVE: usize = 0x2 | 0x20 | 0x4000;
    const NO_FILE: usize = -1_isize as usize;
    let arguments = [0, bytes, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS_NORESERVE, NO_FILE, 0];
    // SAFETY: a fresh private mapping of `bytes` bytes at an address of the kernel's choice; nobody else has
    // it, and it is never unmapped.
    unsafe {
        let address = call(number::MMAP, arguments)?;
        Ok(core::slice::from_raw_parts_mut(address as *mut u8, bytes))
    }
}

/// An open file, closed when dropped.
pub(crate) struct File(usize);

impl File {
    /// Opens a directory to [open](Self::open) files in it.
    pub(crate) fn open_dir(path: &CStr) -> Result<Self, Errno> {
        Self::open_at(AT_FDCWD, path, O_DIRECTORY)
    }

    /// Opens a file of this directory for reading.
    pub(crate) fn open(&self, name: &CStr) -> Result<Self, Errno> {
        Self::open_at(self.0, name, 0)
    }

    fn open_at(dir: usize, path: &CStr, flags: usize) -> Result<Self, Errno> {
        // SAFETY: the path is NUL-terminated and lives during the call.
        unsafe { call(number::OPENAT, [dir, path.as_ptr() as usize, O_CLOEXEC | flags, 0, 0, 0]).map(Self) }
    }

    /// An empty file without a place in any file system (memfd_create(2)).
    pub(crate) fn in_memory(name: &CStr) -> Result<Self, Errno> {
        let create = |flags| {
            // SAFETY: the name is NUL-terminated and lives during the call.
            unsafe { call(number::MEMFD_CREATE, [name.as_ptr() as usize, flags, 0, 0, 0, 0]).map(Self) }
        };
        match create(MFD_CLOEXEC | MFD_EXEC) {
            // Linux before 6.3 does not know the flag, and makes every such file executable.
            Err(Errno::EINVAL) => create(MFD_CLOEXEC),
            made => made,
        }
    }

    /// Reads until `buffer` is full or the file ends; how many bytes.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            // SAFETY: the kernel writes at most `rest.len()` bytes into `rest`.
            let read =
                unsafe { call(number::READ, [self.0, rest.as_mut_ptr() as usize, rest.len(), 0, 0, 0]) };
            match read {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }

    pub(crate) fn write_all(&self, bytes: &[u8]) -> Result<(), Errno> {
        write_all(self.0, bytes)
    }

    /// Becomes this program. execveat(2) with an empty path needs no `/proc`.
    ///
    /// It gets `name` and then the arguments from number `first` on, and the environment unchanged.
    pub(crate) fn execute(
        &self,
        name: &CStr,
        arguments: Arguments<'_>,
        first: usize,
    ) -> Result<Infallible, Errno> {
        // The place before the first argument is free for the name: it was ours.
        let argv = &mut arguments.argv[first - 1..];
        argv[0] = name.as_ptr();
        // SAFETY: both lists end with a null, their strings with a NUL (checked by `with_arguments`, whose
        // caller keeps them alive), and `first` was within the arguments.
        let done = unsafe {
            let (argv, envp) = (argv.as_ptr() as usize, arguments.environment.as_ptr() as usize);
            call(number::EXECVEAT, [self.0, c"".as_ptr() as usize, argv, envp, AT_EMPTY_PATH, 0])
        };
        match done {
            Ok(_) => unreachable!("a successful exec does not return"),
            Err(errno) => Err(errno),
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and used by nobody after this.
        let _ = unsafe { call(number::CLOSE, [self.0, 0, 0, 0, 0, 0]) };
    }
}

fn write_all(file: usize, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads at most `bytes.len()` bytes of `bytes`.
        match unsafe { call(number::WRITE, [file, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) } {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Arguments and environment as the kernel gave them and wants them back.
pub(crate) struct Arguments<'a> {
    argv: &'a mut [*const c_char],
    environment: &'a [*const c_char],
}

impl Arguments<'_> {
    /// The argument of that number; 0 is the program's own name.
    pub(crate) fn get(&self, number: usize) -> Option<&CStr> {
        let argument = *self.argv.get(number)?;
        // SAFETY: only the last pointer is null; the others are strings that outlive `self`.
        (!argument.is_null()).then(|| unsafe { CStr::from_ptr(argument) })
    }
}

/// Calls `body` with both lists.
///
/// # Safety
/// All pointers must be strings that outlive the call, except the last of each list, which is checked to be null.
pub(crate) unsafe fn with_arguments(
    argv: &mut [*const c_char],
    environment: &[*const c_char],
    body: impl FnOnce(Arguments<'_>) -> u8,
) -> u8 {
    assert!(argv.last() == Some(&null()) && environment.last() == Some(&null()));
    body(Arguments { argv, environment })
}

/// One line of text for standard error, written at once.
pub(crate) struct ErrorLine {
    text: [u8; 512],
    used: usize,
}

impl Default for ErrorLine {
    fn default() -> Self {
        Self { text: [0; 512], used: 0 }
    }
}

impl ErrorLine {
    pub(crate) fn print(&self) {
        let _ = write_all(STDERR, &self.text[..self.used]);
    }
}

impl fmt::Write for ErrorLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let bytes = text.len().min(self.text.len() - self.used);
        self.text[self.used..self.used + bytes].copy_from_slice(&text.as_bytes()[..bytes]);
        self.used += bytes;
        Ok(())
    }
}
