//! Connections the kernel redirected to us: ask where they wanted to go, and take them there.

use tokio::net::{TcpListener, TcpStream};

use super::orig_dst::orig_dst;
use super::{Connections, forward};
use crate::addr::Target;
use crate::tunnel::Connect;

/// Serves a listener that only the redirect rules lead to.
pub async fn serve(listener: TcpListener, connections: &Connections, tunnel: impl Connect) {
    connections.accept(listener, |socket| redirected(socket, tunnel.clone())).await;
}

async fn redirected(socket: TcpStream, tunnel: impl Connect) {
    let target = match orig_dst(&socket) {
        Ok(destination) => Target::from(destination),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "connection refused");
            return;
        }
    };
    tracing::debug!(%target, "redirected");
    // The application is connected already; what it sends first travels with the question.
    match tunnel.connect(&target).await {
        Ok(flow) => forward(socket, flow, &target).await,
        Err(error) => tracing::debug!(%target, error = &error as &dyn std::error::Error, "no tunnel"),
    }
}
