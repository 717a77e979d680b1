//! From the port that the user names to the number in the pod. Pure; as kubectl does it
//! (k8s.io/kubectl, `pkg/cmd/portforward` and `pkg/util/service_port.go`).

use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{ContainerPort, Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A port of the target as the user names it: a number of at least 1, or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// Of the Service, else of the pod.
    Number(u16),
    /// In the Service's list, else in a container's.
    Name(String),
}

/// Text that is neither.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a port from 1 to 65535 nor the name of one")]
pub struct RemoteError(String);

impl FromStr for Remote {
    type Err = RemoteError;

    fn from_str(text: &str) -> Result<Self, RemoteError> {
        let error = || RemoteError(text.to_owned());
        // IANA_SVC_NAME, which the API server asks for; Services' ports may be longer.
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.chars().all(|c| c.is_ascii_digit()) {
            return text.parse().ok().filter(|port| *port > 0).map(Self::Number).ok_or_else(error);
        }
        let has_letter = text.chars().any(|c| c.is_ascii_lowercase());
        if text.len() > 63 || text.starts_with('-') || !has_letter || !text.chars().all(allowed) {
            return Err(error());
        }
        Ok(Self::Name(text.to_owned()))
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(port) => port.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What a port turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The number the user's word stands for, of the Service if there is one: what the local port is by default.
    pub named: u16,
    /// The number in the pod.
    pub pod: u16,
}

/// Why a port cannot be forwarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// UDP or SCTP.
    #[error("port {port} of {whose} is {protocol}, and only TCP can be forwarded")]
    NotTcp {
        /// As the user names it.
        port: Remote,
        /// `service web` or `pod web-1`.
        whose: String,
        /// As Kubernetes names it.
        protocol: String,
    },
    /// Not in the list.
    #[error("{whose} has no port {port}; it has {}", if .known.is_empty() { "none with a name" } else { .known })]
    Unknown {
        /// As the user names it, or as the Service does.
        port: Remote,
        /// `service web` or `pod web-1`.
        whose: String,
        /// Those it has.
        known: String,
    },
}

/// Finds `remote` in the Service, if there is one, and then in the pod.
///
/// # Errors
/// See [`PortError`].
pub fn map(remote: &Remote, service: Option<&Service>, pod: &Pod) -> Result<Port, PortError> {
    let Some(service) = service else {
        let port = in_pod(remote, pod)?;
        return Ok(Port { named: port, pod: port });
    };
    let whose = || format!("service {}", service.metadata.name.as_deref().unwrap_or_default());
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let mut matching = ports.iter().filter(|port| match remote {
        Remote::Number(number) => port.port == i32::from(*number),
        Remote::Name(name) => port.name.as_deref() == Some(name),
    });
    let first = matching.next().ok_or_else(|| PortError::Unknown {
        port: remote.clone(),
        whose: whose(),
        known: list(ports.iter().map(|port| (port.name.as_deref(), port.port))),
    })?;
    // A number may stand there twice, once for each protocol.
    let tcp = std::iter::once(first).chain(matching).find(|port| is_tcp(port.protocol.as_deref()));
    let port = tcp.ok_or_else(|| PortError::NotTcp {
        port: remote.clone(),
        whose: whose(),
        protocol: first.protocol.clone().unwrap_or_default(),
    })?;
    let named = number(port.port).ok_or_else(|| PortError::Unknown {
        port: remote.clone(),
        whose: whose(),
        known: String::new(),
    })?;
    // Behind a headless Service clients reach the pods' addresses, and nothing translates ports.
    let headless = spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
    let pod = match &port.target_port {
        Some(IntOrString::Int(target)) if !headless => number(*target).unwrap_or(named), // 0 is "not given"
        Some(IntOrString::String(name)) if !headless => match name.parse::<u16>() {
            Ok(target) => target,
            Err(_) => in_pod(&Remote::Name(name.clone()), pod)?,
        },
        _ => named,
    };
    Ok(Port { named, pod })
}

/// Looks a name up in the containers' lists. A number need not be there, as the lists are for information only.
fn in_pod(remote: &Remote, pod: &Pod) -> Result<u16, PortError> {
    let whose = || format!("pod {}", pod.metadata.name.as_deref().unwrap_or_default());
    let ports = || declared(pod);
    let mut other = None;
    for port in ports() {
        let matches = match remote {
            Remote::Number(number) => port.container_port == i32::from(*number),
            Remote::Name(name) => port.name.as_deref() == Some(name),
        };
        match number(port.container_port).filter(|_| matches) {
            Some(found) if is_tcp(port.protocol.as_deref()) => return Ok(found),
            Some(_) => other = port.protocol.clone(),
            None => {}
        }
    }
    match (remote, other) {
        (_, Some(protocol)) => Err(PortError::NotTcp { port: remote.clone(), whose: whose(), protocol }),
        (Remote::Number(number), None) => Ok(*number),
        (Remote::Name(_), None) => Err(PortError::Unknown {
            port: remote.clone(),
            whose: whose(),
            known: list(ports().map(|port| (port.name.as_deref(), port.container_port))),
        }),
    }
}

