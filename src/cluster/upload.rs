//! Our server in a container that runs already (`--upload`): copied into it by exec, run by exec, held by that exec's standard
//! streams. For namespaces that take neither ConfigMaps nor pods of ours; needs `pods/exec`, and `sh` and `head` in the container.
//!
//! States: folder found → program copied → started (it says its port and host key) → told to leave, or lost: then it leaves
//! by itself when idle. The loader compares the program with its SHA-256 and executes it from memory, as in a pod of ours; the
//! shell that started it removes the folder at the end, however the server ends.

use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Api;
use kube::api::{AttachParams, AttachedProcess};
use russh::keys::PublicKey;
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, SimplexStream, WriteHalf,
};
use tokio::time::timeout;

use super::api_error::{ApiError, ask};
use super::client::Cluster;
use super::delivery::{LOADER_KEY, Payload, hash};

/// Time for one command in the container. The largest copies 15 MB: 2 Mbit/s are enough.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(60);

/// Time for the server to say where it listens: it unpacks itself and makes a key.
const START_TIME_MAX: Duration = Duration::from_secs(20);

/// Bytes of a command's output that are read; what follows is of no interest.
const OUTPUT_MAX: u64 = 4 << 10;

/// Characters of a runtime's or shell's words that are shown: runtimes tell the whole way down to the cause.
const WORDS_MAX: usize = 600;

/// Between us and the WebSocket, in bytes.
const BUFFER: usize = 64 << 10;

/// Time for the last word to reach the container, for the server to take leave of its clients, and for the news of its end.
const QUIT_TIME: Duration = Duration::from_secs(2);

/// Which container kubectl takes when none is named (kubectl's `pkg/cmd/util/podcmd`).
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Why our server does not run in the container.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The pod cannot be read.
    #[error("read pod `{pod}`")]
    Read {
        /// Which.
        pod: String,
        /// Why not.
        source: ApiError,
    },
    /// It has no such container.
    #[error("pod `{pod}` has no container `{container}`, but {}", .there.join(", "))]
    NoContainer {
        /// Which.
        pod: String,
        /// The one that was named.
        container: String,
        /// Those that it has.
        there: Vec<String>,
    },
    /// The API server or the kubelet did not start a command.
    #[error("execute a command in container `{container}` of pod `{pod}`")]
    Exec {
        /// Which pod.
        pod: String,
        /// Which container.
        container: String,
        /// Why not.
        source: ApiError,
    },
    /// The command, or the connection to it, failed.
    #[error("{what} in container `{container}`: {words}")]
    Command {
        /// What was tried.
        what: &'static str,
        /// Where.
        container: String,
        /// What the runtime, the shell or the server said.
        words: String,
    },
    /// Read-only, or mounted without execution.
    #[error("container `{container}` has no folder that can be written to and executed from")]
    NoFolder {
        /// Which.
        container: String,
    },
    /// No answer in time.
    #[error("{what} in container `{container}` took longer than {} s", .limit.as_secs())]
    Timeout {
        /// What was tried.
        what: &'static str,
        /// Where.
        container: String,
        /// The limit.
        limit: Duration,
    },
    /// Not a line of our server.
    #[error("what runs in container `{container}` did not say where it listens but {said:?}")]
    Strange {
        /// Which.
        container: String,
        /// What it said.
        said: String,
    },
}

/// What is to run, and for whom.
pub struct Wanted<'a> {
    /// The program.
    pub payload: &'a Payload,
    /// The one key that may log in, an OpenSSH public key line.
    pub authorized_key: &'a str,
    /// Time without a client after which the server ends by itself.
    pub idle: Duration,
}

/// Our server in somebody's container.
pub struct Uploaded {
    /// The container.
    pub container: String,
    /// Where it listens, on the pod's loopback.
    pub port: u16,
    /// The key it will show, told by way of the API server.
    pub host_key: PublicKey,
    input: WriteHalf<SimplexStream>,
    /// How the exec ended; none when the connection to it was lost.
    status: Shared<BoxFuture<'static, Option<Status>>>,
    /// The connection lives as long as this.
    _process: AttachedProcess,
}

