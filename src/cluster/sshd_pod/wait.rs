//! Follows a pod: until it runs, and until it has ended. What its status means is in `status.rs`.
//!
//! It is read once, then watched; where watching is not allowed it is read every second. Every way of not starting
//! that the status shows ends the waiting at once, with the kubelet's words. Meanwhile the pod's events are read: what
//! the kubelet tries again and again (a volume, the network) stands nowhere else.

use std::collections::BTreeSet;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::time::Instant;

use super::super::api_error::{ApiError, ask, ask_within};
use super::status::deleted_because;
pub use super::status::{StartFailure, State, judge};
use super::{PodError, SshdPod};

/// Between two readings while starting, where we may not watch or a watch ended; and between two of the events.
const READ_INTERVAL: Duration = Duration::from_secs(1);
/// The same for the rest of the pod's life, and while the API server is not there.
const LIFE_INTERVAL: Duration = Duration::from_secs(5);
/// A watch is renewed after this; the API server's own limit is 5 to 10 minutes.
const WATCH_SECONDS: u32 = 240;
/// Events are a bonus.
const EVENTS_TIME_MAX: Duration = Duration::from_secs(3);
/// The latest warnings that are told after a failure.
const EVENTS_MAX: usize = 3;
/// Events looked at in one go; a pod that starts has fewer than ten.
const EVENTS_READ_MAX: u32 = 50;
/// Who makes a node for a pod that has none says so: cluster-autoscaler, Karpenter, GKE.
const NODE_COMES: &[&str] = &["TriggeredScaleUp", "Nominated"];

/// Follows the pod until it runs.
pub(super) async fn until_running(pod: &SshdPod, mut report: impl FnMut(&str)) -> Result<(), PodError> {
    let limit = pod.start_time_max;
    let mut last = String::new();
    let mut progress = Progress {
        last: &mut last,
        report: &mut report,
        until: Until::Running,
        interval: READ_INTERVAL,
        unschedulable: None,
        patience: Some(pod.node_time_max),
        news: events(pod),
        told: BTreeSet::new(),
    };
    let failure = match tokio::time::timeout(limit, progress.follow(pod)).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(End::Failed(failure))) => failure,
        Ok(Err(End::Api(source))) => {
            return Err(PodError::Follow { pod: pod.name.clone(), namespace: pod.namespace.clone(), source });
        }
        Err(_) => StartFailure::Slow { limit, last: last + &warnings(pod).await },
    };
    Err(PodError::Start { pod: pod.name.clone(), namespace: pod.namespace.clone(), source: failure })
}

enum End {
    Failed(StartFailure),
    Api(ApiError),
}

/// Follows the pod until it has ended. Without an answer it does not know, and asks again.
pub(super) async fn until_ended(pod: &SshdPod) -> StartFailure {
    loop {
        let mut progress = Progress {
            last: &mut String::new(),
            report: &mut |_: &str| {},
            until: Until::Ended,
            interval: LIFE_INTERVAL,
            unschedulable: None,
            patience: None,
            news: stream::pending().boxed(),
            told: BTreeSet::new(),
        };
        match progress.follow(pod).await {
            Err(End::Failed(failure)) => return failure,
            Err(End::Api(error)) => tracing::debug!(%error, "cannot see whether the pod still runs"),
            Ok(()) => {}
        }
        tokio::time::sleep(LIFE_INTERVAL).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Running,
    Ended,
}

/// What was seen so far.
struct Progress<'a, R> {
    /// The last sentence reported.
    last: &'a mut String,
    report: &'a mut R,
    until: Until,
    /// Between a watch that ended and the next reading.
    interval: Duration,
    /// Since when no node takes it, and why.
    unschedulable: Option<(Instant, String)>,
    /// How long that may last.
    patience: Option<Duration>,
    /// The pod's events, again and again.
    news: Pin<Box<dyn Stream<Item = Vec<Event>> + Send>>,
    /// Events that were reported, as their words.
    told: BTreeSet<String>,
}

