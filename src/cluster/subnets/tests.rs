mod narrow;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::*;
use crate::cluster::fake_api::{Answer, FakeApi};

pub(super) const CIDRS: &str = "GET /apis/networking.k8s.io/v1/servicecidrs";
const BETA_CIDRS: &str = "GET /apis/networking.k8s.io/v1beta1/servicecidrs";
const KUBEADM: &str = "GET /api/v1/namespaces/kube-system/configmaps?";
const API_SERVERS: &str = "GET /api/v1/namespaces/kube-system/pods?";
const WORDS: &str = "POST /api/v1/namespaces/dev/services?&dryRun=All";
const REALLY: &str = "POST /api/v1/namespaces/dev/services?";
pub(super) const SERVICES: &str = "GET /api/v1/services?";
const OUR_SERVICES: &str = "GET /api/v1/namespaces/dev/services?";
pub(super) const NODES: &str = "GET /api/v1/nodes?";
const CALICO: &str = "GET /apis/crd.projectcalico.org/v1/ippools?";
const CILIUM_NODES: &str = "GET /apis/cilium.io/v2/ciliumnodes?";
const CILIUM_POOLS: &str = "GET /apis/cilium.io/v2alpha1/ciliumpodippools?";
pub(super) const PODS: &str = "GET /api/v1/pods?";
const OUR_PODS: &str = "GET /api/v1/namespaces/dev/pods?";

/// An answer of an API server. Those of 1.36 are recorded; Calico's, Cilium's and kubeadm's are written after the projects'
/// references (docs.tigera.io, docs.cilium.io, kubeadm's configuration v1beta4).
pub(super) fn fixture(name: &str) -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/api").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub(super) fn nets(ranges: &[&str]) -> Vec<IpNet> {
    ranges.iter().map(|range| said::parsed([*range])[0]).collect()
}

/// A list as API servers answer, of whatever kind.
pub(super) fn list(version: &str, items: &[Value]) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items})
}

pub(super) fn pod(name: &str, address: &str) -> Value {
    let metadata = json!({"namespace": "dev", "name": name, "resourceVersion": "9"});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {},
        "status": {"phase": "Running", "hostIP": "172.18.0.2", "podIP": address}})
}

fn service(name: &str, address: &str) -> Value {
    json!({"metadata": {"namespace": "dev", "name": name}, "spec": {"clusterIP": address}})
}

fn absent(when: &'static str) -> Answer {
    Answer::refusal(when, 404, "NotFound", "the server could not find the requested resource")
}

/// As the authorizer refuses it.
fn forbidden(when: &'static str, resource: &str, verb: &str) -> Answer {
    let place = if when.contains("/dev/") { "in the namespace \"dev\"" } else { "at the cluster scope" };
    let message = format!(
        "{resource} is forbidden: User \"eve\" cannot {verb} resource \"{resource}\" in API group \"\" {place}"
    );
    Answer::refusal(when, 403, "Forbidden", &message)
}

fn silent_words() -> [Answer; 2] {
    [forbidden(WORDS, "services", "create"), forbidden(WORDS, "services", "create")]
}

async fn started(script: impl IntoIterator<Item = Answer>) -> FakeApi {
    FakeApi::start(script).await
}

async fn found(api: &FakeApi, mode: Mode) -> (Vec<IpNet>, Vec<String>) {
    let found = find(&api.cluster, mode).await.unwrap();
    (found.watch.ranges().to_vec(), found.notes)
}

#[tokio::test]
async fn a_dual_stack_cluster_tells_all_of_it() {
    let api = started([
        Answer::ok(CIDRS, fixture("servicecidrs-1.36.json")),
        Answer::ok(PODS, list("1", &[pod("a", "10.244.0.7")])),
        Answer::ok(NODES, fixture("nodes-1.36.json")),
    ])
    .await;
    let (ranges, notes) = found(&api, Mode::Ranges).await;
    assert_eq!(ranges, nets(&["10.96.0.0/12", "10.244.0.0/24", "fd00:10:96::/112", "fd00:10:244::/64"]));
    assert_eq!(
        notes,
        [
            "Services: 10.96.0.0/12, fd00:10:96::/112 (ServiceCIDR objects)",
            "pods: 10.244.0.0/24, fd00:10:244::/64 (podCIDRs of nodes)"
        ]
    );
}

