//! What macOS's own programs and its kernel are asked, and how their answers are read: texts, arguments and bytes.
//!
//! All of it is pure and so is compiled and tested on every system; only [`program`] starts something, whatever it is told. The
//! verbs of the firewall that use it are in `firewall/pf.rs`, which only macOS compiles.

#[cfg(target_os = "macos")]
pub mod device;
pub mod natlook;
pub mod pfctl;
pub mod program;
pub mod resolver;
pub mod route;
pub mod rules;
