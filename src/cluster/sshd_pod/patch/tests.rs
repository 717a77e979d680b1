use serde_json::json;

use super::super::manifest;
use super::*;

fn patch(text: &str) -> Result<PodPatch, PatchError> {
    PodPatch::parse(text, Path::new("patch.yaml"))
}

/// The golden pod with this patch.
fn patched(text: &str) -> Result<Value, PatchError> {
    patch(text)?.apply(&manifest::tests::example()).map(|pod| value(&pod))
}

#[test]
fn what_clusters_ask_for_is_added() {
    let pod = patched(
        "metadata:
  labels: {team: blue}
spec:
  nodeSelector: {pool: tools}
  priorityClassName: low
  tolerations:
  - {key: tools, operator: Exists, effect: NoSchedule}
  imagePullSecrets:
  - name: registry
  containers:
  - name: sshd
    resources:
      limits: {cpu: 100m, memory: 128Mi}
    env:
    - {name: KSHUTTLE_LOG, value: debug}
",
    )
    .unwrap();
    let at = |path: &str| pod.pointer(path).unwrap_or_else(|| panic!("{path} is not in {pod:#}"));
    assert_eq!(at("/metadata/labels/team"), "blue");
    assert_eq!(at("/metadata/labels/app.kubernetes.io~1name"), "kshuttle");
    assert_eq!(
        at("/spec/nodeSelector"),
        &json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "pool": "tools"})
    );
    assert_eq!(at("/spec/tolerations/0/key"), "tools");
    assert_eq!(at("/spec/imagePullSecrets"), &json!([{"name": "registry"}]));
    assert_eq!(at("/spec/containers").as_array().unwrap().len(), 1);
    assert_eq!(at("/spec/containers/0/resources/limits"), &json!({"cpu": "100m", "memory": "128Mi"}));
    assert_eq!(at("/spec/containers/0/resources/requests/memory"), "32Mi");
    assert_eq!(at("/spec/containers/0/env").as_array().unwrap().len(), 4);
    assert_eq!(at("/spec/containers/0/securityContext/readOnlyRootFilesystem"), true);
}

#[test]
fn json_is_yaml_too_and_null_removes() {
    let pod = patched(r#"{"spec": {"activeDeadlineSeconds": null, "affinity": null}}"#).unwrap();
    assert_eq!(pod["spec"]["activeDeadlineSeconds"], Value::Null);
    assert_eq!(pod["spec"]["containers"][0]["name"], "sshd");
}

#[test]
fn a_container_beside_ours_is_another_entry() {
    let pod = patched("spec: {containers: [{name: mesh, image: 'mesh:1'}]}").unwrap();
    let names: Vec<_> = pod["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["sshd", "mesh"]);
}

#[test]
fn an_empty_patch_changes_nothing() {
    assert_eq!(patched("{}").unwrap(), value(&manifest::tests::example()));
}

#[test]
fn what_kshuttle_depends_on_stays() {
    for (text, field) in [
        ("spec: {hostNetwork: true}", "spec.hostNetwork"),
        ("spec: {restartPolicy: Always}", "spec.restartPolicy"),
        ("metadata: {annotations: null}", "metadata.annotations.kshuttle.dev/owner"),
        ("metadata: {labels: {app.kubernetes.io/name: mine}}", "metadata.labels.app.kubernetes.io/name"),
        ("metadata: {namespace: other}", "metadata.namespace"),
        ("spec: {containers: [{name: sshd, command: [sh]}]}", "spec.containers[sshd].command"),
        ("spec: {containers: [{name: sshd, image: x}]}", "spec.containers[sshd].image"),
        (
            "spec: {containers: [{name: sshd, env: [{name: KSHUTTLE_AUTHORIZED_KEY, value: mine}]}]}",
            "spec.containers[sshd].env",
        ),
        ("spec: {containers: null}", "spec.containers[sshd].command"),
    ] {
        let error = patched(text).unwrap_err();
        assert!(
            matches!(&error, PatchError::Kept { field: found, .. } if found == field),
            "{text}: {error:?}"
        );
    }
}

#[test]
fn mistakes_are_told_with_their_place() {
    for (text, words) in [
        ("spec: {tolerationz: []}", "`spec.tolerationz`"),
        ("spec: {tolerations: [{kee: x}]}", "`spec.tolerations[0].kee`"),
        ("spec: {containers: [{resources: {}}]}", "`containers` without `name`"),
        ("spec: {tolerations: {$patch: delete}}", "`$patch`"),
        ("- 1", "not a YAML or JSON object"),
        ("", "not a YAML or JSON object"),
        ("a: [", "not a YAML or JSON object"),
        ("spec: {activeDeadlineSeconds: soon}", "no Pod"),
    ] {
        let error = patched(text).unwrap_err();
        assert!(error.to_string().contains(words), "{text}: {error}");
        assert!(error.to_string().contains("patch.yaml"), "{error}");
    }
}

#[test]
fn files_are_read_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("patch.json");
    assert!(matches!(PodPatch::read(&file), Err(PatchError::Read { .. })));
    std::fs::write(&file, r#"{"spec": {"nodeName": "n1"}}"#).unwrap();
    let pod = PodPatch::read(&file).unwrap().apply(&manifest::tests::example()).unwrap();
    assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("n1"));
    std::fs::write(&file, " ".repeat((1 << 20) + 1)).unwrap();
    assert!(matches!(PodPatch::read(&file), Err(PatchError::Large(_))));
}
