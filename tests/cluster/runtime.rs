//! What our client relies on in the container runtime's SPDY, seen on a real one: by a client of a few lines that shares no
//! code with ours, and does what ours never would. `point N`: of the list in `docs/port-forward.md`.

use std::time::{Duration, Instant};

use http::{Method, Request};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use kshuttle::cluster::port_forward::{
    PortForwardError, PortForwardStream,
    Transport::{self, Spdy, V4, Websocket},
};
use kshuttle_test_support::within;
use kube::client::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

use crate::scene::{Scene, drain, with_bench};

const SOURCE: u16 = 7001;
const ECHO: u16 = 7003;
const CANCEL: u32 = 5;

/// One raw connection to the runtime.
struct Wire {
    io: TokioIo<Upgraded>,
    next_id: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Reply(u32),
    Data { id: u32, fin: bool, bytes: Vec<u8> },
    Reset { id: u32, status: u32 },
    Ping,
    GoAway,
}

impl Wire {
    async fn open(scene: &Scene) -> Self {
        let path = format!("/api/v1/namespaces/default/pods/{}/portforward", scene.pod);
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("content-length", "0")
            .header("x-stream-protocol-version", "portforward.k8s.io");
        let response = scene.cluster.client().send(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 101);
        Self { io: TokioIo::new(hyper::upgrade::on(response).await.unwrap()), next_id: 1 }
    }

    /// SYN_STREAM with a stored header block; the first also begins the zlib stream, by the dictionary's checksum.
    fn syn(&mut self, kind: &str, port: u16, request: u32) -> (u32, Vec<u8>) {
        let id = self.next_id;
        self.next_id += 2;
        let headers =
            [("streamtype", kind), ("port", &port.to_string()), ("requestid", &request.to_string())];
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut block = if id == 1 { vec![0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2] } else { vec![] };
        block.push(0);
        block.extend((plain.len() as u16).to_le_bytes());
        block.extend((!(plain.len() as u16)).to_le_bytes());
        block.extend(plain);
        block.extend([0, 0, 0, 0xff, 0xff]);
        let body = [&id.to_be_bytes()[..], &[0; 6], &block].concat();
        (id, control(1, &body))
    }

    /// Both streams and these first bytes in one write; the data stream's id.
    async fn pair(&mut self, port: u16, bytes: &[u8]) -> u32 {
        let request = self.next_id;
        let (error, mut frames) = self.syn("error", port, request);
        frames.extend(data(error, b"", true));
        let (id, syn) = self.syn("data", port, request);
        frames.extend(syn);
        frames.extend(data(id, bytes, false));
        self.send(&frames).await;
        id
    }

    async fn send(&mut self, bytes: &[u8]) {
        within(self.io.write_all(bytes)).await.unwrap();
        within(self.io.flush()).await.unwrap();
    }

    /// `None` is the end.
    async fn next(&mut self) -> Option<Frame> {
        let mut header = [0; 8];
        if within(self.io.read_exact(&mut header)).await.is_err() {
            return None;
        }
        let mut body = vec![0; u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize];
        within(self.io.read_exact(&mut body)).await.unwrap();
        let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        let first = u32::from_be_bytes(header[..4].try_into().unwrap());
        Some(match first {
            0x8003_0002 => Frame::Reply(word(0)),
            0x8003_0003 => Frame::Reset { id: word(0), status: word(4) },
            0x8003_0006 => Frame::Ping,
            0x8003_0007 => Frame::GoAway,
            id if id >> 31 == 0 => Frame::Data { id, fin: header[4] & 1 == 1, bytes: body },
            other => panic!("a frame {other:#x} that no runtime sends"),
        })
    }
}

fn data(id: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let length = (u32::from(fin) << 24) | bytes.len() as u32;
    [&id.to_be_bytes()[..], &length.to_be_bytes(), bytes].concat()
}

fn control(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[0x80, 3, 0, kind][..], &(body.len() as u32).to_be_bytes(), body].concat()
}

fn reset(id: u32) -> Vec<u8> {
    control(3, &[id.to_be_bytes(), CANCEL.to_be_bytes()].concat())
}

