//! What a process of root must do to itself, and how it makes children: the only unsafe code of this crate, but for the one
//! question of `macos/device.rs`.

#![allow(
    unsafe_code,
    reason = "fork, signal handlers, the environment and what a child does before exec have no safe form"
)]

use std::env;
use std::fs::{DirEntry, File};
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{
    ForkResult, Pid, chdir, close, dup2_stdin, dup2_stdout, fork, getegid, geteuid, getgid, getuid, setsid,
};

/// What reaches a whole process group or session: Ctrl-C, Ctrl-\, a closed terminal, a reader that is gone.
const NOT_FOR_US: [Signal; 4] = [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP, Signal::SIGPIPE];

/// Where SIGTERM's handler writes.
static TERMINATED: AtomicI32 = AtomicI32::new(-1);

/// Takes every variable out, so that none says how this process or the C library behaves from now on. The loader's (`LD_*`)
/// have been read by then: keeping those out is for sudo and its like, which do.
pub(crate) fn forget_environment() {
    for (name, _) in env::vars_os() {
        // SAFETY: this program has one thread.
        unsafe { env::remove_var(name) };
    }
}

/// Were these rights given by a bit on the file, to whoever started it? The auxiliary vector's `AT_SECURE` is not asked: it is
/// set as well where SELinux changes the domain, which is in order.
pub(crate) fn is_set_id() -> bool {
    (getuid(), getgid()) != (geteuid(), getegid())
}

/// Are standard input and output what a program speaks over: pipes or sockets?
pub(crate) fn is_spoken_to() -> bool {
    let kind = |fd: BorrowedFd| fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    let speaks = |fd| kind(fd).is_ok_and(|kind| [SFlag::S_IFIFO, SFlag::S_IFSOCK].contains(&kind));
    let (input, output) = (io::stdin(), io::stdout());
    speaks(input.as_fd()) && speaks(output.as_fd())
}

/// Cuts this process off from its starter, except for standard input, output and error. Call it before a file is opened
/// or a thread is made. Returns a pipe with something to read once SIGTERM came.
pub(crate) fn isolate() -> io::Result<PipeReader> {
    close_inherited()?;
    let _ = setsid(); // fails if we lead our process group; then ignoring the signals has to do
    umask(Mode::from_bits_truncate(0o077));
    chdir("/")?; // holds no file system in use
    for signal in NOT_FOR_US {
        handle(signal, SigHandler::SigIgn)?;
    }
    let (reader, writer) = io::pipe()?;
    // The handler only ever adds one byte per SIGTERM; a full pipe must not stop it.
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    TERMINATED.store(writer.as_raw_fd(), Ordering::SeqCst);
    std::mem::forget(writer); // open until the process ends: the handler may run at any time
    handle(Signal::SIGTERM, SigHandler::Handler(on_terminate))?;
    Ok(reader)
}

/// The command's child gets a session of its own and is deaf to the signals that end nft's prompt, SIGTERM included.
pub(crate) fn detach(command: &mut Command) {
    let before_exec = || {
        setsid()?;
        for signal in NOT_FOR_US.into_iter().chain([Signal::SIGTERM]) {
            handle(signal, SigHandler::SigIgn)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only setsid and sigaction are called, which are async-signal-safe, and nothing allocates.
    unsafe { command.pre_exec(before_exec) };
}

/// Makes a copy of this process that runs `life` and ends with its result as exit code. The copy has no standard input
/// or output, a session of its own, and no ear for signals.
pub(crate) fn split(life: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: this program has one thread, so the copy finds no lock held by a thread that does not exist in it.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = match settle() {
                Ok(()) => life(),
                Err(_) => 1, // our end of the link closes; the parent sees it
            };
            // SAFETY: ends the copy without running what the original registered for its own end.
            unsafe { libc::_exit(code) }
        }
    }
}

fn settle() -> io::Result<()> {
    setsid()?;
    handle(Signal::SIGTERM, SigHandler::SigIgn)?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    // Whoever speaks with the original must see it end when it does.
    dup2_stdin(nothing.as_fd())?;
    dup2_stdout(nothing.as_fd())?;
    Ok(())
}

fn handle(signal: Signal, handler: SigHandler) -> nix::Result<()> {
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the only handler there is makes one write, which is async-signal-safe.
    unsafe { sigaction(signal, &action) }.map(drop)
}

extern "C" fn on_terminate(_: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    // SAFETY: the descriptor stays open for the life of the process, the byte for the life of the call.
    unsafe { libc::write(TERMINATED.load(Ordering::SeqCst), [1u8].as_ptr().cast(), 1) };
    nix::errno::Errno::set_raw(errno);
}

/// Closes all but standard input, output and error: a sudo, a shell or a careless starter may have left files open in us; a
/// copy has those of the original.
pub(crate) fn close_inherited() -> io::Result<()> {
    let number =
        |entry: io::Result<DirEntry>| entry.map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let open: Vec<Option<i32>> = std::fs::read_dir("/dev/fd")?.map(number).collect::<Result<_, _>>()?;
    for fd in open.into_iter().flatten().filter(|fd| *fd > 2) {
        let _ = close(fd); // the one of the listing is closed already
    }
    Ok(())
}
