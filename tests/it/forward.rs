//! `kshuttle port-forward` against a small API server with pods that come and go. The way inside is SPDY, spoken by hand.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use kshuttle::cluster::client::{Options, connect};
use kshuttle::cluster::port_forward::Transport;
use kshuttle::port_forward::{ForwardingError, Wanted, start};
use kshuttle::proxy::Connections;
use kshuttle::report::Steps;
use kshuttle_test_support::within;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

#[derive(Clone)]
struct Pod {
    name: &'static str,
    ready: bool,
    deleted: bool,
    owner: &'static str,
    /// Its ports answer; else they refuse.
    listens: bool,
}

impl Pod {
    fn new(name: &'static str) -> Self {
        Self { name, ready: true, deleted: false, owner: "ReplicaSet", listens: true }
    }

    fn json(&self) -> Value {
        json!({
            "kind": "Pod", "apiVersion": "v1",
            "metadata": {
                "name": self.name, "uid": format!("uid-{}", self.name), "creationTimestamp": "2026-01-01T00:00:00Z",
                "deletionTimestamp": self.deleted.then_some("2026-01-02T00:00:00Z"),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": self.owner, "name": "o", "uid": "o", "controller": true}]
            },
            "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": if self.ready { "True" } else { "False" }}]
            }
        })
    }
}

type Pods = Arc<Mutex<Vec<Pod>>>;

/// An API server; everything of it ends when it is dropped, open connections included.
struct Api {
    address: SocketAddr,
    _tasks: JoinSet<()>,
    /// Request lines.
    asked: mpsc::UnboundedReceiver<String>,
}

impl Api {
    fn start(address: &str, pods: Pods) -> Self {
        let listener = kshuttle::proxy::listen(address.parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let (report, asked) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, pods, report));
        Self { address, _tasks: tasks, asked }
    }

    /// Waits for a request whose line contains `part`.
    async fn was_asked(&mut self, part: &str) {
        while !within(self.asked.recv()).await.unwrap().contains(part) {}
    }
}

async fn accept(listener: TcpListener, pods: Pods, report: mpsc::UnboundedSender<String>) {
    let mut connections = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.spawn(serve(socket, pods.clone(), report.clone()));
    }
}

async fn serve(mut socket: TcpStream, pods: Pods, report: mpsc::UnboundedSender<String>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = socket.read_u8().await else { return };
        head.push(byte);
    }
    let line = String::from_utf8_lossy(&head).lines().next().unwrap().to_owned();
    let path = line.split(' ').nth(1).unwrap().trim_start_matches("/api/v1/namespaces/dev/").to_owned();
    let _ = report.send(line);
    let pods = pods.lock().unwrap().clone();
    let named = |name: &str| pods.iter().find(|pod| pod.name == name);
    let body = match path.split(['/', '?']).collect::<Vec<_>>()[..] {
        ["", "version"] => json!({
            "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "gitTreeState": "", "buildDate": "",
            "goVersion": "", "compiler": "", "platform": ""
        }),
        ["services", "web"] => json!({
            "kind": "Service", "apiVersion": "v1", "metadata": {"name": "web"},
            "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}
        }),
        ["pods", ref rest @ ..] if rest.is_empty() || path.contains('?') => json!({
            "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods.iter().map(Pod::json).collect::<Vec<_>>()
        }),
        ["pods", name] if named(name).is_some() => named(name).unwrap().json(),
        ["pods", name, "portforward"] if named(name).is_some() => {
            let pod = named(name).unwrap().clone();
            let _ = forward(socket, pod).await; // ends as the client wants it
            return;
        }
        _ => json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found"
        }),
    };
    let code = body["code"].as_u64().unwrap_or(200);
    let body = body.to_string();
    let head = format!("HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nConnection: close\r\n");
    let _ = socket.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
}

/// A data frame of SPDY/3.1.
fn data(stream: u32, fin: bool, bytes: &[u8]) -> Vec<u8> {
    let mut frame = stream.to_be_bytes().to_vec();
    frame.extend(((u32::from(fin) << 24) | bytes.len() as u32).to_be_bytes());
    frame.extend(bytes);
    frame
}

