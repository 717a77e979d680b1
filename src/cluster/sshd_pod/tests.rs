use std::time::Duration;

use serde_json::{Value, json};

use super::super::delivery::Payload;
use super::super::fake_api::{Answer, FakeApi};
use super::wait::StartFailure;
use super::*;

const PODS: &str = "/api/v1/namespaces/dev/pods";

fn options(program: Program) -> PodOptions {
    PodOptions {
        program,
        run_as: RunAs::Default,
        authorized_key: "ssh-ed25519 AAAA session".to_owned(),
        idle: Duration::from_secs(300),
        owner: "ada@laptop".to_owned(),
        session: "1b2c".to_owned(),
        start_time_max: START_TIME_MAX,
        node_time_max: NODE_TIME_MAX,
        pull_policy: None,
        patch: None,
    }
}

fn image() -> PodOptions {
    options(Program::Image("example.org/sshd:1".to_owned()))
}

/// Pod `kshuttle-x` in this state.
pub(super) fn pod(status: Value) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "kshuttle-x", "namespace": "dev", "uid": "u1", "resourceVersion": "7"},
        "spec": {"nodeName": "n1", "containers": []}, "status": status
    })
}

pub(super) fn container(state: Value) -> Value {
    json!({"phase": "Pending", "containerStatuses": [{
        "name": "sshd", "image": "example.org/sshd:1", "imageID": "", "ready": false, "restartCount": 0,
        "state": state
    }]})
}

pub(super) fn waiting(reason: &str, message: &str) -> Value {
    container(json!({"waiting": {"reason": reason, "message": message}}))
}

pub(super) fn unschedulable() -> Value {
    json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"
    }]})
}

pub(super) fn running() -> Value {
    let mut status = container(json!({"running": {}}));
    status["phase"] = "Running".into();
    status
}

/// What the API server would do.
const REHEARSAL: &str = "POST /api/v1/namespaces/dev/pods?&dryRun=All";

fn rehearsed() -> Answer {
    Answer::ok(REHEARSAL, pod(json!({})))
}

fn created() -> Answer {
    Answer::ok("POST /api/v1/namespaces/dev/pods?", pod(json!({})))
}

async fn start(script: Vec<Answer>) -> (FakeApi, SshdPod) {
    let api = FakeApi::start([rehearsed(), created()].into_iter().chain(script)).await;
    let pod = create(&api.cluster, &image(), |_| {}).await.unwrap();
    (api, pod)
}

