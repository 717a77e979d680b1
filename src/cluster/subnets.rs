//! Which ranges lead into the cluster, asked from the cluster and followed as they change. What is asked, in which order
//! and why: docs/ranges.md. Nothing is guessed wider than what was said.
//!
//! All of it wants rights beyond our Role, so each source may be closed; then there is a sentence about it and the
//! next one is asked, down to the addresses of the one namespace.
//!
//! [`find`] asks by `search.rs` the sources of `source.rs`, whose objects `said.rs` reads, and the words of the API server
//! (`words.rs`). [`Watch`] follows those that told something.

mod fading;
mod said;
mod search;
mod source;
mod watch;
mod words;

use kshuttle_helper::plan::MAX_INCLUDE;

use super::api_error::ApiError;
use super::client::Cluster;

pub use self::watch::Watch;

/// How much is redirected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The ranges of Services and pods, whoever has their addresses now or later.
    Ranges,
    /// The addresses of Services, endpoints and pods that there are, and nothing beside them; never those of nodes.
    Narrow,
}

/// What the cluster says.
#[derive(Debug)]
pub struct Found {
    /// The ranges, and how they change.
    pub watch: Watch,
    /// A sentence or two for each subject: what was said by whom, and who said nothing.
    pub notes: Vec<String>,
}

/// Why there are no ranges.
#[derive(Debug, thiserror::Error)]
pub enum SubnetsError {
    /// All sources are closed or empty.
    #[error("the cluster does not tell its ranges, name them (for example `kshuttle 10.96.0.0/12`): {}", .notes.join("; "))]
    Nothing {
        /// As [`Found::notes`].
        notes: Vec<String>,
    },
    /// More than the redirect takes.
    #[error(
        "the cluster tells {count} separate ranges and addresses, of which {MAX_INCLUDE} can be redirected at most; name \
         ranges that hold them (for example `kshuttle 10.96.0.0/12`): {}", .notes.join("; ")
    )]
    TooMany {
        /// With neighbours joined.
        count: usize,
        /// As [`Found::notes`].
        notes: Vec<String>,
    },
    /// The API server does not answer, or not to us.
    #[error("cannot ask the cluster for its ranges")]
    Api(#[source] ApiError),
}

/// Asks for the ranges of Services and pods, or for their addresses.
///
/// # Errors
/// When no source has any, or they are too many, or the API server cannot be reached.
pub async fn find(cluster: &Cluster, mode: Mode) -> Result<Found, SubnetsError> {
    let parts = search::search(cluster, mode).await?;
    let notes = parts.iter().flat_map(search::Part::notes).collect();
    let (mut told, mut fixed) = (Vec::new(), Vec::new());
    for part in parts {
        told.extend(part.told);
        fixed.extend(part.fixed);
    }
    let watch = Watch::start(told, fixed);
    match watch.ranges().len() {
        0 => Err(SubnetsError::Nothing { notes }),
        count if count > MAX_INCLUDE => Err(SubnetsError::TooMany { count, notes }),
        _ => Ok(Found { watch, notes }),
    }
}

#[cfg(test)]
mod tests;
