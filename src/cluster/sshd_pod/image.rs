//! Which image the pod is made of when the program comes by ConfigMap: nothing of it is used, so the best one is
//! one that the nodes have already. [`choose_image`] is pure; [`gather`] asks the cluster what there is.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;

use super::super::api_error::ask;
use super::super::client::Cluster;

/// Nodes to look at. Each lists up to 50 images, 15 to 40 kB of JSON; when there are more nodes the pod is kept on
/// those seen.
const NODES_MAX: u32 = 20;
/// Pods to look at; a namespace with more has an image in the first ones, too.
const PODS_MAX: u32 = 50;
/// In every mirror and most clusters: the image of the container that holds a pod's network.
const WELL_KNOWN: &str = "registry.k8s.io/pause:3.10";

/// What the cluster let us see.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// The image the user named.
    pub wanted: Option<String>,
    /// Ready, schedulable Linux nodes of the right architecture, with their images.
    pub nodes: Vec<NodeImages>,
    /// There are more nodes than these.
    pub more_nodes: bool,
    /// `(image, node)` of each running container in our namespace.
    pub running: Vec<(String, String)>,
}

/// The images that one node reports.
#[derive(Debug, Clone)]
pub struct NodeImages {
    /// The node's name.
    pub node: String,
    /// References and size in bytes of each image.
    pub images: Vec<(Vec<String>, i64)>,
}

/// The image that carries the program, and how the kubelet is to get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// The reference.
    pub image: String,
    /// It is known to be there: `imagePullPolicy: Never`, else `IfNotPresent`.
    pub present: bool,
    /// The only nodes that are known to have it; empty for any.
    pub nodes: Vec<String>,
    /// Why this one, for people.
    pub reason: String,
}

/// The user's image, else one that all usable nodes have, else one that runs in the namespace, else pause.
pub fn choose_image(candidates: &Candidates) -> Carrier {
    if let Some(image) = &candidates.wanted {
        return Carrier {
            image: image.clone(),
            present: false,
            nodes: Vec::new(),
            reason: "named by the user".to_owned(),
        };
    }
    on_nodes(candidates).or_else(|| in_namespace(&candidates.running)).unwrap_or_else(|| Carrier {
        image: WELL_KNOWN.to_owned(),
        present: false,
        nodes: Vec::new(),
        reason: "a well-known one, as the images of the nodes are not readable".to_owned(),
    })
}

/// Best first: on most nodes, then pause, then the public registry of Kubernetes (an image pulled with
/// credentials may be refused to others even when it is there), then the smallest.
fn on_nodes(candidates: &Candidates) -> Option<Carrier> {
    let mut found: BTreeMap<&str, (BTreeSet<&str>, i64)> = BTreeMap::new();
    for node in &candidates.nodes {
        for (names, size) in &node.images {
            if let Some(name) = best_name(names) {
                let (nodes, least) = found.entry(name).or_insert((BTreeSet::new(), *size));
                nodes.insert(&node.node);
                *least = (*least).min(*size);
            }
        }
    }
    let (image, (nodes, _)) = found.into_iter().min_by_key(|(name, (nodes, size))| {
        (usize::MAX - nodes.len(), !is_pause(name), !name.starts_with("registry.k8s.io/"), *size)
    })?;
    let everywhere = nodes.len() == candidates.nodes.len();
    let anywhere = everywhere && !candidates.more_nodes;
    Some(Carrier {
        image: image.to_owned(),
        present: true,
        nodes: if anywhere { Vec::new() } else { nodes.iter().map(|node| (*node).to_owned()).collect() },
        reason: if anywhere {
            "on every node already".to_owned()
        } else {
            format!("already on {}", counted(nodes.len(), "node"))
        },
    })
}

/// Pause if it runs here, else what runs on most nodes. Kept on those nodes, as elsewhere it might have to be
/// pulled with credentials that our pod does not have.
fn in_namespace(running: &[(String, String)]) -> Option<Carrier> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (image, node) in running {
        found.entry(image).or_default().insert(node);
    }
    let (image, nodes) =
        found.into_iter().min_by_key(|(image, nodes)| (!is_pause(image), usize::MAX - nodes.len()))?;
    Some(Carrier {
        image: image.to_owned(),
        present: false,
        reason: format!("of a pod in the namespace, on {}", counted(nodes.len(), "node")),
        nodes: nodes.into_iter().map(str::to_owned).collect(),
    })
}

