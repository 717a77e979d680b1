//! `kshuttle sudoers`: a rule by which sudo or doas lets somebody run the helper as root, without a password, and nothing else.
//!
//! Such a rule is as safe as the file it names: whoever can change the file, or a folder on its path, would be root. So there
//! is a rule only for a file that nobody but root can change.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::unistd::{User, getuid};

use crate::cli::SudoersArgs;
use crate::privileged::{self, PrivilegedError};

/// The bits by which a group and everybody else may write. With an access control list the group's bits are the most that
/// anybody in the list may do (acl(5)).
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Why there is no rule.
#[derive(Debug, thiserror::Error)]
pub enum SudoersError {
    /// There is no helper to name.
    #[error(transparent)]
    Helper(#[from] PrivilegedError),
    /// Part of the helper's path cannot be looked at.
    #[error("look at {}", .path.display())]
    Look {
        /// Which part.
        path: PathBuf,
        /// Its cause.
        #[source]
        source: io::Error,
    },
    /// Somebody could put another program in the helper's place.
    #[error("{} {wrong}: a rule for {} would make whoever can change it root", .path.display(), .helper.display())]
    Changeable {
        /// The part of its path.
        path: PathBuf,
        /// What is wrong.
        wrong: &'static str,
        /// The helper.
        helper: PathBuf,
    },
    /// The path cannot be written in a rule.
    #[error("the path {0:?} has characters that cannot be in a rule")]
    Path(PathBuf),
    /// The name cannot be written in a rule.
    #[error("the name {0:?} cannot be in a rule")]
    Name(String),
    /// Root needs no rule.
    #[error("root needs no rule")]
    Root,
    /// The caller's name.
    #[error("find the name of user {0}")]
    Nobody(nix::unistd::Uid),
}

impl SudoersError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Changeable { .. } | Self::Path(_) => Some(
                "install both programs as root, for example: \
                 install -o root -g root -m 755 kshuttle kshuttle-helper /usr/local/bin",
            ),
            Self::Root | Self::Nobody(_) => {
                Some("name who may run the helper with --user NAME or --group NAME")
            }
            Self::Name(_) => Some("name a group that the user is in with --group NAME"),
            _ => None,
        }
    }
}

/// The rule, with comments that say where it belongs.
///
/// # Errors
/// When the helper is not safe to name, or a name cannot be written.
pub fn rule(args: &SudoersArgs) -> Result<String, SudoersError> {
    let helper = privileged::beside_us()?;
    let who = match (&args.user, &args.group) {
        (Some(user), _) => Who::User(user.clone()),
        (None, Some(group)) => Who::Group(group.clone()),
        (None, None) => Who::User(caller()?),
    };
    only_root_changes(&helper, look)?;
    if args.doas { doas(&helper, &who) } else { sudoers(&helper, &who) }
}

fn caller() -> Result<String, SudoersError> {
    let uid = getuid();
    if uid.is_root() {
        return Err(SudoersError::Root);
    }
    let user = User::from_uid(uid).ok().flatten().ok_or(SudoersError::Nobody(uid))?;
    Ok(user.name)
}

/// Who may.
#[derive(Debug)]
enum Who {
    User(String),
    Group(String),
}

