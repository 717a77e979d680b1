//! Who we are to the API server: from a kubeconfig (or the pod we run in) to one client that everything shares.
//!
//! States: options → kubeconfig → context → configuration → client → probed. Each step has its error.
//! The proxy is chosen in `client/proxy.rs`, connections are made in `client/stack.rs`; what uses the client is beside this file.

mod proxy;
mod socks;
mod stack;

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

use super::api_error::{ApiError, ask_within, credentials};

/// Longest wait for a TCP and TLS handshake, and for the first answer. A person is waiting; kubectl's is 30 s.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest wait for one name when the addresses to leave alone are collected.
const RESOLVE_TIME_MAX: Duration = Duration::from_secs(5);

/// What the user may choose; the rest is in the kubeconfig.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// A file in place of `$KUBECONFIG` and `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// A context in place of the current one.
    pub context: Option<String>,
    /// A namespace in place of the context's.
    pub namespace: Option<String>,
    /// A user to act as, in place of the one the kubeconfig may name.
    pub as_user: Option<String>,
    /// Groups to act as a member of; they mean something only with a user.
    pub as_groups: Vec<String>,
}

/// A cluster that answered. Cheap to clone; all clones share one client.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    context: Option<String>,
    server: Uri,
    proxy: Option<Uri>,
    version: Option<String>,
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No file, and we do not run in a pod.
    #[error("there is no kubeconfig at {}", .0.display())]
    KubeconfigMissing(PathBuf),
    /// It cannot be read or understood, or its parts do not fit together.
    #[error("cannot use the kubeconfig {origin}")]
    KubeconfigInvalid {
        /// Which files.
        origin: String,
        /// What is wrong.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// No context was named and none is current.
    #[error("the kubeconfig has no current context; it knows {}", list(.known))]
    NoContext {
        /// The names of all contexts.
        known: Vec<String>,
    },
    /// The named context is not there.
    #[error("the kubeconfig has no context `{context}`; it knows {}", list(.known))]
    ContextNotFound {
        /// The name looked for.
        context: String,
        /// The names of all contexts.
        known: Vec<String>,
    },
    /// `NO_PROXY` has an entry that kube cannot read, such as an empty one.
    #[error("cannot read the environment's NO_PROXY")]
    NoProxy(#[source] kube::config::NoProxyError),
    /// The proxy's address cannot be read.
    #[error("the proxy for {server} is not a URL")]
    Proxy {
        /// URL of the API server.
        server: String,
        /// What is wrong.
        source: http::uri::InvalidUri,
    },
    /// Certificates, keys or the exec plugin.
    #[error("cannot use the credentials for {server}")]
    Credentials {
        /// URL of the API server.
        server: String,
        /// What is wrong.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// No connection, no TLS, or no answer in time.
    #[error("cannot reach the cluster at {server}{}", via(.proxy))]
    Unreachable {
        /// URL of the API server.
        server: String,
        /// URL of the proxy on the way, without password.
        proxy: Option<String>,
        /// What happened.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// 401.
    #[error("the cluster at {server} does not accept the credentials: {message}")]
    Unauthorized {
        /// URL of the API server.
        server: String,
        /// The server's words.
        message: String,
    },
    /// 403 from something that is not an API server, such as a gateway before it.
    #[error("something before the cluster at {server} refuses us: {message}")]
    Forbidden {
        /// URL of the API server.
        server: String,
        /// Its words.
        message: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn via(proxy: &Option<String>) -> String {
    proxy.as_ref().map_or_else(String::new, |proxy| format!(" through the proxy {proxy}"))
}

/// Finds the cluster and asks it one question.
///
/// An exec plugin of the kubeconfig runs here (twice or three times, kube does so), with no limit in time: it may talk to
/// the user. Everything else is bounded by 10 s.
///
/// # Errors
/// See [`ClusterError`].
pub async fn connect(options: &Options) -> Result<Cluster, ClusterError> {
    // Without a choice rustls panics when two providers are linked in. A second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let found = find(options).await?;
    let Found { mut config, context, .. } = found;
    let server = config.cluster_url.clone();
    config.proxy_url = proxy::choose(&server, found.proxy.as_deref(), |name| std::env::var(name).ok())
        .map_err(|source| ClusterError::Proxy { server: server.to_string(), source })?;
    config.connect_timeout = Some(CONNECT_TIME_MAX);
    // kube would repeat an upgrade 15 times over 1000 s; those who ask know better when to ask again.
    config.default_retry = false;
    if let Some(namespace) = &options.namespace {
        config.default_namespace.clone_from(namespace);
    }
    if options.as_user.is_some() {
        // Somebody else altogether: nothing of whom the kubeconfig names.
        let who = &mut config.auth_info;
        who.impersonate.clone_from(&options.as_user);
        who.impersonate_groups = Some(options.as_groups.clone());
        (who.impersonate_uid, who.impersonate_user_extra) = (None, None);
    }

    let (namespace, proxy) = (config.default_namespace.clone(), config.proxy_url.clone());
    // The exec plugin is waited for on this thread, so it must not be one of the runtime's.
    let client = tokio::task::spawn_blocking(move || stack::build(config))
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        .map_err(|error| ClusterError::Credentials { server: server.to_string(), source: inner(error) })?;
    let mut cluster = Cluster { client, namespace, context, server, proxy, version: None };
    cluster.version = cluster.probe().await?;
    Ok(cluster)
}

/// A configuration before we touched it.
struct Found {
    config: Config,
    context: Option<String>,
    /// The proxy that the kubeconfig names for this cluster.
    proxy: Option<String>,
}

async fn find(options: &Options) -> Result<Found, ClusterError> {
    let (kubeconfig, origin) = match read(options.kubeconfig.as_deref(), std::env::var_os("KUBECONFIG")) {
        Ok(read) => read,
        Err(missing @ ClusterError::KubeconfigMissing(_)) => {
            // As kubectl: no file anywhere, so perhaps we are a pod ourselves. Not if the user named something.
            let asked = options.kubeconfig.is_some() || options.context.is_some();
            return match Config::incluster() {
                Ok(config) if !asked => Ok(Found { config, context: None, proxy: None }),
                _ => Err(missing),
            };
        }
        Err(error) => return Err(error),
    };
    let (context, proxy) = pick(&kubeconfig, options.context.as_deref())?;
    let wanted = KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &wanted).await.map_err(|error| match error {
        // kube reads NO_PROXY more strictly than Go; what it makes of it is not used.
        KubeconfigError::ParseNoProxy(source) => ClusterError::NoProxy(source),
        source => ClusterError::KubeconfigInvalid { origin, source: Box::new(source) },
    })?;
    Ok(Found { config, context: Some(context), proxy })
}

/// The kubeconfig and where it came from. Files of `$KUBECONFIG` that do not exist are skipped, as kubectl does.
fn read(
    named: Option<&Path>,
    variable: Option<std::ffi::OsString>,
) -> Result<(Kubeconfig, String), ClusterError> {
    let listed: Vec<PathBuf> = match (named, variable.as_deref().filter(|list| *list != OsStr::new(""))) {
        (Some(path), _) => vec![path.to_owned()],
        (None, Some(list)) => std::env::split_paths(list).filter(|path| path != Path::new("")).collect(),
        (None, None) => vec![std::env::home_dir().unwrap_or_default().join(".kube/config")],
    };
    let present: Vec<&PathBuf> = listed.iter().filter(|path| path.exists()).collect();
    if present.is_empty() {
        return Err(ClusterError::KubeconfigMissing(listed.into_iter().next().unwrap_or_default()));
    }
    let origin = present.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    let merged = present
        .into_iter()
        .try_fold(Kubeconfig::default(), |merged, path| merged.merge(Kubeconfig::read_from(path)?))
        .map_err(|source: KubeconfigError| ClusterError::KubeconfigInvalid {
            origin: origin.clone(),
            source: Box::new(source),
        })?;
    Ok((merged, origin))
}

/// The context to use and the proxy its cluster names.
fn pick(kubeconfig: &Kubeconfig, wanted: Option<&str>) -> Result<(String, Option<String>), ClusterError> {
    let known = || kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
    let current = kubeconfig.current_context.as_deref().filter(|name| !name.is_empty());
    let name = wanted.or(current).ok_or_else(|| ClusterError::NoContext { known: known() })?;
    let context = kubeconfig
        .contexts
        .iter()
        .find(|context| context.name == name)
        .ok_or_else(|| ClusterError::ContextNotFound { context: name.to_owned(), known: known() })?;
    let cluster = context.context.as_ref().map(|context| context.cluster.as_str());
    let proxy = kubeconfig
        .clusters
        .iter()
        .find(|entry| Some(entry.name.as_str()) == cluster)
        .and_then(|entry| entry.cluster.as_ref()?.proxy_url.clone());
    Ok((name.to_owned(), proxy))
}

/// kube's messages repeat their source, so only the source is kept where there is one.
fn inner(error: kube::Error) -> Box<dyn StdError + Send + Sync> {
    match error {
        kube::Error::Auth(source) => credentials(source),
        kube::Error::RustlsTls(source) => Box::new(source),
        kube::Error::InferKubeconfig(source) => Box::new(source),
        other => Box::new(other),
    }
}

impl Cluster {
    /// The client that everything shares: one exec plugin, one connection pool.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where our pod lives.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The kubeconfig's context; none when we run in a pod ourselves.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// URL of the API server.
    pub fn server(&self) -> &Uri {
        &self.server
    }

    /// What the API server calls its version, such as `v1.33.1`; none when it does not tell us.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The addresses that lead to the API server: its own and the proxy's. They must never be redirected into
    /// the cluster, as the tunnel itself goes there. Resolved by the system; a name without an address adds none
    /// (behind a proxy the server's name need not resolve here).
    pub async fn guarded_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = BTreeSet::new();
        for uri in [Some(&self.server), self.proxy.as_ref()].into_iter().flatten() {
            let lookup = tokio::net::lookup_host((proxy::host(uri), uri.port_u16().unwrap_or(443)));
            match tokio::time::timeout(RESOLVE_TIME_MAX, lookup).await {
                Ok(Ok(found)) => addresses.extend(found.map(|address| address.ip().to_canonical())),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a name on the way to the API server has no address")
                }
                Err(_) => tracing::debug!("a name on the way to the API server was not resolved in time"),
            }
        }
        addresses.into_iter().collect()
    }

    /// `/version` is readable for everyone unless an administrator forbade it, and wrong credentials are refused
    /// with 401 even there.
    async fn probe(&self) -> Result<Option<String>, ClusterError> {
        let server = self.server.to_string();
        let request = async {
            match self.client.apiserver_version().await {
                Err(kube::Error::Api(status)) if status.reason == "Forbidden" => Ok(None),
                answer => answer.map(|info| Some(info.git_version)),
            }
        };
        ask_within(CONNECT_TIME_MAX, request).await.map_err(|error| match error {
            ApiError::Unauthorized(message) => ClusterError::Unauthorized { server, message },
            ApiError::Policy(message) => ClusterError::Forbidden { server, message },
            ApiError::Credentials(source) => ClusterError::Credentials { server, source },
            ApiError::Transport(source) => ClusterError::Unreachable { server, proxy: self.proxy(), source },
            other => ClusterError::Unreachable { server, proxy: self.proxy(), source: Box::new(other) },
        })
    }

    /// The proxy without the password that may be in its URL.
    fn proxy(&self) -> Option<String> {
        let proxy = self.proxy.as_ref()?;
        let port = proxy.port().map_or_else(String::new, |port| format!(":{port}"));
        Some(format!("{}://{}{port}", proxy.scheme_str()?, proxy.host()?))
    }

    /// A cluster that was never asked who it is.
    #[cfg(test)]
    pub(crate) fn for_test(client: Client, namespace: &str) -> Self {
        let server = Uri::from_static("http://127.0.0.1");
        Self { client, namespace: namespace.to_owned(), context: None, server, proxy: None, version: None }
    }
}

#[cfg(test)]
mod tests;
