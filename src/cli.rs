//! The command line: flags and their help. Pure; touches nothing.

mod dns;
mod flags;
mod redirect;
mod root;

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

pub use self::dns::{DnsArgs, NamesArgs, NamesMethod};
pub use self::flags::{ClusterArgs, PodArgs};
pub use self::redirect::{RedirectArgs, RedirectMethod, SubnetsFileError};
pub use self::root::{Elevate, SudoersArgs};
use crate::cluster::target::Target;
use crate::port_forward::words::{Address, Forward};

/// Makes this machine behave as if it stood inside a Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(
    name = "kshuttle",
    version,
    subcommand_precedence_over_arg = true,
    after_help = EXAMPLES,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do instead of redirecting.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Redirecting, the main job.
    #[command(flatten)]
    pub redirect: RedirectArgs,

    /// Which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

impl Cli {
    /// The line as given to the program, its name first.
    ///
    /// # Errors
    /// What clap finds; or a flag of the main job before another command's word, where it would say nothing.
    pub fn read<T: Into<OsString> + Clone>(line: impl IntoIterator<Item = T>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(line)?;
        if let (Some(word), Some(flag)) = (matches.subcommand_name(), misplaced(&command, &matches)) {
            let text =
                format!("{flag} cannot stand before `{word}`; if `{word}` has it, write it after the word");
            return Err(command.error(ErrorKind::ArgumentConflict, text));
        }
        Self::from_arg_matches(&matches)
    }
}

/// The first argument that only the main job would read.
fn misplaced(command: &clap::Command, matches: &ArgMatches) -> Option<String> {
    let own = command.get_arguments().filter(|argument| !argument.is_global_set());
    own.filter(|argument| matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine))
        .map(ToString::to_string)
        .next()
}

const EXAMPLES: &str = "\
Examples:
  kshuttle 10.96.0.0/12 10.244.0.0/16    Redirect these ranges into the cluster, until Ctrl-C
  kshuttle                               The same, with the ranges the cluster tells
  kshuttle 10.0.0.0/8 -x 10.1.0.0/16     All of 10/8 but the office network
  kshuttle socks                         No root, no rules: a SOCKS5 proxy for ALL_PROXY
  kshuttle port-forward svc/web 8080:80  Only one port, as kubectl does it
  kshuttle --context prod -n tools       Another cluster, the pod in namespace `tools`";

/// What to do instead of redirecting.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve SOCKS5 into the cluster; needs no root. Names are resolved in the cluster
    #[command(after_help = "\
Examples:
  kshuttle socks &
  curl -x socks5h://127.0.0.1:1080 http://hello.default.svc.cluster.local
  ALL_PROXY=socks5h://127.0.0.1:1080 helm test my-release")]
    Socks(SocksArgs),

    /// Forward local ports to a pod's; needs no root and no pod of ours. Goes on when the pod is replaced
    #[command(after_help = "\
Examples:
  kshuttle port-forward svc/web 8080:80           127.0.0.1:8080 and [::1]:8080 to port 80 of Service web
  kshuttle port-forward deploy/web http :9000     Two ports, one by its name, one on a free local port
  kshuttle port-forward web-0 5432 -n shop        Exactly this pod
  kshuttle port-forward --address 0.0.0.0 svc/web 8080:80    For other machines, too")]
    PortForward(PortForwardArgs),

    /// Start a pod and print what lets OpenSSH's ssh use it, until Ctrl-C: `ssh -W`, `-L` and `-D`
    #[command(after_help = "\
Examples:
  kshuttle ssh-config > ~/.ssh/kshuttle.conf &
  ssh -F ~/.ssh/kshuttle.conf -N -L 8080:web.shop:80 kshuttle
  ssh -F ~/.ssh/kshuttle.conf -N -D 1080 kshuttle")]
    SshConfig(SshConfigArgs),

    /// The byte stream to a pod's server on standard input and output; `ssh-config` names it as ProxyCommand
    #[command(hide = true)]
    SshProxy(SshProxyArgs),

    /// List what sessions left in the namespace: pods of yours, programs that no pod runs; --yes removes it
    Cleanup(CleanupArgs),

    /// Say how the sessions that run are: tunnels, round trips, losses
    Status(StatusArgs),

    /// Say what a session that redirects makes of a name: whose it is and why, who was asked, the answer
    #[command(after_help = "\
