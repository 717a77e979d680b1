//! kube's client as kube builds it, but over sockets without Nagle's algorithm.
//!
//! kube's connector leaves `TCP_NODELAY` off and offers no way to it. Then the first request on a connection waits for the peer's
//! delayed acknowledgement of the TLS handshake's last message: 40 ms for every port-forward on Linux. The write timeout
//! of kube's stack is left out too: it would end an upgraded connection whose pod does not read for 295 s.
//! What kube adds and we do not need: retries, compression, trace spans.

use hyper::rt::{Read, Write};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connection, HttpConnector, proxy::Tunnel},
    },
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt as _},
};
use tower::{BoxError, Service, ServiceExt as _};

use super::socks::SocksConnector;

/// A client for this cluster. Runs the kubeconfig's exec plugin on this thread.
pub(super) fn build(config: Config) -> Result<Client, kube::Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let Some(proxy) = config.proxy_url.clone() else { return over(tcp, config) };
    let credentials = proxy.authority().is_some_and(|authority| authority.as_str().contains('@'));
    match proxy.scheme_str() {
        Some("socks5") => over(SocksConnector::new(&proxy, tcp), config),
        Some("http") if !credentials => over(Tunnel::new(proxy, tcp), config),
        _ => Client::try_from(config), // rarer ways: kube knows them, and 40 ms are no harm
    }
}

fn over<C>(connector: C, config: Config) -> Result<Client, kube::Error>
where
    C: Service<http::Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: std::error::Error + Send + Sync + 'static,
{
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    let service: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let service = service.map_err(BoxError::from); // what the layer for credentials asks for
    let builder = ClientBuilder::new(service, config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?);
    Ok(match config.auth_layer()? {
        Some(auth) => builder.with_layer(&auth).with_layer(&config.base_uri_layer()).build(),
        None => builder.with_layer(&config.base_uri_layer()).build(),
    })
}
