//! Diagnostics on standard error: off by default, `-v` and `KSHUTTLE_LOG` turn them on.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging. `verbose` is how often `-v` was given; `KSHUTTLE_LOG` (e.g. `kshuttle=debug,russh=trace`) wins.
pub fn start(verbose: u8) {
    let default = match verbose {
        0 => "kshuttle=warn,kshuttle_wire=warn",
        1 => "kshuttle=info,kshuttle_wire=info",
        2 => "kshuttle=debug,kshuttle_wire=debug,kube_client=info",
        _ => "trace,h2=debug,hyper=debug,rustls=info,tower=info",
    };
    let filter = EnvFilter::try_from_env("KSHUTTLE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    // Colours are for people at a terminal who did not forbid them (https://no-color.org), not for files.
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
