//! Tests on a real Kubernetes. They count as ignored unless asked for with `--ignored`, and then fail when one of
//! these is missing:
//!
//! - `KUBECONFIG`: an administrator of the cluster;
//! - `KSHUTTLE_TEST_LIMITED`: the kubeconfig of a user who has the Role of docs/role.yaml in namespace `locked`, which
//!   enforces Pod Security `restricted`, and nothing else;
//! - `KSHUTTLE_TEST_PROGRAM`: the folder with `kshuttle-sshd.gz` and `kshuttle-loader`.
//!
//! `scripts/cluster` brings up such a cluster; the tests run inside its laptop.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests, which `allow-…-in-tests` does not see"
)]

mod pod;