/// Copies the program into `container` (none: the pod's default one) of `pod` and starts it.
///
/// # Errors
/// See [`UploadError`]; the folder in the container has been removed again, if the container was still there.
pub async fn start(
    cluster: &Cluster,
    pod: &str,
    container: Option<&str>,
    wanted: &Wanted<'_>,
) -> Result<Uploaded, UploadError> {
    let api: Api<Pod> = Api::namespaced(cluster.client().clone(), cluster.namespace());
    let found =
        ask(api.get(pod)).await.map_err(|source| UploadError::Read { pod: pod.to_owned(), source })?;
    let place = Place { api, pod: pod.to_owned(), container: choose(&found, pod, container)? };
    let name = folder_name(wanted.authorized_key);
    let said = place.run("look for a folder", &find_folder(&name), &[]).await?;
    let folder = said.trim_end();
    // It goes into commands: nothing that a shell reads otherwise.
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if !folder.starts_with('/') || !folder.ends_with(&name) || !folder.chars().all(plain) {
        return Err(UploadError::NoFolder { container: place.container });
    }
    match place.copy_and_start(folder, wanted).await {
        Ok(uploaded) => Ok(uploaded),
        Err(error) => {
            // With the server's end its shell does the same; this is for what failed before.
            let _ = place.run("remove the folder", &format!("rm -rf {folder}"), &[]).await;
            Err(error)
        }
    }
}

impl Uploaded {
    /// Waits until the server ends or the connection to it is lost; whichever, in words. Safe to cancel.
    pub async fn ended(&self) -> String {
        match self.status.clone().await {
            Some(status) => words(&status, ""),
            None => "the connection to it was lost".to_owned(),
        }
    }

    /// Tells the server to leave at once; whether it did. When the connection to it is lost, it leaves when its idle time is over.
    pub async fn quit(mut self) -> bool {
        let quit = async {
            let told = self.input.write_all(b"q").await.is_ok() && self.input.flush().await.is_ok();
            told && self.status.await.is_some()
        };
        timeout(QUIT_TIME, quit).await.unwrap_or(false)
    }
}

/// A container in which commands run.
struct Place {
    api: Api<Pod>,
    pod: String,
    container: String,
}

impl Place {
    async fn copy_and_start(&self, folder: &str, wanted: &Wanted<'_>) -> Result<Uploaded, UploadError> {
        let (files, sha256) = wanted.payload.files();
        for (file, bytes) in files {
            // `head` ends after so many bytes; the end of a stream cannot be sent to API servers before 1.30.
            let script = format!("head -c {} >{folder}/{file} && chmod 500 {folder}/{file}", bytes.len());
            self.run("copy the server", &script, bytes).await?;
        }
        let script = format!(
            "cd {folder} || exit\nKSHUTTLE_AUTHORIZED_KEY='{}' KSHUTTLE_IDLE_SECONDS={} KSHUTTLE_LISTEN_PORT=0 KSHUTTLE_ATTENDED=1 \
             ./{LOADER_KEY} {folder} {sha256} serve\ncode=$?\ncd /\nrm -rf {folder}\nexit $code",
            wanted.authorized_key,
            wanted.idle.as_secs(),
        );
        let what = "start the server";
        let mut process = self.exec(&script).await?;
        let (input, output) = (process.stdin(), process.stdout());
        let (Some(input), Some(output)) = (input, output) else { unreachable!("exec() asks for both") };
        let Some(status) = process.take_status() else { unreachable!("it is taken here only") };
        let status = status.boxed().shared();
        let mut line = String::new();
        let mut output = BufReader::new(output.take(OUTPUT_MAX));
        match timeout(START_TIME_MAX, output.read_line(&mut line)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return Err(self.failed(what, self.outcome(&mut process, status).await)),
            Err(_) => return Err(self.timeout(what, START_TIME_MAX)),
        }
        let strange = || UploadError::Strange { container: self.container.clone(), said: line.clone() };
        let (port, host_key) = announced(&line).ok_or_else(strange)?;
        Ok(Uploaded { container: self.container.clone(), port, host_key, input, status, _process: process })
    }

    /// Runs a shell script with `input`; what it wrote to standard output.
    async fn run(&self, what: &'static str, script: &str, input: &[u8]) -> Result<String, UploadError> {
        let run = async {
            let mut process = self.exec(script).await?;
            let (Some(mut to), Some(from)) = (process.stdin(), process.stdout()) else {
                unreachable!("exec() asks for both")
            };
            let write = async {
                // Fails when the script ended early; it says why.
                let _ = to.write_all(input).await;
                let _ = to.flush().await;
                std::future::pending().await
            };
            let output = tokio::select! {
                output = text(from) => output,
                never = write => never,
            };
            let Some(status) = process.take_status() else { unreachable!("it is taken here only") };
            match self.outcome(&mut process, status).await {
                Ok(()) => Ok(output),
                failed => Err(self.failed(what, failed)),
            }
        };
        timeout(COMMAND_TIME_MAX, run).await.unwrap_or_else(|_| Err(self.timeout(what, COMMAND_TIME_MAX)))
    }

