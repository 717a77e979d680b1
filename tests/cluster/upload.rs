//! `--upload`: our server in a container of somebody's pod, which it leaves as it was.

use std::process::{Command, Stdio};

use kshuttle_test_support::kshuttle::{Kshuttle, PATIENCE, context, eventually, kubectl, program};
use kshuttle_test_support::operator::Broken;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::scene::{Namespace, apply};
use crate::socks::fetches;

/// A pod `toolbox` with this container, by whose side another one stands.
fn toolbox(container: &Value) -> Namespace {
    let space = Namespace::new("upload");
    eventually("the namespace takes pods", PATIENCE, || {
        (!space.kubectl(&["get", "serviceaccounts", "-o", "name"]).is_empty()).then_some(())
    });
    let beside = json!({"name": "beside", "image": "registry.k8s.io/pause:3.10"});
    apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "toolbox", "namespace": space.name,
            "annotations": {"kubectl.kubernetes.io/default-container": "tools"},
        },
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [beside, container]},
    }));
    space.kubectl(&["wait", "--for=condition=Ready", "pod/toolbox", "--timeout=60s"]);
    space
}

/// A container with a shell, of an ordinary user.
fn tools() -> Value {
    json!({
        "name": "tools", "image": "kshuttle.test/busybox:1", "command": ["sleep", "100000"],
        "securityContext": {"runAsUser": 1000, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    })
}

fn command(space: &Namespace, flags: &[&str]) -> Command {
    let mut command = Command::new(program("kshuttle"));
    command.args(["socks", "--listen", "127.0.0.1:0", "-n", &space.name, "--upload", "toolbox"]);
    command.args(flags).args(context());
    command
}

/// Runs `then` for the directory in `/proc` of each process of ours in the container.
fn each_process(then: &str) -> String {
    format!(
        "for p in /proc/[0-9]*; do case $(cat $p/comm 2>/dev/null) in memfd:kshuttle*|loader) {then};; esac; done"
    )
}

fn execute(space: &Namespace, script: &str) -> String {
    space.kubectl(&["exec", "toolbox", "--", "sh", "-c", script])
}

/// Our processes and folders in the container.
fn left(space: &Namespace) -> String {
    let folders = "ls -d /tmp/kshuttle-* /dev/shm/kshuttle-* 2>/dev/null";
    execute(space, &format!("{folders}; {}; true", each_process("cat $p/comm")))
}

fn gone(space: &Namespace) {
    eventually("nothing is left in the container", PATIENCE, || left(space).is_empty().then_some(()));
}

pub(crate) fn a_container_with_a_shell_carries_connections_and_is_left_as_it_was() {
    let space = toolbox(&tools());
    let mut kshuttle = Kshuttle::start_as(command(&space, &[]));
    fetches(&kshuttle);
    assert!(
        kshuttle.said().contains("toolbox runs our server in its container tools"),
        "{}",
        kshuttle.said()
    );
    assert!(left(&space).contains("memfd:kshuttle"), "{}", left(&space));
    assert_eq!(space.ours("configmap"), "", "nothing but the upload was made");
    kshuttle.stop(Signal::SIGTERM);
    assert!(kshuttle.said().contains("taken out of the container"), "{}", kshuttle.said());
    gone(&space);
    // Killed, it leaves by itself.
    let mut kshuttle = Kshuttle::start_as(command(&space, &["--pod-idle", "1s", "-c", "tools"]));
    fetches(&kshuttle);
    kshuttle.stop(Signal::SIGKILL);
    gone(&space);
}

pub(crate) fn an_uploaded_server_outlives_its_exec_and_comes_again_when_killed() {
    let space = toolbox(&tools());
    let mut kshuttle = Kshuttle::start_as(command(&space, &["--pod-idle", "5s"]));
    let apiserver = Broken::killed("apiserver");
    apiserver.mend();
    fetches(&kshuttle);
    assert!(!kshuttle.said().contains("the uploaded server ended"), "{}", kshuttle.said());
    execute(&space, &each_process("kill -9 ${p#/proc/}"));
    eventually("it was uploaded again", PATIENCE, || {
        (kshuttle.said().matches("runs our server").count() == 2).then_some(())
    });
    fetches(&kshuttle);
    kshuttle.stop(Signal::SIGTERM);
    gone(&space);
}

/// What it says, and its exit code.
fn fails(space: &Namespace, flags: &[&str]) -> (Option<i32>, String) {
    let output = command(space, flags).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn assert_fails(space: &Namespace, flags: &[&str], code: i32, words: &[&str]) {
    let (found, said) = fails(space, flags);
    assert_eq!(found, Some(code), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

pub(crate) fn what_keeps_the_server_out_of_a_container_is_told() {
    let mut container = tools();
    container["securityContext"]["readOnlyRootFilesystem"] = true.into();
    let space = toolbox(&container);
    let no_folder = "container `tools` has no folder that can be written to and executed from";
    assert_fails(&space, &[], 5, &["upload the server to pod `toolbox`", no_folder, "emptyDir"]);
    assert_fails(&space, &["-c", "beside"], 5, &["\"sh\": executable file not found", "-c NAME"]);
    assert_fails(&space, &["-c", "web"], 5, &["pod `toolbox` has no container `web`, but beside, tools"]);
    // Somebody who may do all but execute.
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "some", "namespace": space.name},
        "rules": [{"apiGroups": [""], "resources": ["pods", "pods/portforward"], "verbs": ["get", "create", "list"]}],
    });
    apply(&role);
    kubectl(&["create", "rolebinding", "some", "--role=some", "--user=jane", "-n", &space.name]);
    assert_fails(
        &space,
        &["--as", "jane"],
        4,
        &["user `jane` may not get pods/exec in namespace", "--upload needs `get` and `create` on pods/exec"],
    );
}
