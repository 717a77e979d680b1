//! The Kubernetes side: who we are to the API server, the pod we start, the stream to its port.

pub mod client;
pub mod delivery;
pub mod port_forward;
pub mod sshd_pod;
pub mod subnets;
