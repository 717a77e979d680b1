//! Why the program ends, with causes and a hint, and the exit code. It knows every error that says more than its words.

mod pod;

use std::error::Error as StdError;
use std::sync::Arc;

use crate::app::existing::ExistingError;
use crate::app::redirect::RedirectError;
use crate::app::uploaded::UploadedError;
use crate::cluster::api_error::ApiError;
use crate::cluster::client::ClusterError;
use crate::cluster::delivery::DeliveryError;
use crate::cluster::port_forward::PortForwardError;
use crate::cluster::rights::RightsError;
use crate::cluster::sshd_pod::PodError;
use crate::cluster::target::TargetError;
use crate::cluster::upload::UploadError;
use crate::port_forward::ForwardingError;
use crate::privileged::PrivilegedError;
use crate::proxy::orig_dst::NotFinished;
use crate::report::{chain, print};
use crate::shutdown::Stop;
use crate::sudoers::SudoersError;
use crate::tunnel::identity::IdentityError;

/// Exit codes; documented in `docs/exit-codes.md`. clap itself ends with 2 on wrong usage.
pub mod exit {
    /// Anything without a code of its own.
    pub const FAILURE: u8 = 1;
    /// The cluster cannot be reached, or there is no usable kubeconfig.
    pub const UNREACHABLE: u8 = 3;
    /// The cluster refuses us.
    pub const NOT_PERMITTED: u8 = 4;
    /// The pod did not start, or there is none to forward to.
    pub const POD: u8 = 5;
    /// The helper could not be started as root.
    pub const NO_HELPER: u8 = 6;
    /// The rules could not be put in, or were lost.
    pub const REDIRECT: u8 = 7;
}

const FORWARD_RIGHTS: &str = "port-forward needs `get` and `create` on pods/portforward, `get` and `list` on pods, and `get` \
     on the kind that is named (services, deployments, …), all in the target's namespace";

const GOES_ON: &str = "`deploy/NAME` and `svc/NAME` go on with the pod that replaces it";

/// Prints why the program ends and what to do about it; returns the exit code.
pub fn tell(error: &anyhow::Error) -> u8 {
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return stop.exit_code();
    }
    print(format_args!("error: {}\n", chain(error.as_ref())));
    for cause in error.chain() {
        if let Some(hint) = hint(cause) {
            print(format_args!("\nhint: {hint}\n"));
            break;
        }
    }
    error.chain().find_map(exit_code).unwrap_or(exit::FAILURE)
}

