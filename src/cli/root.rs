//! Flags about becoming root.

use clap::{Args, ValueEnum};

/// What makes the helper root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Elevate {
    /// The first that is installed; pkexec last, and only in a graphical session.
    Auto,
    /// sudo only.
    Sudo,
    /// doas only.
    Doas,
    /// pkexec only.
    Pkexec,
}

/// Flags of `kshuttle sudoers`.
#[derive(Debug, Args)]
pub struct SudoersArgs {
    /// Let this user, not you
    #[arg(long, value_name = "NAME", conflicts_with = "group")]
    pub user: Option<String>,

    /// Let the members of this group, not you
    #[arg(long, value_name = "NAME")]
    pub group: Option<String>,

    /// Print a line for doas.conf
    #[arg(long)]
    pub doas: bool,
}
