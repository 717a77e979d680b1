use serde_json::{Value, json};

use super::super::tests::{container, pod, running, unschedulable, waiting};
use super::*;

fn judged(status: Value) -> State {
    judge(&serde_json::from_value(pod(status)).unwrap())
}

#[test]
fn what_will_not_start_is_known_at_once() {
    for reason in ["ErrImagePull", "ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName"] {
        let State::Failed(failure) = judged(waiting(reason, "no such host")) else { panic!("{reason}") };
        let expected = format!("image example.org/sshd:1 is not to be had ({reason}): no such host");
        assert_eq!(failure.to_string(), expected);
    }
    for reason in ["CreateContainerConfigError", "CrashLoopBackOff", "RunContainerError"] {
        let State::Failed(failure) = judged(waiting(reason, "why")) else { panic!("{reason}") };
        assert_eq!(failure.to_string(), format!("its container cannot be started ({reason}): why"));
    }
    let no_exec = json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: permission denied"}});
    assert!(matches!(judged(container(no_exec)), State::Failed(StartFailure::Container { .. })));
    let evicted = json!({"phase": "Failed", "reason": "Evicted", "message": "low on memory"});
    let State::Failed(failure) = judged(evicted) else { panic!() };
    assert_eq!(failure.to_string(), "it was given up (Evicted): low on memory");
}

#[test]
fn an_ended_program_is_explained_by_its_words_or_its_status() {
    let ended = |code: i32, message: &str| {
        let state = json!({"terminated": {"exitCode": code, "reason": "Error", "message": message}});
        match judged(container(state)) {
            State::Failed(failure) => failure.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ended(1, "a line\nthe last line\n"), "its program ended with status 1: the last line");
    assert!(ended(113, "").contains("not what was uploaded"));
    assert_eq!(ended(7, ""), "its program ended with status 7");
}

#[test]
fn who_deleted_it_is_told() {
    let mut deleted = pod(json!({"phase": "Running", "conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting"}]}));
    deleted["metadata"]["deletionTimestamp"] = "2026-11-21T15:00:00Z".into();
    let State::Failed(failure) = judge(&serde_json::from_value(deleted.clone()).unwrap()) else { panic!() };
    assert_eq!(failure.to_string(), "it was given up (EvictionByEvictionAPI): Eviction API: evicting");
    deleted["status"]["conditions"][0]["status"] = "False".into();
    let deleted = judge(&serde_json::from_value(deleted).unwrap());
    assert_eq!(deleted, State::Failed(StartFailure::Deleted));
}

#[test]
fn preemption_is_hope() {
    let mut status = unschedulable();
    status["nominatedNodeName"] = "n2".into();
    let words = "for room on node n2, where other pods have to leave".to_owned();
    assert_eq!(judged(status), State::Waiting(words));
}

#[test]
fn waiting_is_told_in_words() {
    let words = |status| match judged(status) {
        State::Waiting(words) => words,
        other => panic!("{other:?}"),
    };
    assert_eq!(words(waiting("ContainerCreating", "")), "for its container (image example.org/sshd:1)");
    assert_eq!(words(json!({"phase": "Pending"})), "for node n1 to take it");
    let gated =
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]});
    assert_eq!(words(gated), "for the scheduler (SchedulingGated)");
    assert_eq!(judged(running()), State::Running);
    assert!(matches!(judged(unschedulable()), State::Unschedulable(_)));
}
