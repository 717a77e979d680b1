//! Who can tell ranges: which objects, where they are, how they are listed and watched. All are read the same way, as
//! dynamic objects: some are of projects beside Kubernetes, some changed their version.

use std::collections::BTreeMap;

use futures::Stream;
use kube::Api;
use kube::api::{ListParams, WatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, WatchEvent};

use super::said::{self, Said};
use crate::cluster::api_error::{ApiError, ask};
use crate::cluster::client::Cluster;

/// Objects per answer; a node is 15 to 40 kB of JSON, a pod 5 to 15 kB.
const PAGE: u32 = 200;
/// 100,000 objects. Kubernetes is built for 150,000 pods, but so many addresses are no list to redirect any more.
const PAGES_MAX: usize = 500;
/// A list whose first pages are too old by now (410) is begun again this often.
const LIST_TRIES: usize = 3;
/// A watch is renewed after this, so that one that died unheard (the laptop slept) is missed by that much at most.
pub(super) const WATCH_SECONDS: u32 = 60;

/// Objects that tell ranges or addresses.
#[derive(Debug)]
pub(super) struct Source {
    /// Which, for people.
    pub(super) name: &'static str,
    group: &'static str,
    /// Of the group, the best first; the first that is there is used.
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    /// The only namespace where they are.
    namespace: Option<&'static str>,
    labels: Option<&'static str>,
    fields: Option<&'static str>,
    pub(super) says: fn(&DynamicObject) -> Said,
}

/// What the sources differ from.
const SOURCE: Source = Source {
    name: "",
    group: "",
    versions: &["v1"],
    kind: "",
    plural: "",
    namespace: None,
    labels: None,
    fields: None,
    says: |_| Said { inside: Vec::new(), nodes: Vec::new() },
};

pub(super) static SERVICE_CIDRS: Source = Source {
    name: "ServiceCIDR objects",
    group: "networking.k8s.io",
    versions: &["v1", "v1beta1"], // since 1.33; 1.31, where an administrator turned it on
    kind: "ServiceCIDR",
    plural: "servicecidrs",
    says: said::service_cidr,
    ..SOURCE
};

/// kubeadm's configuration, which kubeadm itself reads when nodes join and when it upgrades.
const KUBEADM: Source = Source {
    kind: "ConfigMap",
    plural: "configmaps",
    namespace: Some("kube-system"),
    fields: Some("metadata.name=kubeadm-config"),
    ..SOURCE
};

pub(super) static KUBEADM_SERVICES: Source =
    Source { name: "serviceSubnet of kubeadm", says: said::kubeadm_services, ..KUBEADM };

pub(super) static KUBEADM_PODS: Source =
    Source { name: "podSubnet of kubeadm", says: said::kubeadm_pods, ..KUBEADM };

pub(super) static API_SERVERS: Source = Source {
    name: "flags of kube-apiserver's pods",
    kind: "Pod",
    plural: "pods",
    namespace: Some("kube-system"),
    labels: Some("component=kube-apiserver"),
    says: said::api_server_flags,
    ..SOURCE
};

pub(super) static SERVICES: Source = Source {
    name: "addresses of Services",
    kind: "Service",
    plural: "services",
    says: said::service,
    ..SOURCE
};

pub(super) static NODE_RANGES: Source =
    Source { name: "podCIDRs of nodes", kind: "Node", plural: "nodes", says: said::node_ranges, ..SOURCE };

pub(super) static NODE_ADDRESSES: Source = Source {
    name: "addresses of nodes left out",
    kind: "Node",
    plural: "nodes",
    says: said::node_addresses,
    ..SOURCE
};

pub(super) static CALICO_POOLS: Source = Source {
    name: "Calico's IPPools",
    group: "crd.projectcalico.org",
    kind: "IPPool",
    plural: "ippools",
    says: said::calico_pool,
    ..SOURCE
};

pub(super) static CILIUM_NODES: Source = Source {
    name: "podCIDRs of CiliumNodes",
    group: "cilium.io",
    versions: &["v2"],
    kind: "CiliumNode",
    plural: "ciliumnodes",
    says: said::cilium_node,
    ..SOURCE
};

pub(super) static CILIUM_POOLS: Source = Source {
    name: "CiliumPodIPPools",
    group: "cilium.io",
    versions: &["v2", "v2alpha1"],
    kind: "CiliumPodIPPool",
    plural: "ciliumpodippools",
    says: said::cilium_pool,
    ..SOURCE
};

