//! A way to a Bolt server on which the replies to commits get lost.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// COMMIT in Bolt 4: a chunk of two bytes, a structure without fields of the signature 0x12, the end.
const COMMIT: [u8; 6] = [0, 2, 0xB0, 0x12, 0, 0];

/// What was set, and what happened.
#[derive(Default)]
struct State {
    losing: AtomicBool,
    lost: AtomicU64,
}

/// A port that leads to another one. Gone when it is dropped.
pub(crate) struct LossyCommits {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl LossyCommits {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let own = listener.local_addr().expect("has an address").port();
        let state = Arc::new(State::default());
        let accepting = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(carry(client, port, Arc::clone(&state)));
                }
            }
        });
        Self { port: own, state, accepting }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on, a connection is reset when the server has answered to a commit, and nobody hears the answer.
    pub(crate) fn lose(&self, losing: bool) {
        self.state.losing.store(losing, Ordering::SeqCst);
    }

    /// How many replies got lost.
    pub(crate) fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl Drop for LossyCommits {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(client: TcpStream, port: u16, state: Arc<State>) {
    let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await else { return };
    client.set_zero_linger().expect("can be reset");
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let committing = AtomicBool::new(false);
    // The first end is the end of both.
    tokio::select! {
        _ = forth(from_client, to_server, &state, &committing) => {}
        _ = back(from_server, to_client, &state, &committing) => {}
    }
}

async fn forth(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    committing: &AtomicBool,
) -> io::Result<()> {
    let mut bytes = [0; 1 << 14];
    loop {
        let read = from.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        let commit = bytes[..read].windows(COMMIT.len()).any(|window| window == COMMIT);
        if commit && state.losing.load(Ordering::SeqCst) {
            committing.store(true, Ordering::SeqCst);
        }
        to.write_all(&bytes[..read]).await?;
    }
}

async fn back(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &State,
    committing: &AtomicBool,
) -> io::Result<()> {
    let mut bytes = [0; 1 << 14];
    loop {
        let read = from.read(&mut bytes).await?;
        if committing.load(Ordering::SeqCst) {
            state.lost.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        if read == 0 {
            return Ok(());
        }
        to.write_all(&bytes[..read]).await?;
    }
}
