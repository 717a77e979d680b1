//! Which proxy leads to the API server. kube compares `NO_PROXY` with the proxy's host instead of the server's,
//! so we decide; the rules are those of kubectl, that is of Go (golang.org/x/net/http/httpproxy) and client-go.

use std::net::IpAddr;

use http::Uri;
use ipnet::IpNet;

/// The proxy for `server`: the kubeconfig's, else the environment's (`variable` looks one up).
///
/// `NO_PROXY` is about the environment's proxy alone; one named in the kubeconfig is meant for this server.
pub(super) fn choose(
    server: &Uri,
    configured: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<Uri>, http::uri::InvalidUri> {
    if let Some(proxy) = configured.filter(|text| !text.is_empty()) {
        return parse(proxy).map(Some);
    }
    let either = |upper: &str, lower: &str| {
        variable(upper).filter(|text| !text.is_empty()).or_else(|| variable(lower)).unwrap_or_default()
    };
    let proxy = if server.scheme_str() == Some("http") {
        either("HTTP_PROXY", "http_proxy")
    } else {
        either("HTTPS_PROXY", "https_proxy")
    };
    if proxy.is_empty() || is_excepted(server, &either("NO_PROXY", "no_proxy")) {
        return Ok(None);
    }
    parse(&proxy).map(Some)
}

/// As Go: a proxy without scheme is an HTTP proxy. SOCKS5 always lets the proxy resolve names here.
fn parse(proxy: &str) -> Result<Uri, http::uri::InvalidUri> {
    match proxy.split_once("://") {
        Some(("socks5h", rest)) => format!("socks5://{rest}").parse(),
        Some(_) => proxy.parse(),
        None => format!("http://{proxy}").parse(),
    }
}

/// Is `server` to be reached without the environment's proxy?
fn is_excepted(server: &Uri, no_proxy: &str) -> bool {
    let host = host(server).to_ascii_lowercase();
    let port = server.port_u16().unwrap_or(if server.scheme_str() == Some("http") { 80 } else { 443 });
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    no_proxy.split(',').map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Ok(net) = entry.parse::<IpNet>() {
            return address.is_some_and(|address| net.contains(&address));
        }
        let (name, entry_port) = split_port(&entry);
        if name.is_empty() || entry_port.is_some_and(|entry_port| entry_port != port) {
            return false;
        }
        if let Ok(other) = name.parse::<IpAddr>() {
            return address == Some(other);
        }
        match name.strip_prefix('*').unwrap_or(name) {
            suffix if suffix.starts_with('.') => host.ends_with(suffix),
            domain => host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        }
    })
}

/// The host of a URL, without the brackets of an IPv6 address.
pub(super) fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

/// `name`, `name:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    if let Some((address, rest)) = entry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (address, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match entry.split_once(':') {
        Some((name, port)) if !port.contains(':') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (entry, None),
        },
        _ => (entry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excepted(server: &str, no_proxy: &str) -> bool {
        is_excepted(&server.parse().unwrap(), no_proxy)
    }

    #[test]
    fn entries_mean_what_they_mean_to_go() {
        for (server, no_proxy, expected) in [
            ("https://api.corp.example:6443", "", false),
            ("https://api.corp.example:6443", "*", true),
            ("https://api.corp.example:6443", " other.example , * ", true),
            ("https://api.corp.example:6443", "corp.example", true),
            ("https://api.corp.example:6443", "CORP.example", true),
            ("https://corp.example:6443", "corp.example", true),
            ("https://xcorp.example:6443", "corp.example", false),
            ("https://api.corp.example:6443", ".corp.example", true),
            ("https://corp.example:6443", ".corp.example", false),
            ("https://api.corp.example:6443", "*.corp.example", true),
            ("https://corp.example:6443", "*.corp.example", false),
            ("https://api.corp.example:6443", "corp.example:6443", true),
            ("https://api.corp.example:6443", "corp.example:443", false),
            ("https://api.corp.example", "corp.example:443", true),
            ("http://api.corp.example", "corp.example:80", true),
            ("https://192.0.2.7:6443", "192.0.2.0/24", true),
            ("https://198.51.100.7:6443", "192.0.2.0/24", false),
            ("https://192.0.2.7:6443", "192.0.2.7", true),
            ("https://192.0.2.7:6443", "192.0.2.7:6443", true),
            ("https://192.0.2.7:6443", "192.0.2.7:443", false),
            ("https://[2001:db8::7]:6443", "2001:db8::/32", true),
            ("https://[2001:db8::7]:6443", "2001:db8::7", true),
            ("https://[2001:db8::7]:6443", "[2001:db8::7]:6443", true),
            ("https://[2001:db8::7]:6443", "[2001:db8::7]:443", false),
            // What kube refuses to read at all.
            ("https://api.corp.example:6443", "a,,corp.example,", true),
            // Go never asks a proxy for these.
            ("https://localhost:6443", "", true),
            ("https://127.0.0.1:6443", "", true),
            ("https://[::1]:6443", "", true),
            // A name is not resolved to compare it with a range.
            ("https://api.corp.example:6443", "0.0.0.0/0", false),
        ] {
            assert_eq!(excepted(server, no_proxy), expected, "{server} with NO_PROXY={no_proxy}");
        }
    }

    fn chosen(server: &str, configured: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        let lookup = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        };
        choose(&server.parse().unwrap(), configured, lookup).unwrap().map(|uri| uri.to_string())
    }

    #[test]
    fn the_kubeconfig_goes_before_the_environment() {
        let server = "https://api.corp.example:6443";
        let all = [("HTTPS_PROXY", "http://env:3128"), ("NO_PROXY", "*")];
        assert_eq!(chosen(server, Some("socks5://own:1080"), &all).as_deref(), Some("socks5://own:1080/"));
        assert_eq!(chosen(server, None, &all), None);
        assert_eq!(chosen(server, None, &all[..1]).as_deref(), Some("http://env:3128/"));
        assert_eq!(chosen(server, Some(""), &all[..1]).as_deref(), Some("http://env:3128/"));
    }

    #[test]
    fn the_scheme_of_the_server_picks_the_variable() {
        let all = [("http_proxy", "plain:80"), ("https_proxy", "secret:80")];
        assert_eq!(chosen("https://a.example", None, &all).as_deref(), Some("http://secret:80/"));
        assert_eq!(chosen("http://a.example", None, &all).as_deref(), Some("http://plain:80/"));
        let socks = [("HTTPS_PROXY", "socks5h://p:1080")];
        assert_eq!(chosen("https://a.example", None, &socks).as_deref(), Some("socks5://p:1080/"));
    }
}
