//! What one object says about ranges and addresses. Pure: the fields are those of the projects' API references, and an
//! object without them says nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use kube::core::DynamicObject;
use serde_json::Value;

/// What one object says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Ranges and addresses inside the cluster.
    pub(super) inside: Vec<IpNet>,
    /// Addresses of nodes themselves: they are in the network around the cluster and are never redirected alone.
    pub(super) nodes: Vec<IpAddr>,
}

impl Said {
    fn inside<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self { inside: parsed(texts), nodes: Vec::new() }
    }

    /// It says nothing at all.
    pub(super) fn is_empty(&self) -> bool {
        self.inside.is_empty() && self.nodes.is_empty()
    }
}

/// Ranges, and addresses as ranges of one; what is neither (`None`, a host name) is left out.
pub(super) fn parsed<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<IpNet> {
    let one = |text: &str| match text.trim().parse::<IpNet>() {
        Ok(net) => Some(net.trunc()),
        Err(_) => text.trim().parse::<IpAddr>().ok().map(IpNet::from),
    };
    texts.into_iter().filter_map(one).collect()
}

/// `networking.k8s.io` ServiceCIDR.
pub(super) fn service_cidr(object: &DynamicObject) -> Said {
    Said::inside(texts(&object.data["spec"]["cidrs"]))
}

/// `serviceSubnet` of the ConfigMap `kubeadm-config`.
pub(super) fn kubeadm_services(object: &DynamicObject) -> Said {
    kubeadm(object, "serviceSubnet")
}

/// `podSubnet` of the ConfigMap `kubeadm-config`.
pub(super) fn kubeadm_pods(object: &DynamicObject) -> Said {
    kubeadm(object, "podSubnet")
}

fn kubeadm(object: &DynamicObject, field: &str) -> Said {
    let yaml = object.data["data"]["ClusterConfiguration"].as_str().unwrap_or_default();
    let configuration: Value = serde_saphyr::from_str(yaml).unwrap_or_default();
    Said::inside(configuration["networking"][field].as_str().unwrap_or_default().split(','))
}

/// A pod that runs kube-apiserver: `--service-cluster-ip-range=A,B`, or the same as two words.
pub(super) fn api_server_flags(object: &DynamicObject) -> Said {
    const FLAG: &str = "--service-cluster-ip-range";
    let mut ranges = Vec::new();
    for container in list(&object.data["spec"]["containers"]) {
        let mut words = texts(&container["command"]).chain(texts(&container["args"]));
        while let Some(word) = words.next() {
            let value = match word.strip_prefix(FLAG) {
                Some("") => words.next(),
                Some(rest) => rest.strip_prefix('='),
                None => None,
            };
            ranges.extend(parsed(value.unwrap_or_default().split(',')));
        }
    }
    Said { inside: ranges, nodes: Vec::new() }
}

/// The addresses of a Service; one without (`None`, ExternalName) has none.
pub(super) fn service(object: &DynamicObject) -> Said {
    Said::inside(several(&object.data["spec"], "clusterIPs", "clusterIP"))
}

/// The ranges that a node gives to its pods.
pub(super) fn node_ranges(object: &DynamicObject) -> Said {
    Said::inside(several(&object.data["spec"], "podCIDRs", "podCIDR"))
}

/// A node's own addresses.
pub(super) fn node_addresses(object: &DynamicObject) -> Said {
    let addresses = list(&object.data["status"]["addresses"]).iter();
    let nodes = addresses.filter_map(|entry| entry["address"].as_str()?.parse().ok()).collect();
    Said { inside: Vec::new(), nodes }
}

/// An IPPool of Calico. Pods have no address of a disabled one, nor of one that is for tunnels only.
pub(super) fn calico_pool(object: &DynamicObject) -> Said {
    let spec = &object.data["spec"];
    let uses = list(&spec["allowedUses"]);
    if spec["disabled"] == true || (!uses.is_empty() && !uses.iter().any(|what| what == "Workload")) {
        return Said::default();
    }
    Said::inside(spec["cidr"].as_str())
}

/// A CiliumNode: what the operator gave to it.
pub(super) fn cilium_node(object: &DynamicObject) -> Said {
    Said::inside(texts(&object.data["spec"]["ipam"]["podCIDRs"]))
}

/// A CiliumPodIPPool.
pub(super) fn cilium_pool(object: &DynamicObject) -> Said {
    let spec = &object.data["spec"];
    Said::inside(texts(&spec["ipv4"]["cidrs"]).chain(texts(&spec["ipv6"]["cidrs"])))
}

/// The addresses of a pod that has its own, and of the node below it. A pod that has ended does not have them any more,
/// although they are still written there.
pub(super) fn pod(object: &DynamicObject) -> Said {
    let (spec, status) = (&object.data["spec"], &object.data["status"]);
    let nodes = status["hostIP"].as_str().and_then(|address| address.parse().ok()).into_iter();
    let more = list(&status["hostIPs"]).iter().filter_map(|entry| entry["ip"].as_str()?.parse().ok());
    let nodes = nodes.chain(more).collect();
    let ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    if ended || spec["hostNetwork"] == true {
        return Said { inside: Vec::new(), nodes };
    }
    let inside = match list(&status["podIPs"]) {
        [] => parsed(status["podIP"].as_str()),
        all => parsed(all.iter().filter_map(|entry| entry["ip"].as_str())),
    };
    Said { inside, nodes }
}

