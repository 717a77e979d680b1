//! How many bytes a session may have under way, so that a short answer never waits behind a long transfer.
//!
//! A fixed window is either too small for a fast line or seconds too deep for a slow one. Here the sender keeps the
//! path just full: it learns rate and round trip from the link's acknowledgements ([`law`]), turns them into a
//! budget, and hands out permits of it before bytes enter HTTP/2 ([`permits`]). Above HTTP/2, because a gate below
//! would hold back its control frames too and stop it for ever.
//!
//! Reasons, figures and limits: `docs/pacing.md`.

pub(crate) mod gate;
pub mod law;
pub mod permits;
#[cfg(test)]
mod sim;

pub use gate::FlowHistory;
pub use law::{Figures, Policy, PolicyError};
pub use permits::Pacer;
