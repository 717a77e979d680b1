//! Against a scripted API server: what is asked, and what the answers mean.

use serde_json::{Value, json};

use super::super::fake_api::{Answer, FakeApi};
use super::*;

const PODS: &str = "GET /api/v1/namespaces/dev/pods";

fn pod(name: &str, ready: bool) -> Value {
    json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}
    })
}

fn list(pods: &[Value]) -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
}

fn service(selector: Value) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1", "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.96.0.7", "selector": selector, "ports": [{"port": 80, "targetPort": "http"}]}
    })
}

fn resolver(api: &FakeApi, target: &str, ports: &[&str]) -> Resolver {
    let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
    Resolver::new(api.cluster.clone(), target.parse().unwrap(), ports)
}

#[test]
fn targets_as_kubectl_writes_them() {
    for (text, kind, name) in [
        ("web-1", Kind::Pod, "web-1"),
        ("pod/web-1", Kind::Pod, "web-1"),
        ("po/web.example", Kind::Pod, "web.example"),
        ("svc/web", Kind::Service, "web"),
        ("Service/web", Kind::Service, "web"),
        ("deploy/web", Kind::Deployment, "web"),
        ("deployment.apps/web", Kind::Deployment, "web"),
        ("sts/db", Kind::StatefulSet, "db"),
        ("ds/agent", Kind::DaemonSet, "agent"),
        ("rs/web-7d", Kind::ReplicaSet, "web-7d"),
    ] {
        assert_eq!(text.parse(), Ok(Target { kind, name: name.into() }), "{text}");
    }
    for text in ["", "svc/", "/web", "cm/web", "svc/web/80", "svc/Web", "svc/..", "a b", "8080:80"] {
        assert!(text.parse::<Target>().is_err(), "{text:?}");
    }
    assert_eq!("deploy/web".parse::<Target>().unwrap().to_string(), "deployment web");
}

#[tokio::test]
async fn a_service_leads_to_a_ready_pod_and_its_port() {
    let api = FakeApi::start([
        Answer::ok(
            "GET /api/v1/namespaces/dev/services/web",
            service(json!({"app": "web", "tier": "front"})),
        ),
        Answer::ok(PODS, list(&[pod("web-1", false), pod("web-2", true)])),
    ])
    .await;
    let found = resolver(&api, "svc/web", &["80", "80"]).find(None).await.unwrap();
    assert_eq!((found.pod.as_str(), found.uid.as_str()), ("web-2", "uid-web-2"));
    assert_eq!(found.ports, [Port { named: 80, pod: 8080 }; 2]);
    let asked = &api.asked()[1].line;
    assert!(asked.contains("labelSelector=app%3Dweb%2Ctier%3Dfront"), "{asked}");
}

#[tokio::test]
async fn a_deployment_is_read_with_all_of_its_selector() {
    let workload = json!({
        "kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "old", "operator": "DoesNotExist"}]}}
    });
    let api = FakeApi::start([
        Answer::ok("GET /apis/apps/v1/namespaces/dev/deployments/web", workload),
        Answer::ok(PODS, list(&[pod("web-1", true)])),
    ])
    .await;
    assert_eq!(resolver(&api, "deploy/web", &["http"]).find(None).await.unwrap().ports[0].pod, 8080);
    let asked = &api.asked()[1].line;
    assert!(asked.contains("%21old") && asked.contains("app%3Dweb"), "{asked}");
}

#[tokio::test]
async fn without_a_selector_no_pod_is_guessed() {
    let api = FakeApi::start([
        Answer::ok("GET /api/v1/namespaces/dev/services/web", service(Value::Null)),
        Answer::ok(
            "GET /apis/apps/v1/namespaces/dev/deployments/web",
            json!({
                "kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "web"}, "spec": {}
            }),
        ),
    ])
    .await;
    for target in ["svc/web", "deploy/web"] {
        let error = resolver(&api, target, &["80"]).find(None).await.unwrap_err();
        assert!(matches!(*error, TargetError::NoSelector(_)) && !error.may_pass(), "{error:?}");
    }
}

