//! Placeholder, replaced before this is usable.
