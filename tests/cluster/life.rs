//! The pod's life: what is left of dead sessions goes, what is of others stays, and whoever takes the pod away is named.

use std::process::Command;

use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, eventually, kubectl, output, program};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::scene::{Namespace, apply};
use crate::socks::fetches;

/// How often a session is killed.
const KILLS: usize = 50;

fn start(space: &Namespace) -> Kshuttle {
    Kshuttle::start_as(command(space))
}

fn command(space: &Namespace) -> Command {
    let mut command = Command::new(program("kshuttle"));
    command.args(["socks", "--listen", "127.0.0.1:0", "-n", &space.name]);
    command
}

/// A pod that looks like one of ours.
fn put_pod(space: &Namespace, name: &str, owner: &str, session: &str) {
    apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": space.name,
            "labels": {"app.kubernetes.io/name": "kshuttle", "app.kubernetes.io/component": "sshd"},
            "annotations": {"kshuttle.dev/owner": owner, "kshuttle.dev/session": session},
        },
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "sshd", "image": "registry.k8s.io/pause:3.10"}]},
    }));
}

/// Pods that are not being deleted.
pub(crate) fn pods(space: &Namespace) -> Vec<String> {
    let names =
        "go-template={{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}{{end}}";
    space.kubectl(&["get", "pods", "-o", names]).split_whitespace().map(str::to_owned).collect()
}

fn annotation(space: &Namespace, pod: &str, name: &str) -> String {
    let path = format!("jsonpath={{.metadata.annotations.kshuttle\\.dev/{name}}}");
    space.kubectl(&["get", "pod", pod, "-o", &path])
}

pub(crate) fn killed_sessions_leave_no_pod_and_others_keep_theirs() {
    let space = Namespace::new("killed");
    let mut first = start(&space);
    let owner = annotation(&space, &first.pod(), "owner");
    let (place, _) = annotation(&space, &first.pod(), "session")
        .split_once('/')
        .map(|(place, rest)| (place.to_owned(), rest.to_owned()))
        .unwrap();
    // Of somebody else, dead by our reckoning; of the same user, but from another machine; of one that lives.
    put_pod(&space, "of-others", "somebody@else", &format!("{place}/1000000/1"));
    put_pod(&space, "from-elsewhere", &owner, "0123456789abcdef/1000000/1");
    let beside = start(&space);
    assert_ne!(beside.pod(), first.pod());
    first.stop(Signal::SIGKILL);
    let (mut killed, mut resumed) = (first.pod(), 0);
    for _ in 0..KILLS {
        let mut next = start(&space);
        let there = pods(&space);
        resumed += usize::from(next.pod() == killed);
        assert!(there.contains(&next.pod()), "{there:?}\n{}", next.said());
        assert_eq!(there.len(), 4, "{there:?}\n{}", next.said());
        killed = next.pod();
        next.stop(Signal::SIGKILL);
    }
    // Most go on with the pod that is there, but not for ever.
    assert!((KILLS / 2..KILLS).contains(&resumed), "{resumed}");
    let mut last = start(&space);
    last.stop(Signal::SIGTERM);
    let mut expected = ["from-elsewhere".to_owned(), beside.pod(), "of-others".to_owned()];
    expected.sort();
    eventually("all of ours are gone, and nothing else", PATIENCE, || {
        let mut there = pods(&space);
        there.sort();
        (there == expected).then_some(())
    });
}

/// One with these flags, killed; whether the next, with those, goes on with its pod.
fn goes_on(space: &Namespace, before: &[&str], after: &[&str]) -> bool {
    let start = |flags: &[&str]| {
        let mut command = command(space);
        command.args(flags);
        Kshuttle::start_as(command)
    };
    let mut killed = start(before);
    killed.stop(Signal::SIGKILL);
    let mut next = start(after);
    let (same, said) = (next.pod() == killed.pod(), next.said());
    assert_eq!(said.contains("is running still: its session was killed"), same, "{said}");
    assert_eq!(pods(space), [next.pod()]);
    if after.contains(&"--explain") {
        assert!(said.contains("a pod left running: taken; its rights are there"), "{said}");
        assert!(said.contains("a pod without image: a better way was there"), "{said}");
        assert!(killed.said().contains("a pod without image: taken"), "{}", killed.said());
    }
    fetches(&next);
    next.stop(Signal::SIGTERM);
    same
}

