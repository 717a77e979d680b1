//! What to do about a pod that does not come to be.

use crate::cluster::api_error::ApiError;
use crate::cluster::sshd_pod::PodError;
use crate::cluster::sshd_pod::wait::StartFailure;

/// The Role to ask for.
pub(super) fn role(yaml: &str) -> String {
    format!("ask an administrator to apply this:\n\n{yaml}")
}

/// What the user can do, if we know something.
pub(super) fn hint(error: &PodError) -> Option<String> {
    if let Some(yaml) = error.role_yaml() {
        return Some(role(&yaml));
    }
    match error {
        PodError::Start { pod, namespace, source } => start_hint(source, pod, namespace),
        PodError::Delivery { .. } if matches!(error.api_error(), Some(ApiError::Policy(_) | ApiError::Quota(_))) => {
            Some("--image IMAGE runs a normal image instead and needs no ConfigMaps (`scripts/pod-image` makes one); --upload POD \
                  needs no pod of its own either"
                .into())
        }
        _ => refusal_hint(error.api_error()?),
    }
}

fn refusal_hint(error: &ApiError) -> Option<String> {
    Some(match error {
        ApiError::Quota(words) if words.contains("must specify") => patch(
            "the quota wants values that the pod does not name; name them",
            "resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {cpu: \"1\", memory: 256Mi}}",
        ),
        ApiError::Quota(_) => "free some of the quota (`kubectl describe quota` shows it), choose another namespace with -n, \
                               or let the pod ask for less with --pod-patch (it asks for cpu 10m and memory 32Mi, limit 256Mi)"
            .into(),
        ApiError::Policy(words) if words.contains("violates PodSecurity") => {
            "by itself the pod satisfies the level `restricted`: leave out `--run-as-user 0`, and what --pod-patch loosens".into()
        }
        ApiError::Policy(words) if words.contains(" usage per ") || words.contains(" limit to request ") => {
            patch("a LimitRange of the namespace bounds each container; fit the pod's", "resources: {limits: {memory: 128Mi}}")
        }
        ApiError::Policy(words) if words.contains("PriorityClass") => {
            "`kubectl get priorityclasses` lists those that --pod-patch may name".into()
        }
        ApiError::Policy(_) => "--pod-patch FILE changes the pod, --carrier-image or --image name another image".into(),
        ApiError::NoNamespace(_) | ApiError::NamespaceEnds(_) => "choose another namespace with -n NAME".into(),
        _ => return None,
    })
}

fn start_hint(failure: &StartFailure, pod: &str, namespace: &str) -> Option<String> {
    Some(match failure {
        StartFailure::Image { reason, .. } if reason == "ErrImageNeverPull" => {
            "the node lost the image: start again, name another with --carrier-image, or let it be pulled with \
             `--image-pull-policy IfNotPresent`"
                .into()
        }
        StartFailure::Image { reason, .. } if reason == "InvalidImageName" => {
            "an image is named like registry.example/name:tag or registry.example/name@sha256:DIGEST".into()
        }
        StartFailure::Image { .. } => {
            "check the image's name; a private registry needs `imagePullSecrets` in --pod-patch; without --image the pod's \
             program needs no image of its own, and --carrier-image takes any that the nodes have"
                .into()
        }
        StartFailure::Container { message, .. } | StartFailure::Ended { message, .. }
            if message.contains("exec format error") =>
        {
            "the image is for another architecture than the node: name one for it, or choose nodes with --pod-patch \
             (`spec: {nodeSelector: {kubernetes.io/arch: arm64}}`)"
                .into()
        }
        StartFailure::Ended { code: 116, .. } => {
            "--image IMAGE runs a normal image instead; `scripts/pod-image` makes one".into()
        }
        StartFailure::Ended { reason, .. } if reason == "OOMKilled" => {
            patch("give the pod more memory", "resources: {limits: {memory: 512Mi}}")
        }
        StartFailure::Unschedulable(words) if words.contains("Insufficient") => {
            "free some room, or wait for it with `--pod-start 10m`".into()
        }
        StartFailure::Unschedulable(words) if words.contains("taint") => {
            "--pod-patch FILE adds `tolerations`; `kubectl describe nodes` shows the taints".into()
        }
        StartFailure::Unschedulable(_) => {
            "`--pod-start 10m` waits for a node that is yet to come; --pod-patch FILE changes what nodes will do".into()
        }
        StartFailure::Slow { .. } => {
            format!("`kubectl -n {namespace} describe pod {pod}` while it is there, or `--pod-start 5m` to wait longer")
        }
        StartFailure::GivenUp { reason, .. } if reason == "Evicted" => {
            "the node ran out of something; start again, or choose other nodes with --pod-patch".into()
        }
        _ => return None,
    })
}

/// A file for `--pod-patch`, in short.
fn patch(what: &str, of_container: &str) -> String {
    format!("{what}: `--pod-patch FILE` with\n\nspec:\n  containers:\n  - name: sshd\n    {of_container}")
}
