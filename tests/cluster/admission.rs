//! What clusters say against a pod, as a person reads it.

use std::process::Command;
use std::time::Instant;

use kshuttle::cluster::rights::role_yaml;
use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, eventually, kubectl, program};
use nix::sys::signal::Signal;
use serde_json::json;
use tempfile::NamedTempFile;

use crate::scene::{Namespace, apply};

/// `kshuttle socks` in this namespace.
fn command(namespace: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("kshuttle"));
    command.args(["socks", "--listen", "127.0.0.1:0", "-n", namespace]).args(arguments);
    command
}

/// Starts, is ready and ends in order; all it said.
pub(crate) fn works(namespace: &str, arguments: &[&str]) -> String {
    let mut kshuttle = Kshuttle::start_as(command(namespace, arguments));
    kshuttle.stop(Signal::SIGTERM);
    kshuttle.said()
}

/// Fails with this exit code, within a minute; all it said.
fn fails(namespace: &str, arguments: &[&str], code: i32) -> String {
    let began = Instant::now();
    let mut kshuttle = Kshuttle::spawn(command(namespace, arguments));
    let status = kshuttle.wait();
    let said = kshuttle.said();
    println!("---- {arguments:?}, {:.1} s\n{said}", began.elapsed().as_secs_f32());
    assert_eq!(status.code(), Some(code), "{said}");
    said
}

