//! A test harness that can say `ignored` at run time, with a reason; the standard one cannot.
//!
//! Tests run one after the other: they share a network namespace or a cluster.

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

/// Runs the tests named on the command line (parts of names, none for all; `--list` only lists). If something this
/// machine lacks is given as `missing`, all are counted as ignored, loudly.
pub fn run(tests: &[Test], missing: Option<String>) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let tests =
        tests.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(*part)));
    if arguments.iter().any(|argument| argument == "--list") {
        tests.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut ignored, mut failed) = (0, 0, Vec::new());
    for (name, test) in tests {
        let started = Instant::now();
        if let Some(reason) = &missing {
            println!("test {name} ... ignored, {reason}");
            ignored += 1;
        } else if catch_unwind(AssertUnwindSafe(test)).is_ok() {
            println!("test {name} ... ok ({} ms)", started.elapsed().as_millis());
            passed += 1;
        } else {
            println!("test {name} ... FAILED");
            failed.push(name);
        }
    }
    if let Some(reason) = missing {
        eprintln!("\nSKIPPED: {ignored} tests did not run: {reason}");
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {} failed; {ignored} ignored", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
