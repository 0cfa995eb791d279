//! A drain of a store that takes several writes in one call: all of them arrive, in their order, and one that never can
//! keeps no other from arriving.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use seawall::backend::{Applied, Backend, BackendError, BackendName, ErrorKind, FencedWrite, Health, Stored};
use seawall::backends::{GraphBackend, GraphConfig};
use seawall::config::Config;
use seawall::fallback::Mode;
use seawall::operation::{Version, Write};
use seawall::record::Key;
use support::{History, Rig, Site, n, properties, record};
use tokio::time::sleep;

const MOST: usize = 8;

/// A store that takes ten milliseconds for a call, whatever is in it.
struct Wide {
    inner: GraphBackend,
    calls: AtomicUsize,
    largest: AtomicUsize,
    /// The kind of error that it has for this key.
    refuses: Option<(&'static str, ErrorKind)>,
    /// Whether one refusal is one of all writes of a call.
    all_or_none: bool,
}

impl Wide {
    fn new(refuses: Option<(&'static str, ErrorKind)>, all_or_none: bool) -> Arc<Self> {
        let inner = GraphBackend::in_memory(GraphConfig::default());
        let (calls, largest) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { inner, calls, largest, refuses, all_or_none })
    }

    async fn take(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        match self.refuses {
            Some((key, kind)) if write.changes.iter().any(|change| change.key().as_str() == key) => {
                Err(BackendError::new(kind, "not this one"))
            }
            _ => self.inner.apply(write).await,
        }
    }
}

#[async_trait]
impl Backend for Wide {
    fn name(&self) -> BackendName {
        self.inner.name()
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(10)).await;
        self.take(write).await
    }

    fn max_batch(&self) -> usize {
        MOST
    }

    async fn apply_batch(&self, writes: &[FencedWrite]) -> Result<Vec<Result<Applied, BackendError>>, BackendError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.largest.fetch_max(writes.len(), Ordering::SeqCst);
        sleep(Duration::from_millis(10)).await;
        let mut answers = Vec::new();
        for write in writes {
            match self.take(write).await {
                Err(error) if self.all_or_none => return Err(error),
                answer => answers.push(answer),
            }
        }
        Ok(answers)
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.inner.read(keys).await
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        self.inner.probe().await
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.inner.newest_version().await
    }
}

/// Such a store that is shut, and another.
async fn shut(wide: &Arc<Wide>) -> Rig {
    let rig = Rig::over(Site::new("graph", Arc::clone(wide) as _), Site::vector(), Config::default()).await;
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.graph).await;
    rig
}

#[tokio::test(start_paused = true)]
async fn owed_writes_of_different_keys_go_together_and_those_of_one_in_their_order() {
    let wide = Wide::new(None, false);
    let rig = shut(&wide).await;
    let mut history = History::default();
    for turn in 0..4 {
        for k in 0..40 {
            let write = Write::update(format!("k{k}"), properties(&format!("p{turn}"), turn * 100 + k));
            history.write(&rig.handle(), write).await.expect("is queued");
        }
    }
    rig.open(&rig.graph).await;
    rig.quiet().await;
    history.assert_held(&rig).await;
    let (calls, largest) = (wide.calls.load(Ordering::SeqCst), wide.largest.load(Ordering::SeqCst));
    assert!((4..=MOST).contains(&largest), "{largest} in one call");
    assert!(calls < 80, "{calls} calls for 160 writes");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_rejected_among_others_is_a_dead_letter_and_they_are_not() {
    let wide = Wide::new(Some(("bad", ErrorKind::Permanent)), false);
    let rig = shut(&wide).await;
    for k in 0..20 {
        rig.handle().store(record(&format!("k{k}"), k)).await.expect("is queued");
        if k == 10 {
            rig.handle().store(record("bad", k)).await.expect("is queued");
        }
    }
    rig.open(&rig.graph).await;
    rig.quiet().await;
    assert_eq!(rig.handle().status().dead_letters, 1);
    for k in 0..20 {
        assert_eq!(n(rig.graph.record(format!("k{k}")).await), Some(k));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_with_which_every_call_fails_holds_nobody_up_and_kills_nobody() {
    for kind in [ErrorKind::Refused, ErrorKind::Permanent] {
        let wide = Wide::new(Some(("bad", kind)), true);
        let rig = shut(&wide).await;
        rig.handle().store(record("bad", 1)).await.expect("is queued");
        for k in 0..40 {
            rig.handle().store(record(&format!("k{k}"), k)).await.expect("is queued");
        }
        rig.open(&rig.graph).await;
        sleep(Duration::from_secs(3_600)).await;
        let status = rig.handle().status();
        assert_eq!(status.owed, 1, "{kind:?}: {status:?}");
        assert_eq!(status.dead_letters, usize::from(kind == ErrorKind::Permanent));
        assert_eq!(n(rig.graph.record("k39").await), Some(39));
    }
}