#[tokio::test]
async fn a_named_pod_need_not_be_ready_and_its_end_is_known() {
    let name = "GET /api/v1/namespaces/dev/pods/web-1";
    let mut ending = pod("web-1", true);
    ending["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z".into();
    ending["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]);
    let mut ended = pod("web-1", false);
    ended["status"]["phase"] = "Failed".into();
    let api = FakeApi::start([
        Answer::ok(name, pod("web-1", false)),
        Answer::ok(name, ending.clone()),
        Answer::ok(name, ending),
        Answer::ok(name, ended),
        Answer::refusal(name, 404, "NotFound", "pods \"web-1\" not found"),
        Answer::refusal(name, 503, "ServiceUnavailable", "later"),
    ])
    .await;
    let find = async |avoid| resolver(&api, "web-1", &["http"]).find(avoid).await;
    assert!(find(None).await.unwrap().name_returns, "nobody controls it");
    assert!(!find(None).await.unwrap().name_returns, "a ReplicaSet makes up names");
    let error = find(Some("uid-web-1")).await.unwrap_err();
    assert_eq!(error.to_string(), "pod web-1 is being deleted");
    assert!(error.may_pass() && !error.is_gone());
    assert!(find(None).await.unwrap_err().is_gone());
    let error = find(None).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no pod web-1 in namespace `dev`");
    assert!(error.is_gone());
    let error = find(None).await.unwrap_err();
    assert!(error.may_pass() && !error.is_gone(), "the API server's absence says nothing about the pod");
}

#[tokio::test]
async fn answers_are_kept_for_a_moment_and_failures_too() {
    let answers = || {
        [
            Answer::ok("GET /api/v1/namespaces/dev/services/web", service(json!({"app": "web"}))),
            Answer::ok(PODS, list(&[pod("web-1", true)])),
        ]
    };
    let api = FakeApi::start(answers()).await;
    let web = resolver(&api, "svc/web", &["80"]);
    let (one, two) = tokio::join!(web.find(None), web.find(None));
    assert_eq!(one.unwrap(), two.unwrap());
    assert_eq!(api.asked().len(), 2, "both connections got one answer");

    let api = FakeApi::start([]).await;
    let web = resolver(&api, "svc/web", &["80"]);
    let (one, two) = tokio::join!(web.find(None), web.find(None));
    assert!(Arc::ptr_eq(&one.unwrap_err(), &two.unwrap_err()));
    assert_eq!(api.asked().len(), 1);
}

#[tokio::test]
async fn a_pod_that_failed_is_left_for_another() {
    let api = FakeApi::start([
        Answer::ok("GET /api/v1/namespaces/dev/services/web", service(json!({"app": "web"}))),
        Answer::ok(PODS, list(&[pod("web-1", true), pod("web-2", true)])),
        Answer::ok("GET /api/v1/namespaces/dev/services/web", service(json!({"app": "web"}))),
        Answer::ok(PODS, list(&[pod("web-1", true), pod("web-2", true)])),
    ])
    .await;
    let web = resolver(&api, "svc/web", &["80"]);
    let first = web.find(None).await.unwrap();
    let second = web.find(Some(&first.uid)).await.unwrap();
    assert_ne!(first.pod, second.pod);
    assert_eq!(web.find(None).await.unwrap().pod, second.pod, "the others follow");
    assert_eq!(api.left(), 0);
}

#[tokio::test]
async fn a_missing_right_is_known_as_one() {
    let message = "services \"web\" is forbidden: User \"dev\" cannot get resource \"services\" in API group \"\" in the namespace \"dev\"";
    let api = FakeApi::start([Answer::refusal("GET /api", 403, "Forbidden", message)]).await;
    let error = resolver(&api, "svc/web", &["80"]).find(None).await.unwrap_err();
    assert_eq!(error.missing_right().unwrap().resource, "services");
    assert!(!error.may_pass());
}
