//! What is left of sessions that are over: their pods, and the programs that no pod runs.
//!
//! A pod belongs to its owner's next start when it has ended, or when its session is certainly dead; pods of others and
//! of sessions that may live are never touched. Programs belong to everybody: they go only when somebody asks
//! (`kshuttle cleanup`), since a person who may not bring them may need them.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Preconditions};

use super::super::api_error::{ApiError, ask, ask_within};
use super::super::client::Cluster;
use super::{DELETE_TIME_MAX, OWNER_ANNOTATION, SESSION_ANNOTATION, delete};

/// Objects looked at in one go. Whoever leaves more behind finds the rest the next time.
const LIST_MAX: u32 = 500;
/// A program that is younger may be one that a session has just brought and is about to use.
const PROGRAM_AGE_MIN: Duration = Duration::from_secs(10 * 60);
/// Our pods.
const PODS: &str = "app.kubernetes.io/name=kshuttle,app.kubernetes.io/component=sshd";
/// Our programs in ConfigMaps.
const PROGRAMS: &str = "app.kubernetes.io/name=kshuttle,app.kubernetes.io/component=server";

/// A pod of ours, and why it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundPod {
    /// Its name.
    pub name: String,
    uid: String,
    /// What is known about it.
    pub state: PodState,
}

/// What is known about a pod of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// Of the same owner, and its server has ended.
    Ended,
    /// Of the same owner, and the process that made it is gone.
    SessionDead,
    /// Of the same owner; its session may live, here or elsewhere.
    MayLive,
    /// Of somebody else.
    Others(String),
}

impl PodState {
    /// Whether the owner may delete it without asking.
    pub fn is_left_over(&self) -> bool {
        matches!(self, Self::Ended | Self::SessionDead)
    }
}

/// A ConfigMap with a part of a program that no pod runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedProgram {
    /// Its name.
    pub name: String,
    uid: String,
}

/// Our pods in the cluster's namespace. `is_over` says of a session's name and a pod's uid whether nobody uses the pod any
/// more, certainly.
///
/// # Errors
/// When they may not be listed, or the API server does not answer.
pub async fn pods(
    cluster: &Cluster,
    owner: &str,
    is_over: impl Fn(&str, &str) -> bool,
) -> Result<Vec<FoundPod>, ApiError> {
    let found = list_pods(cluster).await?;
    Ok(found.iter().filter_map(|pod| found_pod(pod, owner, &is_over)).collect())
}

/// Deletes pods that `owner` left behind; how many. It is housekeeping: what is not allowed or does not answer stays,
/// and nobody is bothered.
pub async fn reap(cluster: &Cluster, owner: &str, is_over: impl Fn(&str, &str) -> bool) -> usize {
    let found = match pods(cluster, owner, is_over).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "left-over pods are not readable");
            return 0;
        }
    };
    let mut reaped = 0;
    for pod in found.iter().filter(|pod| pod.state.is_left_over()) {
        match delete_pod(cluster, pod).await {
            Ok(()) => {
                tracing::info!(pod = pod.name, state = ?pod.state, "removed a left-over pod");
                reaped += 1;
            }
            Err(error) => {
                tracing::debug!(%error, "a left-over pod stays");
                break;
            }
        }
    }
    reaped
}

/// Deletes exactly this pod.
///
/// # Errors
/// When the API server refuses or does not answer in time.
pub async fn delete_pod(cluster: &Cluster, pod: &FoundPod) -> Result<(), ApiError> {
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    delete(&api, &pod.name, &pod.uid).await
}

/// The programs in the namespace that no pod, of whomever and however it is, mounts.
///
/// # Errors
/// When ConfigMaps or pods may not be listed, or the API server does not answer.
pub async fn unused_programs(cluster: &Cluster) -> Result<Vec<UnusedProgram>, ApiError> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    // Before the pods: a pod that is made meanwhile is seen, and what it uses is spared.
    let programs = ask(api.list_metadata(&ListParams::default().labels(PROGRAMS).limit(LIST_MAX))).await?;
    let used: BTreeSet<String> = list_pods(cluster).await?.iter().flat_map(mounts).collect();
    let now = Timestamp::now();
    let unused = programs.items.into_iter().filter_map(|program| {
        let (name, uid) = (program.metadata.name?, program.metadata.uid?);
        let old = is_older(program.metadata.creation_timestamp.as_ref(), now);
        (old && !used.contains(&name)).then_some(UnusedProgram { name, uid })
    });
    Ok(unused.collect())
}

