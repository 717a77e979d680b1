//! `kshuttle`: parse, start the helper, give up root, run, explain the end.

use std::process::ExitCode;

use kshuttle::cli::{Cli, Command, Elevate, RedirectMethod};
use kshuttle::privileged::elevation::Elevation;
use kshuttle::privileged::{self, Starting};
use kshuttle::privileges::{self, Became};
use kshuttle::proxy::orig_dst;
use kshuttle::report::{self, Steps};
use kshuttle::{app, failure, logging, sudoers};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Room for the connections of sixteen tunnels, the most there can be.
const DESCRIPTORS: u64 = 40_000;

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    logging::start(cli.cluster.verbose);
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(failure::tell(&error)),
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    // No thread exists yet: rights belong to threads.
    let helper = match cli.command {
        None if cli.redirect.redirect != RedirectMethod::None => Some(start_helper(cli.redirect.elevate)?),
        _ => None,
    };
    match privileges::drop_all()? {
        // Of ssh-proxy the standard error is ssh's; the others end at once.
        _ if matches!(
            cli.command,
            Some(
                Command::SshProxy(_)
                    | Command::Status(_)
                    | Command::Dns(_)
                    | Command::LookUp(_)
                    | Command::Quit(_)
                    | Command::Sudoers(_)
            )
        ) => {}
        Became::RootWithoutCapabilities => Steps::default().say("running as root, without any capability"),
        Became::User(name) => Steps::default().say(format_args!("running as {name}")),
        Became::Unchanged => {}
    }
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match (&cli.command, helper) {
            (Some(Command::Socks(args)), _) => app::socks(&cli.cluster, args).await,
            (Some(Command::PortForward(args)), _) => app::port_forward(&cli.cluster, args).await,
            (Some(Command::SshConfig(args)), _) => app::ssh_config(&cli.cluster, args).await,
            (Some(Command::SshProxy(args)), _) => app::ssh_proxy(&cli.cluster, args).await,
            (Some(Command::Cleanup(args)), _) => app::cleanup(&cli.cluster, args).await,
            (Some(Command::Status(args)), _) => app::status(args).await,
            (Some(Command::Dns(args)), _) => app::dns(args).await,
            (Some(Command::LookUp(args)), _) => app::look_up(args),
            (Some(Command::Quit(args)), _) => app::quit(args).await,
            (Some(Command::Sudoers(args)), _) => sudoers::rule(args).map(report::answer).map_err(Into::into),
            (None, helper) => app::redirect(&cli.cluster, &cli.redirect, helper).await,
        }
    });
    // A thread may wait for standard input or a name for ever; nobody waits for it.
    runtime.shutdown_background();
    result
}

/// Every connection is one; the usual limit of 1,024 is for programs that use select(2).
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(DESCRIPTORS), hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of descriptors stays");
    }
}

fn start_helper(elevate: Elevate) -> anyhow::Result<Starting> {
    orig_dst::available()?;
    let elevation = Elevation::choose(elevate)?;
    if let Some(program) = elevation.program() {
        Steps::default().say(format_args!(
            "Putting redirect rules in needs root: `{} kshuttle-helper` does only that.",
            program.name()
        ));
    }
    Ok(privileged::start(&elevation)?)
}
