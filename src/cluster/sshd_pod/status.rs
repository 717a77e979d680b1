//! What a pod's status means for us: [`judge`], pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use super::manifest::CONTAINER;

/// Why a pod does not run, or does not any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartFailure {
    /// The image is not to be had.
    #[error("image {image} is not to be had ({reason}): {message}")]
    Image {
        /// The reference.
        image: String,
        /// Kubelet's word, such as `ErrImagePull`.
        reason: String,
        /// Kubelet's words.
        message: String,
    },
    /// The container cannot be made or started.
    #[error("its container cannot be started ({reason}): {message}")]
    Container {
        /// Kubelet's word, such as `CreateContainerConfigError`.
        reason: String,
        /// Kubelet's or the runtime's words.
        message: String,
    },
    /// The program ended.
    #[error("its program ended with status {code}{}", explain(.code, .message))]
    Ended {
        /// Exit status; above 128 a signal.
        code: i32,
        /// Kubelet's word, such as `Error` or `OOMKilled`.
        reason: String,
        /// The last lines that the program printed.
        message: String,
    },
    /// No node takes it.
    #[error("no node takes it: {0}")]
    Unschedulable(String),
    /// The kubelet or a controller gave it up, for example by eviction.
    #[error("it was given up ({reason}): {message}")]
    GivenUp {
        /// A word, such as `Evicted`.
        reason: String,
        /// Words.
        message: String,
    },
    /// Somebody deleted it.
    #[error("it was deleted")]
    Deleted,
    /// It takes too long.
    #[error("it is still not running after {} s: {last}", .limit.as_secs())]
    Slow {
        /// How long we waited.
        limit: Duration,
        /// What it was waiting for, with the latest warnings if we may read events.
        last: String,
    },
}

/// What a status means for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The server runs.
    Running,
    /// Not yet; for what.
    Waiting(String),
    /// Not yet, and perhaps never: no node takes it.
    Unschedulable(String),
    /// It will not.
    Failed(StartFailure),
}

/// Reads a pod's status.
pub fn judge(pod: &Pod) -> State {
    if pod.metadata.deletion_timestamp.is_some() {
        return State::Failed(deleted_because(pod));
    }
    let Some(status) = &pod.status else { return State::Waiting("for the scheduler".to_owned()) };
    let container = status.container_statuses.iter().flatten().find(|container| container.name == CONTAINER);
    if let Some(ended) = container.and_then(|container| container.state.as_ref()?.terminated.as_ref()) {
        return State::Failed(ended_because(ended));
    }
    if matches!(status.phase.as_deref(), Some("Failed" | "Succeeded")) {
        return State::Failed(StartFailure::GivenUp {
            reason: status.reason.clone().unwrap_or_else(|| "no reason given".to_owned()),
            message: status.message.clone().unwrap_or_default(),
        });
    }
    if container
        .is_some_and(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
    {
        return State::Running;
    }
    if let Some(container) = container
        && let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref())
    {
        let reason = waiting.reason.as_deref().unwrap_or("Waiting");
        return waits_because(container, reason, waiting.message.as_deref().unwrap_or_default());
    }
    if let Some(node) = &status.nominated_node_name {
        return State::Waiting(format!("for room on node {node}, where other pods have to leave"));
    }
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    match unscheduled {
        Some(condition) if condition.reason.as_deref() == Some("Unschedulable") => {
            State::Unschedulable(condition.message.clone().unwrap_or_default())
        }
        Some(condition) => State::Waiting(format!(
            "for the scheduler ({})",
            condition.reason.as_deref().unwrap_or("pending")
        )),
        None => State::Waiting(match pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) {
            Some(node) => format!("for node {node} to take it"),
            None => "for the scheduler".to_owned(),
        }),
    }
}

/// The scheduler, the eviction API, the kubelet and the taint manager say why they delete a pod (condition
/// `DisruptionTarget`, from Kubernetes 1.26 on).
pub(super) fn deleted_because(pod: &Pod) -> StartFailure {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let why = conditions
        .filter(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")
        .find_map(|condition| {
            Some((condition.reason.clone()?, condition.message.clone().unwrap_or_default()))
        });
    match why {
        Some((reason, message)) => StartFailure::GivenUp { reason, message },
        None => StartFailure::Deleted,
    }
}

/// Reasons of k8s.io/kubernetes `pkg/kubelet/images/types.go`, `kuberuntime/kuberuntime_container.go` and
/// `container/sync_result.go`.
fn waits_because(container: &ContainerStatus, reason: &str, message: &str) -> State {
    let (reason_owned, message) = (reason.to_owned(), message.to_owned());
    match reason {
        "ContainerCreating" | "PodInitializing" => {
            State::Waiting(format!("for its container (image {})", container.image))
        }
        "ErrImagePull"
        | "ErrImageNeverPull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ImageInspectError"
        | "RegistryUnavailable"
        | "SignatureValidationFailed" => State::Failed(StartFailure::Image {
            image: container.image.clone(),
            reason: reason_owned,
            message,
        }),
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError"
        | "CrashLoopBackOff" => State::Failed(StartFailure::Container { reason: reason_owned, message }),
        other => State::Waiting(format!("for its container ({other}) {message}").trim_end().to_owned()),
    }
}

fn ended_because(ended: &ContainerStateTerminated) -> StartFailure {
    let reason = ended.reason.clone().unwrap_or_default();
    let message = ended.message.clone().unwrap_or_default().trim().to_owned();
    match reason.as_str() {
        // The runtime could not execute the command: no program ran.
        "StartError" | "ContainerCannotRun" => StartFailure::Container { reason, message },
        _ => StartFailure::Ended { code: ended.exit_code, reason, message },
    }
}

/// What it printed, else what the loader means by this status (`sshd-pod/loader/src/failure.rs`).
fn explain(code: &i32, message: &str) -> String {
    if let Some(line) = message.lines().rev().find(|line| !line.trim().is_empty()) {
        return format!(": {}", line.trim());
    }
    let meaning = match code {
        110 => "the loader was called wrongly",
        111 => "the loader cannot read the server's parts",
        112 => "the server's parts are too large",
        113 => "the server's parts are not what was uploaded; delete the ConfigMaps `kshuttle-server-*`",
        114 => "the server cannot be unpacked",
        115 => "there is no memory for the server",
        116 => "the node does not execute programs from memory; use --image",
        137 => "it was killed, perhaps for its memory",
        _ => return String::new(),
    };
    format!(": {meaning}")
}

#[cfg(test)]
mod tests;
