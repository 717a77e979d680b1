//! Tests that need nothing but loopback.

mod openssh;
mod socks;
mod tunnel;