    async fn exec(&self, script: &str) -> Result<AttachedProcess, UploadError> {
        let parameters = AttachParams::default()
            .container(&self.container)
            .stdin(true)
            .stdout(true)
            .stderr(true)
            .max_stdin_buf_size(BUFFER)
            .max_stdout_buf_size(BUFFER)
            .max_stderr_buf_size(BUFFER);
        ask(self.api.exec(&self.pod, ["sh", "-c", script], &parameters)).await.map_err(|source| {
            UploadError::Exec { pod: self.pod.clone(), container: self.container.clone(), source }
        })
    }

    /// Waits for a command's end; what it said, if it failed.
    async fn outcome(
        &self,
        process: &mut AttachedProcess,
        status: impl Future<Output = Option<Status>>,
    ) -> Result<(), String> {
        let errors = match process.stderr() {
            Some(errors) => text(errors).await,
            None => String::new(),
        };
        match status.await {
            Some(status) if status.status.as_deref() == Some("Success") => Ok(()),
            Some(status) => Err(words(&status, &errors)),
            None => Err("the connection was lost".to_owned()),
        }
    }

    fn failed(&self, what: &'static str, outcome: Result<(), String>) -> UploadError {
        let words = outcome.err().unwrap_or_else(|| "it ended at once".to_owned());
        UploadError::Command { what, container: self.container.clone(), words }
    }

    fn timeout(&self, what: &'static str, limit: Duration) -> UploadError {
        UploadError::Timeout { what, container: self.container.clone(), limit }
    }
}

/// The container that was named, or the one that kubectl would take.
fn choose(pod: &Pod, name: &str, wanted: Option<&str>) -> Result<String, UploadError> {
    let there: Vec<String> =
        pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| container.name.clone()).collect();
    let default = || {
        let annotations = pod.metadata.annotations.as_ref()?;
        annotations.get(DEFAULT_CONTAINER).filter(|default| there.contains(default)).cloned()
    };
    match wanted {
        Some(wanted) if !there.iter().any(|container| container == wanted) => {
            Err(UploadError::NoContainer { pod: name.to_owned(), container: wanted.to_owned(), there })
        }
        Some(wanted) => Ok(wanted.to_owned()),
        None => Ok(default().or_else(|| there.first().cloned()).unwrap_or_default()),
    }
}

/// A name that nobody else uses: the key is new for each run.
fn folder_name(authorized_key: &str) -> String {
    format!("kshuttle-{}", &hash(authorized_key.as_bytes())[..16])
}

/// Prints the first folder that can be written to and executed from; memory and temporary folders first.
fn find_folder(name: &str) -> String {
    format!(
        "for folder in /dev/shm \"$TMPDIR\" /tmp /var/tmp /run \"$HOME\" \"$PWD\"; do\n\
         [ -n \"$folder\" ] && mkdir -m 700 \"$folder/{name}\" 2>/dev/null || continue\n\
         folder=$folder/{name}\n\
         printf '#!/bin/sh\\n' >\"$folder/try\" && chmod 500 \"$folder/try\" && \"$folder/try\" 2>/dev/null && \
         rm -f \"$folder/try\" && echo \"$folder\" && exit\n\
         rm -rf \"$folder\"\n\
         done"
    )
}

/// `kshuttle-sshd PORT HOST-KEY`.
fn announced(line: &str) -> Option<(u16, PublicKey)> {
    let (port, key) = line.strip_prefix("kshuttle-sshd ")?.trim_end().split_once(' ')?;
    Some((port.parse().ok()?, PublicKey::from_openssh(key).ok()?))
}

async fn text(from: impl AsyncRead + Unpin) -> String {
    let mut text = Vec::new();
    // What arrived before the connection was lost is worth reading, too.
    let _ = from.take(OUTPUT_MAX).read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// What is known about a command's end: its own words, else the runtime's.
fn words(status: &Status, errors: &str) -> String {
    let last = errors.trim().lines().last().unwrap_or_default();
    let runtime = status.message.as_deref().unwrap_or("it ended");
    let all = if last.is_empty() { runtime } else { last };
    all.chars().take(WORDS_MAX).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests;
