//! Ways to the API server other than the straight one: proxies, and every kind of credentials. Each test sees to it that the
//! way was really taken.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use kshuttle_test_support::http::get;
use kshuttle_test_support::kshuttle::{Kshuttle, kubectl, output, program};
use kshuttle_test_support::proxy::Proxy;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempPath};

use crate::reach::{RANGES, bench};
use crate::scene::{administrator, block_on, minor};

/// What is fetched over a way, and how many bytes that is at least.
const FILE: (&str, u64) = ("/10M", 10 << 20);

/// What is refused where anything is.
const FORWARD: [&str; 3] = ["port-forward", "svc/bench", ":http"];

/// `kshuttle` with a kubeconfig and variables, and no others about proxies.
fn command(kubeconfig: &TempPath, variables: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(program("kshuttle"));
    command.args(arguments).env("KUBECONFIG", kubeconfig.as_os_str());
    command.envs(variables.iter().copied());
    command
}

/// Fetches over `port-forward` on both transports and over the main job.
fn assert_all_work(kubeconfig: &TempPath, variables: &[(&str, &str)], flags: &[&str]) {
    for transport in ["websocket", "spdy"] {
        let arguments =
            ["port-forward", "--address", "127.0.0.1", "svc/bench", ":http", "--transport", transport];
        let forward = Kshuttle::start_as(command(kubeconfig, variables, &[&arguments, flags].concat()));
        assert!(forward.said().contains(&format!("over {transport}")), "{}", forward.said());
        assert_fetches(forward.forwarded(1)[0]);
    }
    let _session = Kshuttle::start_as(command(kubeconfig, variables, &[&RANGES, flags].concat()));
    assert_fetches(bench(8080));
}

fn assert_fetches(from: SocketAddr) {
    let answer = get(from, FILE.0).unwrap();
    assert_eq!((answer.length, Some(answer.sha256)), (FILE.1, answer.announced));
}

/// The box's own kubeconfig, changed; in JSON, which is YAML.
fn kubeconfig(change: impl FnOnce(&mut Value)) -> TempPath {
    let mut kubeconfig = serde_json::from_str(&kubectl(&["config", "view", "--raw", "-o", "json"])).unwrap();
    change(&mut kubeconfig);
    let mut file = NamedTempFile::new().unwrap();
    write!(file, "{kubeconfig}").unwrap();
    file.into_temp_path()
}

fn unchanged() -> TempPath {
    kubeconfig(|_| {})
}

fn with_user(user: Value) -> TempPath {
    kubeconfig(|config| config["users"][0]["user"] = user)
}

fn proxies() -> [Proxy; 4] {
    [Proxy::http(false), Proxy::http(true), Proxy::socks5(false), Proxy::socks5(true)]
}

/// All three fetches went through it.
fn assert_carried(proxy: &Proxy) {
    println!("    {}: {} connections, {} bytes", proxy.url(), proxy.connections(), proxy.bytes());
    assert!(proxy.connections() >= 3, "{}: {} connections", proxy.url(), proxy.connections());
    assert!(proxy.bytes() > 3 * FILE.1, "{}: {} bytes", proxy.url(), proxy.bytes());
}

pub(crate) fn proxies_of_the_environment_carry_everything() {
    for proxy in proxies() {
        assert_all_work(&unchanged(), &[("HTTPS_PROXY", &proxy.url())], &[]);
        assert_carried(&proxy);
    }
}

pub(crate) fn proxies_of_the_kubeconfig_carry_everything() {
    for proxy in proxies() {
        let kubeconfig =
            kubeconfig(|config| config["clusters"][0]["cluster"]["proxy-url"] = json!(proxy.url()));
        // NO_PROXY is about the environment's proxies.
        assert_all_work(&kubeconfig, &[("NO_PROXY", "*")], &[]);
        assert_carried(&proxy);
    }
}

/// An address in brackets is an address for a proxy, too.
pub(crate) fn proxies_lead_to_ipv6() {
    for proxy in proxies() {
        let kubeconfig = kubeconfig(|config| {
            config["clusters"][0]["cluster"]["proxy-url"] = json!(proxy.url());
            config["clusters"][0]["cluster"]["server"] = json!("https://[fd00:250::2]:6443");
        });
        let forward = Kshuttle::start_as(command(&kubeconfig, &[], &FORWARD));
        assert_fetches(forward.forwarded(1)[0]);
        assert!(proxy.bytes() > FILE.1, "{}: {} bytes", proxy.url(), proxy.bytes());
    }
}

