//! Why there is no pod, and whose fault that is.

use super::super::api_error::{ApiError, MissingRight};
use super::super::delivery::DeliveryError;
use super::super::rights;
use super::patch::PatchError;
use super::wait;

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
    /// The user's patch does not fit.
    #[error("cannot describe the pod")]
    Patch(#[from] PatchError),
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
        /// Its namespace.
        namespace: String,
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
            Self::Start { .. } | Self::Patch(_) => None,
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
