//! Tests that need nothing but loopback.

mod openssh;
mod port_forward;
mod socks;
mod tunnel;
