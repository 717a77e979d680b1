//! Source after source, until one tells. A source that is closed or empty is no failure but a sentence for the user; an API
//! server that is not there is.

use ipnet::IpNet;

use super::source::{
    API_SERVERS, CALICO_POOLS, CILIUM_NODES, CILIUM_POOLS, ENDPOINT_SLICES, Feed, KUBEADM_PODS,
    KUBEADM_SERVICES, ListError, Listing, NODE_ADDRESSES, NODE_RANGES, PODS, SERVICE_CIDRS, SERVICES, Source,
};
use super::{Mode, SubnetsError, words};
use crate::cluster::api_error::ApiError;
use crate::cluster::client::Cluster;

/// Pods that are looked at to see whether ranges hold their addresses; one of each node would do.
const SAMPLE: u32 = 50;

/// A source that told.
pub(super) struct Told {
    pub(super) feed: Feed,
    pub(super) listing: Listing,
    /// The namespace that it is limited to.
    limit: Option<String>,
}

/// What was found about one subject.
#[derive(Default)]
pub(super) struct Part {
    /// Such as `Services`.
    what: &'static str,
    pub(super) told: Vec<Told>,
    /// What no source tells that can be followed: the API server's words.
    pub(super) fixed: Vec<IpNet>,
    /// A sentence for each source that is closed, empty or incomplete.
    silent: Vec<String>,
}

/// Asks what `mode` needs.
pub(super) async fn search(cluster: &Cluster, mode: Mode) -> Result<Vec<Part>, SubnetsError> {
    match mode {
        Mode::Ranges => {
            let (services, pods) = tokio::try_join!(services(cluster), pods(cluster))?;
            Ok(vec![services, pods])
        }
        Mode::Narrow => addresses(cluster).await,
    }
}

/// The ranges of Services: the first source that tells them.
async fn services(cluster: &Cluster) -> Result<Part, SubnetsError> {
    let mut part = Part::of("Services");
    for source in [&SERVICE_CIDRS, &KUBEADM_SERVICES, &API_SERVERS] {
        if part.ask(cluster, source).await? {
            return Ok(part);
        }
    }
    match words::service_ranges(cluster).await? {
        Ok(ranges) => part.fixed = ranges,
        Err(why) => {
            part.silent.push(why);
            part.ask_live(cluster, &SERVICES, &widely(cluster)).await?;
        }
    }
    Ok(part)
}

/// The ranges of pods: the first source that tells them, and the next ones as long as there are pods outside. (Nodes have
/// podCIDRs also where the network plugin gives addresses its own way.)
async fn pods(cluster: &Cluster) -> Result<Part, SubnetsError> {
    let mut part = Part::of("pods");
    let sample = sample(cluster).await?;
    for source in [&NODE_RANGES, &KUBEADM_PODS, &CALICO_POOLS, &CILIUM_NODES, &CILIUM_POOLS] {
        // Nodes cut their ranges out of podSubnet: beside theirs it would add what no pod has.
        if std::ptr::eq(source, &KUBEADM_PODS) && !part.told.is_empty() {
            continue;
        }
        if !part.ask(cluster, source).await? {
            continue;
        }
        let ranges = part.ranges();
        match sample.iter().find(|net| !ranges.iter().any(|range| range.contains(*net))) {
            None => return Ok(part),
            Some(stray) => part.silent.push(format!("{} do not hold {stray}, a pod", source.name)),
        }
    }
    part.ask_live(cluster, &PODS, &widely(cluster)).await?;
    Ok(part)
}

/// Addresses of some pods; none when they cannot be seen.
async fn sample(cluster: &Cluster) -> Result<Vec<IpNet>, SubnetsError> {
    for namespace in widely(cluster) {
        for feed in Feed::all(cluster, &PODS, namespace) {
            if let Ok(some) = open(feed.sample(SAMPLE).await)? {
                return Ok(some.into_iter().flat_map(|said| said.inside).collect());
            }
        }
    }
    Ok(Vec::new())
}

