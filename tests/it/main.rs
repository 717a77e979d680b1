//! x

mod port_forward;
