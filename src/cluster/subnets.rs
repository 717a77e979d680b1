//! Which ranges lead into the cluster, asked from the cluster: Service ranges from ServiceCIDR objects (Kubernetes
//! 1.33 and newer), else from the words with which the API server refuses a Service address; pod ranges from the
//! nodes. Nothing is guessed wider than what was said.
//!
//! All of it wants rights beyond our Role, so each source may be closed; then there is a sentence about it, and the
//! user names the ranges.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;

use super::api_error::{ApiError, ask};
use super::client::Cluster;

/// Nodes per answer; each is 15 to 40 kB of JSON.
const NODES_PER_PAGE: u32 = 200;
/// 5,000 nodes is what Kubernetes is built for.
const PAGES_MAX: usize = 25;
/// Addresses no cluster gives to a Service: for documentation (RFC 5737, RFC 3849).
const IMPOSSIBLE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
/// What the API server says before its ranges (k8s.io/kubernetes `pkg/registry/core/service/ipallocator`); some
/// managed clusters do not.
const RANGES_FOLLOW: &str = "The range of valid IPs is ";

/// What the cluster says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// Service and pod ranges, neighbours joined, sorted.
    pub ranges: Vec<IpNet>,
    /// One sentence for each source: what it said or why it is closed.
    pub notes: Vec<String>,
}

