//! The ranges of Services in the words with which the API server refuses an address. Not all say them: since 1.33 only for
//! some addresses, managed clusters often never, and of a family that the cluster does not have there is none.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::SubnetsError;
use super::said::parsed;
use super::search::open;
use crate::cluster::api_error::{ApiError, ask};
use crate::cluster::client::Cluster;

/// Addresses no cluster gives to a Service: for documentation (RFC 5737, RFC 3849). One of each family: an API server tells
/// the range of the address's family only.
const IMPOSSIBLE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// What stands before the range since 1.9 (k8s.io/kubernetes `pkg/registry/core/service/ipallocator`).
const RANGES_FOLLOW: &str = "range of valid IPs is ";

/// The ranges, or why they are not told.
pub(super) async fn service_ranges(cluster: &Cluster) -> Result<Result<Vec<IpNet>, String>, SubnetsError> {
    let mut ranges = Vec::new();
    let mut closed = None;
    for address in IMPOSSIBLE {
        match refused_ranges(cluster, address).await? {
            Ok(found) => ranges.extend(found),
            Err(why) => closed = closed.or(Some(why)),
        }
    }
    Ok(if ranges.is_empty() {
        Err(closed
            .unwrap_or_else(|| "the API server does not name them when it refuses an address".to_owned()))
    } else {
        Ok(ranges)
    })
}

/// Creates a Service with an address it cannot have, as a dry run: nothing is made even where it could.
///
/// API servers before 1.23 look at no address in a dry run. They are asked once more without, for a Service that is wrong
/// in a second way, which they see only after the address (`pkg/registry/core/service/storage/rest.go`, 1.20): so
/// that one is not made either, whatever the address.
async fn refused_ranges(
    cluster: &Cluster,
    address: &str,
) -> Result<Result<Vec<IpNet>, String>, SubnetsError> {
    let mut spec = json!({"type": "ClusterIP", "clusterIP": address, "ports": [{"port": 1}]});
    let mut answer = create_service(cluster, &spec, true).await?;
    if answer.is_ok() {
        spec["externalTrafficPolicy"] = "Local".into(); // only a NodePort or a LoadBalancer may say so
        answer = create_service(cluster, &spec, false).await?;
    }
    Ok(match answer {
        Ok(()) => Ok(Vec::new()),
        Err(ApiError::Other { message, .. }) => Ok(in_words(&message)),
        Err(closed) => Err(closed.to_string()),
    })
}

async fn create_service(
    cluster: &Cluster,
    spec: &serde_json::Value,
    dry_run: bool,
) -> Result<Result<(), ApiError>, SubnetsError> {
    let api: Api<Service> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    let service = json!({"metadata": {"generateName": "kshuttle-range-"}, "spec": spec});
    let service = serde_json::from_value(service).expect("the fields are those of a Service");
    let parameters = PostParams { dry_run, field_manager: None };
    open(ask(api.create(&parameters, &service)).await).map(|answer| answer.map(drop))
}

/// The ranges at the end of `… The range of valid IPs is 10.96.0.0/12`, up to the first word that is none.
fn in_words(message: &str) -> Vec<IpNet> {
    let Some((_, ranges)) = message.split_once(RANGES_FOLLOW) else { return Vec::new() };
    let words = ranges.split([',', ' ']).filter(|word| !word.is_empty());
    let nets =
        words.map_while(|word| word.trim_matches(['.', ';', '"', '\'', '[', ']', '(', ')']).parse().ok());
    parsed(nets.map(|net: IpNet| net.to_string()).collect::<Vec<_>>().iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::subnets::tests::nets;

    #[test]
    fn ranges_are_found_in_the_words_of_all_versions() {
        for (words, ranges) in [
            // 1.36 and 1.33, recorded.
            (
                "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"192.0.2.1\"]: failed to allocate IP 192.0.2.1: \
                 the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is 10.96.0.0/12",
                &["10.96.0.0/12"][..],
            ),
            // 1.20, recorded.
            (
                "Service \"x\" is invalid: spec.clusterIPs: Invalid value: []string{\"2001:db8::1\"}: failed to allocated \
                 ip:2001:db8::1 with error:provided IP is not in the valid range. The range of valid IPs is fd00:10:96::/112",
                &["fd00:10:96::/112"],
            ),
            // 1.9 to 1.19, from the source.
            (
                "Service \"x\" is invalid: spec.clusterIP: Invalid value: \"192.0.2.1\": provided IP is not in the valid \
                 range. The range of valid IPs is 10.43.0.0/16",
                &["10.43.0.0/16"],
            ),
            // More than one, and more words.
            (
                "the range of valid IPs is [10.43.0.1/16, 2001:db8:1::/112]. Ask 10.0.0.0/8 for more",
                &["10.43.0.0/16", "2001:db8:1::/112"],
            ),
            // Before 1.9; proposed again for later versions (kubernetes/kubernetes#141559).
            ("spec.clusterIP: Invalid value: \"192.168.100.13\": provided IP is not in the valid range", &[]),
            // Amazon's (castai/kvisor#560), and any since 1.33 that has no ServiceCIDR for the address.
            ("failed to allocate IP 192.0.2.1: the provided network does not match the current range", &[]),
            // Clusters of one family (telepresenceio/telepresence#3005).
            (
                "spec.clusterIPs[0]: Invalid value: []string{\"192.0.2.1\"}: IPv4 is not configured on this cluster",
                &[],
            ),
            ("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)", &[]),
        ] {
            assert_eq!(in_words(words), nets(ranges), "{words}");
        }
    }
}
