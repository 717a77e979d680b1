//! `kshuttle-helper`: see the crate's documentation for what it does and for whom.

use std::process::ExitCode;

fn main() -> ExitCode {
    kshuttle_helper::main()
}
