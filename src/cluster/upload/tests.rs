use serde_json::json;

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

fn pod(annotations: serde_json::Value) -> Pod {
    let spec = json!({"containers": [{"name": "proxy"}, {"name": "web"}]});
    serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": spec})).unwrap()
}

#[test]
fn the_container_is_the_one_kubectl_takes() {
    let default = |name: &str| pod(json!({"kubectl.kubernetes.io/default-container": name}));
    assert_eq!(choose(&pod(json!({})), "p", None).unwrap(), "proxy");
    assert_eq!(choose(&default("web"), "p", None).unwrap(), "web");
    assert_eq!(choose(&default("gone"), "p", None).unwrap(), "proxy");
    assert_eq!(choose(&default("web"), "p", Some("proxy")).unwrap(), "proxy");
    let error = choose(&pod(json!({})), "p", Some("db")).unwrap_err();
    assert_eq!(error.to_string(), "pod `p` has no container `db`, but proxy, web");
}

#[test]
fn only_our_servers_line_is_taken() {
    let (port, key) = announced(&format!("kshuttle-sshd 4711 {KEY}\n")).unwrap();
    assert_eq!((port, key.to_openssh().unwrap().as_str()), (4711, KEY));
    for line in ["", "kshuttle-sshd", "kshuttle-sshd 70000 x", "kshuttle-sshd 1 x", "hello 4711 x"] {
        assert!(announced(line).is_none(), "{line}");
    }
}

/// Runs the script as the container's shell does.
#[test]
fn a_folder_is_found_where_it_can_be_written_to_and_executed_from() {
    let base = tempfile::tempdir().unwrap();
    let script = find_folder("kshuttle-x").replace("/dev/shm", "/proc").replace(" /tmp /var/tmp /run", "");
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .env("TMPDIR", base.path())
        .env_remove("HOME")
        .output()
        .unwrap();
    let folder = base.path().join("kshuttle-x");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), folder.to_str().unwrap(), "{output:?}");
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "it left something");
}
