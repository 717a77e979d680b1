//! How the helper becomes root: by sudo, doas or pkexec, whichever is installed.
//!
//! Each is given the helper's absolute path and nothing else. They clear the environment and close what is not standard input,
//! output or error; the helper needs neither. pkexec asks who its parent is and wants it alive, so we start it ourselves and stay.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use super::PrivilegedError;
use crate::cli::Elevate;

/// How the helper gets its rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elevation {
    /// We are root: it is started as we are.
    Root,
    /// By a program, which may ask for a password.
    By {
        /// Which.
        program: Program,
        /// Where it is.
        path: PathBuf,
    },
}

/// A program that makes others root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// <https://www.sudo.ws>
    Sudo,
    /// OpenBSD's, or one of its ports.
    Doas,
    /// polkit's. Asks in a window, or on the terminal it was started from.
    Pkexec,
}

/// In the order in which they are tried.
const PROGRAMS: [Program; 3] = [Program::Sudo, Program::Doas, Program::Pkexec];

impl Program {
    /// Its file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sudo => "sudo",
            Self::Doas => "doas",
            Self::Pkexec => "pkexec",
        }
    }

    /// What to do when it refused.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Sudo => {
                "`kshuttle sudoers` prints a rule that lets you run only the helper; root can put it in. Or run `kshuttle` as root, \
                 or use `kshuttle socks`, which needs no root"
            }
            Self::Doas => {
                "`kshuttle sudoers --doas` prints a rule that lets you run only the helper; root can put it in. Or run `kshuttle` \
                 as root, or use `kshuttle socks`, which needs no root"
            }
            Self::Pkexec => {
                "pkexec needs an agent that asks for the password: a graphical session has one, in a terminal `pkttyagent` is \
                 one. Or take `--elevate sudo`, or use `kshuttle socks`, which needs no root"
            }
        }
    }
}

impl Elevation {
    /// How a helper would be started now.
    ///
    /// # Errors
    /// When we are not root and what is wanted is not installed.
    pub fn choose(wanted: Elevate) -> Result<Self, PrivilegedError> {
        if geteuid().is_root() {
            Ok(Self::Root)
        } else {
            Self::installed(wanted, |name| std::env::var_os(name))
        }
    }

    fn installed(
        wanted: Elevate,
        variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Self, PrivilegedError> {
        // Without a window to ask in, pkexec would ask on the terminal at best, and most machines forbid even that.
        let graphical = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| variable(name).is_some());
        let is_wanted = |program: &Program| match wanted {
            Elevate::Auto => *program != Program::Pkexec || graphical,
            Elevate::Sudo => *program == Program::Sudo,
            Elevate::Doas => *program == Program::Doas,
            Elevate::Pkexec => *program == Program::Pkexec,
        };
        let search = variable("PATH").unwrap_or_default();
        let find = |program: Program| {
            let mut files = std::env::split_paths(&search).map(|folder| folder.join(program.name()));
            files.find(|file| is_executable(file)).map(|path| Self::By { program, path })
        };
        let mut wanted = PROGRAMS.into_iter().filter(is_wanted).peekable();
        let first = wanted.peek().map_or("sudo", |program| program.name());
        wanted.find_map(find).ok_or(PrivilegedError::NoElevation(first))
    }

    /// The program, if one is needed.
    pub fn program(&self) -> Option<Program> {
        match self {
            Self::Root => None,
            Self::By { program, .. } => Some(*program),
        }
    }

    /// What starts the helper.
    pub(super) fn command(&self, helper: &Path) -> Command {
        match self {
            Self::Root => Command::new(helper),
            Self::By { path, .. } => {
                // No `--` before it: pkexec would take that for the program. An absolute path is no option.
                let mut command = Command::new(path);
                command.arg(helper);
                command
            }
        }
    }
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;

    use super::*;

    /// A folder with these programs, none of which does anything.
    fn folder(programs: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in programs {
            let file = folder.path().join(name);
            fs::write(&file, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    fn choose(wanted: Elevate, programs: &[&str], display: Option<&str>) -> Result<Program, PrivilegedError> {
        let folder = folder(programs);
        let variable = |name: &str| match name {
            "PATH" => Some(OsString::from(folder.path())),
            "WAYLAND_DISPLAY" => display.map(OsString::from),
            _ => None,
        };
        Elevation::installed(wanted, variable).map(|elevation| elevation.program().unwrap())
    }

    #[test]
    fn the_first_that_is_installed_is_taken() {
        let all = ["sudo", "doas", "pkexec"];
        assert_eq!(choose(Elevate::Auto, &all, None).unwrap(), Program::Sudo);
        assert_eq!(choose(Elevate::Auto, &all[1..], None).unwrap(), Program::Doas);
        assert_eq!(choose(Elevate::Auto, &all[2..], Some("wayland-0")).unwrap(), Program::Pkexec);
        assert_eq!(choose(Elevate::Pkexec, &all, None).unwrap(), Program::Pkexec);
        assert_eq!(choose(Elevate::Doas, &all, Some("wayland-0")).unwrap(), Program::Doas);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (wanted, installed, missing) in [
            (Elevate::Auto, &["pkexec"][..], "sudo"),
            (Elevate::Doas, &["sudo", "pkexec"], "doas"),
            (Elevate::Pkexec, &["sudo"], "pkexec"),
        ] {
            let error = choose(wanted, installed, None).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("become root for the redirect rules: `{missing}` is not installed")
            );
        }
    }

    #[test]
    fn what_cannot_be_executed_is_passed_over() {
        let (first, second) = (folder(&["sudo"]), folder(&["sudo"]));
        let plain = fs::Permissions::from_mode(0o644);
        fs::set_permissions(first.path().join("sudo"), plain).unwrap();
        let search = std::env::join_paths([first.path(), second.path()]).unwrap();
        let found = Elevation::installed(Elevate::Sudo, |name| (name == "PATH").then(|| search.clone()));
        let path = second.path().join("sudo");
        assert_eq!(found.unwrap(), Elevation::By { program: Program::Sudo, path });
    }
}
