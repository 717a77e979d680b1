//! Flags that several commands have.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use kshuttle_wire::pacing::Policy;

use crate::app::existing::Place;
use crate::cluster::port_forward::Transport;
use crate::cluster::sshd_pod::PullPolicy;
use crate::cluster::target::Target;
use crate::tunnel::pool::{PACING, TUNNELS};

/// Flags every command has, named as kubectl names them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Kubeconfig file; else the files in $KUBECONFIG, else ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Context in the kubeconfig; else its current one
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,

    /// Namespace of the pod, kshuttle's or the one to forward to; else the context's, else `default`
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,

    /// How to reach the pod through the API server: auto, websocket, spdy or v4
    #[arg(long, global = true, value_name = "WAY", default_value_t = Transport::Auto)]
    pub transport: Transport,

    /// Act as this user, as far as the cluster lets us; goes before the kubeconfig's
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,

    /// Act as a member of this group, too (may be given more than once)
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "as_user")]
    pub as_groups: Vec<String>,

    /// Say more: -v what happens, -vv each connection, -vvv everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Flags of the commands whose traffic goes through a pod, mostly one of ours.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Pod")]
pub struct PodArgs {
    /// Go through this pod, which is there already and stays, instead of starting one; its SSH server may be any
    #[arg(long, value_name = "[USER@]POD", conflicts_with_all = ["image", "carrier_image", "run_as_user", "pod_idle"])]
    pub pod: Option<Place>,

    /// Port of its SSH server; else the port it calls `ssh`, else 22
    #[arg(long, value_name = "PORT", requires = "pod", value_parser = clap::value_parser!(u16).range(1..))]
    pub pod_port: Option<u16>,

    /// Private key to log in to it with; else ~/.ssh/id_ecdsa or ~/.ssh/id_ed25519
    #[arg(short, long, value_name = "FILE", requires = "pod")]
    pub identity: Option<PathBuf>,

    /// Its host key, as a word (`ssh-ed25519 AAAA…`) or a file; else the one of the first time
    #[arg(long, value_name = "KEY", requires = "pod")]
    pub host_key: Option<String>,

    /// Copy the server into a container of this pod, which is there already and stays, and run it there; needs `pods/exec`, and
    /// `sh` and `head` in the container
    #[arg(long, value_name = "POD", conflicts_with_all = ["pod", "image", "carrier_image", "image_pull_policy", "pod_patch", "pod_start", "run_as_user"])]
    pub upload: Option<Target>,

    /// Container to copy it into; else the pod's default one
    #[arg(short, long, value_name = "NAME", requires = "upload")]
    pub container: Option<String>,

    /// Run this image as the pod's server, instead of delivering the server without an image
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,

    /// Image on the nodes to carry the delivered server; nothing of it is used
    #[arg(long, value_name = "IMAGE", conflicts_with = "image")]
    pub carrier_image: Option<String>,

    /// When the node pulls that image: Always, IfNotPresent or Never
    #[arg(long, value_name = "WHEN")]
    pub image_pull_policy: Option<PullPolicy>,

    /// YAML or JSON merged into the pod (strategic merge): tolerations, node selector, pull secrets, labels, resources
    #[arg(long, value_name = "FILE")]
    pub pod_patch: Option<PathBuf>,

    /// Longest wait for the pod to run, also for a node that has room for it; else 60s, and 4s for a node
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub pod_start: Option<Duration>,

    /// User id the pod runs as
    #[arg(long, value_name = "UID")]
    pub run_as_user: Option<i64>,

    /// Time without a client after which the pod ends by itself, e.g. 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub pod_idle: Duration,

    /// Say which way into the cluster was taken, and why the others were not
    #[arg(long)]
    pub explain: bool,

    /// Tunnels side by side, from 1 to 8
    #[arg(long, value_name = "NUMBER", default_value_t = TUNNELS, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub tunnels: u8,

    /// Age at which a tunnel's connection to the API server is replaced; connections in it do not notice
    #[arg(long, value_name = "TIME", default_value = "50m", value_parser = duration)]
    pub tunnel_lifetime: Duration,

    /// How much may be under way: `auto` measures the path, `fixed:BYTES` does not
    #[arg(long, value_name = "POLICY", default_value_t = PACING)]
    pub pacing: Policy,
}

/// A number with `s`, `m` or `h`, as Go and kubectl write short times.
fn duration(text: &str) -> Result<Duration, String> {
    let error = || "not a time like 90s, 5m or 1h".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(error)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(error()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(error)?;
    if seconds == 0 { Err(error()) } else { Ok(Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for text in ["", "5", "m", "-1s", "5d", "1.5h", "9999999999999999999h", "ä"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
