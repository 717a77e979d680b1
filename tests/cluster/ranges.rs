//! What the cluster tells about its ranges, to whom, and how changes are noticed.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kshuttle::cluster::client::{Options, connect};
use kshuttle::cluster::subnets::{Found, Mode, Watch, find};
use kshuttle_test_support::kshuttle::{PATIENCE, eventually, kubectl};
use kshuttle_test_support::operator::Broken;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::json;

use crate::pod::{administrator, limited};
use crate::scene::{apply, block_on, minor};

/// A change in the cluster is known after this, or not at all.
const NOTICED: Duration = Duration::from_secs(5);

fn holds(ranges: &[IpNet], address: &str) -> bool {
    let address: IpAddr = address.parse().unwrap();
    ranges.iter().any(|range| range.contains(&address))
}

/// Waits until this address is among them.
async fn notices(watch: &mut Watch, address: &str, limit: Duration) {
    let noticed = async { while !holds(&watch.next().await, address) {} };
    tokio::time::timeout(limit, noticed).await.unwrap_or_else(|_| panic!("{address} was not noticed"));
}

fn addresses(arguments: &[&str]) -> Vec<String> {
    kubectl(arguments).split_whitespace().map(str::to_owned).collect()
}

pub(crate) fn the_cluster_tells_its_ranges_and_by_whom() {
    block_on(async {
        let cluster = administrator("default").await;
        let Found { watch, notes } = find(&cluster, Mode::Ranges).await.unwrap();
        let ranges = ["10.96.0.0/12", "10.244.0.0/24", "fd00:10:96::/112", "fd00:10:244::/64"];
        assert_eq!(watch.ranges(), ranges.map(|range| range.parse::<IpNet>().unwrap()));
        let by = if minor(&cluster) < 33 { "(the API server's words; " } else { "(ServiceCIDR objects)" };
        assert!(notes[0].contains(by) && notes[1].contains("(podCIDRs of nodes)"), "{notes:?}");
    });
}

pub(crate) fn who_is_limited_to_a_namespace_gets_its_addresses_only() {
    block_on(async {
        let pods: Api<Pod> = Api::namespaced(administrator("locked").await.client().clone(), "locked");
        let pod = json!({"metadata": {"generateName": "ranges-"}, "spec": {
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "bench", "image": "kshuttle.test/bench:1", "securityContext":
                {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}});
        let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let name = pod.metadata.name.unwrap();
        let address = |pod: &Pod| pod.status.as_ref()?.pod_ip.clone();
        let has_one = |pod: Option<&Pod>| pod.and_then(address).is_some();
        let pod = await_condition(pods.clone(), &name, has_one).await.unwrap().unwrap();

        let Found { watch, notes } = find(&limited("locked").await, Mode::Ranges).await.unwrap();
        assert!(holds(watch.ranges(), &address(&pod).unwrap()), "{:?}", watch.ranges());
        let others =
            addresses(&["-n", "kube-system", "get", "pods", "-o", "jsonpath={.items[*].status.podIP}"]);
        for other in others.iter().map(String::as_str).chain(["10.96.0.1"]) {
            assert!(!holds(watch.ranges(), other), "{other} is not of the namespace: {:?}", watch.ranges());
        }
        let said = notes.join("\n");
        for part in [
            "may not list services in namespace `locked`",
            "addresses of pods of namespace `locked`",
            "pods: those of other namespaces than `locked` are not redirected",
        ] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        pods.delete(&name, &DeleteParams::default().grace_period(0)).await.unwrap();
    });
}

/// The user may read nothing else.
pub(crate) fn kubeadm_and_calico_tell_who_may_read_theirs() {
    const USER: &str = "reader-of-ranges";
    let group = "crd.projectcalico.org";
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let v1 = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": open}});
    let names =
        json!({"kind": "IPPool", "listKind": "IPPoolList", "plural": "ippools", "singular": "ippool"});
    apply(&json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("ippools.{group}")},
        "spec": {"group": group, "scope": "Cluster", "names": names, "versions": [v1]}}));
    kubectl(&["wait", "--for=condition=Established", &format!("crd/ippools.{group}")]);
    apply(&json!({"apiVersion": format!("{group}/v1"), "kind": "IPPool", "metadata": {"name": "ranges"},
        "spec": {"cidr": "192.168.0.0/16"}}));
    let yaml = "networking:\n  serviceSubnet: 10.96.0.0/12,fd00:10:96::/112\n";
    apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"ClusterConfiguration": yaml},
        "metadata": {"namespace": "kube-system", "name": "kubeadm-config"}}));
    let subjects = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}]);
    let of = |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": USER});
    let version = "rbac.authorization.k8s.io/v1";
    let here = json!({"name": USER, "namespace": "kube-system"});
    apply(&json!({"apiVersion": version, "kind": "Role", "metadata": here, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kubeadm-config"], "verbs": ["list", "watch"]}]}));
    apply(
        &json!({"apiVersion": version, "kind": "RoleBinding", "metadata": here, "subjects": subjects, "roleRef": of("Role")}),
    );
    apply(&json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": USER}, "rules": [
        {"apiGroups": [group], "resources": ["ippools"], "verbs": ["list", "watch"]}]}));
    apply(
        &json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": USER}, "subjects": subjects,
        "roleRef": of("ClusterRole")}),
    );

    let reader = Options {
        as_user: Some(USER.to_owned()),
        namespace: Some("default".to_owned()),
        ..Options::default()
    };
    block_on(async {
        let Found { mut watch, notes } = find(&connect(&reader).await.unwrap(), Mode::Ranges).await.unwrap();
        let ranges = ["10.96.0.0/12", "192.168.0.0/16", "fd00:10:96::/112"];
        assert_eq!(watch.ranges(), ranges.map(|range| range.parse::<IpNet>().unwrap()));
        let said = notes.join("\n");
        for part in ["(serviceSubnet of kubeadm; ", "(Calico's IPPools; ", "may not list nodes"] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        apply(&json!({"apiVersion": format!("{group}/v1"), "kind": "IPPool", "metadata": {"name": "more"},
            "spec": {"cidr": "10.11.0.0/16"}}));
        notices(&mut watch, "10.11.0.1", NOTICED).await;
    });

    kubectl(&[
        "delete",
        &format!("crd/ippools.{group}"),
        &format!("clusterrole/{USER}"),
        &format!("clusterrolebinding/{USER}"),
    ]);
    kubectl(&[
        "-n",
        "kube-system",
        "delete",
        "configmap/kubeadm-config",
        &format!("role/{USER}"),
        &format!("rolebinding/{USER}"),
    ]);
}

