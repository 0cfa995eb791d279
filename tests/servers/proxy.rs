//! A connection to a server that a test can break: it stands on a port of its own and passes everything on, or does
//! what it is told, from then on and also to connections that are there.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What becomes of what comes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    /// It is passed on.
    #[default]
    Open,
    /// It is passed on this much later, each way.
    Late(Duration),
    /// It is passed on with so many bytes a second, each way.
    Narrow(u64),
    /// Connections are reset, those that are there and each that is made.
    Reset,
    /// Requests are passed on, and where the reply to a write would be, the connection is reset: the server has done
    /// it. What the reply to a write is depends on the [`Protocol`].
    ResetOnReply,
    /// Connections stay, and nothing passes. What was sent meanwhile passes when it is over.
    BlackHole,
    /// Clients are told that no more replies come, and can go on to send.
    HalfClosed,
}

/// How a reply to a write is told from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// It is not: whatever comes back.
    #[default]
    Any,
    /// What comes back after a COMMIT of Bolt.
    Bolt,
    /// Headers of HTTP/2 from the server, which it sends when a call has come to its end.
    Grpc,
}

/// COMMIT in Bolt 4 and 5: a chunk of two bytes, a structure without fields of the signature 0x12, the end.
const COMMIT: [u8; 6] = [0, 2, 0xB0, 0x12, 0, 0];
/// The length, the kind, the flags and the stream of a frame of HTTP/2, and the kind of headers.
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;

/// A proxy, for as long as it is held.
pub struct Proxy {
    port: u16,
    passage: watch::Sender<Passage>,
    lost: Arc<AtomicU64>,
    _connections: JoinSet<()>,
}

impl Proxy {
    /// One in front of this port.
    pub async fn start(to: u16) -> Self {
        Self::speaking(Protocol::Any, to).await
    }

    /// One in front of this port, that knows what is said.
    pub async fn speaking(protocol: Protocol, to: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let port = listener.local_addr().expect("has an address").port();
        let passage = watch::Sender::new(Passage::Open);
        let lost = Arc::new(AtomicU64::new(0));
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, to, protocol, passage.subscribe(), Arc::clone(&lost)));
        Self { port, passage, lost, _connections: connections }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, also on connections that are there.
    pub fn set(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }

    /// How many replies were lost to [`Passage::ResetOnReply`].
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: TcpListener,
    to: u16,
    protocol: Protocol,
    passage: watch::Receiver<Passage>,
    lost: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let way =
            Way { protocol, passage: passage.clone(), lost: Arc::clone(&lost), committing: AtomicBool::new(false) };
        connections.spawn(async move {
            let _ = way.carry(client, to).await;
        });
    }
}

/// One connection.
struct Way {
    protocol: Protocol,
    passage: watch::Receiver<Passage>,
    lost: Arc<AtomicU64>,
    /// A commit went to the server, and its reply is to be lost.
    committing: AtomicBool,
}

impl Way {
    async fn carry(&self, client: TcpStream, to: u16) -> io::Result<()> {
        if *self.passage.borrow() == Passage::Reset {
            return client.set_zero_linger();
        }
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // The first end is the end of both.
        tokio::select! {
            end = self.forth(from_client, to_server) => end,
            end = self.back(from_server, to_client) => end,
        }
    }

    async fn forth(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut passage = self.passage.clone();
        let mut bytes = vec![0; 16 * 1024];
        loop {
            let Some(read) = next(&mut from, &mut bytes, &mut passage).await? else {
                // Dropped with what is unsent, by either half: that is a reset.
                return from.as_ref().set_zero_linger();
            };
            let now = *passage.borrow();
            let is_commit = bytes[..read].windows(COMMIT.len()).any(|window| window == COMMIT);
            if now == Passage::ResetOnReply && (self.protocol != Protocol::Bolt || is_commit) {
                self.committing.store(true, Ordering::SeqCst);
            }
            hold_up(now, read).await;
            to.write_all(&bytes[..read]).await?;
        }
    }

    async fn back(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
        let mut passage = self.passage.clone();
        let mut bytes = vec![0; 16 * 1024];
        let mut frames = Frames::default();
        let mut open = true;
        loop {
            let Some(read) = next(&mut from, &mut bytes, &mut passage).await? else {
                return to.as_ref().set_zero_linger();
            };
            let now = *passage.borrow();
            let ends = self.protocol != Protocol::Grpc || frames.have_headers(&bytes[..read]);
            if now == Passage::ResetOnReply && ends && self.committing.load(Ordering::SeqCst) {
                self.lost.fetch_add(1, Ordering::SeqCst);
                return to.as_ref().set_zero_linger();
            }
            if now != Passage::ResetOnReply {
                self.committing.store(false, Ordering::SeqCst);
            }
            if now == Passage::HalfClosed && open {
                to.shutdown().await?;
                open = false;
            }
            hold_up(now, read).await;
            if open {
                to.write_all(&bytes[..read]).await?;
            }
        }
    }
}

/// What comes next and may pass; `None` when the connection is to be reset.
async fn next(
    from: &mut OwnedReadHalf,
    bytes: &mut [u8],
    passage: &mut watch::Receiver<Passage>,
) -> io::Result<Option<usize>> {
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    loop {
        let now = *passage.borrow_and_update();
        if now == Passage::Reset {
            return Ok(None);
        }
        tokio::select! {
            biased;
            changed = passage.changed() => changed.map_err(|_| gone())?,
            read = from.read(bytes), if now != Passage::BlackHole => match read? {
                0 => return Err(gone()),
                read => return Ok(Some(read)),
            },
        }
    }
}

async fn hold_up(passage: Passage, bytes: usize) {
    match passage {
        Passage::Late(latency) => sleep(latency).await,
        Passage::Narrow(rate) => sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)).await,
        _ => {}
    }
}

/// The frames of HTTP/2, as they come by.
#[derive(Default)]
struct Frames {
    head: Vec<u8>,
    /// Bytes that are left of the frame.
    left: usize,
}

impl Frames {
    /// Whether headers begin in these bytes, which follow those before.
    fn have_headers(&mut self, mut bytes: &[u8]) -> bool {
        let mut found = false;
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            let missing = (FRAME_HEAD - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            if let [a, b, c, kind, ..] = self.head[..]
                && self.head.len() == FRAME_HEAD
            {
                self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                found |= kind == HEADERS;
                self.head.clear();
            }
        }
        found
    }
}
