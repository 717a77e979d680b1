//! Tests that need nothing but loopback.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod forward;
mod openssh;
mod port_forward;
mod socks;
mod tunnel;
