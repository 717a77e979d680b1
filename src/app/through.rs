//! What everything goes through, whichever of the ways into the cluster it is.

use super::existing::Existing;
use super::explain::Way;
use super::keeper::Keeper;
use super::uploaded::Uploaded;
use crate::cli::PodArgs;
use crate::cluster::client::Cluster;
use crate::cluster::port_forward::Transport;
use crate::report::Steps;
use crate::tunnel::pool::Pool;

/// The pod that everything goes through.
pub(super) enum Through {
    Own(Box<Keeper>),
    Existing(Box<Existing>),
    Uploaded(Box<Uploaded>),
}

impl Through {
    pub(super) fn new(cluster: Cluster, transport: Transport, args: &PodArgs) -> anyhow::Result<Self> {
        Ok(match (&args.pod, &args.upload) {
            (Some(place), _) => Self::Existing(Box::new(Existing::new(cluster, transport, place, args)?)),
            (None, Some(target)) => {
                Self::Uploaded(Box::new(Uploaded::new(cluster, transport, target, args)?))
            }
            (None, None) => Self::Own(Box::new(Keeper::new(cluster, transport, args)?)),
        })
    }

    pub(super) fn pool(&self) -> &Pool {
        match self {
            Self::Own(keeper) => keeper.pool(),
            Self::Existing(existing) => existing.pool(),
            Self::Uploaded(uploaded) => uploaded.pool(),
        }
    }

    /// How it came to be, or was tried to.
    pub(super) fn way(&self) -> Way {
        match self {
            Self::Own(keeper) => keeper.way(),
            Self::Existing(_) => Way::Pod,
            Self::Uploaded(_) => Way::Upload,
        }
    }

    pub(super) async fn start(&mut self, steps: &mut Steps) -> anyhow::Result<()> {
        match self {
            Self::Own(keeper) => keeper.start(steps).await,
            Self::Existing(existing) => existing.start(steps).await,
            Self::Uploaded(uploaded) => uploaded.start(steps).await,
        }
    }

    /// Returns what ended the session.
    pub(super) async fn keep(&mut self, steps: &mut Steps) -> anyhow::Error {
        match self {
            Self::Own(keeper) => keeper.keep(steps).await,
            Self::Existing(existing) => existing.keep().await,
            Self::Uploaded(uploaded) => uploaded.keep(steps).await,
        }
    }

    pub(super) async fn stop(self, steps: &mut Steps) {
        match self {
            Self::Own(keeper) => keeper.stop(steps).await,
            Self::Existing(existing) => existing.stop().await,
            Self::Uploaded(uploaded) => uploaded.stop(steps).await,
        }
    }
}
