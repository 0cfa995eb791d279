//! A backend comes back that owes a lot, while it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::seawall::backend::{Applied, Backend, BackendError, BackendName, Capabilities, FencedWrite, Health, Stored};
use ::seawall::backends::{VectorBackend, VectorConfig};
use ::seawall::config::Config;
use ::seawall::fallback::Mode;
use ::seawall::operation::Version;
use ::seawall::record::Key;
use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use crate::breaker::{Miss, Probed};
use crate::support::{Rig, Site, record};

const OWED: u64 = 1_000;
const USERS: usize = 4;
/// How long the backend takes for a write.
const WRITE: Duration = Duration::from_millis(5);

/// A backend that knows how many calls have been in it at once.
struct Crowded {
    inner: VectorBackend,
    inside: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl Backend for Crowded {
    fn name(&self) -> BackendName {
        "vector".into()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        sleep(WRITE).await;
        self.inside.fetch_sub(1, Ordering::SeqCst);
        self.inner.apply(write).await
    }
    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.inner.read(keys).await
    }
    async fn probe(&self) -> Result<Health, BackendError> {
        Ok(Health::Healthy)
    }
    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.inner.newest_version().await
    }
}

/// The drain keeps to its concurrency, and no user waits for it.
pub(crate) async fn weather() -> Probed {
    let inner = VectorBackend::in_memory(VectorConfig::default());
    let crowded = Arc::new(Crowded { inner, inside: AtomicUsize::new(0), most: AtomicUsize::new(0) });
    let mut config = Config::default();
    config.sync.concurrency = 16;
    let bearable = 16 + USERS;
    let rig = Rig::over(Site::graph(), Site::new("vector", Arc::clone(&crowded) as _), config).await;
    rig.mode(Mode::QueueWrites).await;
    rig.shut(&rig.vector).await;
    for k in 0..OWED {
        rig.handle().store(record(&format!("k{k}"), k)).await.map_err(Miss::fails)?;
    }
    rig.breaker(&rig.vector).reset();
    let users = (0..USERS).map(|user| {
        let handle = rig.handle();
        async move {
            let mut slowest = Duration::ZERO;
            for k in 0..20 {
                let asked = Instant::now();
                handle.store(record(&format!("user-{user}-{k}"), k)).await.map_err(Miss::fails)?;
                slowest = slowest.max(asked.elapsed());
            }
            Ok::<_, Miss>(slowest)
        }
    });
    let slowest = futures::future::try_join_all(users).await?.into_iter().max().unwrap_or_default();
    let owed = rig.handle().status().owed;
    rig.quiet().await;
    let most = crowded.most.load(Ordering::SeqCst);
    assert!(owed > 0, "the users were done before the drain");
    if most > bearable {
        return Err(Miss::fails(most));
    }
    if slowest > WRITE * 10 { Err(Miss::fails("users wait")) } else { Ok(String::new()) }
}