/// The pod's side of one port-forward: what comes is sent back behind the pod's name, until FIN.
async fn forward(mut socket: TcpStream, pod: Pod) -> std::io::Result<()> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
        X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n";
    socket.write_all(head.as_bytes()).await?;
    let reply = |stream: u8| [0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, stream];
    loop {
        let mut head = [0; 8];
        socket.read_exact(&mut head).await?;
        let length = u32::from_be_bytes(head[4..].try_into().unwrap()) & 0xff_ffff;
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload).await?;
        let fin = head[4] & 1 != 0;
        match head {
            // SYN_STREAM of the data stream, the second of the two.
            [0x80, 3, 0, 1, ..] if payload[3] == 3 => {
                socket.write_all(&[reply(1), reply(3)].concat()).await?;
                if !pod.listens {
                    let text = b"failed to execute portforward: dial tcp4 127.0.0.1:8080: connect: connection refused";
                    let reset = [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 5];
                    let frames = [data(3, true, b""), data(1, false, text), reset.to_vec()].concat();
                    socket.write_all(&frames).await?;
                }
            }
            [0, 0, 0, 3, ..] if pod.listens => {
                if !payload.is_empty() {
                    let answer = [pod.name.as_bytes(), b":", &payload].concat();
                    socket.write_all(&data(3, false, &answer)).await?;
                }
                if fin {
                    socket.write_all(&[data(3, true, b""), data(1, true, b"")].concat()).await?;
                }
            }
            _ => {}
        }
    }
}

/// The command on a free port.
struct Scene {
    api: Api,
    pods: Pods,
    address: SocketAddr,
    connections: Connections,
    running: tokio::task::JoinHandle<ForwardingError>,
}

async fn scene(target: &str, port: &str, pods: impl IntoIterator<Item = Pod>) -> Scene {
    let pods: Pods = Arc::new(Mutex::new(pods.into_iter().collect()));
    let api = Api::start("127.0.0.1:0", pods.clone());
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", api.address)}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": "dev"}}]
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kubeconfig.to_string()).unwrap();
    let options = Options { kubeconfig: Some(file.path().to_owned()), ..Options::default() };
    let cluster = within(connect(&options)).await.unwrap();
    let wanted = Wanted {
        target: target.parse().unwrap(),
        ports: vec![port.parse().unwrap()],
        addresses: vec!["127.0.0.1".parse().unwrap()],
        transport: Transport::Spdy,
    };
    let forwarding = within(start(cluster, wanted, &mut Steps::default())).await.unwrap();
    let (address, port) = forwarding.places().next().unwrap();
    assert_eq!(port, 8080, "the Service's port leads to the pod's");
    let connections = Connections::default();
    let accepted = connections.clone();
    let running = tokio::spawn(async move { forwarding.serve(&accepted, &mut JoinSet::new()).await });
    Scene { api, pods, address, connections, running }
}

impl Scene {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn ask(&self) -> String {
        ask(&mut self.connect().await).await
    }
}

/// Says `hi` and reads the answer to it.
async fn ask(socket: &mut TcpStream) -> String {
    socket.write_all(b"hi").await.unwrap();
    let mut answer = [0; 8];
    within(socket.read_exact(&mut answer)).await.unwrap();
    String::from_utf8(answer.to_vec()).unwrap()
}

