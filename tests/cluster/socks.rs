//! The second way in: SOCKS5, by an ordinary user.

use std::net::TcpListener;
use std::process::Command;

use kshuttle_test_support::kshuttle::{Kshuttle, kubectl, output, program};

pub(crate) fn addresses_and_names_without_root() {
    let mut command = Command::new("runuser");
    command.args(["-u", "dev", "--"]).arg(program("kshuttle")).args(["socks", "--listen", "127.0.0.1:0"]);
    let kshuttle = Kshuttle::start_as(command);
    let proxy = format!("socks5h://{}", listener(&kshuttle));
    let service = kubectl(&["get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}"]);
    for url in [
        format!("http://{service}/"),
        "http://hello.default.svc.cluster.local/".into(),
        "http://web.shop/".into(),
    ] {
        let text = output(Command::new("curl").args(["-sS", "--max-time", "30", "-x", &proxy, &url]));
        assert!(["hello from the cluster", "web in shop"].contains(&text.as_str()), "{url}: {text}");
    }
}

/// The one Service every cluster has; what it answers to a stranger is its own business.
pub(crate) fn the_api_server_answers_by_its_name_in_the_cluster() {
    let kshuttle = Kshuttle::start(&["socks", "--listen", "127.0.0.1:0"]);
    let proxy = format!("socks5h://{}", listener(&kshuttle));
    let url = "https://kubernetes.default.svc/version";
    let text = output(Command::new("curl").args(["-sSk", "--max-time", "30", "-x", &proxy, url]));
    assert!(text.contains("gitVersion") || text.contains("\"Status\""), "{text}");
}

/// Fetches something from the cluster.
pub(crate) fn fetches(kshuttle: &Kshuttle) {
    let (proxy, url) =
        (format!("socks5h://{}", listener(kshuttle)), "http://hello.default.svc.cluster.local/");
    let text = output(Command::new("curl").args(["-sS", "--max-time", "30", "-x", &proxy, url]));
    assert_eq!(text, "hello from the cluster");
}

/// Where it says that it listens.
pub(crate) fn listener(kshuttle: &Kshuttle) -> String {
    let said = kshuttle.said();
    let rest = said.split("SOCKS5 on ").nth(1).expect("it says where it listens");
    rest.split(',').next().expect("split gives at least one part").to_owned()
}

pub(crate) fn a_taken_port_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = Command::new(program("kshuttle")).args(["socks", "--listen", &address]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}
