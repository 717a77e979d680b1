//! The undo: nothing new is redirected, what is under way ends, then all goes.

use std::thread;
use std::time::{Duration, Instant};

use super::super::conntrack::{self, Conntrack, Entry};
use super::routes::Routes;
use super::{Backend, is_ours, names};
use crate::error_chain;
use crate::plan::Plan;
use crate::protocol::{StepFailure, UndoReport};

/// How long the undo waits for redirected connections to end. A reset over loopback takes microseconds; an application
/// that was sent the end of a stream instead may never answer.
const QUIET_PATIENCE: Duration = Duration::from_secs(2);

/// How long between two looks at them.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The helper was killed. Its connection to the user side is closed, so the resets are on their way.
pub(super) fn as_watchdog(backend: &mut dyn Backend, plan: &Plan, routes: Option<&Routes>) -> bool {
    // What the rules and the routes live by ends with this process, which holds the last end of it.
    undo(backend, plan, routes).failures.is_empty()
}

pub(super) fn undo(backend: &mut dyn Backend, plan: &Plan, routes: Option<&Routes>) -> UndoReport {
    let mut report = UndoReport::default();
    let mut failures = Vec::new();
    note(&mut failures, "flush", backend.release(plan));
    match Conntrack::open() {
        Ok(mut conntrack) => {
            let started = Instant::now();
            report.still_open =
                note(&mut failures, "wait", wait_until_quiet(&mut conntrack, plan)).unwrap_or(0);
            report.waited_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            report.entries_deleted =
                note(&mut failures, "entries", delete_ours(&mut conntrack, plan)).unwrap_or(0);
        }
        Err(error) => note(&mut failures, "wait", Err::<(), _>(error)).unwrap_or(()),
    }
    report.guard_dropped = note(&mut failures, "counter", backend.dropped(plan)).unwrap_or(0);
    // Behind the resets, which go to the address that the routes give; before the table, whose guard drops what then has
    // another way again.
    if let Some(routes) = routes {
        note(&mut failures, "routes", routes.take_out());
    }
    note(&mut failures, "table", backend.take_out(plan));
    report.failures = failures;
    report
}

/// How many connections are still open, and queries without an answer, when patience is over.
fn wait_until_quiet(conntrack: &mut Conntrack, plan: &Plan) -> Result<u64, conntrack::Error> {
    let deadline = Instant::now() + QUIET_PATIENCE;
    loop {
        let waits =
            |entry: &Entry| is_ours(entry, plan) && (entry.is_live() || names::awaits_answer(entry, plan));
        let open = conntrack.entries(waits)?.len();
        if open == 0 || Instant::now() >= deadline {
            return Ok(open as u64);
        }
        thread::sleep(LOOK_AGAIN);
    }
}

fn delete_ours(conntrack: &mut Conntrack, plan: &Plan) -> Result<u64, conntrack::Error> {
    let mut deleted = 0;
    for entry in conntrack.entries(|entry| is_ours(entry, plan))? {
        deleted += u64::from(conntrack.delete(&entry)?);
    }
    Ok(deleted)
}

/// A failure is written down, and the next step is run.
pub(super) fn note<T, E: std::error::Error + 'static>(
    failures: &mut Vec<StepFailure>,
    step: &str,
    result: Result<T, E>,
) -> Option<T> {
    result
        .map_err(|error| failures.push(StepFailure { step: step.into(), message: error_chain(&error) }))
        .ok()
}