fn exit_code(cause: &(dyn StdError + 'static)) -> Option<u8> {
    if let Some(error) = cause.downcast_ref::<ClusterError>() {
        return Some(match error {
            ClusterError::Unauthorized { .. } | ClusterError::Forbidden { .. } => exit::NOT_PERMITTED,
            _ => exit::UNREACHABLE,
        });
    }
    if let Some(error) = cause.downcast_ref::<PrivilegedError>() {
        return Some(match error {
            PrivilegedError::Failed { .. } | PrivilegedError::Ended => exit::REDIRECT,
            _ => exit::NO_HELPER,
        });
    }
    if cause.is::<NotFinished>() {
        return Some(exit::REDIRECT);
    }
    if cause.is::<RightsError>() {
        return Some(exit::NOT_PERMITTED);
    }
    if let Some(error) = cause.downcast_ref::<DeliveryError>() {
        return Some(if error.missing_right().is_some() { exit::NOT_PERMITTED } else { exit::POD });
    }
    if let Some(error) = cause.downcast_ref::<PodError>() {
        return Some(if error.missing_right().is_some() { exit::NOT_PERMITTED } else { exit::POD });
    }
    if cause.downcast_ref::<ApiError>().is_some_and(|error| error.missing_right().is_some()) {
        return Some(exit::NOT_PERMITTED);
    }
    if let Some(error) = cause.downcast_ref::<Arc<TargetError>>() {
        return target_exit_code(error);
    }
    if PortForwardError::among(cause).is_some_and(PortForwardError::is_denied) {
        return Some(exit::NOT_PERMITTED);
    }
    if let Some(UploadedError::Upload { source, .. }) = cause.downcast_ref() {
        return match source {
            UploadError::Read { source, .. } | UploadError::Exec { source, .. }
                if source.missing_right().is_some() =>
            {
                Some(exit::NOT_PERMITTED)
            }
            _ => Some(exit::POD),
        };
    }
    match cause.downcast_ref()? {
        ExistingError::HostKeyChanged { .. } | ExistingError::Refused { .. } => Some(exit::POD),
        _ => None,
    }
}

fn target_exit_code(error: &TargetError) -> Option<u8> {
    match error {
        TargetError::Read { source: ApiError::Transport(_) | ApiError::Timeout(_), .. } => {
            Some(exit::UNREACHABLE)
        }
        TargetError::Read { source: ApiError::Unauthorized(_) | ApiError::Policy(_), .. } => {
            Some(exit::NOT_PERMITTED)
        }
        TargetError::Read { .. } => error.missing_right().map(|_| exit::NOT_PERMITTED),
        TargetError::Port(_) => None,
        _ => Some(exit::POD),
    }
}

fn hint(cause: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<ClusterError>() {
        return Some(match error {
            ClusterError::KubeconfigMissing(_) => "name one with --kubeconfig FILE or $KUBECONFIG".into(),
            ClusterError::NoContext { .. } | ClusterError::ContextNotFound { .. } => {
                "choose one with --context NAME; `kubectl config get-contexts` lists them".into()
            }
            ClusterError::Unreachable { .. } => "check that `kubectl get --raw /version` works here".into(),
            ClusterError::Unauthorized { .. } => {
                "log in again; `kubectl auth whoami` shows who you are".into()
            }
            _ => return None,
        });
    }
    if let Some(ForwardingError::Gone(_)) = cause.downcast_ref() {
        return Some(GOES_ON.into());
    }
    if let Some(error) = cause.downcast_ref::<Arc<TargetError>>() {
        return Some(match &**error {
            error if error.missing_right().is_some() => FORWARD_RIGHTS.into(),
            TargetError::NotReady { .. } => "`pod/NAME` forwards to a pod that runs, ready or not".into(),
            error if error.is_gone() => GOES_ON.into(),
            _ => return None,
        });
    }
    if PortForwardError::among(cause).is_some_and(PortForwardError::is_forbidden) {
        return Some(FORWARD_RIGHTS.into());
    }
    if let Some(error) = cause.downcast_ref::<RedirectError>() {
        return Some(match error {
            RedirectError::Taken { .. } => {
                "end it with `kshuttle quit`, name other ranges, or start both with --narrow, which \
                 redirects only addresses that the cluster has"
                    .into()
            }
            RedirectError::NoBridge(_) => "`ip address` lists the interfaces".into(),
            RedirectError::Nobody(..) | RedirectError::NothingNarrow => return None,
        });
    }
    if cause.is::<NotFinished>() {
        return Some("`kshuttle socks` works: programs that know SOCKS5 reach the cluster by it".into());
    }
    if let Some(error) = cause.downcast_ref::<RightsError>() {
        return Some(pod::role(&error.role_yaml()));
    }
    if let Some(hint) = cause.downcast_ref().and_then(pod::hint) {
        return Some(hint);
    }
    if let Some(error) = cause.downcast_ref::<ExistingError>() {
        return Some(match error {
            ExistingError::HostKeyChanged { known, .. } if known.starts_with('/') => {
                "if the pod was made anew, take its line out of that file; if not, somebody else answers"
                    .into()
            }
            ExistingError::NoIdentity(_) => "name one with -i FILE".into(),
            ExistingError::Identity(IdentityError::Encrypted(_)) => {
                "name one without a password with -i FILE".into()
            }
            ExistingError::Refused { .. } => {
                "name the user with --pod USER@POD and the key with -i FILE".into()
            }
            _ => return None,
        });
    }
    if let Some(UploadedError::Upload { source, .. }) = cause.downcast_ref() {
        return Some(match source {
            UploadError::Read { source, .. } | UploadError::Exec { source, .. }
                if source.missing_right().is_some() =>
            {
                "--upload needs `get` and `create` on pods/exec and pods/portforward, and `get` on pods"
                    .into()
            }
            UploadError::NoFolder { .. } => {
                "a volume like an `emptyDir` at /tmp would do; choose another container with -c NAME".into()
            }
            UploadError::Command { .. } => {
                "the container needs `sh` and `head`; choose another one with -c NAME, or see `kubectl debug`"
                    .into()
            }
            UploadError::NoContainer { .. } => "name one of these with -c NAME".into(),
            _ => return None,
        });
    }
    if let Some(error) = cause.downcast_ref::<DeliveryError>() {
        return matches!(error, DeliveryError::Missing { .. })
            .then(|| "build it with `scripts/build`".into());
    }
    if let Some(error) = cause.downcast_ref::<SudoersError>() {
        return error.hint().map(Into::into);
    }
    if let Some(error) = cause.downcast_ref::<PrivilegedError>() {
        return Some(match error {
            PrivilegedError::Missing(_) => "install `kshuttle-helper` beside `kshuttle`".into(),
            PrivilegedError::NoElevation(_) => {
                "install sudo or doas, run `kshuttle` as root, or use `kshuttle socks`, which needs no root"
                    .into()
            }
            PrivilegedError::Refused(program) => program.hint().into(),
            PrivilegedError::Version { .. } => {
                "install `kshuttle` and `kshuttle-helper` of the same version".into()
            }
            PrivilegedError::Failed { step, .. } if step == "nft" => {
                "install nftables (`apt-get install nftables`), or use `kshuttle socks`".into()
            }
            _ => return None,
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::port_forward::Transport;
    use crate::tunnel::pool::DialError;

    fn server() -> PortForwardError {
        PortForwardError::Server { status: 502, message: "Bad Gateway".into(), reason: String::new() }
    }

    fn forbidden() -> PortForwardError {
        PortForwardError::Forbidden { message: "cannot get".into(), verb: "get" }
    }

    fn refusals(error: PortForwardError, other: PortForwardError) -> PortForwardError {
        let others = vec![(Transport::Websocket, other)];
        PortForwardError::Refusals { way: Transport::Spdy, error: Box::new(error), others }
    }

    /// As `port-forward` reports it: below the error of the command.
    fn told(source: PortForwardError) -> (Option<u8>, Option<String>) {
        let error = anyhow::Error::new(ForwardingError::Probe { pod: "p".into(), source }).context("start");
        (error.chain().find_map(exit_code), error.chain().find_map(hint))
    }

    #[test]
    fn what_is_not_finished_names_what_works() {
        let error = anyhow::Error::new(NotFinished);
        assert_eq!(error.chain().find_map(exit_code), Some(exit::REDIRECT));
        assert!(error.chain().find_map(hint).is_some_and(|hint| hint.contains("`kshuttle socks` works")));
    }

    #[test]
    fn a_missing_right_is_found_in_whichever_way_it_was_told() {
        for denied in [forbidden(), refusals(forbidden(), server()), refusals(server(), forbidden())] {
            let words = denied.to_string();
            assert_eq!(told(denied), (Some(exit::NOT_PERMITTED), Some(FORWARD_RIGHTS.to_owned())), "{words}");
        }
        let unauthorized = PortForwardError::Unauthorized { message: "expired".into() };
        assert_eq!(told(unauthorized), (Some(exit::NOT_PERMITTED), None));
        assert_eq!(told(refusals(server(), server())), (None, None));
        // As the tunnels report it.
        let error = anyhow::Error::new(DialError::lasting(forbidden()));
        assert_eq!(error.chain().find_map(exit_code), Some(exit::NOT_PERMITTED));
    }
}
