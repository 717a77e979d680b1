//! Names are brought to kshuttle on Linux only.

use kshuttle_test_support::harness::Test;

/// None.
pub(crate) const TESTS: &[Test] = &[];

/// Nothing that there is.
pub(crate) fn missing(_: &str) -> Option<String> {
    None
}
