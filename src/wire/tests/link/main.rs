//! Links over connections in memory that break in every way, with tokio's clock stopped where time matters.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod broken;
mod end;
mod scene;
mod silence;
mod strangers;
