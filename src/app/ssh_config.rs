//! `kshuttle ssh-config`: a pod for OpenSSH's client. Prints a stanza for its configuration and keeps the pod until the end;
//! ssh reaches it by `kshuttle ssh-proxy`, which is the stanza's ProxyCommand.
//!
//! The session's key lies in a folder of its own, readable by its user only, for as long as this runs.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Parts, Through, run};
use crate::cli::{ClusterArgs, SshConfigArgs, SshProxyArgs};
use crate::cluster::port_forward::Dialer;
use crate::cluster::sshd_pod::LISTEN_PORT;
use crate::report::{Steps, answer};

/// Starts a pod, prints the stanza, and waits for a signal or the pod's end.
///
/// # Errors
/// Why it could not start or go on; [`crate::shutdown::Stop`] after a signal.
pub async fn ssh_config(cluster: &ClusterArgs, args: &SshConfigArgs) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.pod.pod.is_none() && args.pod.upload.is_none(),
        "`ssh-config` is for a pod that it makes: it takes neither --pod nor --upload"
    );
    let folder = Folder::make()?;
    run("ssh-config", async |parts: &mut Parts, steps: &mut Steps| {
        let connected = parts.open_tunnel(cluster, &args.pod, steps).await?;
        let Some(Through::Own(keeper)) = &parts.through else { anyhow::bail!("no pod was made") };
        let key = keeper.identity().to_openssh().context("write down this session's key")?;
        folder.put("key", &key)?;
        let stanza = Stanza {
            host: &args.host,
            pod: keeper.pod_name().context("no pod was made")?,
            folder: &folder.path,
            command: proxy_command(cluster, connected.namespace())?,
        };
        answer(stanza.text());
        parts.ready(steps, "the stanza above is for `ssh -F FILE`; Ctrl-C ends it");
        Err(keeper.pod_ended().await)
    })
    .await
}

/// Copies between standard input and output and the pod's server, until both directions have ended or the pod's has.
///
/// # Errors
/// When the cluster or the pod cannot be reached, or the way breaks.
pub async fn ssh_proxy(cluster: &ClusterArgs, args: &SshProxyArgs) -> anyhow::Result<()> {
    let transport = cluster.transport;
    // Without the line about the cluster: ssh shows what is said here.
    let cluster = super::client::connect(&super::options(cluster)).await?;
    let dialer = Dialer::new(cluster.client().clone(), cluster.namespace(), transport);
    let stream = dialer.open(&args.pod, LISTEN_PORT).await?;
    let (mut from_pod, mut to_pod) = tokio::io::split(stream);
    let (mut input, mut output) = (tokio::io::stdin(), tokio::io::stdout());
    let upload = async {
        tokio::io::copy(&mut input, &mut to_pod).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut to_pod).await?;
        // The pod has the last word.
        std::future::pending::<std::io::Result<()>>().await
    };
    let download = async {
        tokio::io::copy(&mut from_pod, &mut output).await?;
        tokio::io::AsyncWriteExt::flush(&mut output).await
    };
    tokio::select! {
        result = download => result.context("read from the pod"),
        result = upload => result.context("write to the pod"),
    }
}

/// A folder that nobody else can look into; removed when dropped.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> anyhow::Result<Self> {
        let parent = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = parent.join(format!("kshuttle-{}", super::session_name()));
        // Not one that somebody prepared: it must not be there.
        DirBuilder::new().mode(0o700).create(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }

    fn put(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("write {}", path.display()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The key is of no use once the pod is gone.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// This program, with what the user said about the cluster, as a shell's words.
fn proxy_command(cluster: &ClusterArgs, namespace: &str) -> anyhow::Result<Vec<String>> {
    let program = std::env::current_exe().context("find this executable")?;
    let mut words =
        vec![text(&program)?, "ssh-proxy".to_owned(), "--namespace".to_owned(), namespace.to_owned()];
    let mut flag = |name: &str, value: &str| words.extend([name.to_owned(), value.to_owned()]);
    if let Some(file) = &cluster.kubeconfig {
        flag("--kubeconfig", &text(&std::path::absolute(file).context("find the kubeconfig")?)?);
    }
    if let Some(context) = &cluster.context {
        flag("--context", context);
    }
    if let Some(user) = &cluster.as_user {
        flag("--as", user);
    }
    for group in &cluster.as_groups {
        flag("--as-group", group);
    }
    flag("--transport", &cluster.transport.to_string());
    Ok(words)
}

fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8, as ssh wants it", path.display()))
}

struct Stanza<'a> {
    host: &'a str,
    pod: &'a str,
    folder: &'a Path,
    command: Vec<String>,
}

impl Stanza<'_> {
    /// As ssh_config(5) has it. The pod's first host key is pinned, as kshuttle itself does.
    fn text(&self) -> String {
        let quoted: Vec<_> = self.command.iter().map(|word| shell_word(word)).collect();
        let file = |name| format!("\"{}\"", self.folder.join(name).display().to_string().replace('%', "%%"));
        format!(
            "Host {}\n    HostName {pod}\n    HostKeyAlias {pod}\n    User kshuttle\n    ProxyCommand {} {pod}\n    \
             IdentityFile {}\n    IdentitiesOnly yes\n    IdentityAgent none\n    UserKnownHostsFile {}\n    \
             GlobalKnownHostsFile /dev/null\n    StrictHostKeyChecking accept-new\n    \
             PreferredAuthentications publickey\n    ServerAliveInterval 15",
            self.host,
            quoted.join(" ").replace('%', "%%"),
            file("key"),
            file("known_hosts"),
            pod = self.pod,
        )
    }
}

fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@=,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let stanza = Stanza {
            host: "kshuttle",
            pod: "kshuttle-x",
            folder: Path::new("/run/user/1000/100%"),
            command: ["/opt/my tools/kshuttle", "ssh-proxy", "--context", "it's 100%"]
                .map(str::to_owned)
                .to_vec(),
        };
        let text = stanza.text();
        let command =
            "ProxyCommand '/opt/my tools/kshuttle' ssh-proxy --context 'it'\\''s 100%%' kshuttle-x\n";
        assert!(text.contains(command), "{text}");
        assert!(text.contains("IdentityFile \"/run/user/1000/100%%/key\"\n"), "{text}");
    }

    #[test]
    fn the_folder_is_private_and_goes() {
        let path = {
            let folder = Folder::make().unwrap();
            folder.put("key", "secret").unwrap();
            assert!(folder.put("key", "again").is_err());
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&folder.path), mode(&folder.path.join("key"))), (0o700, 0o600));
            assert!(Folder::make().is_err(), "somebody else's is not taken");
            folder.path.clone()
        };
        assert!(!path.exists());
    }
}
