//! What the laptop and the pod must agree on.
//!
//! Bottom up, as one connection's bytes see it:
//!
//! * [`ssh`]: algorithms, windows and names both SSH ends use.
//! * [`write_queue`]: the adapter under SSH whose writes never wait.
//! * [`link`]: a byte stream that survives its connections, for SSH to run on.
//! * [`flow`]: many TCP flows as HTTP/2 CONNECT streams in one SSH channel; [`flow::client`] on the laptop,
//!   [`flow::server`] in the pod, [`flow::status`] the words for "could not connect", [`flow::udp`] datagrams in such a stream.
//! * [`pacing`]: how much of a session may be under way, so that short answers do not wait behind long transfers.
//! * [`relay`]: one socket and one flow joined, with half-close and reset kept apart.
//! * [`causes`]: an error in one line.

pub mod causes;
pub mod flow;
pub mod link;
pub mod pacing;
pub mod relay;
pub mod ssh;
pub mod write_queue;
