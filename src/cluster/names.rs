//! What the API server knows about names: which namespaces there are, and where the cluster's DNS is. Both are asked only to
//! help; where they are closed, pods' own `/etc/resolv.conf` and the DNS itself tell enough.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::pin::pin;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};

use super::api_error::{ApiError, ask};
use super::client::Cluster;

/// Where the Service of the cluster's DNS is, and by which label it is known. The first is what the kubelet's and CoreDNS'
/// documents call it, the second is OpenShift's.
const DNS_SERVICES: [(&str, &str); 2] =
    [("kube-system", "k8s-app=kube-dns"), ("openshift-dns", "dns.operator.openshift.io/owning-dns")];

/// Namespaces in one answer; their metadata is some hundred bytes each.
const PAGE: u32 = 500;

/// Addresses of the Service of the cluster's DNS; none if it is not where it usually is.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn dns_service(cluster: &Cluster) -> Result<Vec<IpAddr>, ApiError> {
    for (namespace, label) in DNS_SERVICES {
        let services: Api<Service> = Api::namespaced(cluster.client().clone(), namespace);
        let found = ask(services.list(&ListParams::default().labels(label))).await?;
        let addresses: Vec<IpAddr> = found.items.into_iter().flat_map(addresses).collect();
        if !addresses.is_empty() {
            return Ok(addresses);
        }
    }
    Ok(Vec::new())
}

/// The virtual addresses; `None` in their place is a headless Service.
fn addresses(service: Service) -> Vec<IpAddr> {
    let spec = service.spec.unwrap_or_default();
    let all = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect()); // before 1.20 there is one
    all.iter().filter_map(|address| address.parse().ok()).collect()
}

/// All namespaces now.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn namespaces(cluster: &Cluster) -> Result<BTreeSet<String>, ApiError> {
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(cluster.client().clone());
    let (mut all, mut page) = (BTreeSet::new(), ListParams::default().limit(PAGE));
    loop {
        let list = ask(namespaces.list(&page)).await?;
        all.extend(list.items.iter().map(ResourceExt::name_any));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// Tells `known` whenever the namespaces change; never ends. Where they may be listed and not watched, they are listed again
/// and again, with growing pauses.
pub async fn follow_namespaces(cluster: &Cluster, known: impl Fn(BTreeSet<String>)) {
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(cluster.client().clone());
    let mut events = pin!(watcher(namespaces, Config::default()).default_backoff());
    let (mut all, mut listing) = (BTreeSet::new(), BTreeSet::new());
    loop {
        match events.try_next().await {
            Ok(Some(event)) => {
                if let Some(all) = take_in(event, &mut all, &mut listing) {
                    known(all.clone());
                }
            }
            Ok(None) => return std::future::pending().await, // a watcher does not end
            Err(error) => tracing::debug!(%error, "namespaces are not watched now"),
        }
    }
}

/// The namespaces, if the event may have changed them.
fn take_in<'a>(
    event: Event<PartialObjectMeta<Namespace>>,
    all: &'a mut BTreeSet<String>,
    listing: &mut BTreeSet<String>,
) -> Option<&'a BTreeSet<String>> {
    match event {
        Event::Apply(namespace) => drop(all.insert(namespace.name_any())),
        Event::Delete(namespace) => drop(all.remove(&namespace.name_any())),
        Event::Init => {
            listing.clear();
            return None;
        }
        Event::InitApply(namespace) => {
            listing.insert(namespace.name_any());
            return None;
        }
        Event::InitDone => *all = std::mem::take(listing),
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fake_api::{Answer, FakeApi};
    use super::*;

    fn list(kind: &str, items: Vec<Value>) -> Value {
        json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items})
    }

    #[tokio::test]
    async fn the_dns_is_found_by_its_label() {
        let headless =
            json!({"metadata": {"name": "x"}, "spec": {"clusterIP": "None", "clusterIPs": ["None"]}});
        let both = json!({"metadata": {"name": "rke2-coredns"},
            "spec": {"clusterIP": "10.43.0.10", "clusterIPs": ["10.43.0.10", "fd00::a"]}});
        let old = json!({"metadata": {"name": "kube-dns"}, "spec": {"clusterIP": "10.96.0.10"}});
        for (services, wanted) in
            [(vec![headless, both], vec!["10.43.0.10", "fd00::a"]), (vec![old], vec!["10.96.0.10"])]
        {
            let answer =
                Answer::ok("GET /api/v1/namespaces/kube-system/services", list("ServiceList", services));
            let api = FakeApi::start([answer]).await;
            let found = dns_service(&api.cluster).await.unwrap();
            assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), wanted);
        }
    }

    #[tokio::test]
    async fn where_services_are_closed_it_is_told() {
        let refusal = Answer::refusal("GET /", 403, "Forbidden", "services is forbidden");
        let api = FakeApi::start([refusal]).await;
        assert!(dns_service(&api.cluster).await.is_err());
    }

    fn namespace(name: &str) -> PartialObjectMeta<Namespace> {
        serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
    }

    #[test]
    fn events_become_the_set() {
        let (mut all, mut listing) = (BTreeSet::new(), BTreeSet::new());
        let mut after =
            |event| take_in(event, &mut all, &mut listing).map(|all| all.iter().cloned().collect::<Vec<_>>());
        assert_eq!(after(Event::Init), None);
        assert_eq!(after(Event::InitApply(namespace("a"))), None);
        assert_eq!(after(Event::InitApply(namespace("b"))), None);
        assert_eq!(after(Event::InitDone), Some(vec!["a".into(), "b".into()]));
        assert_eq!(after(Event::Apply(namespace("c"))), Some(vec!["a".into(), "b".into(), "c".into()]));
        assert_eq!(after(Event::Delete(namespace("a"))), Some(vec!["b".into(), "c".into()]));
        assert_eq!(after(Event::Init), None); // the watch was too old
        assert_eq!(after(Event::InitApply(namespace("d"))), None);
        assert_eq!(after(Event::InitDone), Some(vec!["d".into()]));
    }
}
