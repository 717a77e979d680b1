//! What the user wants to reach by port-forward, and which pod that is at the moment.
//!
//! `svc/web` → the Service's selector → its pods → the newest ready one ([`mod@choose`], pure) → its ports ([`ports`],
//! pure). The answer is kept for a moment (`FRESH`); then, and after a failed connection, it is checked or sought again.

pub mod choose;
pub mod ports;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::core::Selector;
use kube::{Api, ResourceExt};
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::choose::{Fitness, choose, fitness};
use self::ports::{Port, PortError, Remote};
use super::api_error::{ApiError, MissingRight, ask};
use super::client::Cluster;
use super::port_forward::is_name;

/// A found pod is used for this long without a look. A look is one small request, so at most one per connection and
/// second; a pod that is being deleted gets no new connections after this.
const FRESH: Duration = Duration::from_secs(1);

/// Failed searches are not repeated sooner, however many connections wait.
const SEARCH_PAUSE: Duration = Duration::from_millis(250);

/// Pods that are looked at. Of more than these, one is ready, or none will be soon.
const PODS_MAX: u32 = 500;

/// Kinds that have a pod behind them, with kubectl's words for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The pod itself.
    Pod,
    /// By its selector; ports are the Service's.
    Service,
    /// By its selector.
    Deployment,
    /// By its selector.
    ReplicaSet,
    /// By its selector.
    StatefulSet,
    /// By its selector.
    DaemonSet,
}

const KINDS: [(Kind, &str, &[&str]); 6] = [
    (Kind::Pod, "Pod", &["pod", "pods", "po"]),
    (Kind::Service, "Service", &["service", "services", "svc"]),
    (
        Kind::Deployment,
        "Deployment",
        &["deployment", "deployments", "deploy", "deployment.apps", "deployments.apps"],
    ),
    (
        Kind::ReplicaSet,
        "ReplicaSet",
        &["replicaset", "replicasets", "rs", "replicaset.apps", "replicasets.apps"],
    ),
    (
        Kind::StatefulSet,
        "StatefulSet",
        &["statefulset", "statefulsets", "sts", "statefulset.apps", "statefulsets.apps"],
    ),
    (Kind::DaemonSet, "DaemonSet", &["daemonset", "daemonsets", "ds", "daemonset.apps", "daemonsets.apps"]),
];

impl Kind {
    /// As Kubernetes writes it.
    fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, ..)| *kind == self).map_or("", |(_, name, _)| name)
    }
}

/// What the user wants to reach: `web-1`, `pod/web-1`, `svc/web`, `deploy/web` and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// Text that names no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetWordError {
    /// Before the slash.
    #[error("`{0}` is not a kind that can be forwarded to: pod, svc, deploy, rs, sts or ds")]
    Kind(String),
    /// After it.
    #[error("`{0}` cannot be the name of anything in Kubernetes")]
    Name(String),
}

impl FromStr for Target {
    type Err = TargetWordError;