fn start_failure(error: PodError) -> StartFailure {
    match error {
        PodError::Start { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_program_is_delivered_and_the_choice_of_image_told() {
    let payload = Payload::for_test(4);
    let api = FakeApi::start([
        Answer::refusal("GET /api/v1/nodes", 403, "Forbidden", "nodes is forbidden"),
        Answer::refusal("GET /api/v1/namespaces/dev/pods", 403, "Forbidden", "pods is forbidden"),
        rehearsed(),
        Answer::ok("GET /api/v1/namespaces/dev/configmaps", json!({"metadata": {}})),
        Answer::ok("GET /api/v1/namespaces/dev/configmaps", json!({"metadata": {}})),
        Answer::ok("GET /api/v1/namespaces/dev/configmaps", payload.loader_object()),
        created(),
    ])
    .await;
    let mut said = Vec::new();
    let program = Program::Delivered { payload, carrier: None };
    let pod = create(&api.cluster, &options(program), |line| said.push(line.to_owned())).await.unwrap();
    assert_eq!((pod.name(), pod.namespace(), pod.uid()), ("kshuttle-x", "dev", "u1"));
    assert_eq!(said.len(), 1);
    assert!(
        said[0].starts_with("the pod is made of image registry.k8s.io/pause:3.10 (a well-known one"),
        "{said:?}"
    );
    let asked = api.asked();
    let sent = asked.last().unwrap().body["spec"].clone();
    assert_eq!(asked[2].line, REHEARSAL, "before anything is left there");
    assert_eq!(asked[2].body["spec"], sent, "what is rehearsed is what is created");
    assert_eq!(sent["containers"][0]["imagePullPolicy"], "IfNotPresent");
    assert_eq!(sent["securityContext"]["runAsUser"], 65532);
}

#[tokio::test]
async fn openshift_assigns_the_user_itself() {
    let refusal = "pods \"kshuttle-\" is forbidden: unable to validate against any security context constraint: \
                   [provider restricted-v2: .containers[0].runAsUser: Invalid value: 65532: must be in the ranges]";
    let api =
        FakeApi::start([Answer::refusal(REHEARSAL, 403, "Forbidden", refusal), rehearsed(), created()]).await;
    let mut said = Vec::new();
    create(&api.cluster, &image(), |line| said.push(line.to_owned())).await.unwrap();
    assert!(said[0].contains("OpenShift"), "{said:?}");
    let asked = api.asked();
    assert_eq!(asked[0].body["spec"]["securityContext"]["runAsUser"], 65532);
    assert_eq!(asked[1].body["spec"]["securityContext"]["runAsUser"], Value::Null);
    assert_eq!(asked[2].body["spec"]["securityContext"]["runAsUser"], Value::Null);

    // A user that was asked for is not exchanged behind one's back.
    let api = FakeApi::start([Answer::refusal("POST", 403, "Forbidden", refusal)]).await;
    let mut own = image();
    own.run_as = RunAs::Uid(1000);
    let error = create(&api.cluster, &own, |_| {}).await.unwrap_err();
    assert!(matches!(error.api_error(), Some(ApiError::Policy(_))), "{error:?}");
}

#[tokio::test]
async fn refusals_keep_their_kind() {
    let right = "pods is forbidden: User \"eve\" cannot create resource \"pods\" in API group \"\" in the namespace \"dev\"";
    let api = FakeApi::start([Answer::refusal("POST", 403, "Forbidden", right)]).await;
    let error = create(&api.cluster, &image(), |_| {}).await.unwrap_err();
    assert!(error.role_yaml().unwrap().contains("name: \"eve\""));
    assert_eq!(error.to_string(), "cannot create a pod in namespace `dev`");

    let quota = "pods \"x\" is forbidden: exceeded quota: q, requested: pods=1";
    let api = FakeApi::start([Answer::refusal("POST", 403, "Forbidden", quota)]).await;
    let error = create(&api.cluster, &image(), |_| {}).await.unwrap_err();
    assert!(matches!(error.api_error(), Some(ApiError::Quota(_))) && error.role_yaml().is_none());
}

#[tokio::test]
async fn the_start_is_followed_by_one_watch() {
    let (api, pod_) = start(vec![
        Answer::ok("GET /api/v1/namespaces/dev/pods/kshuttle-x", pod(json!({"phase": "Pending"}))),
        Answer::watch(
            "GET /api/v1/namespaces/dev/pods?",
            vec![
                ("MODIFIED", pod(waiting("ContainerCreating", ""))),
                (
                    "BOOKMARK",
                    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "8"}}),
                ),
                ("MODIFIED", pod(waiting("ContainerCreating", ""))),
                ("MODIFIED", pod(running())),
            ],
            true,
        ),
    ])
    .await;
    let mut said = Vec::new();
    pod_.wait_running(|line| said.push(line.to_owned())).await.unwrap();
    assert_eq!(
        said,
        ["waiting for node n1 to take it", "waiting for its container (image example.org/sshd:1)"]
    );
    let watch = &api.asked()[3].line;
    assert!(
        watch.contains("fieldSelector=metadata.name%3Dkshuttle-x") && watch.contains("resourceVersion=7"),
        "{watch}"
    );
    assert!(watch.starts_with(&format!("GET {PODS}?")), "{watch}");
}