#[tokio::test]
async fn the_first_source_of_service_ranges_wins() {
    let closed = || [absent(CIDRS), absent(BETA_CIDRS)];
    let nodes = || Answer::ok(NODES, fixture("nodes-1.36.json"));
    let beta =
        list("1", &[json!({"metadata": {"name": "a"}, "spec": {"cidrs": ["10.0.0.1/16", "nonsense"]}})]);
    for (script, range, by) in [
        (vec![absent(CIDRS), Answer::ok(BETA_CIDRS, beta)], "10.0.0.0/16", "ServiceCIDR objects"),
        (
            closed().into_iter().chain([Answer::ok(KUBEADM, fixture("kubeadm-config.json"))]).collect(),
            "10.96.0.0/16",
            "serviceSubnet of kubeadm; no ServiceCIDR objects",
        ),
        (
            closed()
                .into_iter()
                .chain([forbidden(KUBEADM, "configmaps", "list")])
                .chain([Answer::ok(API_SERVERS, fixture("kube-apiserver-pods.json"))])
                .collect(),
            "10.96.0.0/16",
            "flags of kube-apiserver's pods; no ServiceCIDR objects; user `eve` may not list configmaps in this cluster",
        ),
    ] {
        let api = started(script.into_iter().chain([nodes()])).await;
        let (ranges, notes) = found(&api, Mode::Ranges).await;
        assert_eq!(ranges[0], nets(&[range])[0]);
        assert!(notes[0].ends_with(&format!("({by})")), "{notes:?}");
        assert_eq!(api.left(), 0);
        assert!(
            !api.asked().iter().any(|asked| asked.line.starts_with("POST")),
            "nothing is tried that is not needed"
        );
    }
}

/// As Kubernetes 1.36 says it.
fn invalid(range: &str) -> String {
    format!(
        "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"192.0.2.1\"]: failed to allocate IP \
         192.0.2.1: the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is {range}"
    )
}

/// Nothing in kube-system can be read.
fn nothing_of_kubeadm() -> [Answer; 4] {
    [
        absent(CIDRS),
        absent(BETA_CIDRS),
        Answer::ok(KUBEADM, list("1", &[])),
        Answer::ok(API_SERVERS, list("1", &[])),
    ]
}

#[tokio::test]
async fn a_managed_cluster_names_its_range_when_it_refuses_an_address() {
    let api = started(nothing_of_kubeadm().into_iter().chain([
        Answer::refusal(WORDS, 422, "Invalid", &invalid("10.96.0.0/12")),
        Answer::refusal(WORDS, 422, "Invalid", "spec.clusterIPs[0]: Invalid value: IPv6 is not configured"),
    ]))
    .await;
    let (ranges, notes) = found(&api, Mode::Ranges).await;
    assert_eq!(ranges, nets(&["10.96.0.0/12"]));
    assert_eq!(
        notes[0],
        "Services: 10.96.0.0/12 (the API server's words; no ServiceCIDR objects; no serviceSubnet of kubeadm; no flags \
         of kube-apiserver's pods)"
    );
    assert!(notes[1].starts_with("pods: unknown ("), "{notes:?}");
    let asked = api.asked();
    let tried = asked.iter().find(|asked| asked.line.starts_with("POST")).unwrap();
    assert_eq!(tried.body["spec"]["clusterIP"], "192.0.2.1");
    assert_eq!(api.left(), 0);
}

/// Before 1.23 no address is looked at in a dry run.
#[tokio::test]
async fn a_dry_run_that_looks_at_no_address_is_followed_by_what_cannot_be_made() {
    // As Kubernetes 1.20 says it.
    let invalid = |range: &str| {
        format!(
            "Service \"x\" is invalid: spec.clusterIPs: Invalid value: []string{{\"192.0.2.1\"}}: failed to \
             allocated ip:192.0.2.1 with error:provided IP is not in the valid range. The range of valid IPs is \
             {range}"
        )
    };
    let accepted = || Answer::ok(WORDS, json!({"metadata": {"name": "x"}}));
    let api = started(nothing_of_kubeadm().into_iter().chain([
        accepted(),
        Answer::refusal(REALLY, 422, "Invalid", &invalid("10.96.0.0/12")),
        accepted(),
        Answer::refusal(REALLY, 422, "Invalid", &invalid("fd00:10:96::/112")),
    ]))
    .await;
    let (_, notes) = found(&api, Mode::Ranges).await;
    assert!(notes[0].starts_with("Services: 10.96.0.0/12, fd00:10:96::/112 (the"), "{notes:?}");
    let asked: Vec<_> = api.asked().into_iter().filter(|asked| asked.line.starts_with("POST")).collect();
    let spec = |request: usize| &asked[request].body["spec"];
    assert_eq!(spec(0)["externalTrafficPolicy"], Value::Null, "else its validation would answer");
    for request in [1, 3] {
        assert!(!asked[request].line.contains("dryRun"), "{}", asked[request].line);
        assert_eq!(spec(request)["type"], "ClusterIP");
        assert_eq!(spec(request)["externalTrafficPolicy"], "Local", "no server makes this");
    }
    assert_eq!(api.left(), 0);
}

