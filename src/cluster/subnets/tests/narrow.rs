use super::*;

const SLICES: &str = "GET /apis/discovery.k8s.io/v1/endpointslices?";
const BETA_SLICES: &str = "GET /apis/discovery.k8s.io/v1beta1/endpointslices?";
const OUR_SLICES: &str = "GET /apis/discovery.k8s.io/v1/namespaces/dev/endpointslices?";

fn slice(name: &str, addresses: &[&str]) -> Value {
    json!({"metadata": {"namespace": "dev", "name": name}, "endpoints": [{"addresses": addresses}]})
}

#[tokio::test]
async fn too_many_addresses_are_an_error_that_tells_the_way_out() {
    let every_second = (0..=MAX_INCLUDE).map(|i| format!("10.244.{}.{}", i / 128, i % 128 * 2));
    let pods: Vec<_> = every_second.enumerate().map(|(i, ip)| pod(&format!("p{i}"), &ip)).collect();
    let api = started([
        Answer::ok(SERVICES, list("1", &[])),
        Answer::ok(PODS, list("1", &pods)),
        Answer::ok(NODES, list("1", &[])),
        Answer::ok(SLICES, list("1", &[])),
    ])
    .await;
    let text = find(&api.cluster, Mode::Narrow).await.unwrap_err().to_string();
    assert!(text.contains("4097 separate") && text.contains("name ranges"), "{text}");
}

#[tokio::test]
async fn narrow_is_what_there_is_without_nodes() {
    let node = json!({"metadata": {"name": "n"}, "status": {"addresses": [{"address": "172.18.0.9"}]}});
    let exporters = slice("node-exporter", &["172.18.0.9", "172.18.0.2"]);
    let api = started([
        Answer::ok(SERVICES, list("1", &[service("a", "10.96.0.9"), service("b", "None")])),
        // On node 172.18.0.2, which is no Node object any more.
        Answer::ok(PODS, list("1", &[pod("a", "10.244.0.4")])),
        Answer::ok(NODES, list("1", &[node])),
        absent(SLICES),
        Answer::ok(BETA_SLICES, list("1", &[exporters, slice("b", &["10.244.0.4", "10.244.7.7"])])),
    ])
    .await;
    let (ranges, notes) = found(&api, Mode::Narrow).await;
    assert_eq!(ranges, nets(&["10.96.0.9/32", "10.244.0.4/32", "10.244.7.7/32"]));
    assert!(notes[2].contains("(addresses of EndpointSlices, addresses of nodes left out)"), "{notes:?}");
    assert_eq!(api.left(), 0);
}

#[tokio::test]
async fn endpoints_that_may_be_nodes_are_left_out() {
    let shut = || {
        [
            forbidden(SERVICES, "services", "list"),
            Answer::ok(OUR_SERVICES, list("1", &[service("a", "10.96.0.9")])),
            forbidden(PODS, "pods", "list"),
            forbidden(NODES, "nodes", "list"),
        ]
    };
    let ours = Answer::ok(OUR_SLICES, list("1", &[slice("b", &["10.244.0.4", "172.18.0.2"])]));
    let pods = Answer::ok(OUR_PODS, list("1", &[pod("a", "10.244.0.4")]));
    let api = started(shut().into_iter().chain([pods, ours])).await;
    let (ranges, _) = found(&api, Mode::Narrow).await;
    assert_eq!(ranges, nets(&["10.96.0.9/32", "10.244.0.4/32"]), "the namespace's pods tell which are nodes");
    assert_eq!(api.left(), 0);

    let api = started(shut().into_iter().chain([forbidden(OUR_PODS, "pods", "list")])).await;
    let (ranges, notes) = found(&api, Mode::Narrow).await;
    assert_eq!(ranges, nets(&["10.96.0.9/32"]));
    assert!(notes.iter().any(|note| note.contains("an endpoint may be a node")), "{notes:?}");
}