/// Deletes exactly this ConfigMap.
///
/// # Errors
/// When the API server refuses or does not answer in time.
pub async fn delete_program(cluster: &Cluster, program: &UnusedProgram) -> Result<(), ApiError> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    let same = Preconditions { uid: Some(program.uid.clone()), resource_version: None };
    let parameters = DeleteParams::default().preconditions(same);
    match ask_within(DELETE_TIME_MAX, api.delete(&program.name, &parameters)).await {
        Ok(_) | Err(ApiError::NotFound(_) | ApiError::Other { code: 409, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn list_pods(cluster: &Cluster) -> Result<Vec<Pod>, ApiError> {
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    let ours = ListParams::default().labels(PODS).limit(LIST_MAX);
    Ok(ask_within(DELETE_TIME_MAX, api.list(&ours)).await?.items)
}

/// None for a pod that is going already.
fn found_pod(pod: &Pod, owner: &str, is_over: impl Fn(&str, &str) -> bool) -> Option<FoundPod> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let annotation =
        |name| pod.metadata.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let whose = annotation(OWNER_ANNOTATION).unwrap_or("nobody");
    let uid = pod.metadata.uid.clone()?;
    let state = if whose != owner {
        PodState::Others(whose.to_owned())
    } else if matches!(phase, Some("Succeeded" | "Failed")) {
        PodState::Ended
    } else if annotation(SESSION_ANNOTATION).is_some_and(|session| is_over(session, &uid)) {
        PodState::SessionDead
    } else {
        PodState::MayLive
    };
    Some(FoundPod { name: pod.metadata.name.clone()?, uid, state })
}

/// Names of the ConfigMaps that a pod projects.
fn mounts(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sources = volumes
        .filter_map(|volume| volume.projected.as_ref())
        .flat_map(|projected| projected.sources.iter().flatten());
    sources.filter_map(|source| Some(source.config_map.as_ref()?.name.clone())).collect()
}

fn is_older(created: Option<&Time>, now: Timestamp) -> bool {
    created.is_some_and(|created| {
        now.duration_since(created.0).unsigned_abs() > PROGRAM_AGE_MIN && created.0 < now
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::fake_api::{Answer, FakeApi};
    use super::*;

    fn item(name: &str, owner: &str, session: &str, phase: &str) -> Value {
        let annotations = json!({"kshuttle.dev/owner": owner, "kshuttle.dev/session": session});
        json!({"metadata": {"name": name, "uid": name, "annotations": annotations}, "status": {"phase": phase},
               "spec": {"containers": [], "volumes": [{"name": "program", "projected": {"sources": [
                   {"configMap": {"name": format!("of-{name}")}}]}}]}})
    }

    fn list(items: &[Value]) -> Answer {
        Answer::ok(
            "GET /api/v1/namespaces/dev/pods?",
            json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
        )
    }

    #[tokio::test]
    async fn only_what_is_surely_left_of_the_same_owner_is_reaped() {
        let mut going = item("going", "ada@laptop", "dead", "Running");
        going["metadata"]["deletionTimestamp"] = "2026-11-21T15:00:00Z".into();
        let api = FakeApi::start([
            list(&[
                item("a", "ada@laptop", "live", "Succeeded"),
                item("b", "ada@laptop", "live", "Running"),
                item("c", "bob@laptop", "dead", "Failed"),
                item("d", "bob@laptop", "dead", "Running"),
                item("e", "ada@laptop", "dead", "Running"),
                item("f", "ada@laptop", "dead", "Pending"),
                item("g", "ada@laptop", "dead", "Running"),
                going,
            ]),
            Answer::ok("DELETE /api/v1/namespaces/dev/pods/a", json!({"kind": "Pod", "metadata": {}})),
            Answer::ok("DELETE /api/v1/namespaces/dev/pods/e", json!({"kind": "Pod", "metadata": {}})),
            Answer::ok("DELETE /api/v1/namespaces/dev/pods/f", json!({"kind": "Pod", "metadata": {}})),
            Answer::refusal("GET", 403, "Forbidden", "no list"),
        ])
        .await;
        assert_eq!(reap(&api.cluster, "ada@laptop", |session, pod| session == "dead" && pod != "g").await, 3);
        assert_eq!(reap(&api.cluster, "ada@laptop", |_, _| true).await, 0);
        assert_eq!(api.left(), 0);
    }

    #[tokio::test]
    async fn programs_that_a_pod_mounts_or_that_are_new_stay() {
        let program = |name: &str, created: String| json!({"metadata": {"name": name, "uid": name, "creationTimestamp": created}});
        let (old, new) = ("2020-01-01T00:00:00Z".to_owned(), Timestamp::now().to_string());
        let programs = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {},
            "items": [program("of-a", old.clone()), program("unused", old), program("brought-now", new)]});
        let api = FakeApi::start([
            Answer::ok("GET /api/v1/namespaces/dev/configmaps?", programs),
            list(&[item("a", "bob@laptop", "x", "Succeeded")]),
            Answer::ok(
                "DELETE /api/v1/namespaces/dev/configmaps/unused",
                json!({"kind": "ConfigMap", "metadata": {}}),
            ),
        ])
        .await;
        let unused = unused_programs(&api.cluster).await.unwrap();
        assert_eq!(unused.iter().map(|program| program.name.as_str()).collect::<Vec<_>>(), ["unused"]);
        delete_program(&api.cluster, &unused[0]).await.unwrap();
        assert_eq!(api.asked().last().unwrap().body["preconditions"]["uid"], "unused");
    }
}
