//! What the cluster calls itself and where its DNS is: flags, then the pod's own `/etc/resolv.conf`, then the API server.

use std::net::{IpAddr, SocketAddr};

use kshuttle_wire::causes::chain;

use crate::cli::NamesArgs;
use crate::cluster::client::Cluster;
use crate::cluster::names::dns_service;
use crate::dns::Name;
use crate::dns::system::{DNS, Parsed, resolv_conf};
use crate::report::Steps;
use crate::tunnel::pool::Pool;

/// What was learnt.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Learnt {
    pub(super) domain: Name,
    pub(super) servers: Vec<SocketAddr>,
    /// Who told, for people.
    pub(super) by: String,
}

/// Why names are left alone.
#[derive(Debug, thiserror::Error)]
pub(super) enum LearnError {
    #[error("the cluster's domain is unknown ({0}); --cluster-domain says it")]
    Domain(String),
    #[error("the cluster's DNS servers are unknown ({0}); --cluster-dns says them")]
    Servers(String),
}

/// Asks who knows, as far as the user does not say it.
pub(super) async fn learn(
    cluster: &Cluster,
    pool: &Pool,
    args: &NamesArgs,
    steps: &mut Steps,
) -> Result<Learnt, LearnError> {
    let (mut domain, mut servers) = (args.cluster_domain.clone(), args.cluster_dns.clone());
    let mut by = Vec::new();
    if domain.is_some() || !servers.is_empty() {
        by.push("flags");
    }
    let mut unknown = String::new();
    if domain.is_none() || servers.is_empty() {
        match pool.resolver_file().await {
            Ok(text) => match of_pod(&resolv_conf(&text)) {
                Some((told, known)) => {
                    by.push("the pod's /etc/resolv.conf");
                    domain.get_or_insert(told);
                    if servers.is_empty() {
                        servers = known;
                    }
                }
                None => unknown = "the pod's /etc/resolv.conf names no cluster's domain".to_owned(),
            },
            Err(error) => unknown = chain(&error),
        }
    }
    let domain = domain.ok_or_else(|| LearnError::Domain(unknown.clone()))?;
    if servers.is_empty() {
        match dns_service(cluster).await {
            Ok(found) => {
                by.push("the Service of the DNS");
                servers = found;
            }
            Err(error) => steps.say(format_args!("note: where the cluster's DNS is: {error}")),
        }
    }
    if servers.is_empty() {
        return Err(LearnError::Servers(unknown));
    }
    let servers = servers.into_iter().map(|server| SocketAddr::new(server, DNS)).collect();
    Ok(Learnt { domain, servers, by: by.join(", ") })
}

/// The kubelet writes `search NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN …` and the cluster's DNS (its `dns.go`); a pod with the
/// node's DNS has neither.
fn of_pod(resolver: &Parsed) -> Option<(Name, Vec<IpAddr>)> {
    let domain = resolver.search.iter().find_map(|suffix| {
        let (namespace, domain) = suffix.split_once(".svc.")?;
        let mut domain = Name::from_utf8(domain).ok().filter(|domain| !domain.is_root())?.to_lowercase();
        domain.set_fqdn(true);
        (!namespace.is_empty() && !namespace.contains('.')).then_some(domain)
    })?;
    Some((domain, resolver.servers.iter().map(SocketAddr::ip).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<(String, Vec<String>)> {
        let (domain, servers) = of_pod(&resolv_conf(text.as_bytes()))?;
        Some((domain.to_string(), servers.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_pod_with_the_clusters_dns_tells_it() {
        for (text, domain, servers) in [
            (
                "search shop.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n",
                "cluster.local.",
                &["10.96.0.10"][..],
            ),
            (
                "nameserver 169.254.20.10\nnameserver fd00::a\nsearch default.svc.K8S.example. svc.k8s.example.\n",
                "k8s.example.",
                &["169.254.20.10", "fd00::a"],
            ),
            (
                "search svc.prod.internal x.svc.prod.internal\nnameserver 10.0.0.10",
                "prod.internal.",
                &["10.0.0.10"],
            ),
        ] {
            assert_eq!(of(text).unwrap(), (domain.into(), servers.iter().map(|s| (*s).to_owned()).collect()));
        }
    }

    #[test]
    fn a_pod_with_the_nodes_dns_does_not() {
        for text in [
            "",
            "nameserver 10.0.0.2\nsearch eu-west-1.compute.internal\n",
            "search svc.cluster.local",
            "search .svc.",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