/// The addresses of an EndpointSlice. Those of the Service `kubernetes` are the API servers', which are on nodes or
/// outside of the cluster.
pub(super) fn endpoint_slice(object: &DynamicObject) -> Said {
    let metadata = &object.metadata;
    let label = metadata.labels.iter().flatten().find(|(name, _)| *name == "kubernetes.io/service-name");
    let of_api_servers = metadata.namespace.as_deref() == Some("default")
        && label.is_some_and(|(_, service)| service == "kubernetes");
    if of_api_servers {
        return Said::default();
    }
    let endpoints = list(&object.data["endpoints"]).iter();
    Said::inside(endpoints.flat_map(|endpoint| texts(&endpoint["addresses"])))
}

/// What is in the list, else in the older field for one.
fn several<'a>(value: &'a Value, list_name: &str, name: &str) -> Vec<&'a str> {
    let all: Vec<_> = texts(&value[list_name]).collect();
    if all.is_empty() { value[name].as_str().into_iter().collect() } else { all }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    list(value).iter().filter_map(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::subnets::tests::{fixture, nets};

    /// What the items of a list in `fixtures/api` say.
    fn all(name: &str, says: fn(&DynamicObject) -> Said) -> Vec<IpNet> {
        let items = fixture(name)["items"].clone();
        let objects: Vec<DynamicObject> = serde_json::from_value(items).unwrap();
        objects.iter().flat_map(|object| says(object).inside).collect()
    }

    fn one(object: Value, says: fn(&DynamicObject) -> Said) -> Said {
        says(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn kubeadms_configuration_has_both_ranges() {
        assert_eq!(all("kubeadm-config.json", kubeadm_services), nets(&["10.96.0.0/16", "fd00:10:96::/112"]));
        assert_eq!(all("kubeadm-config.json", kubeadm_pods), nets(&["10.244.0.0/16", "fd00:10:244::/56"]));
        for broken in [json!({}), json!({"ClusterConfiguration": "networking: ["})] {
            assert!(one(json!({"metadata": {}, "data": broken}), kubeadm_services).is_empty());
        }
    }

    #[test]
    fn flags_are_one_word_or_two() {
        assert_eq!(
            all("kube-apiserver-pods.json", api_server_flags),
            nets(&["10.96.0.0/16", "fd00:10:96::/112"])
        );
        let two = json!({"metadata": {}, "spec": {"containers": [{"command": ["kube-apiserver"], "args": [
            "--service-cluster-ip-range-of-others=10.1.0.0/16", "--service-cluster-ip-range", "10.0.0.0/24"]}]}});
        assert_eq!(one(two, api_server_flags).inside, nets(&["10.0.0.0/24"]));
        let cut = json!({"metadata": {}, "spec": {"containers": [{"args": ["--service-cluster-ip-range"]}]}});
        assert!(one(cut, api_server_flags).is_empty());
    }

    #[test]
    fn pools_that_pods_have_no_address_of_are_left_out() {
        assert_eq!(all("calico-ippools.json", calico_pool), nets(&["192.168.0.0/16", "fd00:192:168::/64"]));
    }

    #[test]
    fn cilium_tells_by_node_and_by_pool() {
        assert_eq!(all("cilium-nodes.json", cilium_node), nets(&["10.0.0.0/24", "10.0.1.0/24"]));
        assert_eq!(all("cilium-pools.json", cilium_pool), nets(&["10.10.0.0/16", "fd00:100::/80"]));
    }

    #[test]
    fn only_pods_with_addresses_of_their_own_count() {
        let pod_of = |spec: Value, phase: &str| {
            one(
                json!({"metadata": {}, "spec": spec, "status": {"phase": phase, "hostIP": "172.18.0.2",
                    "podIP": "10.244.0.5", "podIPs": [{"ip": "10.244.0.5"}, {"ip": "fd00::5"}]}}),
                pod,
            )
        };
        let node = vec!["172.18.0.2".parse::<IpAddr>().unwrap()];
        let runs = pod_of(json!({}), "Running");
        assert_eq!(runs, Said { inside: nets(&["10.244.0.5/32", "fd00::5/128"]), nodes: node.clone() });
        let nothing = Said { inside: Vec::new(), nodes: node };
        assert_eq!(pod_of(json!({"hostNetwork": true}), "Running"), nothing);
        assert_eq!(pod_of(json!({}), "Succeeded"), nothing, "its address may be another's by now");
    }

    #[test]
    fn services_without_an_address_have_none() {
        let of = |spec: Value| one(json!({"metadata": {}, "spec": spec}), service).inside;
        assert_eq!(of(json!({"clusterIP": "10.0.0.1"})), nets(&["10.0.0.1/32"]), "before 1.20");
        assert_eq!(of(json!({"clusterIP": "None", "clusterIPs": ["None"]})), []);
        assert_eq!(of(json!({"type": "ExternalName", "externalName": "example.org"})), []);
    }

    #[test]
    fn the_api_servers_endpoints_are_not_the_clusters() {
        let slice = |namespace: &str| {
            let labels = json!({"kubernetes.io/service-name": "kubernetes"});
            let metadata = json!({"name": "kubernetes", "namespace": namespace, "labels": labels});
            let endpoints = json!([{"addresses": ["10.244.0.9"]}, {"addresses": ["host.example.org"]}]);
            one(json!({"metadata": metadata, "endpoints": endpoints}), endpoint_slice).inside
        };
        assert_eq!(slice("default"), []);
        assert_eq!(slice("dev"), nets(&["10.244.0.9/32"]));
    }

    #[test]
    fn every_address_of_a_node_is_its_own() {
        let status = json!({"addresses": [{"type": "Hostname", "address": "node"},
            {"type": "InternalIP", "address": "172.18.0.2"}, {"type": "ExternalIP", "address": "fc00::2"}]});
        let said = one(json!({"metadata": {}, "status": status}), node_addresses);
        assert_eq!(said.nodes, ["172.18.0.2", "fc00::2"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    }
}
