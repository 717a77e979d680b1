//! What the user chose: the law, or a constant.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

/// Where the budget comes from. Written `auto` or `fixed:BYTES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Measured from the path.
    #[default]
    Auto,
    /// So many bytes, whatever is measured. The way out where the law fails.
    Fixed(NonZeroU64),
}

/// Not a pacing policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither `auto` nor `fixed:BYTES`")]
pub struct PolicyError(String);

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(bytes) => write!(f, "fixed:{bytes}"),
        }
    }
}

impl FromStr for Policy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        match text.strip_prefix("fixed:") {
            Some(bytes) => bytes.parse().map(Self::Fixed).map_err(|_| PolicyError(text.to_owned())),
            None if text == "auto" => Ok(Self::Auto),
            None => Err(PolicyError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        assert_eq!("auto".parse(), Ok(Policy::Auto));
        assert_eq!("fixed:1048576".parse(), Ok(Policy::Fixed(NonZeroU64::new(1 << 20).unwrap())));
        for text in ["auto", "fixed:262144"] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        for wrong in ["", "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:1M", "Auto"] {
            let error = wrong.parse::<Policy>().unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }
}