/// Point 2: which orders there are is the runtime's affair; that both replies and the bytes come is not.
pub(crate) fn replies_and_data_come_in_any_order() {
    with_bench(async |scene| {
        let (mut error_last, mut data_first) = (0, 0);
        for _ in 0..20 {
            let mut wire = Wire::open(&scene).await;
            for _ in 0..10 {
                let id = wire.pair(ECHO, b"first bytes").await;
                let (mut replies, mut back) = (Vec::new(), Vec::new());
                while replies.len() < 2 || back != b"first bytes" {
                    match wire.next().await.expect("it goes on") {
                        Frame::Reply(replied) => replies.push(replied),
                        Frame::Data { id: of, bytes, fin: false } if of == id => {
                            data_first += usize::from(replies.len() < 2);
                            back.extend(bytes);
                        }
                        other => panic!("{other:?}"),
                    }
                }
                error_last += usize::from(replies[1] == id - 2);
                wire.send(&[reset(id), reset(id - 2)].concat()).await;
            }
        }
        println!(
            "  of 200 pairs: the error stream's reply last in {error_last}, data before a reply in {data_first}"
        );
    });
}

/// Point 3: the header blocks of 2000 streams are one valid zlib stream to the runtime, though none is compressed.
pub(crate) fn two_thousand_streams_fit_one_connection() {
    with_bench(async |scene| {
        let mut wire = Wire::open(&scene).await;
        for number in 0..1000u32 {
            let id = wire.pair(ECHO, &number.to_be_bytes()).await;
            let mut back = Vec::new();
            while back.len() < 4 {
                match wire.next().await.expect("it goes on") {
                    Frame::Data { id: of, bytes, .. } if of == id => back.extend(bytes),
                    Frame::Reply(of) if of == id || of == id - 2 => {}
                    // Of the pair before, which we reset.
                    Frame::Data { id: of, .. } | Frame::Reply(of) | Frame::Reset { id: of, .. }
                        if of < id - 2 => {}
                    other => panic!("in pair {number}: {other:?}"),
                }
            }
            assert_eq!(back, number.to_be_bytes());
            wire.send(&[reset(id), reset(id - 2)].concat()).await;
        }
        assert_eq!(wire.next_id, 4001);
    });
}

/// Point 12: after our reset the runtime goes on sending for up to a second; the connection is none the worse.
pub(crate) fn a_reset_download_runs_on_beside_the_next_pair() {
    with_bench(async |scene| {
        let mut wire = Wire::open(&scene).await;
        let left = wire.pair(SOURCE, b"").await;
        let mut before = 0;
        while before < 4 << 20 {
            if let Frame::Data { bytes, .. } = wire.next().await.expect("it goes on") {
                before += bytes.len();
            }
        }
        wire.send(&[reset(left), reset(left - 2)].concat()).await;
        let next = wire.pair(ECHO, b"!").await;
        let (mut frames, mut flood) = (0, 0);
        loop {
            match wire.next().await.expect("it goes on") {
                Frame::Data { id, bytes, .. } if id == left => {
                    (frames, flood) = (frames + 1, flood + bytes.len())
                }
                Frame::Data { id, bytes, fin: false } if id == next => break assert_eq!(bytes, b"!"),
                Frame::Reply(id) if id == next || id == next - 2 => {}
                Frame::Data { id, .. } | Frame::Reset { id, .. } if id == left || id == left - 2 => {}
                other => panic!("{other:?}"),
            }
        }
        println!("  {frames} frames, {flood} bytes after our reset and before the next pair's answer");
    });
}

