//! The pod as a value: allowed by Pod Security `restricted` by construction, whatever runs in it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapProjection, Container, EnvVar, KeyToPath, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSecurityContext, PodSpec, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;

use super::super::delivery::{Delivered, LOADER_KEY};
use super::image::Carrier;
use super::patch::PatchError;
use super::{LISTEN_PORT, OWNER_ANNOTATION, PodOptions, PullPolicy, SESSION_ANNOTATION};

/// The container's name.
pub(super) const CONTAINER: &str = "sshd";
/// Where the parts are mounted.
const MOUNT: &str = "/k";
/// Nobody needs one session longer, and what is forgotten must end. The server leaves by itself when idle; this is
/// for when even that fails. The tunnel makes a new pod.
const LIFETIME_SECONDS: i64 = 7 * 24 * 3600;
/// The server has nothing to save.
const GRACE_SECONDS: i64 = 1;
/// An idle server needs 1 m; enough to be scheduled anywhere. No limit: throttling shows as latency.
const CPU_REQUEST: &str = "10m";
/// An idle server with its program in memory.
const MEMORY_REQUEST: &str = "32Mi";
/// The unpacked program (at most 64 MiB), 16 MiB of SSH window and replay buffer for each of two tunnels and
/// direction, and 2,000 flows with 64 KiB.
const MEMORY_LIMIT: &str = "256Mi";

/// Where the program comes from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    /// From ConfigMaps, carried by any image.
    Delivered(&'a Delivered, &'a Carrier),
    /// It is what the image starts.
    Image(&'a str),
}

/// The pod to create, with the user's patch. `uid` none leaves user and group to the cluster.
///
/// # Errors
/// When the patch makes no pod of it that could be used.
pub(super) fn pod(options: &PodOptions, source: Source<'_>, uid: Option<i64>) -> Result<Pod, PatchError> {
    let pod = unpatched(options, source, uid);
    options.patch.as_ref().map_or_else(|| Ok(pod.clone()), |patch| patch.apply(&pod))
}

fn unpatched(options: &PodOptions, source: Source<'_>, uid: Option<i64>) -> Pod {
    let (volumes, affinity, architecture) = match source {
        Source::Delivered(delivered, carrier) => {
            (Some(vec![volume(delivered)]), affinity(&carrier.nodes), Some(delivered.architecture))
        }
        Source::Image(_) => (None, None, None),
    };
    let mut node_selector = BTreeMap::from([("kubernetes.io/os".to_owned(), "linux".to_owned())]);
    if let Some(architecture) = architecture {
        node_selector.insert("kubernetes.io/arch".to_owned(), architecture.to_owned());
    }
    Pod {
        metadata: ObjectMeta {
            generate_name: Some("kshuttle-".to_owned()),
            labels: Some(labels()),
            annotations: Some(strings([
                (OWNER_ANNOTATION, &options.owner),
                (SESSION_ANNOTATION, &options.session),
            ])),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            active_deadline_seconds: Some(LIFETIME_SECONDS),
            affinity,
            automount_service_account_token: Some(false),
            containers: vec![container(options, source)],
            enable_service_links: Some(false),
            node_selector: Some(node_selector),
            restart_policy: Some("Never".to_owned()),
            security_context: Some(PodSecurityContext {
                run_as_group: uid,
                run_as_non_root: Some(true),
                run_as_user: uid,
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            volumes,
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// Of every pod of ours; with [`OWNER_ANNOTATION`] they find it again.
pub(super) fn labels() -> BTreeMap<String, String> {
    strings([
        ("app.kubernetes.io/name", "kshuttle"),
        ("app.kubernetes.io/managed-by", "kshuttle"),
        ("app.kubernetes.io/component", "sshd"),
        ("app.kubernetes.io/version", env!("CARGO_PKG_VERSION")),
    ])
}

fn container(options: &PodOptions, source: Source<'_>) -> Container {
    let (image, pull, command, volume_mounts) = match source {
        Source::Delivered(delivered, carrier) => {
            let command = [&format!("{MOUNT}/{LOADER_KEY}"), MOUNT, &delivered.sha256, "serve"];
            let mount = VolumeMount {
                name: "program".to_owned(),
                mount_path: MOUNT.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            };
            let pull = if carrier.present { PullPolicy::Never } else { PullPolicy::IfNotPresent };
            (
                carrier.image.as_str(),
                options.pull_policy.unwrap_or(pull),
                Some(command.map(str::to_owned).to_vec()),
                Some(vec![mount]),
            )
        }
        // Also for `latest`: what the first node of a session ran, the next one runs, too, if it can.
        Source::Image(image) => (image, options.pull_policy.unwrap_or(PullPolicy::IfNotPresent), None, None),
    };
    let variable =
        |name: &str, value: String| EnvVar { name: name.to_owned(), value: Some(value), ..EnvVar::default() };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some(pull.to_string()),
        command,
        env: Some(vec![
            variable("KSHUTTLE_AUTHORIZED_KEY", options.authorized_key.clone()),
            variable("KSHUTTLE_IDLE_SECONDS", options.idle.as_secs().to_string()),
            variable("KSHUTTLE_LISTEN_PORT", LISTEN_PORT.to_string()),
        ]),
        resources: Some(ResourceRequirements {
            requests: Some(quantities([("cpu", CPU_REQUEST), ("memory", MEMORY_REQUEST)])),
            limits: Some(quantities([("memory", MEMORY_LIMIT)])),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            privileged: Some(false),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        // Its last words stand in the pod's status then, which we may read, unlike its log.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts,
        ..Container::default()
    }
}

/// All ConfigMaps side by side in one folder, executable for any user.
fn volume(delivered: &Delivered) -> Volume {
    let sources = delivered.config_maps.iter().map(|(name, key)| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: name.clone(),
            items: Some(vec![KeyToPath { key: key.clone(), path: key.clone(), mode: None }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    });
    Volume {
        name: "program".to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o555),
            sources: Some(sources.collect()),
        }),
        ..Volume::default()
    }
}

fn affinity(nodes: &[String]) -> Option<Affinity> {
    if nodes.is_empty() {
        return None;
    }
    // `matchFields` takes one value each; the terms are alternatives.
    let terms = nodes.iter().map(|node| NodeSelectorTerm {
        match_fields: Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.clone()]),
        }]),
        match_expressions: None,
    });
    Some(Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: terms.collect(),
            }),
            preferred_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    })
}