Examples:
  kshuttle dns web.shop
  kshuttle dns _http._tcp.web.shop.svc.cluster.local SRV
  kshuttle dns www.example.com AAAA -o json")]
    Dns(DnsArgs),

    /// Look a name up as programs do, in a fresh process: kshuttle's own check of its way
    #[command(hide = true)]
    LookUp(LookUpArgs),

    /// End a session that runs, as Ctrl-C does
    Quit(QuitArgs),

    /// Print a rule for sudo (or doas) that lets you run kshuttle's root helper without a password, and nothing else
    #[command(after_help = "\
Examples:
  kshuttle sudoers                     Then, as root: visudo -f /etc/sudoers.d/kshuttle
  kshuttle sudoers --group developers
  kshuttle sudoers --doas              A line for /etc/doas.conf")]
    Sudoers(SudoersArgs),
}

/// Flags of `kshuttle ssh-config`.
#[derive(Debug, Args)]
pub struct SshConfigArgs {
    /// Name that ssh is to know the pod by
    #[arg(long, value_name = "NAME", default_value = "kshuttle", value_parser = host_name)]
    pub host: String,

    /// The pod the traffic goes through.
    #[command(flatten)]
    pub pod: PodArgs,
}

/// Flags of `kshuttle ssh-proxy`.
#[derive(Debug, Args)]
pub struct SshProxyArgs {
    /// Name of the pod
    pub pod: String,
}

/// Flags of `kshuttle cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Remove what is listed
    #[arg(long)]
    pub yes: bool,
}

/// Flags of `kshuttle socks`.
#[derive(Debug, Args)]
pub struct SocksArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:1080")]
    pub listen: SocketAddr,

    /// The pod the traffic goes through.
    #[command(flatten)]
    pub pod: PodArgs,
}

/// Flags of `kshuttle port-forward`.
#[derive(Debug, Args)]
pub struct PortForwardArgs {
    /// POD, pod/NAME, svc/NAME, deploy/NAME, sts/NAME, ds/NAME or rs/NAME
    #[arg(value_name = "TARGET")]
    pub target: Target,

    /// Ports, as numbers or by name; LOCAL is REMOTE's number if not given, and any free one if empty or 0. TCP only
    #[arg(value_name = "[LOCAL:]REMOTE", required = true)]
    pub ports: Vec<Forward>,

    /// Where to listen: IP addresses, separated by commas; localhost is 127.0.0.1 and ::1
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', default_value = "localhost")]
    pub address: Vec<Address>,
}

/// Flags of `kshuttle status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this session: the id of its process
    #[arg(value_name = "SESSION")]
    pub name: Option<String>,

    /// For programs
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<Output>,
}

/// How to write for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A list of sessions.
    Json,
}

/// Flags of `kshuttle look-up`.
#[derive(Debug, Args)]
pub struct LookUpArgs {
    /// The name
    pub name: String,
}

/// Flags of `kshuttle quit`.
#[derive(Debug, Args)]
pub struct QuitArgs {
    /// This session; need not be said where there is only one
    #[arg(value_name = "SESSION")]
    pub name: Option<String>,
}

