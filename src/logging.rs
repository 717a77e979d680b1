//! Diagnostics on standard error: off by default, `-v` and `KSHUTTLE_LOG` turn them on.

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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
