//! The byte stream under SSH that outlives its connections.

pub mod observer;
pub use observer::{Observer, TimedAck};
