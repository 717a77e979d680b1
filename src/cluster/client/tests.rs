use std::io::Write;

use super::*;
use crate::cluster::fake_api::{Answer, FakeApi};

const TWO: &str = include_str!("../../../fixtures/kubeconfig/two-contexts.yaml");

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// A kubeconfig whose one cluster is at `url`.
fn options(url: &str) -> (tempfile::NamedTempFile, Options) {
    let file = file(&TWO.replace("https://one.example:6443", url));
    let options = Options { kubeconfig: Some(file.path().to_owned()), ..Default::default() };
    (file, options)
}

async fn fails(options: &Options) -> ClusterError {
    match connect(options).await {
        Ok(_) => panic!("connected"),
        Err(error) => error,
    }
}

#[test]
fn the_contexts_are_named_when_one_is_not_found() {
    let kubeconfig = Kubeconfig::from_yaml(TWO).unwrap();
    let error = pick(&kubeconfig, Some("three")).unwrap_err();
    assert_eq!(error.to_string(), "the kubeconfig has no context `three`; it knows one, two");
    let mut empty = kubeconfig.clone();
    empty.current_context = None;
    let error = pick(&empty, None).unwrap_err();
    assert_eq!(error.to_string(), "the kubeconfig has no current context; it knows one, two");

    assert_eq!(pick(&kubeconfig, None).unwrap(), ("one".to_owned(), None));
    let proxy = Some("socks5://proxy.example:1080".to_owned());
    assert_eq!(pick(&kubeconfig, Some("two")).unwrap(), ("two".to_owned(), proxy));
}

#[test]
fn files_of_the_variable_are_merged_and_missing_ones_skipped() {
    let (one, other) =
        (file(TWO), file("apiVersion: v1\nkind: Config\ncontexts: [{name: three, context: {cluster: c}}]"));
    let list = std::env::join_paths([Path::new("/nonexistent"), one.path(), other.path()]).unwrap();
    let (merged, origin) = read(None, Some(list)).unwrap();
    let names: Vec<&str> = merged.contexts.iter().map(|context| context.name.as_str()).collect();
    assert_eq!(names, ["one", "two", "three"]);
    assert!(!origin.contains("nonexistent") && origin.contains(", "));

    let error = read(Some(Path::new("/nonexistent")), None).unwrap_err();
    assert_eq!(error.to_string(), "there is no kubeconfig at /nonexistent");
    let broken = file("clusters: 7");
    let error = read(Some(broken.path()), None).unwrap_err();
    assert!(matches!(error, ClusterError::KubeconfigInvalid { .. }), "{error}");
}

#[tokio::test]
async fn the_server_and_the_namespace_are_those_of_the_context() {
    let version = serde_json::json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.1", "gitCommit": "", "gitTreeState": "", "buildDate": "",
        "goVersion": "", "compiler": "", "platform": ""
    });
    let api =
        FakeApi::start([Answer::ok("GET /version", version.clone()), Answer::ok("GET /version", version)])
            .await;
    let (_file, mut options) = options(&api.url);
    let cluster = connect(&options).await.unwrap();
    assert_eq!((cluster.namespace(), cluster.context()), ("apps", Some("one")));
    assert_eq!(cluster.version(), Some("v1.33.1"));
    assert_eq!(cluster.guarded_addresses().await, [IpAddr::from([127, 0, 0, 1])]);
    options.namespace = Some("mine".to_owned());
    assert_eq!(connect(&options).await.unwrap().namespace(), "mine");
}

#[tokio::test]
async fn refusals_of_the_server_are_told_apart() {
    let api = FakeApi::start([
        Answer::refusal("GET /version", 401, "Unauthorized", "Unauthorized"),
        Answer::refusal(
            "GET /version",
            403,
            "Forbidden",
            "forbidden: User \"x\" cannot get path \"/version\"",
        ),
        Answer { when: "GET /version", code: 403, bodies: vec!["Sign in".into()], stays: false },
        Answer::ok("GET /version", serde_json::json!(["a page of something else"])),
    ])
    .await;
    let (_file, options) = options(&api.url);
    assert!(matches!(fails(&options).await, ClusterError::Unauthorized { .. }));
    assert_eq!(connect(&options).await.unwrap().version(), None);
    assert!(matches!(fails(&options).await, ClusterError::Forbidden { .. }));
    assert!(matches!(fails(&options).await, ClusterError::Unreachable { .. }));
}

#[tokio::test]
async fn a_closed_port_is_unreachable_and_says_why() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (_file, options) = options(&url);
    let error = fails(&options).await;
    assert_eq!(error.to_string(), format!("cannot reach the cluster at {url}/"));
    let mut chain = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        chain.push(error.to_string());
        cause = error.source();
    }
    assert!(chain.last().unwrap().contains("refused"), "{chain:?}");
}