async fn assert_reset(socket: &mut TcpStream) {
    let error = within(socket.read(&mut [0; 1])).await.expect_err("no clean end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn data_and_ends_arrive() {
    let scene = scene("svc/web", ":80", [Pod::new("web-1")]).await;
    let mut socket = scene.connect().await;
    assert_eq!(ask(&mut socket).await, "web-1:hi");
    socket.shutdown().await.unwrap();
    assert_eq!(within(socket.read(&mut [0; 1])).await.unwrap(), 0);
    within(scene.connections.reset_all()).await;
}

#[tokio::test]
async fn a_refused_connection_ends_nothing_else() {
    let scene = scene("svc/web", ":80", [Pod::new("web-1")]).await;
    let mut open = scene.connect().await;
    assert_eq!(ask(&mut open).await, "web-1:hi");
    scene.pods.lock().unwrap()[0].listens = false;
    let mut refused = scene.connect().await;
    let _ = refused.write_all(b"hi").await;
    assert_reset(&mut refused).await;
    assert_eq!(ask(&mut open).await, "web-1:hi", "the others go on");
    scene.pods.lock().unwrap()[0].listens = true;
    assert_eq!(scene.ask().await, "web-1:hi", "so does the command");
}

#[tokio::test]
async fn a_pod_on_its_way_out_is_left_and_nothing_that_was_said_is_lost() {
    let scene = scene("svc/web", ":80", [Pod::new("web-1")]).await;
    assert_eq!(scene.ask().await, "web-1:hi");
    {
        let mut pods = scene.pods.lock().unwrap();
        pods[0] = Pod { listens: false, deleted: true, ..Pod::new("web-1") };
        pods.push(Pod::new("web-2"));
    }
    assert_eq!(scene.ask().await, "web-2:hi", "what was said to web-1 was said again");
    scene.pods.lock().unwrap().remove(0);
    assert_eq!(scene.ask().await, "web-2:hi");
    *scene.pods.lock().unwrap() = vec![Pod::new("web-3")];
    assert_eq!(scene.ask().await, "web-3:hi", "web-2 was not even there any more");
}

#[tokio::test]
async fn without_a_ready_pod_connections_wait() {
    let mut scene = scene("svc/web", ":80", [Pod::new("web-1")]).await;
    *scene.pods.lock().unwrap() = vec![Pod { ready: false, ..Pod::new("web-2") }];
    let mut waiting = scene.connect().await;
    waiting.write_all(b"hi").await.unwrap();
    scene.api.was_asked("labelSelector").await; // the first search, at the start
    scene.api.was_asked("labelSelector").await;
    scene.pods.lock().unwrap()[0].ready = true;
    let mut answer = [0; 8];
    within(waiting.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"web-2:hi");
}

#[tokio::test]
async fn when_the_api_server_restarts_open_connections_are_reset_and_new_ones_wait() {
    let mut scene = scene("svc/web", ":80", [Pod::new("web-1")]).await;
    let mut open = scene.connect().await;
    assert_eq!(ask(&mut open).await, "web-1:hi");
    let address = scene.api.address.to_string();
    drop(std::mem::replace(&mut scene.api, Api::start("127.0.0.1:0", scene.pods.clone())));
    assert_reset(&mut open).await;
    let mut waiting = scene.connect().await;
    waiting.write_all(b"hi").await.unwrap();
    scene.api = Api::start(&address, scene.pods.clone());
    let mut answer = [0; 8];
    within(waiting.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"web-1:hi");
}

#[tokio::test]
async fn a_named_pod_that_cannot_come_back_ends_the_command() {
    let scene = scene("web-1", ":http", [Pod::new("web-1")]).await;
    scene.pods.lock().unwrap().clear();
    assert_reset(&mut scene.connect().await).await;
    let error = within(scene.running).await.unwrap();
    assert!(matches!(error, ForwardingError::Gone(_)), "{error:?}");
}

#[tokio::test]
async fn a_named_pod_that_may_come_back_is_waited_for() {
    let pod = Pod { owner: "StatefulSet", ..Pod::new("web-1") };
    let mut scene = scene("web-1", ":http", [pod.clone()]).await;
    assert_eq!(scene.ask().await, "web-1:hi");
    scene.pods.lock().unwrap().clear();
    let mut waiting = scene.connect().await;
    waiting.write_all(b"hi").await.unwrap();
    // At the start, perhaps the look at what is known, and then in vain.
    for _ in 0..4 {
        scene.api.was_asked("pods/web-1 ").await;
    }
    scene.pods.lock().unwrap().push(pod);
    let mut answer = [0; 8];
    within(waiting.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"web-1:hi");
}
