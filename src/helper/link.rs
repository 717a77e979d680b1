//! Questions about names: systemd-resolved asks the user side's stub about those below given domains, and nobody else's.
//!
//! It is told so on a network link of its own that leads nowhere. resolved keeps what it is told by link, asks a link's
//! servers about that link's domains only, and forgets all of it with the link. So a name outside the domains never passes
//! through us, and whatever ends the helper ends the link.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "linux")]
mod settings;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use macos as system;

use crate::error_chain;
use crate::protocol::{self, StepFailure};

pub(crate) use system::Error;

/// Most names in `domains` and `search` together, zones of addresses among them: resolved takes no more for a link
/// (`LINK_SEARCH_DOMAINS_MAX` in its `resolved-link.h`).
pub const MAX_NAMES: usize = 256;

/// Longest name in bytes, written without the last dot (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 253;

/// Longest part of a name in bytes (RFC 1035 §2.3.4).
pub const MAX_LABEL: usize = 63;

/// Longest name of an interface (`IFNAMSIZ` without the NUL).
const MAX_INTERFACE: usize = 15;

/// What every link's name begins with.
const PREFIX: &str = "kdns";

/// The link's name for the session with this table: the session's own if that is short enough, else a number made of it.
pub fn name(table: &str) -> String {
    named(PREFIX, table)
}

/// The name with this prefix, of four bytes at most, of the link of the session with this table.
pub(crate) fn named(prefix: &str, table: &str) -> String {
    let session = table.strip_prefix("kshuttle_").unwrap_or(table);
    if prefix.len() + session.len() <= MAX_INTERFACE {
        return format!("{prefix}{session}");
    }
    format!("{prefix}-{:010x}", number(table))
}

/// A number of 40 bits made of the name of the session's table: two sessions of one machine differ.
pub(crate) fn number(table: &str) -> u64 {
    let session = table.strip_prefix("kshuttle_").unwrap_or(table);
    // FNV-1a, its upper bits.
    let hash = session.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 24
}

/// A link that stands.
#[derive(Debug)]
pub(crate) struct Link(system::Link);

impl Link {
    /// Makes the link of the session with this table, or changes the one that stands. On an error there is none, or its old
    /// settings stand.
    pub(crate) fn set(standing: &mut Option<Self>, table: &str, said: &protocol::Link) -> Result<(), Error> {
        if let Some(gone) = standing.take_if(|link| !link.0.stands()) {
            gone.end(); // what is left of it is its holder, and that may be dead
        }
        match standing {
            Some(Self(link)) => link.change(said)?,
            None => *standing = Some(Self(system::Link::make(name(table), said)?)),
        }
        Ok(())
    }

    /// Takes it away; the steps that failed.
    pub(crate) fn end(self) -> Vec<StepFailure> {
        let failures = self.0.end().into_iter();
        failures
            .map(|(step, error)| StepFailure { step: step.into(), message: error_chain(&error) })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_links_are_short_and_differ() {
        assert_eq!(name("kshuttle_4194304"), "kdns4194304");
        assert_eq!(name("kshuttle_abcdefghijk"), "kdnsabcdefghijk");
        let long =
            ["kshuttle_abcdefghijkl", "kshuttle_abcdefghijkm", "kshuttle_zzzzzzzzzzzzzzzzzz"].map(name);
        assert!(long.iter().all(|name| name.len() == MAX_INTERFACE && name.starts_with("kdns-")), "{long:?}");
        assert!(long[0] != long[1] && long[1] != long[2] && long[0] != long[2], "{long:?}");
    }
}
