//! The pod with our SSH server: made, waited for, deleted, and found again when it was left behind.
//!
//! States: options → program delivered → image chosen → created ([`create`]) → running ([`SshdPod::wait_running`])
//! → deleted ([`SshdPod::delete`]), or ended by itself when idle and removed by the next session
//! ([`reap_finished`]). The manifest is a pure value (`manifest.rs`), so is the image's choice ([`image`]) and what
//! a status means ([`wait`]).
//!
//! Next: [`super::port_forward`] opens a stream to [`LISTEN_PORT`] of the pod.

pub mod image;
mod manifest;
pub mod wait;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};

use super::api_error::{ApiError, MissingRight, ask, ask_within};
use super::client::Cluster;
use super::delivery::{self, DeliveryError, Payload};
use super::rights;

/// Where the server listens, on the pod's loopback.
pub const LISTEN_PORT: u16 = 2222;
/// Time to start when nothing else is said. From an image on the node it takes 1 to 3 s.
pub const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Whose pod it is: `user@host`.
const OWNER_ANNOTATION: &str = "kshuttle.dev/owner";
/// The uid of "nonroot" in distroless images; any but 0 would do.
const DEFAULT_UID: i64 = 65532;
/// Leaving must not hang on a dead network; the pod ends by itself when idle.
const DELETE_TIME_MAX: Duration = Duration::from_secs(5);
/// A kill after this; the server has nothing to save. 0 would leave the container running for a while unseen.
const DELETE_GRACE_SECONDS: u32 = 1;
/// Left-overs looked at in one go.
const REAP_MAX: u32 = 50;

/// What the pod is made of.
#[derive(Clone)]
pub struct PodOptions {
    /// Where the server comes from.
    pub program: Program,
    /// As whom it runs.
    pub run_as: RunAs,
    /// The one key that may log in, an OpenSSH public key line.
    pub authorized_key: String,
    /// Time without a client after which the server ends by itself.
    pub idle: Duration,
    /// `user@host`, to find left-overs.
    pub owner: String,
    /// This session, for people who look at the pod.
    pub session: String,
    /// Longest wait for the pod to run; [`START_TIME_MAX`].
    pub start_time_max: Duration,
}

/// Where the server comes from.
#[derive(Clone)]
pub enum Program {
    /// From ConfigMaps, executed in an image of which nothing is used: the named one, or one that is there anyway.
    Delivered {
        /// What to bring.
        payload: Payload,
        /// The image to carry it.
        carrier: Option<String>,
    },
    /// It is what this image starts.
    Image(String),
}

/// The pod's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// 65532, or what the cluster assigns if it insists (OpenShift).
    Default,
    /// This one.
    Uid(i64),
    /// What the cluster assigns, or else the image's.
    ClusterPicks,
}

/// A pod of ours that was created.
#[derive(Debug, Clone)]
pub struct SshdPod {
    api: Api<Pod>,
    name: String,
    namespace: String,
    uid: String,
    start_time_max: Duration,
}

/// Why there is no pod, or no end of it.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// Its program is not in the namespace.
    #[error("cannot bring the pod's program into namespace `{namespace}`")]
    Delivery {
        /// Where to.
        namespace: String,
        /// Why.
        source: DeliveryError,
    },
    /// The API server does not take it.
    #[error("cannot create a pod in namespace `{namespace}`")]
    Create {
        /// Where.
        namespace: String,
        /// Why.
        source: ApiError,
    },
    /// It was created, but we cannot see what becomes of it.
    #[error("cannot follow the start of pod `{pod}`")]
    Follow {
        /// The pod's name.
        pod: String,
        /// Its namespace.
        namespace: String,
        /// Why.
        source: ApiError,
    },
    /// It does not run.
    #[error("pod `{pod}` did not start")]
    Start {
        /// The pod's name.
        pod: String,
        /// Why.
        source: wait::StartFailure,
    },
    /// It is still there.
    #[error("cannot delete pod `{pod}`, which ends by itself when its idle time is over")]
    Delete {
        /// The pod's name.
        pod: String,
        /// Its namespace.
        namespace: String,
        /// Why.
        source: ApiError,
    },
}

impl PodError {
    /// The missing right, if that is what it is.
    pub fn missing_right(&self) -> Option<&MissingRight> {
        match self {
            Self::Delivery { source, .. } => source.missing_right(),
            Self::Create { source, .. } | Self::Follow { source, .. } | Self::Delete { source, .. } => {
                source.missing_right()
            }
            Self::Start { .. } => None,
        }
    }

    /// Role and RoleBinding to ask an administrator for, if a right is missing.
    pub fn role_yaml(&self) -> Option<String> {
        let right = self.missing_right()?;
        let (Self::Delivery { namespace, .. }
        | Self::Create { namespace, .. }
        | Self::Follow { namespace, .. }
        | Self::Delete { namespace, .. }) = self
        else {
            return None;
        };
        Some(rights::role_yaml(namespace, right.user.as_deref()))
    }

