//! What an API server says when it does not do what was asked, sorted by what the user can do about it.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::time::Duration;

/// A request that is neither a watch nor an upgrade answers within this, or never: API servers themselves give
/// up after 60 s, but a person waits for each of ours.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

/// Why a request to the API server failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 401: it does not know us (any more).
    #[error("the API server does not accept the credentials ({0})")]
    Unauthorized(String),
    /// 403 of the authorizer: a right is missing.
    #[error("{0}")]
    MissingRight(Box<MissingRight>),
    /// 403 of the quota plugin, in the server's words.
    #[error("a resource quota of the namespace does not allow it: {0}")]
    Quota(String),
    /// 403 of a policy, such as Pod Security or a webhook, in the server's words.
    #[error("a policy of the cluster does not allow it: {0}")]
    Policy(String),
    /// 404 of the namespace.
    #[error("there is no namespace `{0}`")]
    NoNamespace(String),
    /// The namespace is being deleted.
    #[error("the namespace is being deleted: {0}")]
    NamespaceEnds(String),
    /// 404 of anything else, also of a whole API.
    #[error("{0}")]
    NotFound(String),
    /// 409 for a name that is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// Any other answer.
    #[error("the API server answered {code}: {message}")]
    Other {
        /// HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// No answer in time.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The answer is not one of an API server; perhaps of something in between.
    #[error("the answer is not one of a Kubernetes API server")]
    Strange(#[source] Box<dyn StdError + Send + Sync>),
    /// The credentials could not be made, for example by the kubeconfig's exec plugin.
    #[error("cannot get the credentials that the kubeconfig names")]
    Credentials(#[source] Box<dyn StdError + Send + Sync>),
    /// Connecting, TLS, or the connection while it was used.
    #[error("cannot reach the API server")]
    Transport(#[source] Box<dyn StdError + Send + Sync>),
}

/// What the authorizer says is missing. Empty parts were not in its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRight {
    /// Who asked, as the cluster names it.
    pub user: Option<String>,
    /// For example `create`.
    pub verb: String,
    /// For example `pods` or `pods/portforward`.
    pub resource: String,
    /// None for the whole cluster.
    pub namespace: Option<String>,
    /// The server's words.
    pub message: String,
}

impl fmt::Display for MissingRight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "user `{user}`")?,
            None => write!(f, "this user")?,
        }
        write!(f, " may not {} {}", self.verb, self.resource)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace `{namespace}`"),
            None => write!(f, " in this cluster"),
        }
    }
}

/// Awaits one request, bounded, and sorts its error.
///
/// # Errors
/// See [`ApiError`].
pub(crate) async fn ask<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, ApiError> {
    ask_within(REQUEST_TIME_MAX, request).await
}

/// As [`ask`], for at most `limit`.
pub(crate) async fn ask_within<T>(
    limit: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => answer.map_err(ApiError::from),
        Err(_) => Err(ApiError::Timeout(limit)),
    }
}

/// The kubeconfig's exec plugin ran and failed.
#[derive(Debug, thiserror::Error)]
#[error("the exec plugin failed with {status}: {text}")]
struct PluginError {
    status: std::process::ExitStatus,
    /// What it wrote to standard error, shortened.
    text: String,
}

/// kube's words about a failed plugin hold its environment and its output, in which there may be a token.
pub(crate) fn credentials(error: kube::client::AuthError) -> Box<dyn StdError + Send + Sync> {
    match error {
        kube::client::AuthError::AuthExecRun { out, .. } => {
            let text = shorten(String::from_utf8_lossy(&out.stderr).trim());
            Box::new(PluginError { status: out.status, text })
        }
        other => Box::new(other),
    }
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        use kube::Error as E;
        match error {
            E::Api(status) => Self::from_status(&status),
            // kube's own messages repeat their source, so only the source is kept.
            E::Service(source) => Self::from_service(source),
            E::HyperError(source) => Self::Transport(Box::new(source)),
            E::ReadEvents(source) => Self::Transport(Box::new(source)),
            E::Auth(source) => Self::Credentials(credentials(source)),
            E::SerdeError(source) => Self::Strange(Box::new(source)),
            E::FromUtf8(source) => Self::Strange(Box::new(source)),
            other => Self::Transport(Box::new(other)),
        }
    }
}

impl ApiError {
    fn from_service(source: Box<dyn StdError + Send + Sync>) -> Self {
        match source.downcast::<kube::client::AuthError>() {
            Ok(auth) => Self::Credentials(credentials(*auth)),
            Err(source) => Self::Transport(source),
        }
    }

    /// Sorts an answer of the server.
    pub(crate) fn from_status(status: &kube::core::Status) -> Self {
        // kube puts the body of an answer that is no Status into `message`, so it may be long.
        let message = shorten(&status.message);
        let kind = status.details.as_ref().map(|details| details.kind.as_str());
        match status.code {
            401 => Self::Unauthorized(message),
            403 => Self::from_forbidden(message, status),
            404 if kind == Some("namespaces") => {
                Self::NoNamespace(status.details.as_ref().map_or_else(String::new, |d| d.name.clone()))
            }
            404 => Self::NotFound(message),
            409 if status.is_already_exists() => Self::AlreadyExists(message),
            // Admission webhooks choose their own status code.
            400.. if message.contains("admission webhook") => Self::Policy(message),
            code => Self::Other { code, message },
        }
    }

