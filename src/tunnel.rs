//! The tunnel: SSH over a link that survives its byte streams, flows inside it; several of them side by side.
//!
//! [`Connect`] is the only verb everything above uses: a stream to this target, or why not. What the byte stream is
//! made of is not known here.

mod ident;
pub mod identity;
pub mod known_hosts;
mod network;
pub mod pool;
pub mod ssh;

pub use self::ident::IdentError;
use kshuttle_wire::flow::Flow;
use kshuttle_wire::flow::client::OpenError;

use crate::addr::Target;

/// Opens connections on the far side of a tunnel.
pub trait Connect: Clone + Send + Sync + 'static {
    /// Asks for a connection to `target` and returns before the answer: bytes may be sent at once and travel with the
    /// question. [`kshuttle_wire::flow::FlowRecv::opened`] waits for the answer.
    ///
    /// # Errors
    /// When there is no tunnel to ask through.
    fn connect(&self, target: &Target) -> impl Future<Output = Result<Flow, ConnectError>> + Send;
}

/// Why nobody could be asked for a connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its session ended, or the target is no host and port.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There was none for as long as connections are held.
    #[error("no tunnel within {} s", pool::HOLD.as_secs())]
    NoTunnel,
}