#[tokio::test]
async fn pods_are_where_the_first_open_source_says() {
    let kubeadm = || Answer::ok(KUBEADM, fixture("kubeadm-config.json"));
    let no_nodes = || forbidden(NODES, "nodes", "list");
    let no_kubeadm = || forbidden(KUBEADM, "configmaps", "list");
    let cidrs = || Answer::ok(CIDRS, fixture("servicecidrs-1.36.json"));
    for (script, range, by) in [
        (vec![no_nodes(), kubeadm()], "10.244.0.0/16", "podSubnet of kubeadm"),
        (
            vec![no_nodes(), no_kubeadm(), Answer::ok(CALICO, fixture("calico-ippools.json"))],
            "192.168.0.0/16",
            "Calico's IPPools",
        ),
        (
            vec![
                Answer::ok(NODES, list("1", &[json!({"metadata": {"name": "n"}})])),
                no_kubeadm(),
                absent(CALICO),
                Answer::ok(CILIUM_NODES, fixture("cilium-nodes.json")),
            ],
            "10.0.0.0/23",
            "podCIDRs of CiliumNodes",
        ),
        (
            vec![
                no_nodes(),
                no_kubeadm(),
                absent(CALICO),
                Answer::ok(CILIUM_NODES, list("1", &[])),
                absent("GET /apis/cilium.io/v2/ciliumpodippools?"),
                Answer::ok(CILIUM_POOLS, fixture("cilium-pools.json")),
            ],
            "10.10.0.0/16",
            "CiliumPodIPPools",
        ),
    ] {
        let api = started(script.into_iter().chain([cidrs()])).await;
        let (ranges, notes) = found(&api, Mode::Ranges).await;
        assert!(ranges.contains(&nets(&[range])[0]), "{ranges:?}");
        assert!(notes[1].contains(&format!("({by};")), "{notes:?}");
        assert_eq!(api.left(), 0);
    }
}

/// Cilium with its own ranges in a cluster whose controller manager gives podCIDRs to nodes all the same.
#[tokio::test]
async fn pods_outside_of_what_nodes_tell_let_the_next_be_asked() {
    let api = started([
        Answer::ok(CIDRS, fixture("servicecidrs-1.36.json")),
        Answer::ok(PODS, list("1", &[pod("a", "10.244.0.7"), pod("b", "10.0.1.7")])),
        Answer::ok(NODES, fixture("nodes-1.36.json")),
        absent(CALICO),
        Answer::ok(CILIUM_NODES, fixture("cilium-nodes.json")),
    ])
    .await;
    let (ranges, notes) = found(&api, Mode::Ranges).await;
    assert!(ranges.contains(&nets(&["10.0.0.0/23"])[0]), "{ranges:?}");
    assert_eq!(
        notes[1],
        "pods: 10.0.0.0/23, 10.244.0.0/24, fd00:10:244::/64 (podCIDRs of nodes, podCIDRs of CiliumNodes; podCIDRs of \
         nodes do not hold 10.0.1.7/32, a pod; no Calico's IPPools)"
    );
    assert!(
        !api.asked().iter().any(|asked| asked.line.starts_with(KUBEADM)),
        "nodes told, so podSubnet is not asked"
    );
}

/// Someone who may do little, and only in one namespace.
fn limited() -> Vec<Answer> {
    let mut script = vec![
        forbidden(CIDRS, "servicecidrs", "list"),
        forbidden(KUBEADM, "configmaps", "list"),
        forbidden(API_SERVERS, "pods", "list"),
        forbidden(SERVICES, "services", "list"),
        forbidden(PODS, "pods", "list"),
        forbidden(NODES, "nodes", "list"),
        forbidden(CALICO, "ippools", "list"),
        absent(CILIUM_NODES),
        forbidden(PODS, "pods", "list"),
    ];
    script.extend(silent_words());
    script
}

