//! `--explain`: the ways into the cluster in the order they are preferred, which one was taken, and why the others were not.

use crate::cli::PodArgs;
use crate::cluster::client::Cluster;
use crate::cluster::rights::{self, Right};

/// The ways, the preferred first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// The pod of a session that was killed.
    Resume,
    /// A pod whose program comes from ConfigMaps.
    Delivery,
    /// A pod of an image.
    Image,
    /// A pod of somebody else, with an SSH server.
    Pod,
    /// A container of somebody else, with a shell.
    Upload,
}

/// What the ways need beyond `pods/portforward`, which all need.
const NEEDS: [(Way, &[Right]); 5] = [
    (Way::Resume, &[Right { resource: "pods", verb: "get" }]),
    (
        Way::Delivery,
        &[
            Right { resource: "pods", verb: "create" },
            Right { resource: "pods", verb: "get" },
            Right { resource: "configmaps", verb: "create" },
            Right { resource: "configmaps", verb: "get" },
        ],
    ),
    (Way::Image, &[Right { resource: "pods", verb: "create" }, Right { resource: "pods", verb: "get" }]),
    (Way::Pod, &[Right { resource: "pods", verb: "get" }]),
    (
        Way::Upload,
        &[
            Right { resource: "pods", verb: "get" },
            Right { resource: "pods/exec", verb: "get" },
            Right { resource: "pods/exec", verb: "create" },
        ],
    ),
];

/// One line for each way. `works` is false when the one that was tried did not come to be.
pub(super) async fn ways(cluster: &Cluster, args: &PodArgs, tried: Way, works: bool) -> Vec<String> {
    let mut lines = Vec::new();
    for (way, needs) in NEEDS {
        let mut missing = Vec::new();
        for right in needs {
            // What cannot be asked is not said to be missing.
            if matches!(rights::may(cluster, *right).await, Ok(false)) {
                missing.push(right.to_string());
            }
        }
        lines.push(line(way, tried, works, why_not(way, args), &missing));
    }
    lines
}

/// Why the flags did not lead to this way; none when they did.
fn why_not(way: Way, args: &PodArgs) -> Option<&'static str> {
    let ours = args.pod.is_none() && args.upload.is_none();
    match way {
        Way::Resume if ours => Some("there is none of yours from this machine that would be the same"),
        Way::Resume => Some("a pod is named"),
        Way::Delivery if ours && args.image.is_none() => None,
        Way::Delivery if ours => Some("an image is named"),
        Way::Delivery => Some("a pod is named"),
        Way::Image if args.image.is_none() => Some("no image is named"),
        Way::Pod if args.pod.is_none() => Some("no pod is named"),
        Way::Upload if args.upload.is_none() => Some("no pod is named"),
        Way::Image | Way::Pod | Way::Upload => None,
    }
}

fn line(way: Way, tried: Way, works: bool, why_not: Option<&str>, missing: &[String]) -> String {
    let what = match way {
        Way::Resume => "a pod left running",
        Way::Delivery => "a pod without image",
        Way::Image => "--image IMAGE",
        Way::Pod => "--pod POD",
        Way::Upload => "--upload POD",
    };
    let rights = if missing.is_empty() {
        "its rights are there".to_owned()
    } else {
        format!("not permitted: {}", missing.join(", "))
    };
    if way == tried {
        let taken = if works { "taken" } else { "tried, and did not work" };
        return format!("{what}: {taken}; {rights}");
    }
    format!("{what}: {}; {rights}", why_not.unwrap_or("a better way was there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_says_why_it_was_taken_or_not() {
        let missing = ["create configmaps".to_owned()];
        assert_eq!(
            line(Way::Delivery, Way::Delivery, false, None, &missing),
            "a pod without image: tried, and did not work; not permitted: create configmaps"
        );
        assert_eq!(
            line(Way::Resume, Way::Resume, true, None, &[]),
            "a pod left running: taken; its rights are there"
        );
        assert_eq!(
            line(Way::Delivery, Way::Resume, true, None, &[]),
            "a pod without image: a better way was there; its rights are there"
        );
        assert_eq!(
            line(Way::Upload, Way::Delivery, true, Some("no pod is named"), &[]),
            "--upload POD: no pod is named; its rights are there"
        );
    }
}
