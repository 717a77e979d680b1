//! The tunnels to our server in a container that is there already (`--upload`), and the server's life there.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use super::keeper::route_to;
use crate::cli::PodArgs;
use crate::cluster::client::Cluster;
use crate::cluster::delivery::Payload;
use crate::cluster::port_forward::{Dialer, Transport};
use crate::cluster::target::{Resolver, Target, TargetError};
use crate::cluster::upload::{self, UploadError, Uploaded as Running, Wanted};
use crate::port_forward::first_pod;
use crate::report::{Steps, chain};
use crate::tunnel::identity::{HostKey, Identity};
use crate::tunnel::pool::Pool;

/// Longest wait for the first tunnel to a server that listens.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// So long no tunnel may be up before the server is taken for lost, once the exec that held it has ended. Until then the way
/// may come back: what restarted may have been the API server.
const LOST_TIME: Duration = Duration::from_secs(10);

/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// So long a container may take to come again: it restarts, or a controller makes another pod.
const RETURN_TIME_MAX: Duration = Duration::from_secs(60);

/// Pause between two looks whether it is there.
const RETURN_PAUSE: Duration = Duration::from_secs(2);

/// Why there is no way through this container.
#[derive(Debug, thiserror::Error)]
pub enum UploadedError {
    /// There is no such pod.
    #[error("cannot go through {target}")]
    Target {
        /// Which.
        target: Target,
        /// Why not.
        source: Arc<TargetError>,
    },
    /// Our server does not run there.
    #[error("upload the server to pod `{pod}`")]
    Upload {
        /// Which.
        pod: String,
        /// Why not.
        source: UploadError,
    },
}

/// The tunnels, and the server once it runs.
pub(super) struct Uploaded {
    cluster: Cluster,
    dialer: Dialer,
    args: PodArgs,
    target: Target,
    identity: Identity,
    pool: Pool,
    running: Option<Running>,
}

impl Uploaded {
    /// Nothing is asked yet; connections are held already.
    pub(super) fn new(
        cluster: Cluster,
        transport: Transport,
        target: &Target,
        args: &PodArgs,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            dialer: Dialer::new(cluster.client().clone(), cluster.namespace(), transport),
            cluster,
            args: args.clone(),
            target: target.clone(),
            identity: Identity::generate().context("make this session's key")?,
            pool: Pool::start(super::tunnels(args)),
            running: None,
        })
    }

    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Finds the pod, uploads the server and waits for the first tunnel to it.
    pub(super) async fn start(&mut self, steps: &mut Steps) -> anyhow::Result<()> {
        self.pool.lead(None);
        let resolver = Resolver::new(self.cluster.clone(), self.target.clone(), Vec::new());
        let found = first_pod(&resolver, steps)
            .await
            .map_err(|source| UploadedError::Target { target: self.target.clone(), source })?;
        let authorized_key = self.identity.authorized_key().context("write down this session's key")?;
        let payload = Payload::load()?;
        let wanted = Wanted { payload: &payload, authorized_key: &authorized_key, idle: self.args.pod_idle };
        steps.waiting(&format!("uploading the server to pod {}", found.pod));
        let running = upload::start(&self.cluster, &found.pod, self.args.container.as_deref(), &wanted)
            .await
            .map_err(|source| UploadedError::Upload { pod: found.pod.clone(), source })?;
        steps.done(
            "pod",
            format_args!("{} runs our server in its container {}", found.pod, running.container),
        );
        let host_key = HostKey::known(running.host_key.clone());
        let route = route_to(&self.dialer, &found.pod, running.port, &self.identity, &host_key);
        self.running = Some(running);
        self.pool.lead(Some(route));
        let way = self.pool.first_up(CONNECT_TIME_MAX).await?;
        let fingerprint = host_key.fingerprint().unwrap_or_default();
        steps.done("tunnel", format_args!("SSH over {way}, host key {fingerprint}"));
        Ok(())
    }

    /// Uploads the server again whenever it ends; returns why it cannot.
    pub(super) async fn keep(&mut self, steps: &mut Steps) -> anyhow::Error {
        loop {
            let why = match &self.running {
                Some(running) => running.ended().await,
                None => "it did not start".to_owned(),
            };
            self.lost().await;
            steps.restart();
            steps.say(format_args!(
                "the uploaded server ended ({why}): its connections were reset, new ones wait for another"
            ));
            self.running = None;
            if let Err(error) = self.again(steps).await {
                return error.context("upload the server again");
            }
        }
    }

    /// A container that ended may come again.
    async fn again(&mut self, steps: &mut Steps) -> anyhow::Result<()> {
        let deadline = Instant::now() + RETURN_TIME_MAX;
        loop {
            match self.start(steps).await {
                Err(error) if Instant::now() < deadline => {
                    steps.waiting(&format!("for the container: {}", chain(error.as_ref())));
                }
                result => return result,
            }
            sleep(RETURN_PAUSE).await;
        }
    }

    /// Returns when no tunnel has been up for [`LOST_TIME`].
    async fn lost(&self) {
        let mut up = Instant::now();
        while up.elapsed() < LOST_TIME {
            if self.pool.status().iter().any(|tunnel| tunnel.up) {
                up = Instant::now();
            }
            sleep(LOOK).await;
        }
    }

    /// Ends the tunnels and the server.
    pub(super) async fn stop(self, steps: &mut Steps) {
        self.pool.close().await;
        if let Some(running) = self.running {
            match running.quit().await {
                true => steps.done("server", "taken out of the container"),
                false => steps.say(format_args!(
                    "warning: the uploaded server was not reached: it leaves by itself within {} s",
                    self.args.pod_idle.as_secs()
                )),
            }
        }
    }
}
