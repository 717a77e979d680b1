//! What a C library would bring: the entry point, the memory functions the compiler calls by name, and an
//! end for panics. Only in the shipped build.
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::ffi::c_char;

use crate::sys;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the loader's entry point and system calls are written for x86_64 only so far");

// The kernel leaves the argument count on top of the stack and the arguments above it (System V ABI for
// x86-64, figure 3.9). `begin` gets that address; the call wants the stack 16-byte aligned.
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym begin,
);

extern "C" fn begin(stack: *mut usize) -> ! {
    // SAFETY: `_start` passes the initial stack pointer: the count, that many argument pointers, a null, the
    // environment's pointers, a null. They are valid and ours for the whole life of the process.
    let status = unsafe {
        let count = *stack;
        let argv = stack.add(1).cast::<*const c_char>();
        let environment = argv.add(count + 1);
        let mut variables = 0;
        while !(*environment.add(variables)).is_null() {
            variables += 1;
        }
        sys::with_arguments(
            core::slice::from_raw_parts_mut(argv, count + 1),
            core::slice::from_raw_parts(environment, variables + 1),
            crate::load_or_say_why,
        )
    };
    sys::exit(status)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::exit(119)
}

/// # Safety
/// That of C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear (System V ABI).
    unsafe {
        asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// That of C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= bytes {
        // SAFETY: the target does not start inside the source, so copying upwards reads before it writes.
        return unsafe { memcpy(to, from, bytes) };
    }
    // SAFETY: the caller vouches for both ranges, `bytes` is at least 1 here; the flag is clear again after.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") bytes => _, inout("rdi") to.add(bytes - 1) => _,
            inout("rsi") from.add(bytes - 1) => _, options(nostack));
    }
    to
}

/// # Safety
/// That of C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range; the direction flag is clear (System V ABI).
    unsafe {
        asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// That of C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    for offset in 0..bytes {
        // SAFETY: the caller vouches for both ranges.
        let (a, b) = unsafe { (left.add(offset).read_volatile(), right.add(offset).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// That of C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(left, right, bytes) }
}

/// # Safety
/// That of C's `strlen`.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let mut length = 0;
    // SAFETY: the caller vouches for every byte up to the NUL. Volatile, or the compiler turns the loop into
    // a call of this very function; likewise in `memcmp`.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
