//! The pod's life on a real cluster, as an administrator and as a user who may do nothing but this.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kshuttle::cluster::api_error::ApiError;
use kshuttle::cluster::client::{Cluster, Options, connect};
use kshuttle::cluster::delivery::{Payload, deliver};
use kshuttle::cluster::sshd_pod::left_over::reap;
use kshuttle::cluster::sshd_pod::wait::StartFailure;
use kshuttle::cluster::sshd_pod::{
    NODE_TIME_MAX, PodError, PodOptions, Program, RunAs, START_TIME_MAX, SshdPod, create,
};
use kube::Api;
use kube::api::DeleteParams;
use kube::runtime::wait::{await_condition, conditions};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ test";

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(test);
}

fn from_environment(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set, see tests/cluster/main.rs")).into()
}

pub(crate) async fn administrator(namespace: &str) -> Cluster {
    let namespace = Some(namespace.to_owned());
    let context = std::env::var("KSHUTTLE_TEST_CONTEXT").ok();
    connect(&Options { namespace, context, ..Default::default() }).await.unwrap()
}

pub(crate) async fn limited(namespace: &str) -> Cluster {
    let namespace = Some(namespace.to_owned());
    let kubeconfig = Some(from_environment("KSHUTTLE_BOX_LIMITED"));
    connect(&Options { kubeconfig, namespace, ..Default::default() }).await.unwrap()
}

fn payload() -> Payload {
    Payload::from_dir(&from_environment("KSHUTTLE_TEST_PROGRAMS")).unwrap()
}

fn options(program: Program, run_as: RunAs) -> PodOptions {
    PodOptions {
        program,
        run_as,
        authorized_key: KEY.to_owned(),
        idle: Duration::from_secs(300),
        owner: format!("test@{}", std::process::id()),
        session: "test".to_owned(),
        start_time_max: START_TIME_MAX,
        node_time_max: NODE_TIME_MAX,
        pull_policy: None,
        patch: None,
    }
}

fn delivered() -> Program {
    Program::Delivered { payload: payload(), carrier: None }
}

/// Starts it, deletes it, and waits until the API server has forgotten it.
async fn lives(cluster: &Cluster, options: &PodOptions) {
    let began = std::time::Instant::now();
    let say = |line: &str| println!("{:6.2} s  {line}", began.elapsed().as_secs_f32());
    let pod = create(cluster, options, say).await.unwrap();
    say(&format!("created {}", pod.name()));
    let started = pod.wait_running(say).await;
    say("running");
    let deleted = pod.delete().await;
    started.unwrap();
    deleted.unwrap();
    is_gone(cluster, &pod).await;
    say("gone");
    pod.delete().await.unwrap();
}

async fn is_gone(cluster: &Cluster, pod: &SshdPod) {
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), pod.namespace());
    let gone = await_condition(api, pod.name(), conditions::is_deleted(pod.uid()));
    tokio::time::timeout(START_TIME_MAX, gone).await.expect("it is still there").unwrap();
}

/// Why it does not run, whether it was seen running for a moment or not.
async fn start_failure(cluster: &Cluster, options: &PodOptions) -> StartFailure {
    let pod = create(cluster, options, |line| println!("{line}")).await.unwrap();
    let failure = match pod.wait_running(|line| println!("{line}")).await {
        Ok(()) => tokio::time::timeout(START_TIME_MAX, pod.ended()).await.expect("it does run"),
        Err(PodError::Start { source, .. }) => source,
        Err(other) => panic!("{other:?}"),
    };
    pod.delete().await.unwrap();
    failure
}

pub(crate) fn the_role_is_enough_in_a_restricted_namespace_for_any_user_id() {
    block_on(async {
        let cluster = limited("locked").await;
        for run_as in [RunAs::Default, RunAs::Uid(1_000_680_000)] {
            lives(&cluster, &options(delivered(), run_as)).await;
        }
    });
}

pub(crate) fn an_administrator_gets_an_image_that_is_on_every_node() {
    block_on(async {
        let cluster = administrator("default").await;
        let mut said = Vec::new();
        let pod = create(&cluster, &options(delivered(), RunAs::Default), |line| said.push(line.to_owned()))
            .await
            .unwrap();
        let started = pod.wait_running(|_| {}).await;
        pod.delete().await.unwrap();
        started.unwrap();
        assert!(said.last().unwrap().ends_with("(on every node already)"), "{said:?}");
    });
}

pub(crate) fn an_image_that_is_not_to_be_had_is_known_at_once() {
    block_on(async {
        let cluster = administrator("default").await;
        let program = Program::Image("registry.invalid/kshuttle:1".to_owned());
        let failure = start_failure(&cluster, &options(program, RunAs::Default)).await;
        println!("{failure}");
        assert!(matches!(failure, StartFailure::Image { .. }), "{failure}");
    });
}

pub(crate) fn an_ended_program_is_quoted() {
    block_on(async {
        let cluster = administrator("default").await;
        let mut wrong = options(delivered(), RunAs::Default);
        wrong.authorized_key = "no key".to_owned();
        let failure = start_failure(&cluster, &wrong).await;
        println!("{failure}");
        assert!(failure.to_string().contains("KSHUTTLE_AUTHORIZED_KEY"), "{failure}");
    });
}

