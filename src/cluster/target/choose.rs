//! Which pod of several. Pure.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::Pod;

/// Pods that are named when none is ready; more would fill the screen.
const NAMED_MAX: usize = 5;

/// What a pod's status means to a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fitness {
    /// It ended and stays so.
    Ended,
    /// Not yet.
    Starting,
    /// It is being deleted, but its containers may still run.
    Ending,
    /// Its containers run, and its readiness probe says no.
    Running,
    /// It takes connections.
    Ready,
}

impl Fitness {
    fn words(self) -> &'static str {
        match self {
            Self::Ended => "ended",
            Self::Starting => "starting",
            Self::Ending => "being deleted",
            Self::Running => "not ready",
            Self::Ready => "ready",
        }
    }
}

/// Reads a pod's status.
pub fn fitness(pod: &Pod) -> Fitness {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    match status.and_then(|status| status.phase.as_deref()) {
        Some("Succeeded" | "Failed") => Fitness::Ended,
        Some("Running") if pod.metadata.deletion_timestamp.is_some() => Fitness::Ending,
        Some("Running") if conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True") => {
            Fitness::Ready
        }
        Some("Running") => Fitness::Running,
        _ => Fitness::Starting,
    }
}

/// The newest ready pod; `avoid` (a uid) only when there is no other.
///
/// # Errors
/// In words, what the pods are instead of ready.
pub fn choose<'a>(pods: &'a [Pod], avoid: Option<&str>) -> Result<&'a Pod, String> {
    pods.iter()
        .filter(|pod| fitness(pod) == Fitness::Ready)
        .max_by_key(|pod| {
            let metadata = &pod.metadata;
            let avoided = avoid.is_some() && metadata.uid.as_deref() == avoid;
            (Reverse(avoided), metadata.creation_timestamp.clone(), Reverse(metadata.name.clone()))
        })
        .ok_or_else(|| describe(pods))
}

fn describe(pods: &[Pod]) -> String {
    if pods.is_empty() {
        return "there is none".to_owned();
    }
    let words = pods.iter().take(NAMED_MAX).map(|pod| {
        format!("{} is {}", pod.metadata.name.as_deref().unwrap_or_default(), fitness(pod).words())
    });
    let more =
        if pods.len() > NAMED_MAX { format!(", and {} more", pods.len() - NAMED_MAX) } else { String::new() };
    words.collect::<Vec<_>>().join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, minute: u8, phase: &str, ready: bool, deleted: bool) -> Pod {
        let time = format!("2026-01-01T00:{minute:02}:00Z");
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "uid": format!("uid-{name}"), "creationTimestamp": time,
                "deletionTimestamp": deleted.then_some("2026-01-02T00:00:00Z")
            },
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}
        }))
        .unwrap()
    }

    fn chosen<'a>(pods: &'a [Pod], avoid: Option<&str>) -> Option<&'a str> {
        choose(pods, avoid).ok()?.metadata.name.as_deref()
    }

    #[test]
    fn the_newest_ready_pod_that_stays() {
        let pods = [
            pod("old", 1, "Running", true, false),
            pod("new", 3, "Running", true, false),
            pod("going", 4, "Running", true, true),
            pod("unready", 5, "Running", false, false),
            pod("starting", 6, "Pending", false, false),
            pod("evicted", 7, "Failed", true, false),
        ];
        assert_eq!(chosen(&pods, None), Some("new"));
        assert_eq!(chosen(&pods, Some("uid-new")), Some("old"));
        assert_eq!(chosen(&pods[..1], Some("uid-old")), Some("old"), "better than none");
        assert_eq!(
            choose(&pods[2..], None).unwrap_err(),
            "going is being deleted, unready is not ready, starting is starting, evicted is ended"
        );
        assert_eq!(choose(&[], None).unwrap_err(), "there is none");
    }

    #[test]
    fn equal_ages_are_decided_the_same_way_every_time() {
        let mut pods = vec![pod("b", 1, "Running", true, false), pod("a", 1, "Running", true, false)];
        assert_eq!(chosen(&pods, None), Some("a"));
        pods.reverse();
        assert_eq!(chosen(&pods, None), Some("a"));
    }

    #[test]
    fn long_lists_are_cut() {
        let pods: Vec<_> = (0..7).map(|i| pod(&format!("p{i}"), i, "Pending", false, false)).collect();
        let words = choose(&pods, None).unwrap_err();
        assert!(words.ends_with("p4 is starting, and 2 more"), "{words}");
    }
}
