//! The SSH server that runs in the cluster.
//!
//! It listens on the pod's loopback only (a port-forward reaches it, the pod network does not), lets in one public
//! key, and does two things for it: flows over HTTP/2 in a subsystem ([`kshuttle_wire::flow`]) and plain
//! `direct-tcpip`, so that `ssh -W`, `-L` and `-D` work against it. Everything else is refused. It leaves by itself
//! when nobody is logged in for a while.

pub mod attended;
pub mod direct;
pub mod door;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod idle;
pub mod login;
pub mod server;
pub mod settings;