pub(crate) fn a_killed_sessions_pod_serves_the_next_if_it_is_the_same() {
    let space = Namespace::new("resumed");
    assert!(goes_on(&space, &[], &[]));
    assert!(goes_on(&space, &[], &["--tunnels", "1"]), "not the pod's affair");
    assert!(goes_on(&space, &["--explain"], &["--explain"]));
    assert!(!goes_on(&space, &[], &["--pod-idle", "1m"]));
    assert!(!goes_on(&space, &["--run-as-user", "1000"], &[]));
    // One that is gone is not waited for.
    let mut killed = start(&space);
    killed.stop(Signal::SIGKILL);
    space.kubectl(&["delete", "pod", &killed.pod(), "--grace-period=1", "--wait=true"]);
    let next = start(&space);
    assert_ne!(next.pod(), killed.pod());
}

fn cleanup(space: &Namespace, arguments: &[&str]) -> String {
    let mut command = Command::new(program("kshuttle"));
    output(command.args(["cleanup", "-n", &space.name]).args(arguments))
}

pub(crate) fn cleanup_lists_and_then_removes() {
    let space = Namespace::new("cleanup");
    assert_eq!(cleanup(&space, &["--yes"]), "");
    let mut killed = start(&space);
    killed.stop(Signal::SIGKILL);
    put_pod(&space, "of-others", "somebody@else", "x");
    let line = format!("pod/{}  left over: its session is dead", killed.pod());
    assert_eq!(cleanup(&space, &[]), line);
    assert!(pods(&space).contains(&killed.pod()), "listing removes nothing");
    assert_eq!(cleanup(&space, &["--yes"]), line.replace("left over", "deleted"));
    eventually("it is gone", PATIENCE, || (pods(&space) == ["of-others"]).then_some(()));
    // Just brought: somebody may be about to use it.
    assert!(!space.ours("configmap").is_empty());
}

/// Asks for the eviction of a pod, as `kubectl drain` does.
fn evict(space: &Namespace, pod: &str) {
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": space.name},
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), eviction.to_string()).unwrap();
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", space.name);
    kubectl(&["create", "--raw", &path, "-f", &file.path().to_string_lossy()]);
}

pub(crate) fn an_evicted_pod_is_replaced() {
    let space = Namespace::new("evicted");
    let kshuttle = start(&space);
    evict(&space, &kshuttle.pod());
    eventually("another pod runs", PATIENCE, || {
        let said = kshuttle.said();
        (said.matches(" is running").count() == 2).then_some(())
    });
    let said = kshuttle.said();
    assert!(said.contains("it was given up (EvictionByEvictionAPI)"), "{said}");
}

/// Takes the only node out of service until dropped.
struct Cordon;

impl Cordon {
    fn of_the_node() -> Self {
        kubectl(&["cordon", "-l", "kubernetes.io/os=linux"]);
        Self
    }
}

impl Drop for Cordon {
    fn drop(&mut self) {
        let _ = Command::new("kubectl").args(["uncordon", "-l", "kubernetes.io/os=linux"]).output();
    }
}

pub(crate) fn a_drained_cluster_is_a_clear_end() {
    let space = Namespace::new("drained");
    let mut kshuttle = start(&space);
    let cordon = Cordon::of_the_node();
    evict(&space, &kshuttle.pod());
    let status = kshuttle.wait();
    drop(cordon);
    let said = kshuttle.said();
    assert_eq!(status.code(), Some(5), "{said}");
    assert!(
        said.contains("no node takes it: 0/1 nodes are available: 1 node(s) were unschedulable"),
        "{said}"
    );
}

pub(crate) fn a_deleted_namespace_is_a_clear_end() {
    let space = Namespace::new("deleted");
    let mut kshuttle = start(&space);
    kubectl(&["delete", "namespace", &space.name, "--wait=false"]);
    let status = kshuttle.wait();
    let said = kshuttle.said();
    assert_eq!(status.code(), Some(5), "{said}");
    assert!(
        said.contains("the namespace is being deleted") || said.contains("there is no namespace"),
        "{said}"
    );
}