/// The live addresses and nothing else.
async fn addresses(cluster: &Cluster) -> Result<Vec<Part>, SubnetsError> {
    let [mut services, mut pods, mut endpoints, mut nodes] =
        ["Services", "pods", "endpoints", "nodes"].map(Part::of);
    let places = widely(cluster);
    tokio::try_join!(
        services.ask_live(cluster, &SERVICES, &places),
        pods.ask_live(cluster, &PODS, &places),
        nodes.ask_live(cluster, &NODE_ADDRESSES, &places[..1])
    )?;
    // Endpoints may be nodes. Where neither nodes nor all the pods on their network can be seen, only the namespace's are
    // taken, if its pods can be.
    let pods_are_seen = |everywhere: bool| pods.told.iter().any(|told| !everywhere || told.limit.is_none());
    if !nodes.told.is_empty() || pods_are_seen(true) {
        endpoints.ask_live(cluster, &ENDPOINT_SLICES, &places).await?;
    } else if pods_are_seen(false) {
        endpoints.ask_live(cluster, &ENDPOINT_SLICES, &places[1..]).await?;
    } else {
        endpoints.silent.push("neither nodes nor pods can be seen, and an endpoint may be a node".to_owned());
    }
    endpoints.told.extend(nodes.told);
    endpoints.silent.extend(nodes.silent);
    Ok(vec![services, pods, endpoints])
}

/// Everywhere, else in our namespace.
fn widely(cluster: &Cluster) -> [Option<&str>; 2] {
    [None, Some(cluster.namespace())]
}

impl Part {
    fn of(what: &'static str) -> Self {
        Self { what, ..Self::default() }
    }

    /// True when the source tells something.
    async fn ask(&mut self, cluster: &Cluster, source: &'static Source) -> Result<bool, SubnetsError> {
        match read(cluster, source, None).await? {
            Ok(told) if told.listing.sayings.is_empty() => self.silent.push(format!("no {}", source.name)),
            Ok(told) => {
                self.told.push(told);
                return Ok(true);
            }
            Err(closed) => self.silent.push(closed),
        }
        Ok(false)
    }

    /// Asks in these places for addresses, of which there may be none yet, until one is open.
    async fn ask_live(
        &mut self,
        cluster: &Cluster,
        source: &'static Source,
        places: &[Option<&str>],
    ) -> Result<(), SubnetsError> {
        for namespace in places {
            match read(cluster, source, *namespace).await? {
                Ok(told) => {
                    self.told.push(told);
                    break;
                }
                Err(closed) => self.silent.push(closed),
            }
        }
        Ok(())
    }

    /// The ranges and addresses that were told.
    fn ranges(&self) -> Vec<IpNet> {
        let sayings = self.told.iter().flat_map(|told| told.listing.sayings.values());
        let ranges = sayings.flat_map(|said| &said.inside).chain(&self.fixed).copied().collect();
        IpNet::aggregate(&ranges)
    }

    /// What was told and by whom, for people.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut by: Vec<_> = self.told.iter().map(Told::name).collect();
        by.extend((!self.fixed.is_empty()).then(|| "the API server's words".to_owned()));
        let silent = self.silent.join("; ");
        if by.is_empty() {
            return vec![format!("{}: unknown ({silent})", self.what)];
        }
        let aside = if silent.is_empty() { silent } else { format!("; {silent}") };
        let mut notes =
            vec![format!("{}: {} ({}{aside})", self.what, list_of(&self.ranges()), by.join(", "))];
        if let Some(namespace) = self.told.iter().find_map(|told| told.limit.as_deref()) {
            notes.push(format!(
                "{}: those of other namespaces than `{namespace}` are not redirected",
                self.what
            ));
        }
        notes
    }
}

impl Told {
    fn name(&self) -> String {
        let name = self.feed.source.name;
        self.limit
            .as_ref()
            .map_or_else(|| name.to_owned(), |namespace| format!("{name} of namespace `{namespace}`"))
    }
}

/// What the source tells in this namespace or everywhere, or why it is closed.
async fn read(
    cluster: &Cluster,
    source: &'static Source,
    namespace: Option<&str>,
) -> Result<Result<Told, String>, SubnetsError> {
    for feed in Feed::all(cluster, source, namespace) {
        match feed.list().await {
            Ok(listing) => return Ok(Ok(Told { feed, listing, limit: namespace.map(str::to_owned) })),
            // Perhaps there is an older version.
            Err(ListError::Api(ApiError::NotFound(_))) => {}
            Err(ListError::Api(error)) => {
                return open(Err(error)).map(|closed| closed.map_err(|why| why.to_string()));
            }
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
    Ok(Err(format!("no {}", source.name)))
}

/// Tells a source that is closed from an API server that is not there.
pub(super) fn open<T>(answer: Result<T, ApiError>) -> Result<Result<T, ApiError>, SubnetsError> {
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

/// The first few, for people.
fn list_of(ranges: &[IpNet]) -> String {
    const SHOWN: usize = 6;
    if ranges.is_empty() {
        return "none yet".to_owned();
    }
    let mut text = ranges.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if ranges.len() > SHOWN {
        text += &format!(" and {} more", ranges.len() - SHOWN);
    }
    text
}
