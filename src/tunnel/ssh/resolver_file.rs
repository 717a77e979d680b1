//! Asking the pod's server for the pod's `/etc/resolv.conf`: what the cluster calls itself, and where its DNS is.

use std::time::Duration;

use kshuttle_wire::ssh;
use russh::ChannelMsg;

use super::{Flows, Session};

/// Time for the pod's resolver file: two round trips, and with a foreign server a shell that starts.
const RESOLVER_FILE_TIME: Duration = Duration::from_secs(5);

/// Why the pod's resolver file is not known.
#[derive(Debug, thiserror::Error)]
pub enum ResolverFileError {
    /// An older server of ours, or one without a shell.
    #[error("the pod's SSH server does not tell {}", ssh::RESOLVER_FILE)]
    Refused,
    /// No answer.
    #[error("the pod's SSH server said nothing within {} s", RESOLVER_FILE_TIME.as_secs())]
    Timeout,
    /// The session ended.
    #[error("ask the pod's SSH server for {}", ssh::RESOLVER_FILE)]
    Session(#[from] russh::Error),
    /// There is no session to ask in.
    #[error("no tunnel is up")]
    NoTunnel,
}

impl Session {
    /// The pod's `/etc/resolv.conf`. Our own server is asked for it, another one's shell.
    ///
    /// # Errors
    /// When the session ended, the server does not know the question, or there is no shell.
    pub(in crate::tunnel) async fn resolver_file(&self) -> Result<Vec<u8>, ResolverFileError> {
        let asked = async {
            let mut channel = self.handle.channel_open_session().await?;
            match self.flows {
                Flows::Streams(_) => channel.request_subsystem(true, ssh::RESOLVER_SUBSYSTEM).await?,
                Flows::Channels(_) => channel.exec(true, format!("cat {}", ssh::RESOLVER_FILE)).await?,
            }
            let mut text = Vec::new();
            loop {
                match channel.wait().await {
                    Some(ChannelMsg::Data { data }) if text.len() < ssh::RESOLVER_MAX => {
                        text.extend(&data[..])
                    }
                    Some(ChannelMsg::Failure) => return Err(ResolverFileError::Refused),
                    Some(ChannelMsg::Eof) | None => break,
                    _ => {}
                }
            }
            text.truncate(ssh::RESOLVER_MAX);
            if text.is_empty() { Err(ResolverFileError::Refused) } else { Ok(text) }
        };
        tokio::time::timeout(RESOLVER_FILE_TIME, asked).await.unwrap_or(Err(ResolverFileError::Timeout))
    }
}
