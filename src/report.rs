//! What people see: steps while starting, answers, and why it ends ([`failure`](crate::failure)). Nothing else prints.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Instant;

pub use kshuttle_wire::causes::chain;

/// Prints one line per finished step with its time. Lines go to standard error, like ssh's and sshuttle's.
pub struct Steps {
    started: Instant,
    last: Instant,
    waiting: bool,
}

impl Default for Steps {
    fn default() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, waiting: false }
    }
}

impl Steps {
    /// `what` is done; `detail` says how.
    pub fn done(&mut self, what: &str, detail: impl Display) {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        self.line(format_args!("  {what:<9} {detail}  ({seconds:.2} s)"));
    }

    /// The next step begins now, not where the last one ended.
    pub fn restart(&mut self) {
        self.last = Instant::now();
    }

    /// What is being waited for. On a terminal the next line takes its place.
    pub fn waiting(&mut self, why: &str) {
        if std::io::stderr().is_terminal() {
            // Without wrapping: a second row would not be taken away.
            print(format_args!("\r\x1b[K\x1b[?7l  …         {why}\x1b[?7h"));
            self.waiting = true;
        } else {
            self.line(format_args!("  …         {why}"));
        }
    }

    /// Something the user should know, in a line of its own.
    pub fn say(&mut self, text: impl Display) {
        self.line(format_args!("{text}"));
    }

    /// Everything is up.
    pub fn ready(&mut self, text: impl Display) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.line(format_args!("ready in {seconds:.1} s: {text}"));
    }

    /// What scripts read: on standard output, in kubectl's words.
    pub fn forwarding(&mut self, from: SocketAddr, port: u16) {
        // Nobody reads it: no reason to fail.
        let _ = writeln!(std::io::stdout().lock(), "Forwarding from {from} -> {port}");
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        if std::mem::take(&mut self.waiting) {
            print(format_args!("\r\x1b[K"));
        }
        print(format_args!("{text}\n"));
    }
}

/// Prints what was asked for, on standard output.
pub fn answer(text: impl Display) {
    // Nobody reads it: no reason to fail.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// A person who closed the terminal cannot read; that is no reason to fail.
pub(crate) fn print(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(text);
}