impl Who {
    /// The name with what each language writes before a group's.
    fn written(&self, group: char) -> Result<String, SudoersError> {
        let (prefix, name) = match self {
            Self::User(name) => (String::new(), name),
            Self::Group(name) => (group.to_string(), name),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        // Capitals are an alias to sudo; `ALL` would be everybody.
        let alias = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let named = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        if !named || !name.chars().all(plain) || name.chars().all(alias) {
            return Err(SudoersError::Name(name.clone()));
        }
        Ok(prefix + name)
    }
}

/// What decides who can change a file or what is in a folder.
#[derive(Debug, Clone, Copy)]
struct Looked {
    uid: u32,
    mode: u32,
    is_link: bool,
}

fn look(path: &Path) -> io::Result<Looked> {
    let found = path.symlink_metadata()?;
    Ok(Looked { uid: found.uid(), mode: found.mode(), is_link: found.is_symlink() })
}

/// The file and every folder above it, up to `/`.
fn only_root_changes(helper: &Path, look: impl Fn(&Path) -> io::Result<Looked>) -> Result<(), SudoersError> {
    for path in helper.ancestors() {
        let found = look(path).map_err(|source| SudoersError::Look { path: path.into(), source })?;
        let wrong = if found.is_link {
            "is a symbolic link"
        } else if found.uid != 0 {
            "does not belong to root"
        } else if found.mode & WRITABLE_BY_OTHERS != 0 {
            "can be written by others than root"
        } else {
            continue;
        };
        return Err(SudoersError::Changeable { path: path.into(), wrong, helper: helper.into() });
    }
    Ok(())
}

/// sudoers(5). `""` after the path: no argument. `requiretty` and `noexec` would stop the helper where an administrator has set
/// them; nothing of the caller's environment may come in by the administrator's other settings, or by the caller's wish.
fn sudoers(helper: &Path, who: &Who) -> Result<String, SudoersError> {
    let (path, who) = (in_sudoers(helper)?, who.written('%')?);
    Ok(format!(
        "# Lets kshuttle start its root helper without a password, and nothing else.\n\
         # Put it in as root, with: visudo -f /etc/sudoers.d/kshuttle\n\
         Defaults!{path} !requiretty, !noexec, env_reset, !env_keep, !env_check\n\
         {who} ALL=(root) NOPASSWD: NOSETENV: {path} \"\""
    ))
}

/// doas.conf(5). `args` with nothing after it: no argument.
fn doas(helper: &Path, who: &Who) -> Result<String, SudoersError> {
    let (path, who) = (in_doas(helper)?, who.written(':')?);
    Ok(format!(
        "# Lets kshuttle start its root helper without a password, and nothing else.\n\
         # Add it at the end of /etc/doas.conf as root, where the last rule that fits counts, and check it with: doas -C /etc/doas.conf\n\
         permit nopass {who} as root cmd {path} args"
    ))
}

/// Only what sudo's parser lets be escaped in a path; it has more that means something, such as the wildcards.
fn in_sudoers(helper: &Path) -> Result<String, SudoersError> {
    written(helper, |c| if ",:= #".contains(c) { Some(format!("\\{c}")) } else { None })
}

fn in_doas(helper: &Path) -> Result<String, SudoersError> {
    written(helper, |c| ",:= #".contains(c).then(|| c.to_string())).map(|path| format!("\"{path}\""))
}

fn written(helper: &Path, special: impl Fn(char) -> Option<String>) -> Result<String, SudoersError> {
    let refused = || SudoersError::Path(helper.into());
    let text = helper.to_str().ok_or_else(refused)?;
    let one = |c: char| {
        let plain = c.is_ascii_alphanumeric() || "/._-+@~".contains(c);
        if plain { Some(c.to_string()) } else { special(c) }
    };
    text.chars().map(one).collect::<Option<String>>().ok_or_else(refused)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::{Command, Stdio};

    use super::*;

    const HELPER: &str = "/usr/local/bin/kshuttle-helper";

    fn user(name: &str) -> Who {
        Who::User(name.into())
    }

    #[test]
    fn the_rule_of_sudo_names_one_command_without_arguments() {
        let rule = sudoers(Path::new(HELPER), &user("jane")).unwrap();
        let lines: Vec<&str> = rule.lines().collect();
        assert!(
            lines[..2].iter().all(|line| line.starts_with("# ")) && lines[1].contains("visudo -f"),
            "{rule}"
        );
        assert_eq!(
            lines[2..],
            [
                "Defaults!/usr/local/bin/kshuttle-helper !requiretty, !noexec, env_reset, !env_keep, !env_check",
                "jane ALL=(root) NOPASSWD: NOSETENV: /usr/local/bin/kshuttle-helper \"\"",
            ]
        );
        let rule = sudoers(Path::new("/opt/a b,c:d=e#f/h"), &Who::Group("devs".into())).unwrap();
        assert!(
            rule.ends_with(r#"%devs ALL=(root) NOPASSWD: NOSETENV: /opt/a\ b\,c\:d\=e\#f/h """#),
            "{rule}"
        );
    }

    #[test]
    fn the_rule_of_doas_names_one_command_without_arguments() {
        let rule = doas(Path::new(HELPER), &user("jane")).unwrap();
        assert!(
            rule.ends_with("\npermit nopass jane as root cmd \"/usr/local/bin/kshuttle-helper\" args"),
            "{rule}"
        );
        let rule = doas(Path::new("/opt/a b/h"), &Who::Group("devs".into())).unwrap();
        assert!(rule.ends_with("\npermit nopass :devs as root cmd \"/opt/a b/h\" args"), "{rule}");
    }

    #[test]
    fn what_cannot_be_written_is_refused() {
        for path in
            ["/a*/h", "/a?/h", "/a[b]/h", r"/a\b/h", "/a\"b/h", "/a\nb/h", "/a!b/h", "/ä/h", "/a(b)/h"]
        {
            assert!(matches!(sudoers(Path::new(path), &user("jane")), Err(SudoersError::Path(_))), "{path}");
            assert!(matches!(doas(Path::new(path), &user("jane")), Err(SudoersError::Path(_))), "{path}");
        }
        for name in [
            "",
            "ALL",
            "ADMINS",
            "%wheel",
            "#0",
            "+netgroup",
            "!jane",
            "a b",
            "jane,root",
            "a\nb",
            "-a",
            "a\\b",
        ] {
            for who in [user(name), Who::Group(name.into())] {
                let refused = sudoers(Path::new(HELPER), &who);
                assert!(matches!(refused, Err(SudoersError::Name(_))), "{name}");
                assert!(matches!(doas(Path::new(HELPER), &who), Err(SudoersError::Name(_))), "{name}");
            }
        }
    }

    #[test]
    fn every_part_of_the_path_must_be_roots_alone() {
        let good = Looked { uid: 0, mode: 0o755, is_link: false };
        let check = |part: &str, looked: Looked| {
            let parts = HashMap::from([(PathBuf::from(part), looked)]);
            only_root_changes(Path::new(HELPER), |path| Ok(*parts.get(path).unwrap_or(&good)))
        };
        check("/", good).unwrap();
        for part in ["/", "/usr", "/usr/local", "/usr/local/bin", HELPER] {
            for (looked, says) in [
                (Looked { uid: 1000, ..good }, "does not belong to root"),
                (Looked { mode: 0o775, ..good }, "can be written by others"),
                (Looked { mode: 0o1757, ..good }, "can be written by others"),
                (Looked { is_link: true, ..good }, "is a symbolic link"),
            ] {
                let error = check(part, looked).unwrap_err().to_string();
                assert!(error.starts_with(&format!("{part} {says}")), "{error}");
            }
        }
        let error = only_root_changes(Path::new(HELPER), |_| Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(error.unwrap_err().to_string(), format!("look at {HELPER}"));
    }

    #[test]
    fn a_file_in_a_folder_for_everybody_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("helper"), folder.path().join("link"));
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o777)).unwrap();
        for path in [&file, &link] {
            assert!(matches!(only_root_changes(path, look), Err(SudoersError::Changeable { .. })));
        }
    }

    /// Feeds a program the text; none where it is not installed.
    fn accepted(program: &str, arguments: &[&str], text: &str) -> Option<bool> {
        use std::io::Write as _;
        let folders = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(program));
        let program = folders.into_iter().find(|path| path.exists())?;
        let mut command = Command::new(program);
        let child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        Some(child.wait().unwrap().success())
    }

    #[test]
    fn sudo_and_doas_understand_their_rules() {
        let paths = [HELPER, "/opt/a b,c:d=e#f/h+@~"].map(Path::new);
        for path in paths {
            for who in [user("jane.doe"), user("jane@example.com"), Who::Group("devs".into())] {
                let text = sudoers(path, &who).unwrap() + "\n";
                assert_ne!(accepted("visudo", &["-cf", "-"], &text), Some(false), "{text}");
                let text = doas(path, &who).unwrap() + "\n";
                assert_ne!(accepted("doas", &["-C", "/dev/stdin"], &text), Some(false), "{text}");
            }
        }
        assert_ne!(accepted("visudo", &["-cf", "-"], "jane ALL=(root /x\n"), Some(true));
    }
}
