//! To the API server through a SOCKS5 proxy (RFC 1928), which resolves names. hyper-util's connector takes an IPv6 address for
//! a name, and its errors do not tell their cause.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use fast_socks5::client::{Config, Socks5Stream};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{AuthenticationMethod, Socks5Command};
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::{BoxError, Service};

use super::proxy;

/// Where a SOCKS proxy listens when its URL does not say (IANA's `socks`; as Go).
const DEFAULT_PORT: u16 = 1080;

/// Connects through one proxy. Clones are independent.
#[derive(Clone)]
pub(super) struct SocksConnector {
    tcp: HttpConnector,
    /// Without user and password.
    proxy: Uri,
    login: Option<(String, String)>,
}

/// Why the proxy did not help.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("connect to the SOCKS proxy")]
    Connect(#[source] BoxError),
    #[error("the SOCKS proxy did not connect us")]
    Handshake(#[source] fast_socks5::SocksError),
}

impl SocksConnector {
    /// `proxy` may carry user and password, as in `socks5://user:p%40ss@proxy.example:1080`.
    pub(super) fn new(proxy: &Uri, tcp: HttpConnector) -> Self {
        let authority = proxy.authority().map_or("", |authority| authority.as_str());
        let login = authority.rsplit_once('@').map(|(login, _)| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            (decode(user), decode(password))
        });
        let address =
            format!("{}:{}", proxy.host().unwrap_or_default(), proxy.port_u16().unwrap_or(DEFAULT_PORT));
        let proxy = Uri::builder().scheme("socks5").authority(address).path_and_query("/").build();
        Self { tcp, proxy: proxy.expect("parts of a URL make a URL"), login }
    }

    async fn connect(mut self, to: Uri) -> Result<TokioIo<TcpStream>, ProxyError> {
        let connected = self.tcp.call(self.proxy).await.map_err(|error| ProxyError::Connect(error.into()))?;
        let login =
            self.login.map(|(username, password)| AuthenticationMethod::Password { username, password });
        let socket = Socks5Stream::use_stream(connected.into_inner(), login, Config::default());
        let mut socket = socket.await.map_err(ProxyError::Handshake)?;
        let request = socket.request(Socks5Command::TCPConnect, target(&to));
        request.await.map_err(ProxyError::Handshake)?;
        Ok(TokioIo::new(socket.get_socket()))
    }
}

impl Service<Uri> for SocksConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ProxyError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ProxyError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProxyError>> {
        self.tcp.poll_ready(cx).map_err(|error| ProxyError::Connect(error.into()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        Box::pin(self.clone().connect(to))
    }
}

fn target(to: &Uri) -> TargetAddr {
    let host = proxy::host(to);
    let port = to.port_u16().unwrap_or(if to.scheme_str() == Some("http") { 80 } else { 443 });
    match host.parse::<IpAddr>() {
        Ok(ip) => TargetAddr::Ip(SocketAddr::new(ip, port)),
        Err(_) => TargetAddr::Domain(host.to_owned(), port),
    }
}

/// `%XX` as the byte it stands for (RFC 3986 §2.1); a `%` that begins none stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        let digits = others.get(..2).filter(|_| first == b'%').and_then(|two| std::str::from_utf8(two).ok());
        let byte =
            digits.filter(|two| !two.starts_with('+')).and_then(|two| u8::from_str_radix(two, 16).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &others[2..] } else { others };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connector(proxy: &'static str) -> (String, Option<(String, String)>) {
        let made = SocksConnector::new(&Uri::from_static(proxy), HttpConnector::new());
        (made.proxy.to_string(), made.login)
    }

    #[test]
    fn a_url_names_proxy_and_login() {
        let login = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        for (url, proxy, expected) in [
            ("socks5://proxy.example", "socks5://proxy.example:1080/", None),
            ("socks5://[2001:db8::1]:9", "socks5://[2001:db8::1]:9/", None),
            ("socks5://jane@p.example:1", "socks5://p.example:1/", login("jane", "")),
            ("socks5://jane:a%40b%3a%@p.example", "socks5://p.example:1080/", login("jane", "a@b:%")),
            ("socks5://j%C3%A4n:%+1%zz@p.example", "socks5://p.example:1080/", login("jän", "%+1%zz")),
        ] {
            assert_eq!(connector(url), (proxy.to_owned(), expected), "{url}");
        }
    }

    #[test]
    fn addresses_are_sent_as_addresses() {
        for (server, expected) in
            [("https://[2001:db8::7]:6443", "[2001:db8::7]:6443"), ("https://192.0.2.7", "192.0.2.7:443")]
        {
            let TargetAddr::Ip(address) = target(&Uri::from_static(server)) else { panic!("{server}") };
            assert_eq!(address.to_string(), expected);
        }
        let named = target(&Uri::from_static("https://api.example:6443"));
        assert!(matches!(named, TargetAddr::Domain(host, 6443) if host == "api.example"));
    }
}
