//! The Kubernetes side: who we are to the API server, the pod we start, the stream to its port.
//!
//! In order of use: [`client`] connects, [`delivery`] brings the server's program into the namespace,
//! [`sshd_pod`] starts the pod, [`port_forward`] opens the stream to it. [`subnets`] asks which ranges to
//! redirect. [`target`] finds the pod that `kshuttle port-forward` goes to, [`upload`] brings the server into
//! a container that is there already. [`api_error`] and [`rights`] turn refusals into words.

pub mod api_error;
pub mod client;
pub mod delivery;
#[cfg(test)]
mod fake_api;
pub mod names;
pub mod port_forward;
pub mod rights;
pub mod sshd_pod;
pub mod subnets;
pub mod target;
pub mod upload;
