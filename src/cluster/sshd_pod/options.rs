//! What the pod is made of, as the user wants it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::super::delivery::{Payload, hash};
use super::patch::PodPatch;

/// What the pod is made of.
#[derive(Clone)]
pub struct PodOptions {
    /// Where the server comes from.
    pub program: Program,
    /// As whom it runs.
    pub run_as: RunAs,
    /// The one key that may log in, an OpenSSH public key line.
    pub authorized_key: String,
    /// Time without a client after which the server ends by itself.
    pub idle: Duration,
    /// `user@host`, to find left-overs.
    pub owner: String,
    /// This session's name, by which the next one knows whether it is over.
    pub session: String,
    /// Longest wait for the pod to run; [`START_TIME_MAX`](super::START_TIME_MAX).
    pub start_time_max: Duration,
    /// Longest wait for a node after the scheduler said that there is none, if none is on its way; [`NODE_TIME_MAX`](super::NODE_TIME_MAX).
    pub node_time_max: Duration,
    /// When the kubelet is to pull the image; none for what suits the program.
    pub pull_policy: Option<PullPolicy>,
    /// What the user changes about it.
    pub patch: Option<PodPatch>,
}

impl PodOptions {
    /// Names what the pod is made from, without whose it is: a pod can stand in for another of the same recipe.
    pub fn recipe(&self) -> String {
        let program = match &self.program {
            Program::Delivered { payload, carrier } => {
                format!("{} in {carrier:?}", payload.sha256())
            }
            Program::Image(image) => format!("image {image}"),
        };
        let rest = (self.run_as, self.idle, self.pull_policy, &self.patch);
        hash(format!("{} {program} {rest:?}", env!("CARGO_PKG_VERSION")).as_bytes())
    }
}

/// Where the server comes from.
#[derive(Clone)]
pub enum Program {
    /// From ConfigMaps, executed in an image of which nothing is used: the named one, or one that is there anyway.
    Delivered {
        /// What to bring.
        payload: Payload,
        /// The image to carry it.
        carrier: Option<String>,
    },
    /// It is what this image starts.
    Image(String),
}

/// The pod's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// 65532, or what the cluster assigns if it insists (OpenShift).
    Default,
    /// This one.
    Uid(i64),
    /// What the cluster assigns, or else the image's.
    ClusterPicks,
}

/// `imagePullPolicy` of the pod's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullPolicy {
    /// Ask the registry each time.
    Always,
    /// Pull what the node does not have.
    IfNotPresent,
    /// Take what the node has.
    Never,
}

impl fmt::Display for PullPolicy {
    /// As Kubernetes writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for PullPolicy {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Always, Self::IfNotPresent, Self::Never]
            .into_iter()
            .find(|policy| policy.to_string().eq_ignore_ascii_case(text))
            .ok_or("not Always, IfNotPresent or Never")
    }
}