#[track_caller]
fn assert_says(said: &str, words: &[&str]) {
    for words in words {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
}

fn file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

/// What the hint says to write into a file.
fn advice(said: &str) -> NamedTempFile {
    let yaml = said.split("with\n\n").nth(1).unwrap_or_else(|| panic!("no advice in:\n{said}"));
    file(yaml)
}

pub(crate) fn a_patch_reaches_the_pod() {
    let space =
        Namespace::with_labels("patched", &json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    let patch = file(
        "metadata: {labels: {team: blue}}\nspec: {containers: [{name: sshd, resources: {limits: {cpu: 500m}}}]}",
    );
    let mut kshuttle = Kshuttle::start_as(command(&space.name, &["--pod-patch", path(&patch)]));
    let what = "jsonpath={.metadata.labels.team} {.spec.containers[0].resources.limits} \
                {.spec.containers[0].securityContext.readOnlyRootFilesystem}";
    let pod = space.kubectl(&["get", "pod", &kshuttle.pod(), "-o", what]);
    assert_eq!(pod, r#"blue {"cpu":"500m","memory":"256Mi"} true"#);
    kshuttle.stop(Signal::SIGTERM);
    let wrong = file("spec: {hostNetwork: true}");
    let said = fails(&space.name, &["--pod-patch", path(&wrong)], 5);
    assert_says(&said, &["changes `spec.hostNetwork`"]);
}

pub(crate) fn a_policy_is_quoted_before_anything_is_made() {
    let space =
        Namespace::with_labels("strict", &json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    let patch = file("spec: {containers: [{name: sshd, securityContext: {allowPrivilegeEscalation: true}}]}");
    let said = fails(&space.name, &["--pod-patch", path(&patch)], 5);
    assert_says(&said, &["violates PodSecurity \"restricted", "allowPrivilegeEscalation != false", "hint: "]);
    assert_eq!(space.ours("configmap") + &space.ours("pod"), "", "left there");
}

pub(crate) fn a_full_quota_is_quoted_before_anything_is_made() {
    let space = Namespace::new("full");
    space.put("ResourceQuota", "no-pods", &json!({"hard": {"pods": "0"}}));
    quota_counts(&space, "no-pods");
    let said = fails(&space.name, &[], 5);
    assert_says(
        &said,
        &["exceeded quota: no-pods, requested: pods=1, used: pods=0, limited: pods=0", "hint: "],
    );
    assert_eq!(space.ours("configmap"), "", "left there");
}

pub(crate) fn a_quota_that_wants_limits_gets_them_by_the_patch_in_the_hint() {
    let space = Namespace::new("limits");
    space.put("ResourceQuota", "cpu", &json!({"hard": {"limits.cpu": "4"}}));
    quota_counts(&space, "cpu");
    let said = fails(&space.name, &[], 5);
    assert_says(&said, &["failed quota: cpu: must specify limits.cpu", "hint: "]);
    works(&space.name, &["--pod-patch", path(&advice(&said))]);
}

/// Until the quota has been seen by its controller, nothing is admitted.
fn quota_counts(space: &Namespace, quota: &str) {
    eventually("the quota counts", PATIENCE, || {
        let used = space.kubectl(&["get", "resourcequota", quota, "-o", "jsonpath={.status.used}"]);
        (!used.is_empty()).then_some(())
    });
}

pub(crate) fn a_limit_range_is_quoted_and_met_by_the_patch_in_the_hint() {
    let space = Namespace::new("range");
    let range = json!({"limits": [{"type": "Container", "max": {"memory": "128Mi"}}]});
    space.put("LimitRange", "small", &range);
    let said = fails(&space.name, &[], 5);
    assert_says(&said, &["maximum memory usage per Container is 128Mi, but limit is 256Mi", "hint: "]);
    assert_eq!(space.ours("configmap"), "", "left there");
    works(&space.name, &["--pod-patch", path(&advice(&said))]);
}

pub(crate) fn an_image_that_is_not_there_is_told_in_the_kubelets_words() {
    let space = Namespace::new("missing");
    let said = fails(&space.name, &["--image", "kshuttle.invalid/not-there:1"], 5);
    assert_says(&said, &["image kshuttle.invalid/not-there:1 is not to be had (ErrImagePull)", "hint: "]);
    let arguments = ["--image", "kshuttle.invalid/not-there:1", "--image-pull-policy", "Never"];
    assert_says(&fails(&space.name, &arguments, 5), &["(ErrImageNeverPull)", "hint: "]);
    let said = fails(&space.name, &["--image", "Not An Image"], 5);
    assert_says(&said, &["not to be had (InvalidImageName)", "hint: "]);
    let digest = format!("kshuttle.invalid/not-there@sha256:{}", "0".repeat(64));
    assert_says(&fails(&space.name, &["--image", &digest], 5), &[&digest, "(ErrImagePull)"]);
    eventually("no pod stays", PATIENCE, || space.ours("pod").is_empty().then_some(()));
}

pub(crate) fn an_image_of_another_architecture_is_told() {
    let space = Namespace::new("foreign");
    let image =
        std::env::var("KSHUTTLE_TEST_FOREIGN_IMAGE").expect("scripts/test imports the image and names it");
    let said = fails(&space.name, &["--image", &image], 5);
    assert_says(&said, &["exec format error", "hint: the image is for another architecture"]);
}

pub(crate) fn nodes_of_another_architecture_only_are_told() {
    let space = Namespace::new("nodes");
    let patch = file("spec: {nodeSelector: {kubernetes.io/arch: s390x}}");
    let said = fails(&space.name, &["--pod-patch", path(&patch)], 5);
    assert_says(&said, &["no node takes it: 0/1 nodes are available", "node affinity/selector", "hint: "]);
    let patch = file("spec: {containers: [{name: sshd, resources: {requests: {cpu: 4k}}}]}");
    let said = fails(&space.name, &["--pod-patch", path(&patch)], 5);
    assert_says(&said, &["no node takes it", "Insufficient cpu", "hint: ", "--pod-start"]);
}

pub(crate) fn a_volume_that_is_not_there_is_told_while_waiting() {
    let space = Namespace::new("volume");
    let patch = file(
        "spec:
  volumes: [{name: x, configMap: {name: nowhere}}]
  containers: [{name: sshd, volumeMounts: [{name: x, mountPath: /x}]}]",
    );
    let said = fails(&space.name, &["--pod-patch", path(&patch), "--pod-start", "8s"], 5);
    assert_says(
        &said,
        &["FailedMount", "configmap \"nowhere\" not found", "still not running after 8 s", "hint: "],
    );
}

pub(crate) fn preemption_is_told_and_ends_it_when_there_is_no_room_left() {
    let space = Namespace::new("preempted");
    let class = format!("kshuttle-test-{}", std::process::id());
    let manifest = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": class}, "value": 1_000_000,
    });
    apply(&manifest);
    let patch = file("spec: {containers: [{name: sshd, resources: {requests: {cpu: 300m}}}]}");
    let mut kshuttle = Kshuttle::start_as(command(&space.name, &["--pod-patch", path(&patch)]));
    let pod = kshuttle.pod();
    // More than is free, less than what is free without ours.
    let request = free_cpu() + 150;
    space.put(
        "Pod",
        "important",
        &json!({
            "priorityClassName": class, "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "registry.k8s.io/pause:3.10",
                "resources": {"requests": {"cpu": format!("{request}m")}}}],
        }),
    );
    let status = kshuttle.wait();
    let said = kshuttle.said();
    println!("{said}");
    kubectl(&["delete", "priorityclass", &class]);
    assert_eq!(status.code(), Some(5), "{said}");
    assert_says(&said, &[&format!("the pod {pod} ended"), "PreemptionByScheduler"]);
    assert_says(&said, &["make another pod", "no node takes it", "Insufficient cpu", "hint: "]);
}

