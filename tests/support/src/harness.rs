//! A test harness that can say `ignored` at run time, with a reason; the standard one cannot.
//!
//! Tests run one after the other: they share a network namespace or a cluster.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// A test's name and what it runs.
pub type Test = (&'static str, fn());

/// Lists the tests of several modules: `tests! { module: one, two; other: three; }`.
#[macro_export]
macro_rules! tests {
    ($($module:ident: $($test:ident),+ $(,)?;)+) => {
        &[$($((concat!(stringify!($module), "::", stringify!($test)), $module::$test as fn())),+),+]
    };
}

/// Runs the tests named on the command line (parts of names, none for all; `--list` only lists). A test for which
/// `missing` names something this machine or cluster lacks is counted as ignored, loudly.
pub fn run(tests: &[Test], missing: impl Fn(&str) -> Option<String>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let tests =
        tests.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(*part)));
    if arguments.iter().any(|argument| argument == "--list") {
        tests.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut ignored, mut failed) = (0, BTreeMap::<_, usize>::new(), Vec::new());
    for (name, test) in tests {
        let started = Instant::now();
        if let Some(reason) = missing(name) {
            println!("test {name} ... ignored, {reason}");
            *ignored.entry(reason).or_default() += 1;
        } else if catch_unwind(AssertUnwindSafe(test)).is_ok() {
            println!("test {name} ... ok ({} ms)", started.elapsed().as_millis());
            passed += 1;
        } else {
            println!("test {name} ... FAILED");
            failed.push(name);
        }
    }
    if !ignored.is_empty() {
        eprintln!();
    }
    for (reason, count) in &ignored {
        eprintln!("SKIPPED: {count} tests did not run: {reason}");
    }
    for name in &failed {
        eprintln!("FAILED: {name}");
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    let ignored: usize = ignored.values().sum();
    println!("\ntest result: {result}. {passed} passed; {} failed; {ignored} ignored", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
