//! Top-level domains that are no namespaces, whatever a cluster calls its own.
//!
//! The public ones are those of the Public Suffix List's ICANN part, which holds every delegated top-level domain: crate `psl`,
//! rebuilt with each change of the list (`Cargo.lock` says from which).

use psl::{List, Psl, Type};

/// Kept for other uses: RFC 6761, 6762, 7686, 9476, ICANN's `internal`, and what home routers call their network.
const SPECIAL: [&str; 10] =
    ["alt", "example", "home", "internal", "invalid", "lan", "local", "localhost", "onion", "test"];

/// Is this label (lowercase) a top-level domain of the Internet?
pub fn is_public(label: &str) -> bool {
    // A few have only rules for what is below them (`*.ck`): ask for a name below, too.
    let below = [label.as_bytes(), b"x"];
    [&below[..1], &below[..]].into_iter().any(|labels| {
        let found = List.find(labels.iter().copied());
        found.typ == Some(Type::Icann)
    })
}

/// Is this label (lowercase) kept for other uses?
pub(super) fn is_special(label: &str) -> bool {
    SPECIAL.contains(&label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_ones() {
        for label in ["com", "dev", "rs", "io", "app", "ck", "bd", "uk", "xn--p1ai", "zip", "prod"] {
            assert!(is_public(label), "{label}");
        }
        for label in ["default", "svc", "demo", "local", "kube-system", "staging", "github", "x", ""] {
            assert!(!is_public(label), "{label}");
        }
    }
}
