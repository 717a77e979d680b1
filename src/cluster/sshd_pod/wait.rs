//! From created to running: what the pod's status means ([`judge`], pure) and how it is followed.
//!
//! It is read once, then watched; where watching is not allowed it is read every second. Every way of not starting
//! that the status shows ends the waiting at once, with the kubelet's words.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Event, Pod};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::time::Instant;

use super::super::api_error::{ApiError, ask, ask_within};
use super::manifest::CONTAINER;
use super::{PodError, SshdPod};

/// Between two readings, where we may not watch or a watch ended.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// A watch is renewed after this; the API server's own limit is 5 to 10 minutes.
const WATCH_SECONDS: u32 = 240;
/// Of the whole time to start, the share for which a pod may have no node: nodes that are being added need some
/// time, and a full cluster should not cost all of it. 20 s of 60 s.
const UNSCHEDULABLE_SHARE: u32 = 3;
/// Events are a bonus after a failure.
const EVENTS_TIME_MAX: Duration = Duration::from_secs(3);
/// The latest warnings that are told.
const EVENTS_MAX: usize = 3;

/// Why a pod does not run.
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
        return State::Failed(StartFailure::Deleted);
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

/// Follows the pod until it runs.
pub(super) async fn until_running(pod: &SshdPod, mut report: impl FnMut(&str)) -> Result<(), PodError> {
    let mut last = String::new();
    let limit = pod.start_time_max;
    let follow = follow(pod, &mut last, &mut report);
    let failure = match tokio::time::timeout(limit, follow).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(End::Failed(failure))) => failure,
        Ok(Err(End::Api(source))) => {
            return Err(PodError::Follow { pod: pod.name.clone(), namespace: pod.namespace.clone(), source });
        }
        Err(_) => StartFailure::Slow { limit, last: last + &warnings(pod).await },
    };
    Err(PodError::Start { pod: pod.name.clone(), source: failure })
}

enum End {
    Failed(StartFailure),
    Api(ApiError),
}

async fn follow(pod: &SshdPod, last: &mut String, report: &mut impl FnMut(&str)) -> Result<(), End> {
    let mut progress =
        Progress { last, report, unschedulable: None, patience: pod.start_time_max / UNSCHEDULABLE_SHARE };
    let parameters =
        WatchParams::default().fields(&format!("metadata.name={}", pod.name)).timeout(WATCH_SECONDS);
    loop {
        let version = match ask(pod.api.get(&pod.name)).await {
            Ok(seen) if progress.sees(pod, &seen)? => return Ok(()),
            Ok(seen) => seen.metadata.resource_version.unwrap_or_default(),
            Err(ApiError::NotFound(_)) => return Err(End::Failed(StartFailure::Deleted)),
            Err(error) => return Err(End::Api(error)),
        };
        match ask(pod.api.watch(&parameters, &version)).await {
            Ok(events) => {
                if progress.watches(pod, events).await? {
                    return Ok(());
                }
            }
            Err(error) => tracing::debug!(%error, "cannot watch the pod, reading it instead"),
        }
        progress.pause().await?;
    }
}

/// What was seen so far.
struct Progress<'a, R> {
    /// The last sentence reported.
    last: &'a mut String,
    report: &'a mut R,
    /// Since when no node takes it, and why.
    unschedulable: Option<(Instant, String)>,
    /// How long that may last.
    patience: Duration,
}

impl<R: FnMut(&str)> Progress<'_, R> {
    /// Takes a new status in; true when the pod runs.
    fn sees(&mut self, pod: &SshdPod, seen: &Pod) -> Result<bool, End> {
        if seen.metadata.uid.as_deref() != Some(&pod.uid) {
            return Err(End::Failed(StartFailure::Deleted));
        }
        let sentence = match judge(seen) {
            State::Running => return Ok(true),
            State::Failed(failure) => return Err(End::Failed(failure)),
            State::Waiting(what) => {
                self.unschedulable = None;
                format!("waiting {what}")
            }
            State::Unschedulable(why) => {
                let since = self.unschedulable.as_ref().map_or_else(Instant::now, |(since, _)| *since);
                let sentence = format!("waiting for a node: {why}");
                self.unschedulable = Some((since, why));
                sentence
            }
        };
        if *self.last != sentence {
            (self.report)(&sentence);
            *self.last = sentence;
        }
        Ok(false)
    }

    /// True when the pod runs, false when the watch ended before.
    async fn watches(
        &mut self,
        pod: &SshdPod,
        events: impl futures::Stream<Item = kube::Result<WatchEvent<Pod>>>,
    ) -> Result<bool, End> {
        let mut events = pin!(events);
        loop {
            let next = tokio::select! {
                next = events.next() => next,
                end = self.impatience() => return Err(end),
            };
            match next {
                Some(Ok(WatchEvent::Added(seen) | WatchEvent::Modified(seen))) => {
                    if self.sees(pod, &seen)? {
                        return Ok(true);
                    }
                }
                Some(Ok(WatchEvent::Deleted(_))) => return Err(End::Failed(StartFailure::Deleted)),
                Some(Ok(WatchEvent::Bookmark(_))) => {}
                // Too old a version, or a connection that broke: read it again.
                Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => return Ok(false),
            }
        }
    }

    async fn pause(&self) -> Result<(), End> {
        tokio::select! {
            () = tokio::time::sleep(READ_INTERVAL) => Ok(()),
            end = self.impatience() => Err(end),
        }
    }

    /// Ends when no node has taken the pod for too long.
    async fn impatience(&self) -> End {
        match &self.unschedulable {
            Some((since, why)) => {
                tokio::time::sleep_until(*since + self.patience).await;
                End::Failed(StartFailure::Unschedulable(why.clone()))
            }
            None => std::future::pending().await,
        }
    }
}

/// The latest warnings about the pod, if we may read them: why a volume is not mounted stands nowhere else.
async fn warnings(pod: &SshdPod) -> String {
    let api: Api<Event> = Api::namespaced(pod.api.clone().into_client(), &pod.namespace);
    let about = ListParams::default().fields(&format!("involvedObject.uid={},type=Warning", pod.uid));
    match ask_within(EVENTS_TIME_MAX, api.list(&about)).await {
        Ok(list) => {
            let words = list.items.iter().rev().take(EVENTS_MAX).filter_map(|event| event.message.as_deref());
            words.fold(String::new(), |all, words| all + "; " + words)
        }
        Err(error) => {
            tracing::debug!(%error, "the pod's events are not readable");
            String::new()
        }
    }
}
