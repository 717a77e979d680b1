//! Plain SSH forwarding (`direct-tcpip`, RFC 4254 §7.2) for stock clients: `ssh -W`, `-L`, `-D`.
//!
//! The lesser way: one channel per connection, and while a target does not read, russh holds the whole session back
//! once the channel's buffer is full. Our own client uses flows instead.

use kshuttle_wire::flow::{ConnectError, server::connect};
use kshuttle_wire::relay::{arm, disarm};
use russh::server::{ChannelOpenHandle, Msg};
use russh::{Channel, ChannelMsg, ChannelOpenFailure};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Connects and answers the channel request, then copies until both directions have ended.
pub async fn serve(channel: Channel<Msg>, reply: ChannelOpenHandle, host: String, port: u32) {
    let connected = match u16::try_from(port) {
        Ok(port) => connect(&host, port).await,
        Err(_) => Err(ConnectError::BadTarget),
    };
    match connected {
        Ok(socket) => {
            reply.accept().await;
            relay(socket, channel).await;
        }
        Err(error) => {
            tracing::debug!(%error, "direct-tcpip not connected");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    }
}

/// SSH has no reset: an early end of the target closes the channel without EOF, one of the client resets the target.
async fn relay(mut socket: TcpStream, channel: Channel<Msg>) {
    arm(&socket);
    let _ = socket.set_nodelay(true); // an optimisation
    let (mut from_client, to_client) = channel.split();
    let (mut read, mut write) = socket.split();
    let upload = async {
        loop {
            match from_client.wait().await {
                Some(ChannelMsg::Data { data }) => write.write_all(&data).await.map_err(drop)?,
                Some(ChannelMsg::Eof) => return write.shutdown().await.map_err(drop),
                Some(ChannelMsg::Close) | None => return Err(()),
                Some(_) => {}
            }
        }
    };
    let download = async {
        let mut sink = to_client.make_writer();
        tokio::io::copy(&mut read, &mut sink).await.map_err(drop)?;
        to_client.eof().await.map_err(drop)
    };
    if tokio::try_join!(upload, download).is_ok() {
        disarm(&socket);
    }
    let _ = to_client.close().await; // the session may have ended first
}
