//! What tests of single streams start from: the ways this API server knows, and pods to open streams to.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use kshuttle::cluster::client::{Cluster, Options, connect};
use kshuttle::cluster::port_forward::{
    Dialer, PortForwardError, PortForwardStream,
    Transport::{self, Spdy, V4, Websocket},
};
use kshuttle_test_support::kshuttle::{PATIENCE, eventually, kubectl, output};
use kshuttle_test_support::line::Line;
use kshuttle_test_support::within;
use tokio::io::AsyncReadExt;

/// The first API server with the tunnel in WebSocket switched on: 1.31 (KEP-4006).
const TUNNEL_SINCE: u32 = 31;

/// A cluster, and a pod of it with the servers of `fixtures/cluster/bench`.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) pod: String,
}

/// Runs a test with the `bench` Deployment's pod.
pub(crate) fn with_bench(test: impl AsyncFnOnce(Scene)) {
    let pod = bench_pod();
    block_on(async { test(Scene { cluster: administrator().await, pod }).await });
}

/// Its name.
pub(crate) fn bench_pod() -> String {
    let running = "--field-selector=status.phase=Running";
    kubectl(&["get", "pod", "-l", "app=bench", running, "-o", "jsonpath={.items[0].metadata.name}"])
}

pub(crate) fn block_on<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(test)
}

pub(crate) async fn administrator() -> Cluster {
    connect(&Options { namespace: Some("default".into()), ..Options::default() }).await.unwrap()
}

/// MINOR of the API server's version 1.MINOR.
pub(crate) fn minor(cluster: &Cluster) -> u32 {
    let version = cluster.version().expect("the box's API server tells its version");
    version
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse().ok())
        .unwrap_or_else(|| panic!("not a version: {version}"))
}

impl Scene {
    pub(crate) fn dialer(&self, transport: Transport) -> Dialer {
        Dialer::new(self.cluster.client().clone(), "default", transport)
    }

    /// The ways this API server knows, in the order in which `auto` tries them.
    pub(crate) fn ways(&self) -> Vec<Transport> {
        let ways = [Spdy, Websocket, V4].into_iter();
        ways.filter(|way| *way != Websocket || minor(&self.cluster) >= TUNNEL_SINCE).collect()
    }

    pub(crate) async fn open(&self, way: Transport, port: u16) -> PortForwardStream {
        let stream = within(self.dialer(way).open(&self.pod, port)).await;
        stream.unwrap_or_else(|error| panic!("{way}: {error:?}"))
    }
}

/// A bad line to the API server, and a kubeconfig that leads through it.
pub(crate) struct ThroughLine {
    pub(crate) line: Line,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) runtime: tokio::runtime::Runtime,
}

impl ThroughLine {
    pub(crate) fn start() -> Self {
        let config = output(Command::new("kubectl").args(["config", "view", "--raw", "--minify"]));
        let server = config.lines().find_map(|line| line.trim().strip_prefix("server: https://")).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let line = runtime.block_on(Line::start(server.trim_end_matches('/').parse().unwrap(), 1));
        let (host, _) = server.rsplit_once(':').unwrap();
        let through = format!("server: https://{}\n    tls-server-name: {host}", line.address);
        let folder = PathBuf::from(std::env::var_os("KSHUTTLE_TEST_PROGRAMS").unwrap());
        let kubeconfig = folder.join(format!("kubeconfig-{}", line.address.port()));
        fs::write(&kubeconfig, config.replace(&format!("server: https://{server}"), &through)).unwrap();
        Self { line, kubeconfig, runtime }
    }
}

impl Drop for ThroughLine {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.kubeconfig);
        let _entered = self.runtime.enter(); // the line's tasks end in their runtime
    }
}

/// Everything until the end: bytes, and how it ended.
pub(crate) async fn drain(stream: &mut PortForwardStream) -> (Vec<u8>, Result<(), PortForwardError>) {
    let mut bytes = Vec::new();
    let end = within(stream.read_to_end(&mut bytes)).await;
    (bytes, end.map(drop).map_err(|error| typed(&error)))
}

pub(crate) fn typed(error: &std::io::Error) -> PortForwardError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<PortForwardError>());
    inner.unwrap_or_else(|| panic!("no typed error in {error:?}")).clone()
}

/// A pod for one test: the servers of `bench`, and a shell beside them. Deleted when dropped.
pub(crate) struct OwnPod {
    pub(crate) name: &'static str,
}

impl OwnPod {
    /// Returns when it is ready.
    pub(crate) fn start(name: &'static str) -> Self {
        let manifest = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [
                {"name": "bench", "image": "kshuttle.test/bench:1",
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}},
                {"name": "shell", "image": "kshuttle.test/busybox:1", "command": ["sleep", "3600"]},
            ]},
        });
        apply(&manifest);
        let this = Self { name };
        kubectl(&["wait", "--for=condition=Ready", "pod", name, "--timeout=60s"]);
        this
    }

    /// Until the API server has forgotten it.
    pub(crate) fn delete(&self) {
        kubectl(&["delete", "pod", self.name]);
    }

    /// Waits until the pod's servers have no connection on this port any more.
    pub(crate) fn is_left_alone(&self, port: u16) {
        let mut count = 0;
        let what = format!("the runtime closes its connections to port {port}");
        eventually(&what, PATIENCE, || {
            count = self.connections(port);
            (count == 0).then_some(())
        });
    }

    /// Established connections to one of its ports.
    pub(crate) fn connections(&self, port: u16) -> usize {
        const ESTABLISHED: &str = "01"; // include/net/tcp_states.h
        let table =
            kubectl(&["exec", self.name, "-c", "shell", "--", "cat", "/proc/net/tcp", "/proc/net/tcp6"]);
        let local = format!(":{port:04X}");
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.filter(|row| row.len() > 3 && row[1].ends_with(&local) && row[3] == ESTABLISHED).count()
    }
}

impl Drop for OwnPod {
    fn drop(&mut self) {
        // It may be gone, and another panic would hide the first.
        let _ = Command::new("kubectl")
            .args(["delete", "pod", self.name, "--ignore-not-found", "--wait=false"])
            .output();
    }
}

/// `kubectl apply`.
pub(crate) fn apply(manifest: &serde_json::Value) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), manifest.to_string()).unwrap();
    kubectl(&["apply", "-f", &file.path().to_string_lossy()]);
}

/// A namespace for one test. Deleted when dropped, without waiting for it.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    /// Makes it, with these labels.
    pub(crate) fn with_labels(name: &str, labels: &serde_json::Value) -> Self {
        // One that is being deleted keeps its name for a while.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        apply(&serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        }));
        Self { name }
    }

    /// Makes it with nothing special about it.
    pub(crate) fn new(name: &str) -> Self {
        Self::with_labels(name, &serde_json::json!({}))
    }

    /// Puts an object of the core API into it.
    pub(crate) fn put(&self, kind: &str, name: &str, spec: &serde_json::Value) {
        apply(&serde_json::json!({
            "apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": self.name}, "spec": spec,
        }));
    }

    /// `kubectl -n` this one.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl(&[&["-n", &self.name], arguments].concat())
    }

    /// Names of what is of kshuttle in it.
    pub(crate) fn ours(&self, kind: &str) -> String {
        self.kubectl(&["get", kind, "-l", "app.kubernetes.io/name=kshuttle", "-o", "name"])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("kubectl").args(["delete", "namespace", &self.name, "--wait=false"]).output();
    }
}