#[tokio::test]
async fn a_watch_that_ends_or_is_forbidden_is_no_end() {
    let get = "GET /api/v1/namespaces/dev/pods/kshuttle-x";
    let gone =
        json!({"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "old"});
    let (api, pod_) = start(vec![
        Answer::ok(get, pod(json!({"phase": "Pending"}))),
        Answer::watch("GET /api/v1/namespaces/dev/pods?", vec![("ERROR", gone)], false),
        Answer::ok(get, pod(json!({"phase": "Pending"}))),
        Answer::refusal("GET /api/v1/namespaces/dev/pods?", 403, "Forbidden", "no watch"),
        Answer::ok(get, pod(running())),
    ])
    .await;
    pod_.wait_running(|_| {}).await.unwrap();
    assert_eq!(api.left(), 0);
}

#[tokio::test]
async fn deletion_and_a_stranger_of_the_same_name_end_the_waiting() {
    let get = "GET /api/v1/namespaces/dev/pods/kshuttle-x";
    let (_api, pod_) = start(vec![
        Answer::ok(get, pod(json!({"phase": "Pending"}))),
        Answer::watch("GET /api/v1/namespaces/dev/pods?", vec![("DELETED", pod(json!({})))], true),
    ])
    .await;
    assert_eq!(start_failure(pod_.wait_running(|_| {}).await.unwrap_err()), StartFailure::Deleted);

    let mut other = pod(running());
    other["metadata"]["uid"] = "u2".into();
    let (_api, pod_) = start(vec![Answer::ok(get, other)]).await;
    assert_eq!(start_failure(pod_.wait_running(|_| {}).await.unwrap_err()), StartFailure::Deleted);
}

#[tokio::test]
async fn the_end_of_a_running_pod_is_seen() {
    let ended = container(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}));
    let (api, pod_) = start(vec![
        Answer::ok("GET /api/v1/namespaces/dev/pods/kshuttle-x", pod(running())),
        Answer::watch(
            "GET /api/v1/namespaces/dev/pods?",
            vec![("MODIFIED", pod(running())), ("MODIFIED", pod(ended))],
            true,
        ),
    ])
    .await;
    let end = pod_.ended().await.to_string();
    assert_eq!(end, "its program ended with status 137: it was killed, perhaps for its memory");
    assert_eq!(api.left(), 0);
}

#[tokio::test]
async fn a_full_cluster_does_not_cost_all_of_the_time() {
    let mut script = vec![Answer::ok("GET /api/v1/namespaces/dev/pods/kshuttle-x", pod(unschedulable()))];
    script.push(Answer::watch("GET /api/v1/namespaces/dev/pods?", vec![], true));
    let api = FakeApi::start([rehearsed(), created()].into_iter().chain(script)).await;
    let mut quick = image();
    quick.node_time_max = Duration::from_millis(300);
    let pod_ = create(&api.cluster, &quick, |_| {}).await.unwrap();
    let failure = start_failure(pod_.wait_running(|_| {}).await.unwrap_err());
    assert_eq!(failure, StartFailure::Unschedulable("0/1 nodes are available".to_owned()));
}

#[tokio::test]
async fn a_node_that_is_being_made_is_worth_all_of_the_time() {
    let event = json!({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": [
        {"metadata": {}, "involvedObject": {}, "type": "Normal", "reason": "TriggeredScaleUp", "message": "1->2"},
        {"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": "FailedScheduling", "message": "0/1"},
        {"metadata": {}, "involvedObject": {}, "type": "Normal", "reason": "Scheduled", "message": "to n1"},
        {"metadata": {}, "involvedObject": {}, "type": "Warning", "reason": "FailedMount", "message": "no such map"}]});
    let api = FakeApi::start([
        rehearsed(),
        created(),
        Answer::ok("GET /api/v1/namespaces/dev/pods/kshuttle-x", pod(unschedulable())),
        Answer::watch("GET /api/v1/namespaces/dev/pods?", vec![], true),
        Answer::ok("GET /api/v1/namespaces/dev/events", event),
    ])
    .await;
    let mut quick = image();
    quick.node_time_max = Duration::from_millis(1500);
    quick.start_time_max = Duration::from_millis(2500);
    let pod_ = create(&api.cluster, &quick, |_| {}).await.unwrap();
    let mut said = Vec::new();
    let failure = start_failure(pod_.wait_running(|line| said.push(line.to_owned())).await.unwrap_err());
    assert!(matches!(failure, StartFailure::Slow { .. }), "{failure:?}");
    assert_eq!(
        said,
        ["waiting for a node: 0/1 nodes are available", "TriggeredScaleUp: 1->2", "FailedMount: no such map"]
    );
}