/// A tag is nicer to read than a digest; `<none>` is neither.
fn best_name(names: &[String]) -> Option<&str> {
    let usable = || names.iter().map(String::as_str).filter(|name| !name.contains("<none>"));
    usable().find(|name| !name.contains('@')).or_else(|| usable().next())
}

/// `…/pause:3.10`, `…/pause-amd64@sha256:…`, `rancher/mirrored-pause:3.6`.
fn is_pause(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split(['@', ':']).next().unwrap_or(name).contains("pause")
}

fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Asks what there is. What is forbidden is simply not known; the choice says so.
pub(super) async fn gather(cluster: &Cluster, architecture: &str, wanted: Option<&str>) -> Candidates {
    let mut candidates = Candidates { wanted: wanted.map(str::to_owned), ..Candidates::default() };
    if candidates.wanted.is_some() {
        return candidates;
    }
    let labels = format!("kubernetes.io/os=linux,kubernetes.io/arch={architecture}");
    let nodes: Api<Node> = Api::all(cluster.client().clone());
    match ask(nodes.list(&ListParams::default().labels(&labels).limit(NODES_MAX))).await {
        Ok(list) => {
            candidates.more_nodes = list.metadata.continue_.as_ref().is_some_and(|token| !token.is_empty());
            candidates.nodes = list.items.iter().filter(|node| is_usable(node)).map(images_of).collect();
        }
        Err(error) => tracing::debug!(%error, "the nodes' images are not readable"),
    }
    if candidates.nodes.iter().any(|node| !node.images.is_empty()) {
        return candidates;
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    let running = ListParams::default().fields("status.phase=Running").limit(PODS_MAX);
    match ask(pods.list(&running)).await {
        Ok(list) => candidates.running = list.items.iter().flat_map(running_of).collect(),
        Err(error) => tracing::debug!(%error, "the namespace's pods are not readable"),
    }
    candidates
}

/// Will the scheduler put a pod without tolerations there?
fn is_usable(node: &Node) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let tainted = spec.taints.iter().flatten().any(|taint| taint.effect != "PreferNoSchedule");
    let ready = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && !tainted && spec.unschedulable != Some(true)
}

fn images_of(node: &Node) -> NodeImages {
    let images = node.status.iter().flat_map(|status| status.images.iter().flatten());
    NodeImages {
        node: node.metadata.name.clone().unwrap_or_default(),
        images: images
            .map(|image| (image.names.clone().unwrap_or_default(), image.size_bytes.unwrap_or(i64::MAX)))
            .collect(),
    }
}