/// Ports of the containers, and of the init containers that go on running beside them.
fn declared(pod: &Pod) -> impl Iterator<Item = &ContainerPort> {
    let spec = pod.spec.as_ref();
    let beside = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .into_iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec.map(|spec| &spec.containers).into_iter().flatten();
    containers.chain(beside).filter_map(|container| container.ports.as_ref()).flatten()
}

/// Without a word it is TCP.
fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

fn list<'a>(ports: impl Iterator<Item = (Option<&'a str>, i32)>) -> String {
    let words = ports.map(|(name, port)| match name {
        Some(name) => format!("{port} ({name})"),
        None => port.to_string(),
    });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-1"},
            "spec": {
                "initContainers": [
                    {"name": "setup", "ports": [{"name": "setup", "containerPort": 1}]},
                    {"name": "mesh", "restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15001}]}
                ],
                "containers": [
                    {"name": "web", "ports": [
                        {"name": "http", "containerPort": 8080},
                        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                        {"name": "dns-tcp", "containerPort": 5353, "protocol": "UDP"},
                        {"name": "both-udp", "containerPort": 5353, "protocol": "TCP"}
                    ]},
                    {"name": "none"}
                ]
            }
        }))
        .unwrap()
    }

    fn service(cluster_ip: &str, ports: Value) -> Service {
        let spec = json!({"clusterIP": cluster_ip, "ports": ports});
        serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap()
    }

    fn mapped(remote: &str, service: Option<&Service>) -> Result<(u16, u16), String> {
        map(&remote.parse().unwrap(), service, &pod())
            .map(|port| (port.named, port.pod))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn ports_of_a_pod() {
        assert_eq!(mapped("8080", None), Ok((8080, 8080)));
        assert_eq!(mapped("http", None), Ok((8080, 8080)));
        assert_eq!(mapped("mesh", None), Ok((15001, 15001)), "a sidecar runs on");
        assert_eq!(mapped("9999", None), Ok((9999, 9999)), "numbers need not be declared");
        assert_eq!(mapped("5353", None), Ok((5353, 5353)), "declared for both protocols");
        let known = "8080 (http), 53 (dns), 5353 (dns-tcp), 5353 (both-udp), 15001 (mesh)";
        assert_eq!(mapped("setup", None), Err(format!("pod web-1 has no port setup; it has {known}")));
        for port in ["53", "dns"] {
            let error = format!("port {port} of pod web-1 is UDP, and only TCP can be forwarded");
            assert_eq!(mapped(port, None), Err(error));
        }
    }

    #[test]
    fn ports_of_a_service_lead_to_the_pods() {
        let web = service(
            "10.96.0.7",
            json!([
                {"name": "http", "port": 80, "targetPort": "http"},
                {"name": "fixed", "port": 81, "targetPort": 9000},
                {"name": "same", "port": 82},
                {"name": "text", "port": 83, "targetPort": "9001"},
                {"name": "lost", "port": 84, "targetPort": "nowhere"},
                {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"},
                {"name": "log", "port": 514, "protocol": "UDP"},
                {"name": "log-tcp", "port": 514, "protocol": "TCP", "targetPort": 1514}
            ]),
        );
        for (port, local, pod) in [
            ("80", 80, 8080),
            ("http", 80, 8080),
            ("81", 81, 9000),
            ("same", 82, 82),
            ("83", 83, 9001),
            ("514", 514, 1514),
        ] {
            assert_eq!(mapped(port, Some(&web)), Ok((local, pod)), "{port}");
        }
        assert!(
            mapped("8080", Some(&web))
                .unwrap_err()
                .starts_with("service web has no port 8080; it has 80 (http), ")
        );
        assert!(mapped("lost", Some(&web)).unwrap_err().starts_with("pod web-1 has no port nowhere"));
        for port in ["53", "dns", "log"] {
            let error = format!("port {port} of service web is UDP, and only TCP can be forwarded");
            assert_eq!(mapped(port, Some(&web)), Err(error));
        }
    }

    #[test]
    fn a_headless_service_translates_nothing() {
        let web = service("None", json!([{"name": "http", "port": 8081, "targetPort": "http"}]));
        assert_eq!(mapped("http", Some(&web)), Ok((8081, 8081)));
    }

    #[test]
    fn words_for_ports() {
        assert_eq!("65535".parse(), Ok(Remote::Number(65535)));
        assert_eq!("https".parse(), Ok(Remote::Name("https".into())));
        assert_eq!("8080x".parse(), Ok(Remote::Name("8080x".into())));
        for text in ["", "0", "65536", "-1", "HTTP", "80/tcp", "a b", "ä", "1-2", "-a"] {
            assert!(text.parse::<Remote>().is_err(), "{text:?}");
        }
    }
}
