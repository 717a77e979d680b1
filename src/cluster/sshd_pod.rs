//! The pod with our SSH server: made, waited for, deleted, and found again when it was left behind.
//!
//! States: options → image chosen → rehearsed (the API server says what it would do, and does nothing) → program
//! delivered → created ([`create`]) → running ([`SshdPod::wait_running`]) → deleted ([`SshdPod::delete`]), or ended by
//! itself when idle and removed by the next session ([`left_over::reap`]). The manifest is a pure value (`manifest.rs`),
//! so is what the user's [`patch`] makes of it, the image's choice ([`image`]) and what a status means (`status.rs`).
//!
//! Next: [`super::port_forward`] opens a stream to [`LISTEN_PORT`] of the pod.

mod error;
pub mod image;
pub mod left_over;
mod manifest;
mod options;
pub mod patch;
mod status;
pub mod wait;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

pub use self::error::PodError;
pub use self::options::{PodOptions, Program, PullPolicy, RunAs};
use super::api_error::{ApiError, ask, ask_within};
use super::client::Cluster;
use super::delivery;

/// Where the server listens, on the pod's loopback.
pub const LISTEN_PORT: u16 = 2222;
/// Time to start when nothing else is said. From an image on the node it takes 1 to 3 s.
pub const START_TIME_MAX: Duration = Duration::from_secs(60);
/// Time without a node when nothing else is said. The scheduler has looked at all of them before it says that none will
/// do; a preemption or a new node announces itself sooner than this.
pub const NODE_TIME_MAX: Duration = Duration::from_secs(4);
/// Whose pod it is: `user@host`.
const OWNER_ANNOTATION: &str = "kshuttle.dev/owner";
/// Of which run of kshuttle it is (`crate::session`).
const SESSION_ANNOTATION: &str = "kshuttle.dev/session";
/// The uid of "nonroot" in distroless images; any but 0 would do.
const DEFAULT_UID: i64 = 65532;
/// Leaving must not hang on a dead network; the pod ends by itself when idle.
const DELETE_TIME_MAX: Duration = Duration::from_secs(5);
/// A kill after this; the server has nothing to save. 0 would leave the container running for a while unseen.
const DELETE_GRACE_SECONDS: u32 = 1;

/// A pod of ours that was created.
#[derive(Debug, Clone)]
pub struct SshdPod {
    api: Api<Pod>,
    name: String,
    namespace: String,
    uid: String,
    start_time_max: Duration,
    node_time_max: Duration,
}

/// Chooses an image, asks whether the API server would take the pod, brings the program into the namespace and creates
/// the pod. `report` gets a sentence for each thing worth knowing.
///
/// # Errors
/// When the API server refuses or cannot be reached, or when the patch does not fit. Only a lost race (a quota that
/// fills up meanwhile) or a failed upload leaves ConfigMaps without a pod.
pub async fn create(
    cluster: &Cluster,
    options: &PodOptions,
    mut report: impl FnMut(&str),
) -> Result<SshdPod, PodError> {
    let namespace = cluster.namespace().to_owned();
    let refused = |source| PodError::Create { namespace: namespace.clone(), source };
    let (delivered, carrier);
    let source = match &options.program {
        Program::Image(image) => manifest::Source::Image(image),
        Program::Delivered { payload, carrier: wanted } => {
            delivered = payload.delivered();
            let found = image::gather(cluster, payload.architecture(), wanted.as_deref()).await;
            carrier = image::choose_image(&found);
            report(&format!("the pod is made of image {} ({})", carrier.image, carrier.reason));
            manifest::Source::Delivered(&delivered, &carrier)
        }
    };
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), &namespace);
    let first = match options.run_as {
        RunAs::Uid(uid) => Some(uid),
        RunAs::ClusterPicks => None,
        RunAs::Default => Some(DEFAULT_UID),
    };
    let mut pod = manifest::pod(options, source, first)?;
    match rehearse(&api, &pod).await {
        Err(ApiError::Policy(words))
            if options.run_as == RunAs::Default && words.contains("security context constraint") =>
        {
            report("the cluster assigns users itself (OpenShift): leaving the pod's user to it");
            pod = manifest::pod(options, source, None)?;
            rehearse(&api, &pod).await.map_err(refused)?;
        }
        answer => answer.map_err(refused)?,
    }
    if let Program::Delivered { payload, .. } = &options.program {
        delivery::deliver(cluster, payload, &mut report)
            .await
            .map_err(|source| PodError::Delivery { namespace: namespace.clone(), source })?;
    }
    let pod = ask(api.create(&PostParams::default(), &pod)).await.map_err(refused)?;
    Ok(SshdPod::of(pod, api, &namespace, options))
}

/// A pod of `options.owner` that was made before and still runs.
///
/// # Errors
/// When the API server refuses or does not answer.
pub async fn find_running(
    cluster: &Cluster,
    options: &PodOptions,
    name: &str,
    uid: &str,
) -> Result<Option<SshdPod>, ApiError> {
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    let found = ask(api.get_opt(name)).await?.filter(|pod| {
        let metadata = &pod.metadata;
        let owner = metadata.annotations.as_ref().and_then(|all| all.get(OWNER_ANNOTATION));
        metadata.uid.as_deref() == Some(uid)
            && metadata.deletion_timestamp.is_none()
            && owner == Some(&options.owner)
            && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
    });
    Ok(found.map(|pod| SshdPod::of(pod, api, cluster.namespace(), options)))
}

/// Sends the pod through authorization and admission without making it (`dryRun=All`): what a policy says against it
/// should be known before anything is left in the namespace.
async fn rehearse(api: &Api<Pod>, pod: &Pod) -> Result<(), ApiError> {
    match ask(api.create(&PostParams { dry_run: true, ..PostParams::default() }, pod)).await {
        Ok(_) => Ok(()),
        // A webhook with side effects cannot rehearse; it will say what it says about the pod itself.
        Err(ApiError::Policy(words)) if words.contains("does not support dry run") => Ok(()),
        Err(error) => Err(error),
    }
}

impl SshdPod {
    fn of(pod: Pod, api: Api<Pod>, namespace: &str, options: &PodOptions) -> Self {
        Self {
            api,
            name: pod.metadata.name.unwrap_or_default(),
            namespace: namespace.to_owned(),
            uid: pod.metadata.uid.unwrap_or_default(),
            start_time_max: options.start_time_max,
            node_time_max: options.node_time_max,
        }
    }

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

#[cfg(test)]
mod tests;