impl<R: FnMut(&str)> Progress<'_, R> {
    async fn follow(&mut self, pod: &SshdPod) -> Result<(), End> {
        let parameters =
            WatchParams::default().fields(&format!("metadata.name={}", pod.name)).timeout(WATCH_SECONDS);
        loop {
            let version = match ask(pod.api.get(&pod.name)).await {
                Ok(seen) if self.sees(pod, &seen)? => return Ok(()),
                Ok(seen) => seen.metadata.resource_version.unwrap_or_default(),
                Err(ApiError::NotFound(_)) => return Err(End::Failed(StartFailure::Deleted)),
                Err(error) => return Err(End::Api(error)),
            };
            match ask(pod.api.watch(&parameters, &version)).await {
                Ok(events) => {
                    if self.watches(pod, events).await? {
                        return Ok(());
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot watch the pod, reading it instead"),
            }
            self.pause().await?;
        }
    }

    /// Takes a new status in; true when the pod runs and that was waited for.
    fn sees(&mut self, pod: &SshdPod, seen: &Pod) -> Result<bool, End> {
        if seen.metadata.uid.as_deref() != Some(&pod.uid) {
            return Err(End::Failed(StartFailure::Deleted));
        }
        let sentence = match judge(seen) {
            State::Running => return Ok(self.until == Until::Running),
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
            let deadline = self.deadline();
            let next = tokio::select! {
                next = events.next() => next,
                Some(news) = self.news.next() => {
                    self.hears(&news);
                    continue;
                }
                () = sleep_until(deadline) => return Err(self.impatient()),
            };
            match next {
                Some(Ok(WatchEvent::Added(seen) | WatchEvent::Modified(seen))) => {
                    if self.sees(pod, &seen)? {
                        return Ok(true);
                    }
                }
                Some(Ok(WatchEvent::Deleted(last))) => return Err(End::Failed(deleted_because(&last))),
                Some(Ok(WatchEvent::Bookmark(_))) => {}
                // Too old a version, or a connection that broke: read it again.
                Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => return Ok(false),
            }
        }
    }

    async fn pause(&mut self) -> Result<(), End> {
        let over = Instant::now() + self.interval;
        loop {
            let deadline = self.deadline();
            tokio::select! {
                () = tokio::time::sleep_until(over) => return Ok(()),
                Some(news) = self.news.next() => self.hears(&news),
                () = sleep_until(deadline) => return Err(self.impatient()),
            }
        }
    }

    /// Reports what is new and worth knowing.
    fn hears(&mut self, news: &[Event]) {
        for event in news {
            let reason = event.reason.as_deref().unwrap_or("Event");
            let node_comes = NODE_COMES.contains(&reason);
            let worth = node_comes || reason == "Pulling" || event.type_.as_deref() == Some("Warning");
            // Its words stand in the pod's status, and were reported from there.
            if !worth || reason == "FailedScheduling" {
                continue;
            }
            let sentence = format!("{reason}: {}", event.message.as_deref().unwrap_or_default());
            if self.told.insert(sentence.clone()) {
                (self.report)(&sentence);
            }
            if node_comes {
                self.patience = None; // the whole time to start remains
            }
        }
    }

    /// When no node has taken the pod for too long.
    fn deadline(&self) -> Option<Instant> {
        let (since, _) = self.unschedulable.as_ref()?;
        Some(*since + self.patience?)
    }

    fn impatient(&self) -> End {
        let why = self.unschedulable.as_ref().map_or_else(String::new, |(_, why)| why.clone());
        End::Failed(StartFailure::Unschedulable(why))
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The pod's events, read every second; ends where we may not read them. A pod that starts quickly is not asked about.
fn events(pod: &SshdPod) -> Pin<Box<dyn Stream<Item = Vec<Event>> + Send>> {
    let api: Api<Event> = Api::namespaced(pod.api.clone().into_client(), &pod.namespace);
    let about =
        ListParams::default().fields(&format!("involvedObject.uid={}", pod.uid)).limit(EVENTS_READ_MAX);
    stream::unfold((api, about), |(api, about)| async {
        loop {
            tokio::time::sleep(READ_INTERVAL).await;
            match ask_within(EVENTS_TIME_MAX, api.list(&about)).await {
                Ok(list) => return Some((list.items, (api, about))),
                Err(ApiError::Timeout(_) | ApiError::Transport(_)) => {}
                Err(error) => {
                    tracing::debug!(%error, "the pod's events are not readable");
                    return None;
                }
            }
        }
    })
    .fuse()
    .boxed()
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