#[tokio::test]
async fn a_webhook_that_cannot_rehearse_is_no_refusal() {
    let words = "admission webhook \"mesh.example.org\" does not support dry run";
    let api = FakeApi::start([Answer::refusal(REHEARSAL, 400, "BadRequest", words), created()]).await;
    create(&api.cluster, &image(), |_| {}).await.unwrap();
    assert_eq!(api.left(), 0);
}

#[tokio::test]
async fn what_is_refused_leaves_nothing_behind() {
    let words = "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\": seccompProfile";
    let nodes = Answer::refusal("GET", 403, "Forbidden", "no nodes");
    let pods = Answer::refusal("GET", 403, "Forbidden", "no pods");
    let api = FakeApi::start([nodes, pods, Answer::refusal(REHEARSAL, 403, "Forbidden", words)]).await;
    let program = Program::Delivered { payload: Payload::for_test(4), carrier: None };
    let error = create(&api.cluster, &options(program), |_| {}).await.unwrap_err();
    assert!(matches!(error.api_error(), Some(ApiError::Policy(_))), "{error:?}");
    assert_eq!(api.asked().len(), 3, "no ConfigMap was made");
}

#[tokio::test]
async fn the_patch_is_in_what_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("patch.yaml");
    std::fs::write(&file, "spec: {priorityClassName: low}").unwrap();
    let mut own = image();
    own.patch = Some(patch::PodPatch::read(&file).unwrap());
    own.pull_policy = Some("always".parse().unwrap());
    let api = FakeApi::start([rehearsed(), created()]).await;
    create(&api.cluster, &own, |_| {}).await.unwrap();
    for asked in api.asked() {
        assert_eq!(asked.body["spec"]["priorityClassName"], "low");
        assert_eq!(asked.body["spec"]["containers"][0]["imagePullPolicy"], "Always");
    }
    std::fs::write(&file, "spec: {hostNetwork: true}").unwrap();
    own.patch = Some(patch::PodPatch::read(&file).unwrap());
    let error = create(&api.cluster, &own, |_| {}).await.unwrap_err();
    assert!(matches!(error, PodError::Patch(_)), "{error:?}");
}

#[tokio::test]
async fn too_slow_says_for_what_it_waited_and_what_the_events_say() {
    let events = json!({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": [
        {"metadata": {}, "involvedObject": {}, "message": "MountVolume.SetUp failed"}]});
    let api = FakeApi::start([
        rehearsed(),
        created(),
        Answer::ok("GET /api/v1/namespaces/dev/pods/kshuttle-x", pod(waiting("ContainerCreating", ""))),
        Answer::watch("GET /api/v1/namespaces/dev/pods?", vec![], true),
        Answer::ok("GET /api/v1/namespaces/dev/events", events),
    ])
    .await;
    let mut quick = image();
    quick.start_time_max = Duration::from_millis(300);
    let pod_ = create(&api.cluster, &quick, |_| {}).await.unwrap();
    let words = start_failure(pod_.wait_running(|_| {}).await.unwrap_err()).to_string();
    assert!(words.contains("for its container") && words.ends_with("; MountVolume.SetUp failed"), "{words}");
}

#[tokio::test]
async fn deleting_names_the_uid_and_forgives_what_is_gone() {
    let delete = "DELETE /api/v1/namespaces/dev/pods/kshuttle-x";
    let (api, pod_) = start(vec![
        Answer::ok(delete, pod(json!({}))),
        Answer::refusal(delete, 404, "NotFound", "pods \"kshuttle-x\" not found"),
        Answer::refusal(delete, 409, "Conflict", "the UID in the precondition (u1) does not match"),
        Answer::refusal(delete, 500, "InternalError", "broken"),
    ])
    .await;
    for _ in 0..3 {
        pod_.delete().await.unwrap();
    }
    assert!(matches!(pod_.delete().await, Err(PodError::Delete { .. })));
    let body = &api.asked()[2].body;
    assert_eq!((&body["preconditions"]["uid"], &body["gracePeriodSeconds"]), (&json!("u1"), &json!(1)));
}
