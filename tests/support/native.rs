//! A store with native transactions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use seawall::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, FencedWrite, Health, Stored, Transaction, Transactions,
};
use seawall::backends::{GraphBackend, GraphConfig};
use seawall::operation::Version;
use seawall::record::Key;

/// A graph store whose writes are seen when their transaction commits.
pub struct Native {
    store: Arc<GraphBackend>,
    seen: Arc<Seen>,
}

/// How its transactions ended.
#[derive(Default)]
pub struct Seen {
    pub begun: AtomicUsize,
    pub committed: AtomicUsize,
    pub rolled_back: AtomicUsize,
}

impl Seen {
    pub fn counts(&self) -> [usize; 3] {
        [&self.begun, &self.committed, &self.rolled_back].map(|count| count.load(Ordering::SeqCst))
    }
}

impl Native {
    pub fn new() -> (Self, Arc<Seen>) {
        let seen = Arc::new(Seen::default());
        (Self { store: Arc::new(GraphBackend::in_memory(GraphConfig::default())), seen: Arc::clone(&seen) }, seen)
    }
}

#[async_trait]
impl Backend for Native {
    fn name(&self) -> BackendName {
        self.store.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.store.apply(write).await
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.store.read(keys).await
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        self.store.probe().await
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.store.newest_version().await
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        Some(self)
    }
}

#[async_trait]
impl Transactions for Native {
    async fn begin(&self, write: &FencedWrite) -> Result<Box<dyn Transaction>, BackendError> {
        self.seen.begun.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Begun {
            store: Arc::clone(&self.store),
            seen: Arc::clone(&self.seen),
            write: write.clone(),
            committed: false,
        }))
    }
}

struct Begun {
    store: Arc<GraphBackend>,
    seen: Arc<Seen>,
    write: FencedWrite,
    committed: bool,
}

#[async_trait]
impl Transaction for Begun {
    async fn commit(mut self: Box<Self>) -> Result<Applied, BackendError> {
        self.committed = true;
        self.seen.committed.fetch_add(1, Ordering::SeqCst);
        self.store.apply(&self.write).await
    }

    async fn rollback(self: Box<Self>) -> Result<(), BackendError> {
        Ok(())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.committed {
            self.seen.rolled_back.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A store under another name.
pub struct Named<B> {
    pub name: &'static str,
    pub inner: B,
}

#[async_trait]
impl<B: Backend> Backend for Named<B> {
    fn name(&self) -> BackendName {
        self.name.into()
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        self.inner.apply(write).await
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

    fn transactions(&self) -> Option<&dyn Transactions> {
        self.inner.transactions()
    }
}