fn strings<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn quantities<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, Quantity> {
    pairs.map(|(name, value)| (name.to_owned(), Quantity(value.to_owned()))).into()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::{Program, RunAs};
    use super::*;
    use crate::cluster::fake_api::golden;

    fn options() -> PodOptions {
        PodOptions {
            program: Program::Image("unused".to_owned()),
            run_as: RunAs::Default,
            authorized_key: "ssh-ed25519 AAAA session".to_owned(),
            idle: Duration::from_secs(300),
            owner: "ada@laptop".to_owned(),
            session: "1b2c".to_owned(),
            start_time_max: Duration::from_secs(60),
            node_time_max: Duration::from_secs(4),
            pull_policy: None,
            patch: None,
        }
    }

    fn delivered() -> Delivered {
        Delivered {
            config_maps: vec![
                ("kshuttle-loader-00".to_owned(), "loader".to_owned()),
                ("kshuttle-server-11-0".to_owned(), "server.0".to_owned()),
                ("kshuttle-server-11-1".to_owned(), "server.1".to_owned()),
            ],
            sha256: "11".repeat(32),
            architecture: "amd64",
        }
    }

    fn carrier(nodes: &[&str]) -> Carrier {
        Carrier {
            image: "registry.k8s.io/pause:3.10".to_owned(),
            present: nodes.is_empty(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            reason: String::new(),
        }
    }

    /// The pod of `fixtures/api/pod-delivered.json`.
    pub(in super::super) fn example() -> Pod {
        pod(&options(), Source::Delivered(&delivered(), &carrier(&[])), Some(65532)).unwrap()
    }

    #[test]
    fn delivered_by_config_maps() {
        golden(
            "pod-delivered.json",
            &pod(&options(), Source::Delivered(&delivered(), &carrier(&[])), Some(65532)).unwrap(),
        );
    }

    #[test]
    fn delivered_to_certain_nodes_with_a_user_of_the_clusters_choice() {
        let source = (delivered(), carrier(&["n1", "n2"]));
        golden(
            "pod-two-nodes.json",
            &pod(&options(), Source::Delivered(&source.0, &source.1), None).unwrap(),
        );
    }

    #[test]
    fn an_image_of_its_own() {
        golden(
            "pod-image.json",
            &pod(&options(), Source::Image("example.org/kshuttle-sshd:1"), Some(1_000_680_000)).unwrap(),
        );
    }
}