    fn from_str(text: &str) -> Result<Self, TargetWordError> {
        let (word, name) = text.split_once('/').unwrap_or(("pod", text));
        let kind = KINDS
            .iter()
            .find(|(.., words)| words.iter().any(|known| known.eq_ignore_ascii_case(word)))
            .map(|(kind, ..)| *kind)
            .ok_or_else(|| TargetWordError::Kind(word.to_owned()))?;
        if !is_name(name) {
            return Err(TargetWordError::Name(name.to_owned()));
        }
        Ok(Self { kind, name: name.to_owned() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name().to_lowercase(), self.name)
    }
}

/// Why there is no pod for a target.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The API server does not let us see it, or does not answer.
    #[error("cannot read {what}")]
    Read {
        /// What was asked for.
        what: String,
        /// Why not.
        source: ApiError,
    },
    /// 404.
    #[error("there is no {target} in namespace `{namespace}`")]
    Missing {
        /// What was looked for.
        target: Target,
        /// Where.
        namespace: String,
    },
    /// The named pod is over.
    #[error("pod {0} has ended")]
    Ended(String),
    /// The named pod does not run yet, or not any more.
    #[error("pod {pod} is {why}")]
    NotRunning {
        /// Its name.
        pod: String,
        /// What it is instead.
        why: &'static str,
    },
    /// None of its pods is ready.
    #[error("no pod of {target} is ready: {why}")]
    NotReady {
        /// Whose pods.
        target: Target,
        /// What they are instead.
        why: String,
    },
    /// Its pods cannot be known: it has no selector, or one of another kind.
    #[error("{0} does not select any pods")]
    NoSelector(Target),
    /// A port.
    #[error(transparent)]
    Port(#[from] PortError),
}

impl TargetError {
    /// The named pod itself is not there any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Missing { target, .. } => target.kind == Kind::Pod,
            Self::Ended(_) => true,
            _ => false,
        }
    }

    /// The missing right, if that is what it is.
    pub fn missing_right(&self) -> Option<&MissingRight> {
        match self {
            Self::Read { source, .. } => source.missing_right(),
            _ => None,
        }
    }

    /// Whether it may be otherwise in a moment: pods are on their way, or the API server is.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Read { source, .. } => {
                !matches!(source, ApiError::Unauthorized(_) | ApiError::MissingRight(_) | ApiError::Policy(_))
            }
            Self::Missing { .. } | Self::Ended(_) | Self::NotRunning { .. } | Self::NotReady { .. } => true,
            Self::NoSelector(_) | Self::Port(_) => false,
        }
    }
}

/// A pod that takes the target's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub pod: String,
    /// Tells it from another of the same name.
    pub uid: String,
    /// In the order they were asked for.
    pub ports: Vec<Port>,
    /// Whether a pod of this name may come again after this one's end: a StatefulSet makes it anew, and what a person made
    /// by hand a person may make again; other controllers make up new names.
    pub name_returns: bool,
}

/// Finds the pod for every new connection. Shared by all of them.
pub struct Resolver {
    cluster: Cluster,
    target: Target,
    ports: Vec<Remote>,
    /// Locked during the search: others wait for its answer instead of asking the same.
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    found: Option<(Arc<Found>, Instant)>,
    failed: Option<(Arc<TargetError>, Instant)>,
}

impl Resolver {
    /// Nothing is asked before [`find`](Self::find).
    pub fn new(cluster: Cluster, target: Target, ports: Vec<Remote>) -> Self {
        Self { cluster, target, ports, last: Mutex::default() }
    }

    /// What it looks for.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The pod for a new connection. `avoid` is the uid of one that just failed: it is only named again if there is no other.
    /// One attempt; safe to cancel.
    ///
    /// # Errors
    /// See [`TargetError`]; shared with those who asked at the same time.
    pub async fn find(&self, avoid: Option<&str>) -> Result<Arc<Found>, Arc<TargetError>> {
        let mut last = self.last.lock().await;
        if let Some((found, when)) = &last.found
            && avoid != Some(&found.uid)
        {
            if when.elapsed() < FRESH {
                return Ok(found.clone());
            }
            let found = found.clone();
            if self.is_good(&found).await {
                last.found = Some((found.clone(), Instant::now()));
                return Ok(found);
            }
        }
        if let Some((error, when)) = &last.failed
            && when.elapsed() < SEARCH_PAUSE
        {
            return Err(error.clone());
        }
        match self.search(avoid).await {
            Ok(found) => {
                let found = Arc::new(found);
                *last = Last { found: Some((found.clone(), Instant::now())), failed: None };
                Ok(found)
            }
            Err(error) => {
                let error = Arc::new(error);
                *last = Last { found: None, failed: Some((error.clone(), Instant::now())) };
                Err(error)
            }
        }
    }

    /// Whether the pod is still the one to connect to. False when that cannot be known.
    pub async fn is_good(&self, found: &Found) -> bool {
        let least = if self.target.kind == Kind::Pod { Fitness::Running } else { Fitness::Ready };
        let pod = ask(self.pods().get(&found.pod)).await;
        pod.is_ok_and(|pod| pod.metadata.uid.as_deref() == Some(&found.uid) && fitness(&pod) >= least)
    }

