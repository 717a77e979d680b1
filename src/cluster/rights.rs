//! The rights kshuttle needs, as the Role to ask an administrator for: one namespace, nothing cluster-wide. And which
//! of them we have ([`review`]).

use std::error::Error as StdError;
use std::fmt::{self, Write};

use futures::future::join_all;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

use super::api_error::{ApiError, ask};
use super::client::Cluster;

/// What is needed of each resource, and what for.
const RULES: [(&str, &[&str], &str); 4] = [
    ("pods", &["create", "get", "list", "watch", "delete"], "the pod that kshuttle starts, and finds again"),
    // `create` is what the SPDY request needs, `get` the WebSocket request, and that from Kubernetes 1.35 on both.
    ("pods/portforward", &["get", "create"], "the connection to that pod"),
    ("configmaps", &["create", "get"], "the program that the pod runs; not needed with --image"),
    ("events", &["list"], "why a pod does not start; may be left out"),
];

/// One verb on one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// For example `pods/portforward`.
    pub resource: &'static str,
    /// For example `create`.
    pub verb: &'static str,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)
    }
}

/// Which rights we do not have in one namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Review {
    /// In the order of the Role.
    pub missing: Vec<Right>,
    /// Who we are to the cluster, if it says so (Kubernetes 1.28 and newer).
    pub user: Option<String>,
}

/// A pod of ours cannot work here, with all that is missing and not only what was refused first.
#[derive(Debug, thiserror::Error)]
#[error("not all rights are there that kshuttle needs in namespace `{namespace}`; missing: {}", list(&.review.missing))]
pub struct RightsError {
    namespace: String,
    review: Review,
    /// The refusal that was met, if one was.
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl RightsError {
    /// What was refused and what the cluster says about the other rights.
    pub fn new(namespace: &str, review: Review, source: Option<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { namespace: namespace.to_owned(), review, source }
    }

    /// Role and RoleBinding to ask an administrator for.
    pub fn role_yaml(&self) -> String {
        role_yaml(&self.namespace, self.review.user.as_deref())
    }
}

fn list(rights: &[Right]) -> String {
    rights.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Review {
    /// Only what `--image` or its absence needs.
    fn without_needless(mut self, delivered: bool) -> Self {
        self.missing.retain(|right| delivered || right.resource != "configmaps");
        self
    }
}

/// Asks for each right whether we have it (`SelfSubjectAccessReview`, which everybody may ask), all at once. `delivered`
/// is false for `--image`.
///
/// # Errors
/// When the API server does not answer one of the questions.
pub async fn review(cluster: &Cluster, delivered: bool) -> Result<Review, ApiError> {
    let all = RULES.iter().flat_map(|(resource, verbs, _)| verbs.iter().map(|verb| Right { resource, verb }));
    let asked = join_all(all.map(async |right| may(cluster, right).await.map(|there| (right, there))));
    let (answers, user) = tokio::join!(asked, who_are_we(cluster));
    let mut missing = Vec::new();
    for answer in answers {
        let (right, there) = answer?;
        missing.extend((!there).then_some(right));
    }
    Ok(Review { missing, user }.without_needless(delivered))
}

/// Whether we have this right in the cluster's namespace.
///
/// # Errors
/// When the API server does not answer.
pub async fn may(cluster: &Cluster, right: Right) -> Result<bool, ApiError> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource, None),
    };
    let question = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(cluster.namespace().to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                verb: Some(right.verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client().clone());
    let answer = ask(api.create(&PostParams::default(), &question)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Our name in this cluster; a bonus.
async fn who_are_we(cluster: &Cluster) -> Option<String> {
    let api: Api<SelfSubjectReview> = Api::all(cluster.client().clone());
    let answer = ask(api.create(&PostParams::default(), &SelfSubjectReview::default())).await;
    answer.ok()?.status?.user_info?.username
}

/// Role and RoleBinding for `namespace` in YAML. `user` is who we are to the cluster, as its error messages
/// name it; a `system:serviceaccount:…` becomes a ServiceAccount. Without it a placeholder stands there.
pub fn role_yaml(namespace: &str, user: Option<&str>) -> String {
    let mut yaml = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: Role\n\
         metadata:\n\
         \x20 name: kshuttle\n\
         \x20 namespace: {}\n\
         rules:\n",
        quote(namespace)
    );
    for (resource, verbs, purpose) in RULES {
        let _ = write!(
            yaml,
            "\x20 # {purpose}\n\
             \x20 - apiGroups: [\"\"]\n\
             \x20   resources: [{}]\n\
             \x20   verbs: [{}]\n",
            quote(resource),
            verbs.iter().map(|verb| quote(verb)).collect::<Vec<_>>().join(", ")
        );
    }
    let _ = write!(
        yaml,
        "---\n\
         apiVersion: rbac.authorization.k8s.io/v1\n\
         kind: RoleBinding\n\
         metadata:\n\
         \x20 name: kshuttle\n\
         \x20 namespace: {}\n\
         roleRef:\n\
         \x20 apiGroup: rbac.authorization.k8s.io\n\
         \x20 kind: Role\n\
         \x20 name: kshuttle\n\
         subjects:\n{}",
        quote(namespace),
        subject(user.unwrap_or("WHO-USES-IT"))
    );
    yaml
}

fn subject(user: &str) -> String {
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => format!(
            "\x20 - kind: ServiceAccount\n\x20   name: {}\n\x20   namespace: {}\n",
            quote(name),
            quote(namespace)
        ),
        None => format!(
            "\x20 - apiGroup: rbac.authorization.k8s.io\n\x20   kind: User\n\x20   name: {}\n",
            quote(user)
        ),
    }
}

/// A YAML string in double quotes, which are those of JSON.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
