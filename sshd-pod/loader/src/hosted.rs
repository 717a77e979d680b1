//! The start of the ordinary program that tests and lints see; the shipped one's is `start.rs`.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString, c_char};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use crate::sys;

pub(crate) fn start() -> ExitCode {
    let args: Vec<CString> = std::env::args_os().map(from_kernel).collect();
    let variables: Vec<CString> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            from_kernel(name)
        })
        .collect();
    // SAFETY: both lists are made of strings that live to the end of this function, and end with a null.
    let status =
        unsafe { sys::with_arguments(&mut pointers(&args), &pointers(&variables), crate::load_or_say_why) };
    ExitCode::from(status)
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

fn from_kernel(text: OsString) -> CString {
    CString::new(text.into_vec()).expect("the kernel ended it by the NUL")
}
