//! Brings the SSH server into a pod without an image: `kshuttle-loader DIR SHA256 [ARG…]` joins `DIR/server.0`,
//! `DIR/server.1`, … (one per ConfigMap, mounted side by side), checks the SHA-256 over the joined bytes,
//! unpacks them (gzip, RFC 1952) into a file in memory and executes that with the same environment.
//!
//! It is the first program in an image of which nothing is used: no shell, no libc, no `/proc`, no writable
//! directory, any user id, no capability. What goes wrong it says in one line on standard error and by its
//! [exit status](failure::Failure::exit_code).
//!
//! As shipped (feature `freestanding`) it has no standard library and no C library either, only eight system
//! calls (`sys.rs`) and its own entry point (`start.rs`): a static program with `std` is 1.2 MB, more than a
//! ConfigMap holds. Without the feature it is an ordinary program that runs the same code, for tests and lints.
//!
//! The client's half, which cuts and stores the parts, is `src/cluster/delivery.rs`.

#![cfg_attr(feature = "freestanding", no_std, no_main)]

mod failure;
mod gzip;
#[cfg(not(feature = "freestanding"))]
mod hosted;
#[cfg(feature = "freestanding")]
mod start;
mod sys;

use core::convert::Infallible;
use core::ffi::CStr;
use core::fmt::Write;

use failure::Failure;
use sha2::{Digest, Sha256};

/// What one ConfigMap can hold at most.
const PART_BYTES_MAX: usize = 1024 * 1024;
/// More parts than any server will ever have: the client cuts at 900 kB, so this is 14 MB compressed.
const PARTS_MAX: usize = 16;
/// An unpacked server is 4 to 10 MB. The file lives in memory and counts against the pod's limit of 256 MiB.
const PROGRAM_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What the server finds as its own name.
const SERVER_NAME: &CStr = c"kshuttle-sshd";

#[cfg(not(feature = "freestanding"))]
fn main() -> std::process::ExitCode {
    hosted::start()
}

/// Comes back only when there is no server; the exit status then.
fn load_or_say_why(arguments: sys::Arguments<'_>) -> u8 {
    let Err(failure) = load(arguments);
    let mut line = sys::ErrorLine::default();
    // A line too long is cut, which is no error; nobody can be told when standard error is closed.
    let _ = writeln!(line, "kshuttle-loader: {failure}");
    line.print();
    failure.exit_code()
}

fn load(arguments: sys::Arguments<'_>) -> Result<Infallible, Failure> {
    let (Some(dir), Some(wanted)) = (arguments.get(1), arguments.get(2)) else { return Err(Failure::Usage) };
    let wanted = parse_hash(wanted).ok_or(Failure::Usage)?;

    let packed = join(dir)?;
    let found: [u8; 32] = Sha256::digest(&*packed).into();
    if found != wanted {
        return Err(Failure::Hash { found, wanted });
    }
    let program = sys::File::in_memory(SERVER_NAME).map_err(Failure::Memory)?;
    gzip::unpack(packed, &program, PROGRAM_BYTES_MAX)?;
    let Err(errno) = program.execute(SERVER_NAME, arguments, 3);
    Err(Failure::Execute(errno))
}

/// The parts in order. The first missing number ends them; the hash finds out whether that was too early.
fn join(dir: &CStr) -> Result<&'static mut [u8], Failure> {
    let dir = sys::File::open_dir(dir).map_err(Failure::Directory)?;
    // Only pages that are written to take memory.
    let room = sys::memory(PARTS_MAX * PART_BYTES_MAX).map_err(Failure::Memory)?;
    let mut used = 0;
    for number in 0..=PARTS_MAX {
        let part = match dir.open(part_name(number).as_c_str()) {
            Ok(part) => part,
            Err(sys::Errno::ENOENT) if number > 0 => break,
            Err(errno) => return Err(Failure::Part { number, errno }),
        };
        if number == PARTS_MAX {
            return Err(Failure::TooMuch("more than 16 parts"));
        }
        // One byte more than allowed is asked for, where there is room, to notice a part that is too long.
        let end = room.len().min(used + PART_BYTES_MAX + 1);
        let bytes = part.read(&mut room[used..end]).map_err(|errno| Failure::Part { number, errno })?;
        if bytes > PART_BYTES_MAX {
            return Err(Failure::TooMuch("a part above 1 MiB"));
        }
        used += bytes;
    }
    Ok(&mut room[..used])
}

/// `server.0` to `server.16`, without a heap.
fn part_name(number: usize) -> PartName {
    let mut name = *b"server.\0\0\0";
    if number >= 10 {
        name[7] = b'0' + (number / 10) as u8;
        name[8] = b'0' + (number % 10) as u8;
    } else {
        name[7] = b'0' + number as u8;
    }
    PartName(name)
}

struct PartName([u8; 10]);

impl PartName {
    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).expect("its last byte is never written to")
    }
}

/// 64 hexadecimal digits.
fn parse_hash(text: &CStr) -> Option<[u8; 32]> {
    let digits = text.to_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16)?;
        let low = (pair[1] as char).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(hash)
}
