//! `kshuttle-sshd serve`: settings from the environment, serve, leave when idle or told to.

use std::process::ExitCode;

use kshuttle_sshd::attended;
use kshuttle_sshd::server::Server;
use kshuttle_sshd::settings::Settings;
use kshuttle_wire::causes::chain;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Two are enough for encryption and copying to overlap; a node gives a pod little CPU.
const WORKER_THREADS: usize = 2;

/// Room for the flows of ten full sessions; with more, memory ends first.
const DESCRIPTORS: u64 = 20_000;

fn main() -> ExitCode {
    let filter =
        EnvFilter::try_from_env("KSHUTTLE_LOG").unwrap_or_else(|_| EnvFilter::new("info,russh=warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    raise_descriptor_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(serve()),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Every flow is a descriptor, and runtimes start containers with as few as 1,024 for old programs' sake.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(DESCRIPTORS), hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of descriptors stays");
    }
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    // As process 1 of its container it gets no default action for signals.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let settings = Settings::read(|name| std::env::var(name).ok())?;
    let attended = settings.attended;
    let server = Server::bind(settings).await?;
    tracing::info!(address = %server.address()?, version = env!("CARGO_PKG_VERSION"), "listening");
    if attended {
        attended::announce(server.address()?, server.host_key())?;
    }
    let links = server.links();
    tokio::select! {
        () = server.run() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = attended::told_to_leave(), if attended => {}
    }
    links.leave().await; // clients need not find out by themselves that this pod is no more
    Ok(())
}