pub(crate) fn an_exchanged_part_is_refused_by_the_loader_and_an_exchanged_loader_by_us() {
    block_on(async {
        let cluster = administrator("default").await;
        let api: Api<ConfigMap> = Api::namespaced(cluster.client().clone(), "default");
        // A payload of its own, so that no other test meets what is broken here.
        let folder = tempfile::tempdir().unwrap();
        copy_with_a_mark(&folder);
        let payload = Payload::from_dir(folder.path()).unwrap();
        let parts = deliver(&cluster, &payload, |_| {}).await.unwrap().config_maps;
        let exchange = async |(name, key): &(String, String)| {
            api.delete(name, &DeleteParams::default()).await.unwrap();
            let mut map = ConfigMap::default();
            map.metadata.name = Some(name.clone());
            map.immutable = Some(true);
            map.binary_data = Some([(key.clone(), ByteString(b"something else".to_vec()))].into());
            api.create(&kube::api::PostParams::default(), &map).await.unwrap();
        };
        let program = Program::Delivered { payload: payload.clone(), carrier: None };

        exchange(&parts[1]).await;
        let failure = start_failure(&cluster, &options(program.clone(), RunAs::Default)).await;
        println!("{failure}");
        assert!(matches!(&failure, StartFailure::Ended { code: 113, .. }), "{failure:?}");
        assert!(failure.to_string().contains("SHA-256"), "{failure}");

        exchange(&parts[0]).await;
        let error = create(&cluster, &options(program, RunAs::Default), |_| {}).await.unwrap_err();
        assert!(matches!(error, PodError::Delivery { .. }), "{error:?}");
        for (name, _) in &parts {
            api.delete(name, &DeleteParams::default()).await.unwrap();
        }
    });
}

/// Bytes after the end are no part of the program, but change its hash.
fn copy_with_a_mark(folder: &tempfile::TempDir) {
    let mark = std::process::id().to_string();
    let from = from_environment("KSHUTTLE_TEST_PROGRAMS");
    for name in ["kshuttle-sshd.gz", "kshuttle-loader"] {
        let mut bytes = std::fs::read(from.join(name)).unwrap();
        bytes.extend(mark.as_bytes());
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
}

pub(crate) fn refusals_name_what_is_missing() {
    block_on(async {
        // Another namespace than the one where this user may do something.
        let cluster = limited("default").await;
        let error = create(&cluster, &options(delivered(), RunAs::Default), |_| {}).await.unwrap_err();
        println!("{}", error.missing_right().unwrap());
        assert!(error.role_yaml().unwrap().contains("name: \"limited\""));
        let error = create(&cluster, &options(Program::Image("x".to_owned()), RunAs::Default), |_| {})
            .await
            .unwrap_err();
        assert_eq!(error.missing_right().unwrap().verb, "create");

        let cluster = administrator("no-such-namespace").await;
        let error = create(&cluster, &options(Program::Image("x".to_owned()), RunAs::Default), |_| {})
            .await
            .unwrap_err();
        assert!(matches!(error.api_error(), Some(ApiError::NoNamespace(_))), "{error:?}");
        let error = create(&cluster, &options(delivered(), RunAs::Default), |_| {}).await.unwrap_err();
        assert!(matches!(error.api_error(), Some(ApiError::NoNamespace(_))), "{error:?}");
    });
}

pub(crate) fn a_policys_refusal_is_told() {
    block_on(async {
        let cluster = administrator("locked").await;
        let error = create(&cluster, &options(delivered(), RunAs::Uid(0)), |_| {}).await.unwrap_err();
        println!("{}", error.api_error().unwrap());
        assert!(matches!(error.api_error(), Some(ApiError::Policy(_) | ApiError::Other { .. })), "{error:?}");
    });
}

pub(crate) fn an_idle_server_ends_and_the_next_session_removes_its_pod() {
    block_on(async {
        let cluster = limited("locked").await;
        let mut brief = options(delivered(), RunAs::Default);
        brief.idle = Duration::from_secs(1);
        brief.owner += "-idle";
        let pod = create(&cluster, &brief, |_| {}).await.unwrap();
        pod.wait_running(|_| {}).await.unwrap();
        let api: Api<Pod> = Api::namespaced(cluster.client().clone(), "locked");
        let ended = |pod: Option<&Pod>| {
            pod.and_then(|pod| pod.status.as_ref()?.phase.as_deref())
                .is_some_and(|phase| phase == "Succeeded")
        };
        tokio::time::timeout(START_TIME_MAX, await_condition(api, pod.name(), ended))
            .await
            .expect("it stays")
            .unwrap();
        assert_eq!(reap(&cluster, "somebody@else", |_, _| true).await, 0);
        assert_eq!(reap(&cluster, &brief.owner, |_, _| false).await, 1);
        is_gone(&cluster, &pod).await;
    });
}

pub(crate) fn the_address_of_the_api_server_is_guarded() {
    block_on(async {
        let cluster = administrator("default").await;
        println!("{} {:?} {:?}", cluster.server(), cluster.version(), cluster.guarded_addresses().await);
        assert!(!cluster.guarded_addresses().await.is_empty());
    });
}