/// Why there are no ranges.
#[derive(Debug, thiserror::Error)]
pub enum SubnetsError {
    /// All sources are closed or empty.
    #[error("the cluster does not tell its ranges, name them (for example `kshuttle 10.96.0.0/12`): {}", .notes.join("; "))]
    Nothing {
        /// As [`Discovered::notes`].
        notes: Vec<String>,
    },
    /// The API server does not answer, or not to us.
    #[error("cannot ask the cluster for its ranges")]
    Api(#[source] ApiError),
}

/// Asks for the ranges of Services and pods.
///
/// # Errors
/// When no source has any, or the API server cannot be reached.
pub async fn discover(cluster: &Cluster) -> Result<Discovered, SubnetsError> {
    let mut notes = Vec::new();
    let mut ranges = service_ranges(cluster, &mut notes).await?;
    ranges.extend(pod_ranges(cluster, &mut notes).await?);
    if ranges.is_empty() {
        return Err(SubnetsError::Nothing { notes });
    }
    Ok(Discovered { ranges: IpNet::aggregate(&ranges), notes })
}

async fn service_ranges(cluster: &Cluster, notes: &mut Vec<String>) -> Result<Vec<IpNet>, SubnetsError> {
    let api: Api<ServiceCIDR> = Api::all(cluster.client().clone());
    let note = match open(ask(api.list(&ListParams::default())).await)? {
        Ok(list) => {
            let ranges = of_objects(&list.items);
            if !ranges.is_empty() {
                notes.push(format!("Services: {} (ServiceCIDR objects)", list_of(&ranges)));
                return Ok(ranges);
            }
            "there are no ServiceCIDR objects".to_owned()
        }
        Err(ApiError::NotFound(_)) => "no ServiceCIDR objects before Kubernetes 1.33".to_owned(),
        Err(closed) => closed.to_string(),
    };

    let mut ranges = Vec::new();
    let mut closed = None;
    for address in IMPOSSIBLE {
        match refused_ranges(cluster, address).await? {
            Ok(found) => ranges.extend(found),
            Err(why) => closed = closed.or(Some(why)),
        }
    }
    notes.push(match closed {
        _ if !ranges.is_empty() => {
            format!("Services: {} (the API server's words; {note})", list_of(&ranges))
        }
        Some(why) => format!("Services: unknown ({note}; {why})"),
        None => format!("Services: unknown ({note}; the API server does not name them)"),
    });
    Ok(ranges)
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

async fn pod_ranges(cluster: &Cluster, notes: &mut Vec<String>) -> Result<Vec<IpNet>, SubnetsError> {
    let api: Api<Node> = Api::all(cluster.client().clone());
    let mut ranges = Vec::new();
    let (mut nodes, mut page) = (0, ListParams::default().limit(NODES_PER_PAGE));
    for _ in 0..PAGES_MAX {
        let list = match open(ask(api.list(&page)).await)? {
            Ok(list) => list,
            Err(closed) => {
                notes.push(format!("pods: unknown ({closed})"));
                return Ok(Vec::new());
            }
        };
        nodes += list.items.len();
        ranges.extend(list.items.iter().flat_map(of_node));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    notes.push(if ranges.is_empty() {
        format!("pods: unknown (nodes: {nodes}, none with a podCIDR; the network plugin gives addresses its own way)")
    } else {
        format!("pods: {} (podCIDRs, nodes: {nodes})", list_of(&IpNet::aggregate(&ranges)))
    });
    Ok(ranges)
}

/// A source that is closed is no failure; an API server that is not there is.
fn open<T>(answer: Result<T, ApiError>) -> Result<Result<T, ApiError>, SubnetsError> {
    match answer {
        Err(
            error @ (ApiError::Unauthorized(_)
            | ApiError::Timeout(_)
            | ApiError::Strange(_)
            | ApiError::Credentials(_)
            | ApiError::Transport(_)),
        ) => Err(SubnetsError::Api(error)),
        other => Ok(other),
    }
}

fn of_objects(objects: &[ServiceCIDR]) -> Vec<IpNet> {
    parsed(objects.iter().filter_map(|object| object.spec.as_ref()?.cidrs.as_ref()).flatten())
}

fn of_node(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    match &spec.pod_cidrs {
        Some(several) if !several.is_empty() => parsed(several),
        _ => parsed(&spec.pod_cidr),
    }
}

/// The ranges at the end of `… The range of valid IPs is 10.96.0.0/12`.
fn in_words(message: &str) -> Vec<IpNet> {
    let Some((_, ranges)) = message.split_once(RANGES_FOLLOW) else { return Vec::new() };
    parsed(
        ranges.split([',', ' ']).map(|word| word.trim_end_matches('.').to_owned()).collect::<Vec<_>>().iter(),
    )
}

fn parsed<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpNet> {
    texts.into_iter().filter_map(|text| text.parse::<IpNet>().ok()).map(|net| net.trunc()).collect()
}

/// The first few, for people.
fn list_of(ranges: &[IpNet]) -> String {
    const SHOWN: usize = 6;
    let mut text = ranges.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if ranges.len() > SHOWN {
        text += &format!(" and {} more", ranges.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cluster::fake_api::{Answer, FakeApi};

    const CIDRS: &str = "GET /apis/networking.k8s.io/v1/servicecidrs";
    const NODES: &str = "GET /api/v1/nodes";
    const SERVICES: &str = "POST /api/v1/namespaces/dev/services?&dryRun=All";
    const REALLY: &str = "POST /api/v1/namespaces/dev/services?";

    fn recorded(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn cidrs() -> Value {
        recorded(include_str!("../../fixtures/api/servicecidrs-1.36.json"))
    }

    fn nodes() -> Value {
        recorded(include_str!("../../fixtures/api/nodes-1.36.json"))
    }

    fn nets(ranges: &[&str]) -> Vec<IpNet> {
        ranges.iter().map(|range| range.parse().unwrap()).collect()
    }

    /// As Kubernetes 1.36 says it.
    fn invalid(range: &str) -> String {
        format!(
            "Service \"x\" is invalid: spec.clusterIPs: Invalid value: [\"192.0.2.1\"]: failed to allocate IP \
             192.0.2.1: the provided IP (192.0.2.1) is not in the valid range. The range of valid IPs is {range}"
        )
    }

    #[tokio::test]
    async fn a_dual_stack_cluster_tells_all_of_it() {
        let api = FakeApi::start([Answer::ok(CIDRS, cidrs()), Answer::ok(NODES, nodes())]).await;
        let found = discover(&api.cluster).await.unwrap();
        assert_eq!(
            found.ranges,
            nets(&["10.96.0.0/12", "10.244.0.0/24", "fd00:10:96::/112", "fd00:10:244::/64"])
        );
        assert_eq!(
            found.notes,
            [
                "Services: 10.96.0.0/12, fd00:10:96::/112 (ServiceCIDR objects)",
                "pods: 10.244.0.0/24, fd00:10:244::/64 (podCIDRs, nodes: 1)"
            ]
        );
    }

    #[tokio::test]
    async fn an_old_cluster_names_its_range_when_it_refuses_an_address() {
        let api = FakeApi::start([
            Answer::refusal(CIDRS, 404, "NotFound", "the server could not find the requested resource"),
            Answer::refusal(SERVICES, 422, "Invalid", &invalid("10.96.0.0/12")),
            Answer::refusal(SERVICES, 422, "Invalid", "spec.clusterIPs[0]: Invalid value: IPv6 is not configured"),
            Answer::refusal(NODES, 403, "Forbidden",
                "nodes is forbidden: User \"eve\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"),
        ])
        .await;
        let found = discover(&api.cluster).await.unwrap();
        assert_eq!(found.ranges, nets(&["10.96.0.0/12"]));
        assert!(found.notes[0].contains("before Kubernetes 1.33"), "{:?}", found.notes);
        assert_eq!(found.notes[1], "pods: unknown (user `eve` may not list nodes in this cluster)");
        assert_eq!(api.asked()[1].body["spec"]["clusterIP"], "192.0.2.1");
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
        let accepted = || Answer::ok(SERVICES, json!({"metadata": {"name": "x"}}));
        let api = FakeApi::start([
            Answer::refusal(CIDRS, 404, "NotFound", "the server could not find the requested resource"),
            accepted(),
            Answer::refusal(REALLY, 422, "Invalid", &invalid("10.96.0.0/12")),
            accepted(),
            Answer::refusal(REALLY, 422, "Invalid", &invalid("fd00:10:96::/112")),
            Answer::ok(NODES, nodes()),
        ])
        .await;
        let found = discover(&api.cluster).await.unwrap();
        assert!(
            found.notes[0].starts_with("Services: 10.96.0.0/12, fd00:10:96::/112 (the"),
            "{:?}",
            found.notes
        );
        let asked = api.asked();
        let spec = |request: usize| &asked[request].body["spec"];
        assert_eq!(spec(1)["externalTrafficPolicy"], Value::Null, "else its validation would answer");
        for request in [2, 4] {
            assert!(!asked[request].line.contains("dryRun"), "{}", asked[request].line);
            assert_eq!(spec(request)["type"], "ClusterIP");
            assert_eq!(spec(request)["externalTrafficPolicy"], "Local", "no server makes this");
        }
        assert_eq!(api.left(), 0);
    }

    #[tokio::test]
    async fn nothing_readable_says_what_to_do() {
        let forbidden = |when, what: &str| {
            Answer::refusal(
                when,
                403,
                "Forbidden",
                &format!("x is forbidden: User \"eve\" cannot {what} in API group \"\" at the cluster scope"),
            )
        };
        let api = FakeApi::start([
            forbidden(CIDRS, "list resource \"servicecidrs\""),
            forbidden(SERVICES, "create resource \"services\""),
            forbidden(SERVICES, "create resource \"services\""),
            Answer::ok(
                NODES,
                json!({"kind": "NodeList", "metadata": {}, "items": [{"metadata": {"name": "n"}}]}),
            ),
        ])
        .await;
        let text = discover(&api.cluster).await.unwrap_err().to_string();
        for part in
            ["name them", "may not list servicecidrs", "may not create services", "none with a podCIDR"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_another_error() {
        let api = FakeApi::start([Answer::refusal(CIDRS, 401, "Unauthorized", "Unauthorized")]).await;
        assert!(matches!(discover(&api.cluster).await, Err(SubnetsError::Api(ApiError::Unauthorized(_)))));
    }

    #[tokio::test]
    async fn all_pages_are_read_and_neighbours_joined() {
        let page = |number: u8, token: &str| {
            json!({"kind": "NodeList", "apiVersion": "v1", "metadata": {"continue": token}, "items": [
                {"metadata": {"name": "n"}, "spec": {"podCIDR": format!("10.244.{number}.0/24")}}]})
        };
        let api = FakeApi::start([
            Answer::ok(
                CIDRS,
                json!({"kind": "ServiceCIDRList", "apiVersion": "networking.k8s.io/v1", "metadata": {},
                "items": [{"metadata": {"name": "a"}, "spec": {"cidrs": ["10.0.0.1/16", "nonsense"]}}]}),
            ),
            Answer::ok(NODES, page(0, "more")),
            Answer::ok(NODES, page(1, "")),
        ])
        .await;
        let found = discover(&api.cluster).await.unwrap();
        assert_eq!(found.ranges, nets(&["10.0.0.0/16", "10.244.0.0/23"]));
        assert!(api.asked()[2].line.contains("continue=more"));
    }

    #[test]
    fn ranges_are_found_in_words() {
        assert_eq!(in_words(&invalid("10.96.0.0/12")), nets(&["10.96.0.0/12"]));
        assert_eq!(
            in_words(&invalid("10.43.0.0/16,2001:db8:1::/112.")),
            nets(&["10.43.0.0/16", "2001:db8:1::/112"])
        );
        assert!(in_words("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)").is_empty());
    }
}
