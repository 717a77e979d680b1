//! The tunnel: SSH over a link that survives its byte streams, flows inside it; several of them side by side.
//!
//! [`Connect`] is all that everything above uses: a stream to this target, or datagrams, or why not. What the byte stream is
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
use kshuttle_wire::flow::udp::DatagramFlow;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::addr::Target;

/// Opens connections on the far side of a tunnel.
pub trait Connect: Clone + Send + Sync + 'static {
    /// Asks for a connection to `target` and returns before the answer: bytes may be sent at once and travel with the
    /// question. [`kshuttle_wire::flow::FlowRecv::opened`] waits for the answer.
    ///
    /// # Errors
    /// When there is no tunnel to ask through.
    fn connect(&self, target: &Target) -> impl Future<Output = Result<Flow, ConnectError>> + Send;

    /// Asks for a UDP flow to `target` and returns before the answer: datagrams may be sent at once.
    /// [`kshuttle_wire::flow::udp::DatagramRecv::recv`] waits for the answer.
    ///
    /// # Errors
    /// When there is no tunnel to ask through, or its server carries no UDP.
    fn connect_udp(&self, target: &Target)
    -> impl Future<Output = Result<DatagramFlow, ConnectError>> + Send;
}

/// What a tunnel's byte stream must be able to do.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Why nobody could be asked for a connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its session ended, it cannot do this, or the target is no host and port.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There was none for as long as connections are held.
    #[error("no tunnel within {} s", pool::HOLD.as_secs())]
    NoTunnel,
}