/// Thousandths of a processor that no pod of the only node has asked for.
fn free_cpu() -> u64 {
    let millis = |text: &str| match text.strip_suffix('m') {
        Some(millis) => millis.parse::<u64>().unwrap(),
        None => text.parse::<u64>().unwrap() * 1000,
    };
    let all = millis(&kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.allocatable.cpu}"]));
    let requests = "jsonpath={.items[*].spec.containers[*].resources.requests.cpu}";
    let running = "--field-selector=status.phase!=Succeeded,status.phase!=Failed";
    let asked = kubectl(&["get", "pods", "-A", running, "-o", requests]);
    all - asked.split_whitespace().map(millis).sum::<u64>()
}

/// Every line of the Role, one verb short.
fn roles() -> Vec<(String, String)> {
    let yaml = role_yaml("NAMESPACE", Some("jane"));
    let mut lines = yaml.lines().map(str::trim);
    let mut all = Vec::new();
    while let Some(line) = lines.next() {
        let Some(resource) = line.strip_prefix("resources: [\"").and_then(|rest| rest.strip_suffix("\"]"))
        else {
            continue;
        };
        let verbs = lines.next().and_then(|line| line.strip_prefix("verbs: [")).expect("verbs come next");
        let verbs = verbs.trim_end_matches(']').split(", ").map(|verb| verb.trim_matches('"').to_owned());
        all.extend(verbs.map(|verb| (resource.to_owned(), verb)));
    }
    all
}

/// A namespace in which `jane` may do what the Role says, but for one verb.
fn one_short(resource: &str, verb: &str) -> Namespace {
    let space = Namespace::new("short");
    let role = role_yaml(&space.name, Some("jane"));
    let marker = format!("resources: [\"{resource}\"]\n");
    let (before, after) = role.split_once(&marker).expect("the resource is in the Role");
    let (verbs, after) = after.split_once('\n').expect("verbs come next");
    let fewer = verbs.replacen(&format!("\"{verb}\""), "\"none\"", 1);
    assert_ne!(verbs, fewer);
    kubectl(&["apply", "-f", path(&file(&format!("{before}{marker}{fewer}\n{after}")))]);
    space
}

pub(crate) fn each_right_that_is_missing_is_told_or_done_without() {
    let minor: u32 = std::env::var("KSHUTTLE_BOX_VERSION")
        .ok()
        .and_then(|version| version.strip_prefix("1.")?.parse().ok())
        .expect("scripts/cluster exec names the version");
    let all = roles();
    assert_eq!(all.len(), 10, "{all:?}");
    for (resource, verb) in &all {
        let space = one_short(resource, verb);
        let right = format!("{verb} {resource}");
        match right.as_str() {
            "create pods" | "get pods" | "get configmaps" | "create configmaps" => {
                let said = fails(&space.name, &["--as", "jane"], 4);
                let refused = format!("user `jane` may not {right} in namespace `{}`", space.name);
                assert_says(
                    &said,
                    &[&format!("missing: {right}:"), &refused, "kind: Role", "name: \"jane\""],
                );
                let role = said.split("apply this:\n\n").nth(1).expect("the Role is last");
                // What it prints is what helps.
                kubectl(&["apply", "-f", path(&file(role))]);
                works(&space.name, &["--as", "jane"]);
            }
            "create pods/portforward" if minor >= 35 => {
                let said = fails(&space.name, &["--as", "jane"], 4);
                assert_says(&said, &["missing: create pods/portforward:", "kind: Role"]);
            }
            "delete pods" => {
                let said = works(&space.name, &["--as", "jane", "--pod-idle", "2s"]);
                let told = "warning: deleting pods is not permitted here: this one ends by itself 2 s after the session";
                assert_says(&said, &[told, "warning: cannot delete pod"]);
                eventually("the pod ends by itself", PATIENCE, || {
                    let phase = space.kubectl(&["get", "pod", "-o", "jsonpath={.items[0].status.phase}"]);
                    (phase == "Succeeded").then_some(())
                });
            }
            _ => {
                let said = works(&space.name, &["--as", "jane"]);
                assert!(!said.contains("warning"), "{right}: {said}");
            }
        }
        eventually("no pod stays", PATIENCE, || {
            (right == "delete pods" || space.ours("pod").is_empty()).then_some(())
        });
    }
}

/// Somebody who may not store the program can use what is there.
pub(crate) fn a_program_that_is_there_needs_no_right_to_bring_it() {
    let space = one_short("configmaps", "create");
    works(&space.name, &[]);
    works(&space.name, &["--as", "jane"]);
}