/// One word that means nothing else to ssh: patterns and quotes do.
fn host_name(text: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '-', '_'].contains(&c);
    let usable = !text.is_empty() && !text.starts_with('-') && text.chars().all(plain);
    if usable { Ok(text.to_owned()) } else { Err("not letters, digits, `.`, `-` and `_`") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::port_forward::Transport;

    #[test]
    fn clap_accepts_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_main_job_needs_no_word() {
        let cli = Cli::parse_from(["kshuttle", "10.96.0.0/12", "fd00::/8", "-x", "10.96.0.1", "-n", "tools"]);
        assert!(cli.command.is_none());
        assert_eq!(cli.redirect.subnets.len(), 2);
        assert_eq!(cli.redirect.exclude, ["10.96.0.1".parse().unwrap()]);
        assert_eq!(cli.cluster.namespace.as_deref(), Some("tools"));
    }

    #[test]
    fn cluster_flags_may_follow_the_word() {
        let cli = Cli::parse_from(["kshuttle", "socks", "--listen", "127.0.0.1:0", "--context", "prod"]);
        assert!(matches!(cli.command, Some(Command::Socks(_))));
        assert_eq!(cli.cluster.context.as_deref(), Some("prod"));
    }

    #[test]
    fn cluster_flags_may_precede_the_word_and_others_may_not() {
        let cli = Cli::read("kshuttle --context prod -v socks -n tools".split(' ')).unwrap();
        assert!(matches!(cli.command, Some(Command::Socks(_))));
        assert_eq!((cli.cluster.context.as_deref(), cli.cluster.verbose), (Some("prod"), 1));
        assert_eq!(cli.cluster.namespace.as_deref(), Some("tools"));
        for line in ["kshuttle 10.0.0.0/8 socks", "kshuttle -x 10.0.0.0/8 socks", "kshuttle --image=x socks"]
        {
            let error = Cli::read(line.split(' ')).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{line}");
            assert!(error.to_string().contains("before `socks`"), "{error}");
        }
    }

    #[test]
    fn port_forward_reads_like_kubectls() {
        let line =
            "kshuttle port-forward --address 127.0.0.1,::1 svc/web 8080:80 :https -n shop --transport spdy";
        let cli = Cli::parse_from(line.split(' '));
        let Some(Command::PortForward(args)) = cli.command else { panic!() };
        assert_eq!(args.target, "svc/web".parse().unwrap());
        assert_eq!(args.ports, ["8080:80".parse().unwrap(), ":https".parse().unwrap()]);
        assert_eq!(args.address, ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(
            (cli.cluster.namespace.as_deref(), cli.cluster.transport),
            (Some("shop"), Transport::Spdy)
        );
        for line in
            ["port-forward svc/web", "port-forward", "port-forward cm/x 80", "port-forward web 53/udp"]
        {
            assert!(Cli::try_parse_from(["kshuttle"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
    }

    #[test]
    fn flags_of_our_pod_belong_to_the_commands_that_start_one() {
        let flags = ["--image", "registry.example/sshd:1", "--run-as-user", "1000", "--pod-idle", "90s"];
        let cli = Cli::parse_from(["kshuttle"].into_iter().chain(flags));
        assert_eq!(cli.redirect.pod.image.as_deref(), Some("registry.example/sshd:1"));
        let cli = Cli::parse_from(["kshuttle", "socks"].into_iter().chain(flags));
        let Some(Command::Socks(args)) = cli.command else { panic!() };
        assert_eq!(args.pod.pod_idle, Duration::from_secs(90));
        for flag in ["--image=x", "--carrier-image=x", "--run-as-user=1", "--pod-idle=1s", "--pod-patch=x"] {
            for line in [
                ["kshuttle", "port-forward", "web", "80", flag],
                ["kshuttle", flag, "port-forward", "web", "80"],
            ] {
                assert!(Cli::read(line).is_err(), "{line:?}: it has no pod of ours");
            }
        }
    }

    #[test]
    fn a_pod_that_is_there_needs_nothing_of_what_makes_one() {
        let line = "kshuttle socks --pod jane@ssh-0 --pod-port 2222 -i key --host-key key.pub";
        let Some(Command::Socks(args)) = Cli::parse_from(line.split(' ')).command else { panic!() };
        assert_eq!(args.pod.pod, Some("jane@ssh-0".parse().unwrap()));
        assert_eq!((args.pod.pod_port, args.pod.identity), (Some(2222), Some("key".into())));
        for line in
            ["--pod x --image y", "--pod x --pod-idle 1m", "-i key", "--pod-port 22", "--pod x --pod-port 0"]
        {
            assert!(Cli::try_parse_from(["kshuttle"].into_iter().chain(line.split(' '))).is_err(), "{line}");
        }
        assert!(Cli::parse_from(["kshuttle", "--pod", "deploy/ssh"]).redirect.pod.pod.is_some());
    }

    #[test]
    fn one_can_act_as_somebody_else() {
        let line = "kshuttle port-forward web 80 --as jane --as-group devs --as-group ops";
        let cli = Cli::parse_from(line.split(' '));
        assert_eq!(cli.cluster.as_user.as_deref(), Some("jane"));
        assert_eq!(cli.cluster.as_groups, ["devs", "ops"]);
    }

    #[test]
    fn wrong_words_are_refused() {
        for arguments in [
            &["10.0.0.0/40"][..],
            &["sock"],
            &["-x", "office"],
            &["--pod-idle", "0s"],
            &["--image-pull-policy", "Sometimes"],
            &["ssh-config", "--host", "*"],
            &["ssh-config", "--host", "-x"],
            &["--as-group", "devs"],
            &["--elevate", "su"],
            &["sudoers", "--user", "jane", "--group", "devs"],
        ] {
            let line = std::iter::once("kshuttle").chain(arguments.iter().copied());
            assert!(Cli::try_parse_from(line).is_err(), "{arguments:?}");
        }
    }
}