    fn from_forbidden(message: String, status: &kube::core::Status) -> Self {
        let causes = status.details.as_ref().map_or(&[][..], |details| &details.causes);
        if causes.iter().any(|cause| cause.reason == "NamespaceTerminating") {
            Self::NamespaceEnds(message)
        } else if message.contains("exceeded quota") || message.contains("failed quota") {
            Self::Quota(message)
        } else if let Some(right) = MissingRight::parse(&message) {
            Self::MissingRight(Box::new(right))
        } else {
            Self::Policy(message)
        }
    }

    /// The missing right, if that is what it is.
    pub fn missing_right(&self) -> Option<&MissingRight> {
        match self {
            Self::MissingRight(right) => Some(right),
            _ => None,
        }
    }
}

impl MissingRight {
    /// Reads `… User "u" cannot VERB resource "R" in API group "G" in the namespace "N"[: reason]` or
    /// `… at the cluster scope` (k8s.io/apiserver, `endpoints/handlers/responsewriters/errors.go`).
    fn parse(message: &str) -> Option<Self> {
        let (before, after) = message.split_once(" cannot ")?;
        let (verb, rest) = after.split_once(" resource \"")?;
        let (resource, rest) = rest.split_once('"')?;
        let quoted = |text: &str, label: &str| -> Option<String> {
            let (_, value) = text.split_once(label)?;
            Some(value.split_once('"')?.0.to_owned())
        };
        Some(Self {
            user: quoted(&format!("{before}\""), "User \""),
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            namespace: quoted(rest, "in the namespace \""),
            message: message.to_owned(),
        })
    }
}

/// A proxy's error page should not fill the screen.
fn shorten(message: &str) -> String {
    const CHARACTERS_MAX: usize = 600;
    let mut line: String = message.trim().replace(['\n', '\r', '\t'], " ");
    if let Some((end, _)) = line.char_indices().nth(CHARACTERS_MAX) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;

    fn error(status: serde_json::Value) -> ApiError {
        let status: Status = serde_json::from_value(status).unwrap();
        ApiError::from_status(&status)
    }

    #[test]
    fn a_missing_right_is_taken_apart() {
        let ApiError::MissingRight(right) = error(json!({
            "code": 403, "reason": "Forbidden",
            "message": "pods is forbidden: User \"system:serviceaccount:dev:ci\" cannot create resource \"pods\" \
                        in API group \"\" in the namespace \"prod\""
        })) else {
            panic!()
        };
        assert_eq!(right.user.as_deref(), Some("system:serviceaccount:dev:ci"));
        assert_eq!((right.verb.as_str(), right.resource.as_str()), ("create", "pods"));
        assert_eq!(right.namespace.as_deref(), Some("prod"));
        assert_eq!(
            right.to_string(),
            "user `system:serviceaccount:dev:ci` may not create pods in namespace `prod`"
        );

        let ApiError::MissingRight(right) = error(json!({
            "code": 403, "reason": "Forbidden",
            "message": "nodes is forbidden: User \"limited\" cannot list resource \"nodes\" in API group \"\" at the \
                        cluster scope"
        })) else {
            panic!()
        };
        assert_eq!(right.to_string(), "user `limited` may not list nodes in this cluster");
    }

    #[test]
    fn other_refusals_with_403_are_not_missing_rights() {
        let quota = "pods \"kshuttle-x\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1";
        assert!(matches!(error(json!({"code": 403, "message": quota})), ApiError::Quota(_)));
        let security =
            "pods \"bad\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true";
        assert!(matches!(error(json!({"code": 403, "message": security})), ApiError::Policy(_)));
        let ending = json!({
            "code": 403, "message": "unable to create new content in namespace x because it is being terminated",
            "details": {"causes": [{"reason": "NamespaceTerminating", "message": "", "field": ""}]}
        });
        assert!(matches!(error(ending), ApiError::NamespaceEnds(_)));
        let webhook = "admission webhook \"images.example.org\" denied the request: unsigned";
        assert!(matches!(error(json!({"code": 400, "message": webhook})), ApiError::Policy(_)));
    }

    #[test]
    fn missing_namespaces_and_missing_objects_differ() {
        let namespace = json!({
            "code": 404, "reason": "NotFound", "message": "namespaces \"nope\" not found",
            "details": {"name": "nope", "kind": "namespaces"}
        });
        assert!(matches!(error(namespace), ApiError::NoNamespace(name) if name == "nope"));
        let object = json!({"code": 404, "reason": "NotFound", "message": "pods \"x\" not found"});
        assert!(matches!(error(object), ApiError::NotFound(_)));
    }

    #[test]
    fn a_page_of_a_proxy_is_cut() {
        let page = format!("<html>\n{}", "x".repeat(5000));
        let text = error(json!({"code": 502, "message": page})).to_string();
        assert!(text.len() < 700 && !text.contains('\n'));
    }
}