pub(crate) fn no_proxy_exempts() {
    let proxy = Proxy::http(false);
    let server = kubectl(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let host = server.rsplit_once(':').unwrap().0.trim_start_matches("https://");
    assert_all_work(
        &unchanged(),
        &[("HTTPS_PROXY", &proxy.url()), ("NO_PROXY", &format!("example.com,{host}"))],
        &[],
    );
    assert_eq!((proxy.connections(), proxy.bytes()), (0, 0));
}

pub(crate) fn a_proxy_that_is_not_there_is_named() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    for scheme in ["http", "socks5"] {
        let proxy = format!("{scheme}://user:secret@{address}");
        let refused = refused(&unchanged(), &[("HTTPS_PROXY", &proxy)], &FORWARD, 3);
        assert!(refused.contains(&format!("through the proxy {scheme}://{address}")), "{refused}");
        assert!(refused.contains("refused") && !refused.contains("secret"), "{refused}");
    }
}

/// Why `kshuttle` failed, with this exit code.
fn refused(kubeconfig: &TempPath, variables: &[(&str, &str)], arguments: &[&str], code: i32) -> String {
    let mut kshuttle = Kshuttle::spawn(command(kubeconfig, variables, arguments));
    let status = kshuttle.wait();
    let said = kshuttle.said();
    println!("    {}", said.lines().find(|line| line.starts_with("error:")).unwrap_or_default());
    assert_eq!(status.code(), Some(code), "{said}");
    said
}

pub(crate) fn a_client_certificate_is_shown() {
    let user = kubectl(&["config", "view", "--raw", "-o", "jsonpath={.users[0].user}"]);
    let user: Value = serde_json::from_str(&user).unwrap();
    let kinds: Vec<&String> = user.as_object().unwrap().keys().collect();
    assert_eq!(kinds, ["client-certificate-data", "client-key-data"]);
    assert_all_work(&with_user(user), &[], &[]);
    let none = with_user(json!({}));
    let refused = refused(&none, &[], &FORWARD, 4);
    assert!(refused.contains("anonymous"), "{refused}");
}

/// Names with rights in namespace `default` and nowhere else. Dropping it takes them away.
struct Somebody;

impl Somebody {
    const NAME: &str = "test-somebody";
    /// A group with the same rights.
    const GROUP: &str = "test-somebodies";
    /// May look at pods and Services, and nothing else.
    const READER: &str = "test-reader";
    /// May begin a WebSocket, but not what Kubernetes asks for besides since 1.35.
    const GETTER: &str = "test-getter";

    fn new() -> Self {
        let look = json!({"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list"]});
        let get = json!({"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get"]});
        let all = json!([
            look,
            get,
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "watch", "delete"]},
            {"apiGroups": [""], "resources": ["pods/portforward", "configmaps"], "verbs": ["get", "create"]},
        ]);
        let user =
            |name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name});
        let group = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": Self::GROUP});
        let account = json!({"kind": "ServiceAccount", "name": Self::NAME, "namespace": "default"});
        let mut items =
            vec![json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": Self::NAME}})];
        for (name, rules, subjects) in [
            (Self::NAME, all, json!([user(Self::NAME), group, account])),
            (Self::READER, json!([look]), json!([user(Self::READER)])),
            (Self::GETTER, json!([look, get]), json!([user(Self::GETTER)])),
        ] {
            let metadata = json!({"name": name, "namespace": "default"});
            let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name});
            let version = "rbac.authorization.k8s.io/v1";
            items.push(json!({"apiVersion": version, "kind": "Role", "metadata": metadata, "rules": rules}));
            items.push(
                json!({"apiVersion": version, "kind": "RoleBinding", "metadata": metadata, "roleRef": role,
                "subjects": subjects}),
            );
        }
        let mut list = NamedTempFile::new().unwrap();
        write!(list, "{}", json!({"apiVersion": "v1", "kind": "List", "items": items})).unwrap();
        kubectl(&["apply", "-f", &list.path().to_string_lossy()]);
        Self
    }

    /// A bearer token of the ServiceAccount.
    fn token(&self) -> String {
        kubectl(&["create", "token", Self::NAME])
    }

    /// It is the ServiceAccount who comes: elsewhere it may nothing, and is called by its name.
    fn assert_is_account(&self, kubeconfig: &TempPath) {
        let arguments = ["port-forward", "-n", "shop", "svc/web", ":http"];
        let refused = refused(kubeconfig, &[], &arguments, 4);
        assert!(refused.contains("system:serviceaccount:default:test-somebody"), "{refused}");
    }
}