#[tokio::test]
async fn who_is_limited_to_a_namespace_gets_its_addresses_and_no_range_around_them() {
    let pods = || Answer::ok(OUR_PODS, list("1", &[pod("a", "10.244.0.4"), pod("b", "10.244.0.5")]));
    let services = [service("a", "10.96.0.9"), service("b", "None")];
    let api = started(limited().into_iter().chain([
        pods(),
        pods(),
        Answer::ok(OUR_SERVICES, list("1", &services)),
    ]))
    .await;
    let (ranges, notes) = found(&api, Mode::Ranges).await;
    assert_eq!(ranges, nets(&["10.96.0.9/32", "10.244.0.4/31"]), "exact neighbours are joined, nothing else");
    assert!(
        notes[0].starts_with(
            "Services: 10.96.0.9/32 (addresses of Services of namespace `dev`; user `eve` may not"
        )
    );
    assert_eq!(notes[1], "Services: those of other namespaces than `dev` are not redirected");
    assert!(notes[2].contains("(addresses of pods of namespace `dev`; "), "{notes:?}");
    assert_eq!(notes[3], "pods: those of other namespaces than `dev` are not redirected");
    assert_eq!(api.left(), 0);
    let asked = api.asked().into_iter().find(|asked| asked.line.starts_with(OUR_PODS)).unwrap().line;
    assert!(
        asked.contains("labelSelector=app.kubernetes.io%2Fmanaged-by%21%3Dkshuttle"),
        "not ours: {asked}"
    );
}

#[tokio::test]
async fn nothing_readable_says_what_to_do() {
    let api = started(limited().into_iter().chain([
        forbidden(OUR_SERVICES, "services", "list"),
        forbidden(OUR_PODS, "pods", "list"),
        forbidden(OUR_PODS, "pods", "list"),
    ]))
    .await;
    let text = find(&api.cluster, Mode::Ranges).await.unwrap_err().to_string();
    for part in [
        "name them",
        "may not list servicecidrs",
        "may not create services in",
        "may not list services in namespace `dev`",
        "may not list nodes",
        "no podCIDRs of CiliumNodes",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_another_error() {
    let api = started([Answer::refusal(CIDRS, 401, "Unauthorized", "Unauthorized")]).await;
    let error = find(&api.cluster, Mode::Ranges).await.unwrap_err();
    assert!(matches!(error, SubnetsError::Api(ApiError::Unauthorized(_))));
}

#[tokio::test]
async fn all_pages_are_read_and_a_list_that_expired_is_begun_again() {
    let page = |number: u8, token: &str| {
        json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {"continue": token}, "items": [
            {"metadata": {"name": format!("n{number}")}, "spec": {"podCIDR": format!("10.244.{number}.0/24")}}]})
    };
    let api = started([
        Answer::ok(CIDRS, fixture("servicecidrs-1.36.json")),
        Answer::ok(NODES, page(8, "more")),
        Answer::refusal(NODES, 410, "Expired", "The provided continue parameter is too old"),
        Answer::ok(NODES, page(0, "more")),
        Answer::ok(NODES, page(1, "")),
    ])
    .await;
    let (ranges, _) = found(&api, Mode::Ranges).await;
    assert!(ranges.contains(&nets(&["10.244.0.0/23"])[0]), "neighbours are joined: {ranges:?}");
    assert!(!ranges.contains(&nets(&["10.244.8.0/24"])[0]), "what was read in the first try is out of date");
    let asked: Vec<_> = api.asked().into_iter().filter(|asked| asked.line.starts_with(NODES)).collect();
    assert!(asked[3].line.contains("continue=more"));
}

#[tokio::test]
async fn a_list_without_end_is_given_up() {
    let page = || {
        let list = list("1", &[pod("a", "10.244.0.4")]);
        let more = json!({"resourceVersion": "1", "continue": "more"});
        Answer::ok(NODES, json!({"kind": list["kind"], "metadata": more, "items": list["items"]}))
    };
    let cidrs = Answer::ok(CIDRS, fixture("servicecidrs-1.36.json"));
    let api = started((0..600).map(|_| page()).chain([cidrs])).await;
    let (_, notes) = found(&api, Mode::Ranges).await;
    assert!(notes[1].contains("more than 100000 podCIDRs of nodes"), "{notes:?}");
    assert_eq!(api.left(), 100);
}