/// Point 23: an error stream without its data stream gets a text after half a minute, and no end.
pub(crate) fn half_a_pair_is_told_without_an_end() {
    with_bench(async |scene| {
        let mut wire = Wire::open(&scene).await;
        let (id, syn) = wire.syn("error", ECHO, 0);
        wire.send(&syn).await;
        let mut text = Vec::new();
        while text.is_empty() {
            match timeout(Duration::from_secs(5), wire.next()).await {
                Err(_) => wire.send(&control(6, &1u32.to_be_bytes())).await,
                Ok(Some(Frame::Data { id: of, bytes, fin: false })) if of == id => text = bytes,
                Ok(Some(Frame::Reply(_) | Frame::Ping)) => {}
                Ok(other) => panic!("{other:?}"),
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        println!("  {text}");
        assert!(text.contains("timed out waiting for streams"), "{text}");
        // The answer to a ping overtakes nothing: an end would have come before it.
        wire.send(&control(6, &3u32.to_be_bytes())).await;
        assert_eq!(wire.next().await, Some(Frame::Ping));
    });
}

/// After how many seconds the box's containerd ends idle streams; `None` where that is not a matter of seconds.
pub(crate) fn idle() -> Option<Duration> {
    let text = std::env::var("KSHUTTLE_BOX_STREAM_IDLE").ok()?;
    text.strip_suffix('s')?.parse().ok().map(Duration::from_secs)
}

async fn echoed(scene: &Scene, way: Transport) -> PortForwardStream {
    let mut stream = scene.open(way, ECHO).await;
    echo(&mut stream).await;
    stream
}

async fn echo(stream: &mut PortForwardStream) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(within(stream.read_u8()).await.unwrap(), b'x');
}

/// Point 25: our pings keep the runtime's idle timer from firing; without any it resets both streams and says GOAWAY; the
/// old protocol has nothing that counts but data.
pub(crate) fn pings_hold_off_the_idle_timer() {
    with_bench(async |scene| {
        let alive = async |way| {
            let mut stream = echoed(&scene, way).await;
            sleep(idle().unwrap() * 9 / 4).await; // nothing but pings: what is tested
            echo(&mut stream).await;
        };
        let silent = async {
            let begin = Instant::now();
            let mut wire = Wire::open(&scene).await;
            let id = wire.pair(ECHO, b"x").await;
            let mut seen = Vec::new();
            while let Some(frame) = wire.next().await {
                if !matches!(frame, Frame::Reply(_) | Frame::Data { fin: false, .. }) {
                    seen.push(frame);
                }
            }
            println!("  without pings, after {:.1} s: {seen:?}", begin.elapsed().as_secs_f32());
            for id in [id, id - 2] {
                assert!(seen.contains(&Frame::Reset { id, status: CANCEL }), "{seen:?}");
            }
            assert_eq!(seen.last(), Some(&Frame::GoAway));
            assert!(begin.elapsed() >= idle().unwrap());
        };
        let old = async {
            let begin = Instant::now();
            let mut stream = echoed(&scene, V4).await;
            let (_, end) = drain(&mut stream).await;
            println!("  v4, after {:.1} s: {end:?}", begin.elapsed().as_secs_f32());
            assert!(matches!(end, Err(PortForwardError::ConnectionLost(_))), "{end:?}");
            assert!(begin.elapsed() >= idle().unwrap());
        };
        let tunnel = async {
            if scene.ways().contains(&Websocket) {
                alive(Websocket).await;
            }
        };
        tokio::join!(alive(Spdy), tunnel, silent, old);
    });
}

/// Points 17 and 25: this program stands still, as a laptop does that sleeps, until the runtime has given the streams up.
/// What it said lies in the socket and is heard at once, though the API server may keep the WebSocket open.
pub(crate) fn after_standing_still_the_end_is_heard_at_once() {
    with_bench(async |scene| {
        let ways = scene.ways();
        let scene = std::sync::Arc::new(scene);
        let sleepers: Vec<_> = ways
            .into_iter()
            .map(|way| {
                let scene = scene.clone();
                std::thread::spawn(move || stand_still(&scene, way))
            })
            .collect();
        tokio::task::block_in_place(|| {
            for sleeper in sleepers {
                sleeper.join().unwrap();
            }
        });
    });
}

fn stand_still(scene: &Scene, way: Transport) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut stream = runtime.block_on(echoed(scene, way));
    std::thread::sleep(idle().unwrap() * 5 / 4); // nobody polls: no ping leaves
    let begin = Instant::now();
    let (_, end) = runtime.block_on(drain(&mut stream));
    println!("  {way}: {end:?} after {} ms", begin.elapsed().as_millis());
    match (way, end) {
        (V4, Err(PortForwardError::ConnectionLost(_)))
        | (_, Err(PortForwardError::Reset { status: Some(CANCEL), .. } | PortForwardError::GoAway { .. })) => {
        }
        (_, other) => panic!("{way}: {other:?}"),
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "as late as by a missing pong");
}