    async fn search(&self, avoid: Option<&str>) -> Result<Found, TargetError> {
        let (service, pod) = match self.target.kind {
            Kind::Pod => (None, self.named_pod(avoid).await?),
            Kind::Service => {
                let services: Api<Service> =
                    Api::namespaced(self.cluster.client().clone(), self.cluster.namespace());
                let service = self.sorted(ask(services.get(&self.target.name)).await)?;
                let labels = service.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default();
                let selector: Selector = labels.into_iter().collect();
                (Some(service), self.selected_pod(&selector, avoid).await?)
            }
            kind => {
                let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind.name()));
                let workloads: Api<DynamicObject> =
                    Api::namespaced_with(self.cluster.client().clone(), self.cluster.namespace(), &resource);
                let workload = self.sorted(ask(workloads.get(&self.target.name)).await)?;
                let labels = workload.data.pointer("/spec/selector").cloned().unwrap_or_default();
                let selector = serde_json::from_value::<LabelSelector>(labels)
                    .ok()
                    .and_then(|labels| Selector::try_from(labels).ok())
                    .ok_or_else(|| TargetError::NoSelector(self.target.clone()))?;
                (None, self.selected_pod(&selector, avoid).await?)
            }
        };
        let ports = self.ports.iter().map(|port| ports::map(port, service.as_ref(), &pod));
        Ok(Found {
            ports: ports.collect::<Result<_, _>>()?,
            name_returns: name_returns(&pod),
            pod: pod.name_any(),
            uid: pod.metadata.uid.unwrap_or_default(),
        })
    }

    /// Ready or not: who names a pod wants that one. One that is being deleted will do until it fails.
    async fn named_pod(&self, avoid: Option<&str>) -> Result<Pod, TargetError> {
        let pod = self.sorted(ask(self.pods().get(&self.target.name)).await)?;
        let not_running = |why| Err(TargetError::NotRunning { pod: pod.name_any(), why });
        match fitness(&pod) {
            Fitness::Ended => Err(TargetError::Ended(pod.name_any())),
            Fitness::Starting => not_running("not running yet"),
            Fitness::Ending if pod.metadata.uid.as_deref() == avoid => not_running("being deleted"),
            Fitness::Ending | Fitness::Running | Fitness::Ready => Ok(pod),
        }
    }

    async fn selected_pod(&self, selector: &Selector, avoid: Option<&str>) -> Result<Pod, TargetError> {
        if selector.selects_all() {
            return Err(TargetError::NoSelector(self.target.clone()));
        }
        let wanted = ListParams::default().labels_from(selector).limit(PODS_MAX);
        let pods =
            ask(self.pods().list(&wanted)).await.map_err(|source| self.unreadable(source, "the pods of "))?;
        let chosen = choose(&pods.items, avoid);
        chosen.cloned().map_err(|why| TargetError::NotReady { target: self.target.clone(), why })
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client().clone(), self.cluster.namespace())
    }

    /// A 404 for what the user named.
    fn sorted<T>(&self, answer: Result<T, ApiError>) -> Result<T, TargetError> {
        answer.map_err(|source| match source {
            ApiError::NotFound(_) | ApiError::NoNamespace(_) => TargetError::Missing {
                target: self.target.clone(),
                namespace: self.cluster.namespace().to_owned(),
            },
            source => self.unreadable(source, ""),
        })
    }

    fn unreadable(&self, source: ApiError, of: &str) -> TargetError {
        TargetError::Read {
            what: format!("{of}{} in namespace `{}`", self.target, self.cluster.namespace()),
            source,
        }
    }
}

fn name_returns(pod: &Pod) -> bool {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| owner.controller == Some(true)).is_none_or(|owner| owner.kind == "StatefulSet")
}

#[cfg(test)]
mod tests;
