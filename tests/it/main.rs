//! Tests that need nothing but loopback.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

mod control;
mod death;
mod dns;
mod forward;
mod link;
mod openssh;
mod pool;
mod port_forward;
mod socks;
mod stock;
mod tunnel;
mod udp;
