//! May this process change the firewall?

use std::fs;

use nix::unistd::geteuid;

use super::Error;

/// `CAP_NET_ADMIN` in the kernel's `uapi/linux/capability.h`.
const CAP_NET_ADMIN: u32 = 12;

/// Asked before a plan is waited for.
pub(in crate::firewall) fn permitted() -> Result<(), Error> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if geteuid().is_root() && has_net_admin(&status) { Ok(()) } else { Err(Error::Privilege) }
}

fn has_net_admin(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits >> CAP_NET_ADMIN & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_one_bit() {
        assert!(has_net_admin("Name:\tx\nCapEff:\t0000000000001000\n"));
        assert!(!has_net_admin("CapEff:\t000001ffffffefff\n"));
        assert!(!has_net_admin(""));
    }
}