/// The images of a pod's containers that run, as the pod names them.
fn running_of(pod: &Pod) -> Vec<(String, String)> {
    let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return Vec::new() };
    let Some(node) = &spec.node_name else { return Vec::new() };
    let is_running = |name: &str| {
        status.container_statuses.iter().flatten().any(|container| {
            container.name == name && container.state.as_ref().is_some_and(|state| state.running.is_some())
        })
    };
    spec.containers
        .iter()
        .filter(|container| is_running(&container.name))
        .filter_map(|container| Some((container.image.clone()?, node.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::fake_api::{Answer, FakeApi};

    fn node(name: &str, images: &[(&str, i64)]) -> NodeImages {
        let images = images.iter().map(|(name, size)| (vec![(*name).to_owned()], *size)).collect();
        NodeImages { node: name.to_owned(), images }
    }

    fn nodes(nodes: Vec<NodeImages>) -> Candidates {
        Candidates { nodes, ..Candidates::default() }
    }

    #[test]
    fn the_users_image_goes_first() {
        let mut all = nodes(vec![node("a", &[("registry.k8s.io/pause:3.9", 1)])]);
        all.wanted = Some("mine:1".to_owned());
        let carrier = choose_image(&all);
        assert_eq!((carrier.image.as_str(), carrier.present), ("mine:1", false));
    }

    #[test]
    fn pause_on_every_node_is_best_and_runs_anywhere() {
        let images = [("example.org/tiny:1", 10), ("registry.k8s.io/pause:3.10", 300)];
        let carrier = choose_image(&nodes(vec![node("a", &images), node("b", &images)]));
        assert_eq!(carrier.image, "registry.k8s.io/pause:3.10");
        assert!(carrier.present && carrier.nodes.is_empty());
        assert_eq!(carrier.reason, "on every node already");
    }

    #[test]
    fn an_image_on_every_node_is_better_than_pause_on_one() {
        let carrier = choose_image(&nodes(vec![
            node(
                "a",
                &[
                    ("registry.k8s.io/pause:3.10", 300),
                    ("example.org/big:1", 900),
                    ("example.org/all:1", 500),
                ],
            ),
            node("b", &[("example.org/big:1", 900), ("example.org/all:1", 500)]),
        ]));
        assert_eq!(carrier.image, "example.org/all:1");
        assert!(carrier.nodes.is_empty());
    }

    #[test]
    fn a_public_image_is_better_than_a_smaller_private_one() {
        let carrier = choose_image(&nodes(vec![node(
            "a",
            &[
                ("private.example/app:1", 5),
                ("registry.k8s.io/kube-proxy:v1.33.1", 900),
                ("<none>:<none>", 1),
            ],
        )]));
        assert_eq!(carrier.image, "registry.k8s.io/kube-proxy:v1.33.1");
    }

    #[test]
    fn what_only_some_nodes_have_keeps_the_pod_there() {
        let mut some = nodes(vec![node("a", &[("rancher/mirrored-pause:3.6", 3)]), node("b", &[])]);
        let carrier = choose_image(&some);
        assert_eq!(
            (carrier.nodes.as_slice(), carrier.reason.as_str()),
            (&["a".to_owned()][..], "already on 1 node")
        );
        // All that we saw have it, but there are others.
        some.nodes.pop();
        some.more_nodes = true;
        assert_eq!(choose_image(&some).nodes, ["a"]);
    }

    #[test]
    fn without_nodes_an_image_of_the_namespace_else_the_well_known_one() {
        let pair = |image: &str, node: &str| (image.to_owned(), node.to_owned());
        let running = vec![pair("app:1", "a"), pair("app:2", "a"), pair("app:2", "b")];
        let carrier = choose_image(&Candidates { running, ..Candidates::default() });
        assert_eq!(carrier.image, "app:2");
        assert_eq!((carrier.present, carrier.nodes.len()), (false, 2));
        let carrier = choose_image(&Candidates::default());
        assert_eq!((carrier.image.as_str(), carrier.present), (WELL_KNOWN, false));
    }

    #[test]
    fn a_digest_is_taken_only_when_there_is_no_tag() {
        let names = ["r/x@sha256:0".to_owned(), "r/x:1".to_owned()];
        assert_eq!(best_name(&names), Some("r/x:1"));
        assert_eq!(best_name(&names[..1]), Some("r/x@sha256:0"));
        assert!(is_pause("r/pause@sha256:0") && is_pause("pause") && !is_pause("pause.example/app:1"));
    }

    #[tokio::test]
    async fn nodes_that_would_not_take_the_pod_do_not_count() {
        let node = |name: &str, spec: serde_json::Value, ready: &str| {
            json!({"metadata": {"name": name}, "spec": spec, "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "images": [{"names": ["r/x@sha256:1", format!("r/{name}:1")], "sizeBytes": 7}]}})
        };
        let list = json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": [
            node("good", json!({}), "True"),
            node("control", json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}), "True"),
            node("cordoned", json!({"unschedulable": true}), "True"),
            node("dead", json!({}), "Unknown"),
        ]});
        let api = FakeApi::start([Answer::ok("GET /api/v1/nodes", list)]).await;
        let candidates = gather(&api.cluster, "amd64", None).await;
        assert_eq!(candidates.nodes.iter().map(|node| node.node.as_str()).collect::<Vec<_>>(), ["good"]);
        assert_eq!(choose_image(&candidates).image, "r/good:1");
        assert!(api.asked()[0].line.contains("kubernetes.io%2Farch%3Damd64"), "{:?}", api.asked());
    }

    #[tokio::test]
    async fn without_the_right_to_see_nodes_the_namespace_is_asked() {
        let pods = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [{
            "metadata": {"name": "p"},
            "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "app:1"}, {"name": "b", "image": "b:1"}]},
            "status": {"containerStatuses": [
                {"name": "a", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": {"running": {}}},
                {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": {}}}]}
        }]});
        let api = FakeApi::start([
            Answer::refusal("GET /api/v1/nodes", 403, "Forbidden", "nodes is forbidden"),
            Answer::ok("GET /api/v1/namespaces/dev/pods", pods),
        ])
        .await;
        let candidates = gather(&api.cluster, "amd64", None).await;
        assert_eq!(candidates.running, [("app:1".to_owned(), "n1".to_owned())]);
    }
}