pub(crate) fn a_new_node_and_a_new_service_are_noticed() {
    block_on(async {
        let cluster = administrator("default").await;
        let mut ranges = find(&cluster, Mode::Ranges).await.unwrap().watch;
        let mut narrow = find(&cluster, Mode::Narrow).await.unwrap().watch;

        let nodes: Api<Node> = Api::all(cluster.client().clone());
        let node = json!({"metadata": {"name": "ranges"}, "spec": {"podCIDR": "10.244.99.0/24"}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        notices(&mut ranges, "10.244.99.1", NOTICED).await;
        nodes.delete("ranges", &DeleteParams::default()).await.unwrap();

        let (services, address) = new_service(cluster.client().clone()).await;
        notices(&mut narrow, &address, NOTICED).await;
        services.delete("ranges", &DeleteParams::default()).await.unwrap();
        assert!(holds(narrow.ranges(), &address), "it is in its grace");
    });
}

pub(crate) fn a_killed_api_server_is_outlived() {
    block_on(async {
        let cluster = administrator("default").await;
        let mut watch = find(&cluster, Mode::Narrow).await.unwrap().watch;
        let before = watch.ranges().to_vec();
        Broken::killed("apiserver").mend();
        let ready = || {
            let asked = Command::new("kubectl").args(["get", "--raw", "/readyz"]).output().unwrap();
            asked.status.success().then_some(())
        };
        eventually("the API server is ready", PATIENCE, ready);
        let (services, address) = new_service(cluster.client().clone()).await;
        notices(&mut watch, &address, PATIENCE).await;
        assert!(
            before.iter().all(|range| holds(watch.ranges(), &range.addr().to_string())),
            "nothing was lost"
        );
        services.delete("ranges", &DeleteParams::default()).await.unwrap();
    });
}

async fn new_service(client: Client) -> (Api<Service>, String) {
    let services: Api<Service> = Api::namespaced(client, "default");
    let service = json!({"metadata": {"name": "ranges"}, "spec": {"ports": [{"port": 80}]}});
    let service =
        services.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
    (services, service.spec.unwrap().cluster_ip.unwrap())
}

pub(crate) fn narrow_is_every_address_but_the_nodes() {
    block_on(async {
        let found = find(&administrator("default").await, Mode::Narrow).await.unwrap();
        let ranges = found.watch.ranges();
        let services = addresses(&["get", "services", "-A", "-o", "jsonpath={.items[*].spec.clusterIP}"]);
        // Not those of sessions that have just ended.
        let (foreign, running) =
            ("app.kubernetes.io/managed-by!=kshuttle", "--field-selector=status.phase=Running");
        let pods = addresses(&[
            "get",
            "pods",
            "-A",
            "-l",
            foreign,
            running,
            "-o",
            "jsonpath={.items[*].status.podIP}",
        ]);
        assert!(!pods.is_empty());
        for address in services.iter().chain(&pods).filter(|address| *address != "None") {
            assert!(holds(ranges, address), "{address} is not in {ranges:?}");
        }
        let nodes = addresses(&[
            "get",
            "nodes",
            "-o",
            "jsonpath={.items[*].status.addresses[?(@.type==\"InternalIP\")].address}",
        ]);
        assert!(!nodes.is_empty());
        for node in nodes {
            assert!(!holds(ranges, &node), "{node} is a node");
        }
        let unused = "10.96.255.254";
        assert!(!services.iter().any(|address| address == unused) && !holds(ranges, unused));
    });
}
