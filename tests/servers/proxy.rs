//! A connection to a server that a test can break: it stands on a port of its own and passes everything on.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What becomes of what comes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    /// It is passed on.
    #[default]
    Open,
    /// Requests are passed on, and where a reply would be, the connection ends.
    ResetOnReply,
}

/// A proxy, for as long as it is held.
pub struct Proxy {
    port: u16,
    passage: Arc<watch::Sender<Passage>>,
    _connections: JoinSet<()>,
}

impl Proxy {
    /// One in front of this port.
    pub async fn start(to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let port = listener.local_addr().expect("has an address").port();
        let passage = Arc::new(watch::Sender::new(Passage::Open));
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, to, Arc::clone(&passage)));
        Self { port, passage, _connections: connections }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, also on connections that are there.
    pub fn set(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }
}

async fn accept(listener: TcpListener, to: u16, passage: Arc<watch::Sender<Passage>>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let passage = Arc::clone(&passage);
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else { return };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                () = pass(from_client, to_server, |_| true, &passage) => {}
                () = pass(from_server, to_client, |passage| passage == Passage::Open, &passage) => {}
            }
        });
    }
}

/// Passes bytes on until either side ends, or they may not pass.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    may: fn(Passage) -> bool,
    passage: &watch::Sender<Passage>,
) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if !may(*passage.borrow()) || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
