use serde_json::json;

use super::*;
use crate::cluster::fake_api::{Answer, FakeApi, golden};

const PATH: &str = "/api/v1/namespaces/dev/configmaps";

fn metadata(when: &'static str) -> Answer {
    Answer::ok(when, json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {}}))
}

fn missing(when: &'static str) -> Answer {
    Answer::refusal(when, 404, "NotFound", "configmaps \"x\" not found")
}

#[test]
fn parts_are_named_by_the_content_of_the_whole() {
    let payload = Payload::for_test(PART_BYTES + 1);
    let objects = payload.objects();
    let names: Vec<&str> = objects.iter().map(name_of).collect();
    assert_eq!(
        names,
        [
            "kshuttle-loader-2f881d0368b676e4",
            "kshuttle-server-fc693704421f5df2-0",
            "kshuttle-server-fc693704421f5df2-1"
        ]
    );
    let sizes: Vec<usize> = objects
        .iter()
        .map(|object| object.binary_data.as_ref().unwrap().values().map(|bytes| bytes.0.len()).sum())
        .collect();
    assert_eq!(sizes, [20, PART_BYTES, 1]);
    assert!(objects.iter().all(|object| object.immutable == Some(true)));
    assert!(serde_json::to_vec(&objects[1]).unwrap().len() < 1_500_000, "etcd refuses larger requests");
}

#[test]
fn a_small_object_in_full() {
    golden("configmaps.json", &Payload::for_test(4).objects());
}

#[tokio::test]
async fn what_is_there_is_not_sent_again() {
    let payload = Payload::for_test(4);
    let api = FakeApi::start([
        metadata("GET /api/v1/namespaces/dev/configmaps/kshuttle-loader"),
        metadata("GET /api/v1/namespaces/dev/configmaps/kshuttle-server"),
        Answer::ok("GET /api/v1/namespaces/dev/configmaps/kshuttle-loader", payload.loader_object()),
    ])
    .await;
    let delivered = deliver(&api.cluster, &payload, |said| panic!("{said}")).await.unwrap();
    assert_eq!(delivered.config_maps.len(), 2);
    assert_eq!(delivered.config_maps[1].1, "server.0");
    assert_eq!((delivered.sha256.len(), delivered.architecture), (64, "amd64"));
    assert!(api.asked()[0].accept.contains("PartialObjectMetadata"), "{:?}", api.asked()[0]);
    assert_eq!(api.left(), 0);
}

#[tokio::test]
async fn what_is_missing_is_made_and_a_faster_one_is_no_error() {
    let payload = Payload::for_test(4);
    let api = FakeApi::start([
        missing("GET /api/v1/namespaces/dev/configmaps/kshuttle-loader"),
        Answer::refusal("POST", 409, "AlreadyExists", "configmaps \"x\" already exists"),
        missing("GET /api/v1/namespaces/dev/configmaps/kshuttle-server"),
        Answer::ok("POST", json!({"metadata": {"name": "x"}})),
        Answer::ok("GET /api/v1/namespaces/dev/configmaps/kshuttle-loader", payload.loader_object()),
    ])
    .await;
    let mut said = Vec::new();
    deliver(&api.cluster, &payload, |line| said.push(line.to_owned())).await.unwrap();
    assert_eq!(said, ["uploading the pod's program, 1 kB, once per namespace"]);
    let posted = &api.asked()[3];
    assert!(posted.line.starts_with(&format!("POST {PATH}")), "{posted:?}");
    assert_eq!(posted.body["immutable"], true);
    assert_eq!(posted.body["binaryData"]["server.0"], "H4sHBw==");
}

#[tokio::test]
async fn another_loader_under_our_name_is_refused() {
    let payload = Payload::for_test(4);
    let mut changeable = payload.loader_object();
    changeable["immutable"] = json!(false);
    let mut other = payload.loader_object();
    other["binaryData"]["loader"] = json!("AAAA");
    for found in [changeable, other] {
        let api = FakeApi::start([
            metadata("GET /api/v1/namespaces/dev/configmaps/kshuttle-loader"),
            metadata("GET /api/v1/namespaces/dev/configmaps/kshuttle-server"),
            Answer::ok("GET /api/v1/namespaces/dev/configmaps/kshuttle-loader", found),
        ])
        .await;
        let error = deliver(&api.cluster, &payload, |_| {}).await.unwrap_err();
        assert!(matches!(error, DeliveryError::Altered { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_missing_right_leads_to_the_role() {
    let api = FakeApi::start([Answer::refusal(
        "GET",
        403,
        "Forbidden",
        "configmaps \"x\" is forbidden: User \"eve\" cannot get resource \"configmaps\" in API group \"\" in \
         the namespace \"dev\"",
    )])
    .await;
    let error = deliver(&api.cluster, &Payload::for_test(4), |_| {}).await.unwrap_err();
    let yaml = error.role_yaml("dev").unwrap();
    assert!(yaml.contains("resources: [\"configmaps\"]") && yaml.contains("name: \"eve\""), "{yaml}");
}

#[test]
fn files_beside_the_executable() {
    let dir = tempfile::tempdir().unwrap();
    let error = Payload::from_dir(dir.path()).err().unwrap();
    assert!(error.to_string().contains("kshuttle-sshd.gz") && error.to_string().contains("scripts/build"));
    std::fs::write(dir.path().join(SERVER_FILE), [0x1f, 0x8b]).unwrap();
    std::fs::write(dir.path().join(LOADER_FILE), "#!/bin/sh").unwrap();
    assert!(matches!(Payload::from_dir(dir.path()), Err(DeliveryError::Unusable(_))));
    std::fs::write(dir.path().join(SERVER_FILE), "plain").unwrap();
    assert!(matches!(Payload::from_dir(dir.path()), Err(DeliveryError::Unusable(_))));
}