    /// The API server's refusal or silence behind it, if that is what it is.
    pub fn api_error(&self) -> Option<&ApiError> {
        match self {
            Self::Delivery { source: DeliveryError::Store { source, .. }, .. }
            | Self::Create { source, .. }
            | Self::Follow { source, .. }
            | Self::Delete { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Brings the program into the namespace, chooses an image and creates the pod. `report` gets a sentence for each
/// thing worth knowing.
///
/// # Errors
/// When the program is missing, or the API server refuses or cannot be reached.
pub async fn create(
    cluster: &Cluster,
    options: &PodOptions,
    mut report: impl FnMut(&str),
) -> Result<SshdPod, PodError> {
    let namespace = cluster.namespace().to_owned();
    let (delivered, carrier);
    let source = match &options.program {
        Program::Image(image) => manifest::Source::Image(image),
        Program::Delivered { payload, carrier: wanted } => {
            delivered = delivery::deliver(cluster, payload, &mut report)
                .await
                .map_err(|source| PodError::Delivery { namespace: namespace.clone(), source })?;
            let found = image::gather(cluster, delivered.architecture, wanted.as_deref()).await;
            carrier = image::choose_image(&found);
            report(&format!("the pod is made of image {} ({})", carrier.image, carrier.reason));
            manifest::Source::Delivered(&delivered, &carrier)
        }
    };
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), &namespace);
    let post =
        async |uid| ask(api.create(&PostParams::default(), &manifest::pod(options, source, uid))).await;
    let created = match options.run_as {
        RunAs::Uid(uid) => post(Some(uid)).await,
        RunAs::ClusterPicks => post(None).await,
        RunAs::Default => match post(Some(DEFAULT_UID)).await {
            Err(ApiError::Policy(words)) if words.contains("security context constraint") => {
                report("the cluster assigns users itself (OpenShift): leaving the pod's user to it");
                post(None).await
            }
            answer => answer,
        },
    };
    let pod = created.map_err(|source| PodError::Create { namespace: namespace.clone(), source })?;
    Ok(SshdPod {
        api,
        name: pod.metadata.name.unwrap_or_default(),
        namespace,
        uid: pod.metadata.uid.unwrap_or_default(),
        start_time_max: options.start_time_max,
    })
}

impl SshdPod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its uid: another pod of the same name is not ours.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Waits until the server runs, at most [`PodOptions::start_time_max`]. `report` gets a sentence whenever the
    /// reason of the waiting changes.
    ///
    /// A program that ends right after its start may have been seen running for a moment: when the first stream to
    /// it fails, [`ended`](Self::ended) knows why.
    ///
    /// # Errors
    /// As soon as it is clear that it will not run, or when the time is over.
    pub async fn wait_running(&self, report: impl FnMut(&str)) -> Result<(), PodError> {
        wait::until_running(self, report).await
    }

    /// Waits until the pod has ended in whatever way, for as long as it takes, and says how. While the API server
    /// does not answer it keeps asking.
    pub async fn ended(&self) -> wait::StartFailure {
        wait::until_ended(self).await
    }

    /// Deletes it, within 5 s. That it is gone already is fine, and another pod of its name is left alone.
    ///
    /// # Errors
    /// When the API server refuses or does not answer in time.
    pub async fn delete(&self) -> Result<(), PodError> {
        delete(&self.api, &self.name, &self.uid).await.map_err(|source| PodError::Delete {
            pod: self.name.clone(),
            namespace: self.namespace.clone(),
            source,
        })
    }
}

async fn delete(api: &Api<Pod>, name: &str, uid: &str) -> Result<(), ApiError> {
    let parameters = DeleteParams::default()
        .grace_period(DELETE_GRACE_SECONDS)
        .preconditions(Preconditions { uid: Some(uid.to_owned()), resource_version: None });
    match ask_within(DELETE_TIME_MAX, api.delete(name, &parameters)).await {
        Ok(_) | Err(ApiError::NotFound(_) | ApiError::NoNamespace(_)) => Ok(()),
        // The uid is another: ours is gone.
        Err(ApiError::Other { code: 409, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes pods that `owner` left behind and that have ended; how many. It is housekeeping: what is not allowed or
/// does not answer stays, and nobody is bothered.
pub async fn reap_finished(cluster: &Cluster, owner: &str) -> usize {
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    let ours = ListParams::default()
        .labels("app.kubernetes.io/name=kshuttle,app.kubernetes.io/component=sshd")
        .limit(REAP_MAX);
    let pods = match ask_within(DELETE_TIME_MAX, api.list(&ours)).await {
        Ok(list) => list.items,
        Err(error) => {
            tracing::debug!(%error, "left-over pods are not readable");
            return 0;
        }
    };
    let mut reaped = 0;
    for pod in pods.iter().filter(|pod| is_left_over(pod, owner)) {
        let (Some(name), Some(uid)) = (&pod.metadata.name, &pod.metadata.uid) else { continue };
        match delete(&api, name, uid).await {
            Ok(()) => reaped += 1,
            Err(error) => {
                tracing::debug!(%error, "a left-over pod stays");
                break;
            }
        }
    }
    reaped
}

fn is_left_over(pod: &Pod, owner: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    let annotations = pod.metadata.annotations.as_ref();
    let whose = annotations.and_then(|annotations| annotations.get(OWNER_ANNOTATION));
    matches!(phase, Some("Succeeded" | "Failed")) && whose.is_some_and(|whose| whose == owner)
}

#[cfg(test)]
mod tests;
