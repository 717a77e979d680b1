//! The tunnel: SSH over any byte stream, flows inside it.
//!
//! [`Connect`] is the only verb everything above uses: a stream to this target, or why not. What the byte stream is
//! made of is not known here.

pub mod identity;
pub mod ssh;

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
    fn connect(&self, target: &Target) -> impl Future<Output = Result<Flow, OpenError>> + Send;
}
