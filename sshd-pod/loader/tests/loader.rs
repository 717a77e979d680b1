//! The loader as a process: what it executes and what it refuses. The program it brings is this test itself.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which `allow-unwrap-in-tests` does not see")]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};

use sha2::{Digest, Sha256};

const LOADER: &str = env!("CARGO_BIN_EXE_kshuttle-loader");

/// Executed from memory by `executes_the_program`, not on its own.
#[test]
#[ignore = "the program that the loader brings"]
fn payload() {
    let name = std::env::args().next().unwrap();
    println!("here as {name} with {}", std::env::var("KSHUTTLE_TEST_VALUE").unwrap());
}

#[test]
fn executes_the_program_with_its_arguments_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    let hash = store(dir.path(), &packed_self(), 900_000);
    let output = Command::new(LOADER)
        .arg(dir.path())
        .arg(hash)
        .args(["--exact", "payload", "--ignored", "--nocapture"])
        .env("KSHUTTLE_TEST_VALUE", "its environment")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("here as kshuttle-sshd with its environment"), "{output:?}");
    assert!(output.status.success());
}

#[test]
fn more_than_ten_parts_come_in_the_order_of_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let packed = gzip(b"no program, but well packed");
    let hash = store(dir.path(), &packed, packed.len().div_ceil(13));
    // Joined rightly, so that it fails only at the exec: ENOEXEC.
    refused(&run(dir.path(), &hash), 116, "Exec format error");
}

#[test]
fn other_bytes_than_announced_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), &gzip(b"something else"), 900_000);
    refused(&run(dir.path(), &"0".repeat(64)), 113, "SHA-256");
}

#[test]
fn a_missing_part_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let packed = gzip(b"a program in three parts");
    let hash = store(dir.path(), &packed, packed.len().div_ceil(3));
    fs::remove_file(dir.path().join("server.1")).unwrap();
    refused(&run(dir.path(), &hash), 113, "SHA-256");
    fs::remove_file(dir.path().join("server.0")).unwrap();
    refused(&run(dir.path(), &hash), 111, "server.0: No such file");
}

#[test]
fn a_file_cut_before_it_was_hashed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let packed = gzip(b"a program that is too short to be one");
    for (kept, why) in [(9, "no gzip header"), (14, "too early"), (packed.len() - 1, "too early")] {
        let hash = store(dir.path(), &packed[..kept], 900_000);
        refused(&run(dir.path(), &hash), 114, why);
    }
}

#[test]
fn damaged_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut packed = gzip(b"a program");
    packed[10] = 0xff; // a deflate block of the reserved type
    let hash = store(dir.path(), &packed, 900_000);
    refused(&run(dir.path(), &hash), 114, "damaged");
}

#[test]
fn an_announced_length_that_is_not_true_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut packed = gzip(b"a program");
    *packed.last_mut().unwrap() = 1;
    let hash = store(dir.path(), &packed, 900_000);
    refused(&run(dir.path(), &hash), 114, "length");
}

#[test]
fn a_flood_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let hash = store(dir.path(), &gzip(&vec![0; 65 * 1024 * 1024]), 900_000);
    refused(&run(dir.path(), &hash), 112, "64 MiB");

    let hash = store(dir.path(), &vec![0; 1024 * 1024 + 1], 2 * 1024 * 1024);
    refused(&run(dir.path(), &hash), 112, "1 MiB");

    let hash = store(dir.path(), &[0; 17], 1);
    refused(&run(dir.path(), &hash), 112, "16 parts");
}

#[test]
fn a_gzip_file_name_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut packed = flate2::GzBuilder::new().filename("server").comment("c").write(Vec::new(), level());
    packed.write_all(b"no program").unwrap();
    let hash = store(dir.path(), &packed.finish().unwrap(), 900_000);
    refused(&run(dir.path(), &hash), 116, "Exec format error");
}

#[test]
fn wrong_use_is_refused() {
    for args in [&[][..], &["/"], &["/", "abc"], &["/", &"x".repeat(64)]] {
        refused(&Command::new(LOADER).args(args).output().unwrap(), 110, "usage");
    }
    let hash = "0".repeat(64);
    refused(&run(Path::new("/nonexistent"), &hash), 111, "No such file");
    refused(&run(Path::new("/dev/null"), &hash), 111, "Not a directory");
}

fn run(dir: &Path, hash: &str) -> Output {
    Command::new(LOADER).arg(dir).arg(hash).output().unwrap()
}

#[track_caller]
fn refused(output: &Output, status: i32, why: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(text.starts_with("kshuttle-loader: ") && text.contains(why), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

/// Puts `packed` into `dir` in parts and returns its hash.
fn store(dir: &Path, packed: &[u8], part: usize) -> String {
    for entry in fs::read_dir(dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (number, bytes) in packed.chunks(part).enumerate() {
        fs::write(dir.join(format!("server.{number}")), bytes).unwrap();
    }
    Sha256::digest(packed).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn packed_self() -> Vec<u8> {
    gzip(&fs::read(std::env::current_exe().unwrap()).unwrap())
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), level());
    packed.write_all(plain).unwrap();
    packed.finish().unwrap()
}

fn level() -> flate2::Compression {
    flate2::Compression::fast()
}
