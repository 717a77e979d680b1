//! HTTP/2 in one SSH channel with the pod's real server, with as much to do both ways as fits.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use http::{Method, Request, Version};
use kshuttle_test_support::net::{flood, server, swallow};
use kshuttle_test_support::sshd::Sshd;
use kshuttle_test_support::within;
use kshuttle_wire::link::{self, Limits, Token};
use kshuttle_wire::ssh;
use russh::client::{self, Handle};
use russh::keys::{Algorithm, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// A session over a link, with settings of ours, in its flows channel; the handle keeps it.
async fn session(pod: &Sshd, key: PrivateKey) -> (Handle<Trusting>, SendRequest<Bytes>, PingPong) {
    let config = client::Config {
        window_size: ssh::LINK_WINDOW,
        maximum_packet_size: ssh::MAX_PACKET,
        channel_buffer_size: ssh::LINK_CHANNEL_BUFFER,
        preferred: ssh::preferred(),
        ..Default::default()
    };
    let (stream, link) = link::connect(Token::generate().unwrap(), Limits::default());
    let connection = pod.dial().await;
    tokio::spawn(async move { link.attach(connection).await.unwrap().run().await });
    let mut handle = client::connect_stream(Arc::new(config), stream, Trusting).await.unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    assert!(handle.authenticate_publickey("kshuttle", key).await.unwrap().success());
    let channel = handle.channel_open_session().await.unwrap();
    channel.request_subsystem(false, ssh::FLOWS_SUBSYSTEM).await.unwrap();
    let (requests, mut connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size((1 << 31) - 1)
        .max_frame_size(64 << 10)
        .handshake(channel.into_stream())
        .await
        .unwrap();
    let pings = connection.ping_pong().unwrap();
    tokio::spawn(connection);
    (handle, requests, pings)
}

async fn upload(mut requests: SendRequest<Bytes>, to: String) {
    let request =
        Request::builder().method(Method::CONNECT).version(Version::HTTP_2).uri(to).body(()).unwrap();
    let (_response, mut send) = requests.send_request(request, false).unwrap();
    let block = Bytes::from(vec![7; 64 << 10]);
    loop {
        send.reserve_capacity(block.len());
        let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
        if send.send_data(block.slice(..room.min(block.len())), false).is_err() {
            return;
        }
    }
}

async fn download(mut requests: SendRequest<Bytes>, from: String) {
    let request =
        Request::builder().method(Method::CONNECT).version(Version::HTTP_2).uri(from).body(()).unwrap();
    let (response, _send) = requests.send_request(request, false).unwrap();
    let mut body = response.await.unwrap().into_body();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
}

/// An end of HTTP/2 reads nothing while it must answer and cannot write. If SSH, too, wrote nothing while nobody takes what it
/// has read, both would wait for each other for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn answers_that_cannot_leave_at_once_do_not_stop_a_session() {
    let key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519).unwrap();
    let pod = Sshd::start(&key.public_key().to_openssh().unwrap()).await;
    let (_handle, requests, mut pings) = session(&pod, key).await;
    let (flood, swallow) = (server(flood).await.to_string(), server(swallow).await.to_string());
    for _ in 0..8 {
        tokio::spawn(upload(requests.clone(), swallow.clone()));
        tokio::spawn(download(requests.clone(), flood.clone()));
    }
    for _ in 0..200 {
        within(pings.ping(Ping::opaque())).await.unwrap();
    }
}
