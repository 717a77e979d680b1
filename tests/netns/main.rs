//! The root helper against the real kernel. Each test has a network namespace of its own, whose only way out is a dead
//! end that counts what goes in. Needs root, `ip` (iproute2) and `nft` (nftables).
//!
//! An own harness: a test that this machine cannot run is counted as `ignored`, which the standard one cannot say at
//! run time. Arguments: names (or parts of names) of the tests to run; `--list`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "all of this is a test, and its own harness"
)]

mod helper;
mod listener;
mod redirect;
mod refuse;
mod scene;
mod undo;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

macro_rules! tests {
    ($($module:ident: $($test:ident),+ $(,)?;)+) => {
        &[$($((concat!(stringify!($module), "::", stringify!($test)), $module::$test)),+),+]
    };
}

const TESTS: &[(&str, fn())] = tests! {
    redirect:
        both_families_arrive_with_their_destination,
        excludes_are_left_alone,
        addresses_of_this_machine_are_left_alone,
        nothing_leaks_over_reused_source_ports,
        what_is_not_translated_is_dropped,
        answers_to_included_addresses_pass,
        a_foreign_flush_does_not_open_the_way,
        two_helpers_do_not_disturb_each_other,
        the_largest_plan_is_carried_out;
    undo:
        end_of_input_leaves_nothing,
        a_socket_pair_serves_as_well,
        sigterm_leaves_nothing,
        stop_resets_applications_and_reports,
        translation_outlives_the_flush,
        nothing_leaks_while_the_undo_waits,
        sigkill_is_undone_by_the_watchdog,
        sigkill_of_both_is_undone_by_the_kernel,
        signals_of_the_terminal_are_not_heard,
        lost_rules_are_told;
    refuse:
        a_bad_plan_is_refused_by_its_field,
        a_second_plan_ends_it,
        what_is_not_understood_ends_it,
        the_same_session_twice_is_refused,
        without_root_it_says_so,
        version_and_help;
};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let tests =
        TESTS.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|part| name.contains(*part)));
    if arguments.iter().any(|argument| argument == "--list") {
        tests.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let missing = scene::missing();
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
        eprintln!("\nSKIPPED: {ignored} tests of the redirect rules did not run: {reason}");
    }
    let result = if failed.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {} failed; {ignored} ignored", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