impl Drop for Somebody {
    fn drop(&mut self) {
        kubectl(&["delete", "serviceaccount", Self::NAME]);
        for kind in ["rolebinding", "role"] {
            kubectl(&["delete", kind, Self::NAME, Self::READER, Self::GETTER]);
        }
    }
}

pub(crate) fn a_token_is_shown() {
    let somebody = Somebody::new();
    let kubeconfig = with_user(json!({"token": somebody.token()}));
    assert_all_work(&kubeconfig, &[], &[]);
    somebody.assert_is_account(&kubeconfig);

    let wrong = with_user(json!({"token": "made.up.here"}));
    let refused = refused(&wrong, &[], &FORWARD, 4);
    assert!(refused.contains("does not accept the credentials"), "{refused}");
}

pub(crate) fn an_exec_plugin_is_asked() {
    let somebody = Somebody::new();
    let folder = tempfile::tempdir().unwrap();
    let (plugin, asked) = (folder.path().join("plugin"), folder.path().join("asked"));
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": somebody.token()}
    });
    let script = format!("#!/bin/sh\necho \"$WHO\" >>{}\necho '{credential}'\n", asked.display());
    std::fs::write(&plugin, script).unwrap();
    output(Command::new("chmod").arg("+x").arg(&plugin));
    let kubeconfig = with_user(json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": plugin, "interactiveMode": "Never",
        "env": [{"name": "WHO", "value": "jane"}]
    }}));
    assert_all_work(&kubeconfig, &[], &[]);
    let asked = std::fs::read_to_string(asked).unwrap();
    assert!(asked.lines().count() >= 3 && asked.lines().all(|who| who == "jane"), "{asked}");
    somebody.assert_is_account(&kubeconfig);

    std::fs::write(&plugin, "#!/bin/sh\necho 'half a token'\necho 'please log in' >&2\nexit 1\n").unwrap();
    let refused = refused(&kubeconfig, &[], &FORWARD, 3);
    assert!(refused.contains("the exec plugin failed with exit status: 1: please log in"), "{refused}");
    assert!(!refused.contains("half a token"), "{refused}");
}

pub(crate) fn one_acts_as_somebody_else() {
    let _somebody = Somebody::new();
    let named = with_user_and("as", json!(Somebody::NAME));
    assert_all_work(&named, &[], &[]);
    assert_all_work(&unchanged(), &[], &["--as", Somebody::NAME]);
    // The flags go before the kubeconfig.
    let nobody = with_user_and("as", json!("test-nobody"));
    assert_all_work(&nobody, &[], &["--as", "test-unknown", "--as-group", Somebody::GROUP]);
}

/// The box's own user with one thing more.
fn with_user_and(key: &str, value: Value) -> TempPath {
    kubeconfig(|config| config["users"][0]["user"][key] = value)
}

pub(crate) fn what_somebody_else_may_not_is_named() {
    let _somebody = Somebody::new();
    let mut cases = vec![
        ("test-nobody", &["may not get services", "test-nobody"][..]),
        (Somebody::READER, &["pods/portforward", "`get`", "`create`", "test-reader"]),
    ];
    let as_getter = [&FORWARD[..], &["--as", Somebody::GETTER]].concat();
    if block_on(async { minor(&administrator().await) }) >= 35 {
        cases.push((Somebody::GETTER, &["pods/portforward", "cannot create", "test-getter"]));
    } else {
        let forward = Kshuttle::start_as(command(&unchanged(), &[], &as_getter));
        assert_fetches(forward.forwarded(1)[0]);
    }
    for (user, words) in cases {
        let refused = refused(&unchanged(), &[], &[&FORWARD[..], &["--as", user]].concat(), 4);
        for word in words {
            assert!(refused.contains(word), "{word} is not in: {refused}");
        }
    }
    // The main job prints the Role to ask for, for the one it acts as.
    let session = ["socks", "--listen", "127.0.0.1:0", "--as", Somebody::READER];
    let refused = refused(&unchanged(), &[], &session, 4);
    for word in ["kind: Role", "pods/portforward", "name: \"test-reader\""] {
        assert!(refused.contains(word), "{word} is not in: {refused}");
    }
}
