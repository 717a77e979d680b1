//! A byte stream that survives its connections.
//!
//! Two ends number the bytes they send, keep what is not acknowledged, and go on over another connection where the last
//! one broke: nothing lost, doubled or out of order. An end that was away for more than 180 s is forgotten.
//!
//! ```text
//! SSH ── stream ── state (replay, receipts, liveness) ── pump ── connection 1, 2, 3 …
//! ```
//!
//! * [`hello`]: how an attachment begins; [`frame`]: what follows.
//! * `state`: everything that decides, without I/O and clock; of `replay` (what was sent), `receipts` (what arrived),
//!   `inbox` (what of it nobody has read) and `liveness` (is anybody there).
//! * [`stream`]: the stream for SSH, and the handle of the laptop's end. `pump`: one connection's reads and writes.
//! * [`sleep`]: notices that the laptop slept.
//! * [`server`]: the pod's end, with all its links.
//! * [`observer`]: what the pacing hears.

mod end;
pub mod frame;
pub mod hello;
mod inbox;
mod liveness;
pub mod observer;
mod outgoing;
mod pump;
mod receipts;
mod replay;
pub mod server;
mod shared;
#[cfg(test)]
mod sim;
pub mod sleep;
mod state;
pub mod stream;

pub use end::End;
pub use hello::Token;
pub use observer::{Observer, TimedAck};
pub use pump::{Attachment, Detached};
pub use shared::{Phase, Status};
pub use state::Limits;
pub use stream::{AttachError, LinkHandle, LinkStream, connect};
