//! The only part of kshuttle that runs as root.
//!
//! It is started by the user's `kshuttle` (through sudo or its like) and speaks with it on standard input and output, in the frames
//! and words of [`protocol`]:
//!
//! ```text
//! helper                                user's kshuttle
//! hello {protocol, version}  ────────▶
//!                            ◀────────  plan {session, include, exclude, listener_v4, listener_v6}
//!   rules in, read back
//! ready {method, table}      ────────▶                          or  failed {step, message}, and it ends
//!        …  nothing is said while connections are redirected, but questions with their answers ([`protocol::Request`])  …
//!                            ◀────────  stop                    or  end of input, SIGTERM
//!   rules out
//! stopped {report}           ────────▶                          only after stop
//! ```
//!
//! The plan is data; every command is written here, run by absolute path, with an empty environment and without a
//! shell. Nothing else is read: no variable of the environment, no file of the user (the kernel's in `/proc` only), no cluster, no
//! network. No file is written but a record in `/run` (`firewall/iptables/leftovers.rs`). Whatever ends the
//! user's program ends our input, and the end of input undoes everything. Ctrl-C and a closed terminal do not reach us;
//! SIGKILL is answered by a watchdog (`firewall/watchdog.rs`).
//!
//! With `link {port_v4, port_v6, domains, search}` the user side has systemd-resolved ask it about names ([`link`]).
//!
//! On the way: [`protocol`] → `conversation` → [`plan`] → `firewall`, and below it `firewall/nft` (rules),
//! `firewall/conntrack` and `firewall/standing` (connections); on macOS `firewall/pf`, which speaks the words of [`macos`].
//! `process` has all the unsafe code but one question to a device (`macos/device.rs`).

mod conversation;
mod firewall;
#[cfg(target_os = "linux")]
mod holder;
pub mod link;
pub mod macos;
pub mod plan;
mod process;
pub mod protocol;
mod sockets;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use conversation::Conversation;

const HELP: &str = "\
kshuttle-helper: puts kshuttle's redirect rules in as root, and takes them out when its input ends.
It is started by kshuttle and is not for people: it speaks frames on standard input and output.

Options:
  --version  print the version
  --help     print this
";

/// Exit code for a wrong invocation, as shells use it.
const USAGE: u8 = 2;

/// The whole program: 0 if everything is as before, 1 if something failed (said on standard error), 2 for a wrong
/// invocation. Call it first: it empties the environment.
pub fn main() -> ExitCode {
    process::forget_environment();
    if process::is_set_id() {
        print(
            io::stderr(),
            "kshuttle-helper must not be set-uid or set-gid: everybody could redirect connections; take the bit off and use sudo\n",
        );
        return ExitCode::from(USAGE);
    }
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] if !process::is_spoken_to() => {
            print(
                io::stderr(),
                "kshuttle-helper is started by kshuttle, which speaks to it over pipes or a socket; there is nothing to type here\n",
            );
            ExitCode::from(USAGE)
        }
        [] => hold(),
        [option] if option == "--version" => {
            print(io::stdout(), concat!("kshuttle-helper ", env!("CARGO_PKG_VERSION"), "\n"));
            ExitCode::SUCCESS
        }
        [option] if option == "--help" => {
            print(io::stdout(), HELP);
            ExitCode::SUCCESS
        }
        _ => {
            print(io::stderr(), HELP);
            ExitCode::from(USAGE)
        }
    }
}

fn hold() -> ExitCode {
    let ended = match process::isolate() {
        Ok(terminate) => Conversation::new(terminate).hold().map_err(|error| error_chain(&error)),
        Err(error) => Err(format!("leaving the session of the caller failed: {error}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            print(io::stderr(), &format!("kshuttle-helper: {message}\n"));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line.
fn error_chain(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// There is nobody to tell if this fails.
fn print(mut to: impl Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
}