pub(super) static PODS: Source = Source {
    name: "addresses of pods",
    kind: "Pod",
    plural: "pods",
    // Nobody connects to ours, and they come and go with sessions.
    labels: Some("app.kubernetes.io/managed-by!=kshuttle"),
    says: said::pod,
    ..SOURCE
};

pub(super) static ENDPOINT_SLICES: Source = Source {
    name: "addresses of EndpointSlices",
    group: "discovery.k8s.io",
    versions: &["v1", "v1beta1"], // since 1.21
    kind: "EndpointSlice",
    plural: "endpointslices",
    says: said::endpoint_slice,
    ..SOURCE
};

/// What each object says, by `namespace/name`; those that say nothing are not kept.
pub(super) type Sayings = BTreeMap<String, Said>;

/// What was there at one moment.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) sayings: Sayings,
    /// From where a watch goes on.
    pub(super) version: String,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("more than {} {name}", PAGE as usize * PAGES_MAX)]
    TooMany { name: &'static str },
}

/// A source in one place and one version of its API.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) source: &'static Source,
    api: Api<DynamicObject>,
}

impl Feed {
    /// In each version that there may be; everywhere, unless a namespace is named here or by the source.
    pub(super) fn all(cluster: &Cluster, source: &'static Source, namespace: Option<&str>) -> Vec<Self> {
        let of_version = |version: &&str| {
            let kind = GroupVersionKind::gvk(source.group, version, source.kind);
            let resource = ApiResource::from_gvk_with_plural(&kind, source.plural);
            let client = cluster.client().clone();
            let api = match source.namespace.or(namespace) {
                Some(namespace) => Api::namespaced_with(client, namespace, &resource),
                None => Api::all_with(client, &resource),
            };
            Self { source, api }
        };
        source.versions.iter().map(of_version).collect()
    }

    /// All there is, page by page; only what is said is kept.
    ///
    /// # Errors
    /// When the API server refuses or does not answer, or there are too many.
    pub(super) async fn list(&self) -> Result<Listing, ListError> {
        let mut tries = 1;
        loop {
            match self.pages().await {
                Err(ListError::Api(ApiError::Other { code: 410, .. })) if tries < LIST_TRIES => tries += 1,
                answer => return answer,
            }
        }
    }

    async fn pages(&self) -> Result<Listing, ListError> {
        let mut listing = Listing::default();
        let mut page = self.list_params(PAGE);
        for _ in 0..PAGES_MAX {
            let list = ask(self.api.list(&page)).await?;
            listing.version = list.metadata.resource_version.unwrap_or_default();
            let said = list.items.iter().map(|object| (name(object), (self.source.says)(object)));
            listing.sayings.extend(said.filter(|(_, said)| !said.is_empty()));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(listing),
            }
        }
        Err(ListError::TooMany { name: self.source.name })
    }

    /// What the first few say.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub(super) async fn sample(&self, most: u32) -> Result<Vec<Said>, ApiError> {
        let list = ask(self.api.list(&self.list_params(most))).await?;
        Ok(list.items.iter().map(self.source.says).collect())
    }

    fn list_params(&self, limit: u32) -> ListParams {
        ListParams {
            label_selector: self.source.labels.map(str::to_owned),
            field_selector: self.source.fields.map(str::to_owned),
            limit: Some(limit),
            ..ListParams::default()
        }
    }

    /// What changes after `version`, for at most [`WATCH_SECONDS`].
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub(super) async fn watch(
        &self,
        version: &str,
    ) -> Result<impl Stream<Item = kube::Result<WatchEvent<DynamicObject>>> + use<>, ApiError> {
        let parameters = WatchParams {
            label_selector: self.source.labels.map(str::to_owned),
            field_selector: self.source.fields.map(str::to_owned),
            timeout: Some(WATCH_SECONDS),
            ..WatchParams::default()
        };
        ask(self.api.watch(&parameters, version)).await
    }
}

/// By which an object is known again.
pub(super) fn name(object: &DynamicObject) -> String {
    let metadata = &object.metadata;
    let [namespace, name] =
        [&metadata.namespace, &metadata.name].map(|part| part.as_deref().unwrap_or_default());
    format!("{namespace}/{name}")
}
