//! The wrapper itself.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use seawall_actors::backend::{
    Applied, Backend, BackendError, BackendName, Capabilities, ErrorKind, FencedWrite, Health, Role, Stored,
    Transaction, Transactions,
};
use seawall_actors::operation::{Hit, Search, Traversal, Version};
use seawall_actors::record::{Key, Properties};
use tokio::time::sleep;

use super::control::Call;
use super::{Fault, Faults, Op};

/// A backend that does what the one in it does, unless its [`Faults`] say otherwise.
pub struct FaultyBackend<B: ?Sized> {
    inner: Arc<B>,
    faults: Faults,
}

impl<B: Backend> FaultyBackend<B> {
    /// Puts itself in front of a backend.
    pub fn new(inner: B, faults: &Faults) -> Self {
        Self::around(Arc::new(inner), faults)
    }
}

impl<B: Backend + ?Sized> FaultyBackend<B> {
    /// Puts itself in front of a backend that others hold too, as a `dyn Backend` if need be.
    pub fn around(inner: Arc<B>, faults: &Faults) -> Self {
        Self { inner, faults: faults.clone() }
    }

    /// The handle that controls it.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// The backend in it, to be asked without faults.
    pub fn inner(&self) -> &Arc<B> {
        &self.inner
    }

    async fn call<T>(&self, op: Op, work: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        let call = self.faults.begin(op);
        meet(call, async {
            self.faults.reached(op);
            work.await
        })
        .await
    }
}

/// Does what the fault of a call leaves of it.
async fn meet<T>(mut call: Call, work: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
    match call.fault {
        Fault::None => work.await,
        Fault::Down | Fault::FailsNofM { .. } => Err(injected(ErrorKind::Transient, "the backend is down", "down")),
        Fault::Slow(time) => {
            sleep(time).await;
            work.await
        }
        Fault::Hung => {
            call.hang().await;
            Err(injected(ErrorKind::Transient, "the backend hung and was healed", "hung"))
        }
        Fault::Error(kind) => Err(injected(kind, "the backend failed", "error")),
        Fault::Reset | Fault::LateZombie(_) => Err(injected(ErrorKind::Unknown, "the connection was reset", "reset")),
        Fault::AppliedReplyLost => {
            work.await?;
            Err(injected(ErrorKind::Unknown, "the reply was lost", "reply_lost"))
        }
        Fault::AppliedHung => {
            work.await?;
            call.hang().await;
            Err(injected(ErrorKind::Unknown, "the reply hung and was lost", "reply_lost"))
        }
        Fault::Panic => panic!("a panic was injected into a backend call"),
        Fault::ReadOnly => Err(injected(ErrorKind::ReadOnly, "the backend takes no writes", "read_only")),
    }
}

fn injected(kind: ErrorKind, message: &'static str, code: &'static str) -> BackendError {
    BackendError::new(kind, message).with_code(code)
}

impl<B: ?Sized> fmt::Debug for FaultyBackend<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyBackend").field("faults", &self.faults).finish_non_exhaustive()
    }
}

impl<B: Backend + ?Sized> FaultyBackend<B> {
    fn land_late(&self, write: &FencedWrite, late: Duration) {
        let (inner, faults, write) = (Arc::clone(&self.inner), self.faults.clone(), write.clone());
        tokio::spawn(async move {
            sleep(late).await;
            faults.reached(Op::Apply);
            // Nobody waits for this answer any more; that is the fault.
            let _ = apply(&*inner, &faults, &write).await;
        });
    }
}

async fn apply<B: Backend + ?Sized>(inner: &B, faults: &Faults, write: &FencedWrite) -> Result<Applied, BackendError> {
    let applied = inner.apply(write).await?;
    faults.accepted(write, applied);
    Ok(applied)
}

#[async_trait]
impl<B: Backend + ?Sized> Backend for FaultyBackend<B> {
    fn name(&self) -> BackendName {
        self.inner.name()
    }

    fn role(&self) -> Role {
        self.inner.role()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn apply(&self, write: &FencedWrite) -> Result<Applied, BackendError> {
        let call = self.faults.begin(Op::Apply);
        if let Fault::LateZombie(late) = call.fault {
            self.land_late(write, late);
        }
        meet(call, async {
            self.faults.reached(Op::Apply);
            apply(&*self.inner, &self.faults, write).await
        })
        .await
    }

    fn max_batch(&self) -> usize {
        self.inner.max_batch()
    }

    /// A write that lands late does so by itself.
    async fn apply_batch(&self, writes: &[FencedWrite]) -> Result<Vec<Result<Applied, BackendError>>, BackendError> {
        let call = self.faults.begin(Op::Apply);
        if let Fault::LateZombie(late) = call.fault {
            writes.iter().for_each(|write| self.land_late(write, late));
        }
        meet(call, async {
            self.faults.reached(Op::Apply);
            let answers = self.inner.apply_batch(writes).await?;
            for (write, answer) in writes.iter().zip(&answers) {
                answer.iter().for_each(|applied| self.faults.accepted(write, *applied));
            }
            Ok(answers)
        })
        .await
    }

    async fn read(&self, keys: &[Key]) -> Result<Vec<Option<Stored>>, BackendError> {
        self.call(Op::Read, self.inner.read(keys)).await
    }

    async fn search(&self, search: &Search) -> Result<Vec<Hit>, BackendError> {
        self.call(Op::Search, self.inner.search(search)).await
    }

    async fn traverse(&self, traversal: &Traversal) -> Result<Vec<Hit>, BackendError> {
        self.call(Op::Traverse, self.inner.traverse(traversal)).await
    }

    async fn find(&self, filter: &Properties, limit: usize) -> Result<Vec<Hit>, BackendError> {
        self.call(Op::Find, self.inner.find(filter, limit)).await
    }

    async fn probe(&self) -> Result<Health, BackendError> {
        match self.call(Op::Probe, self.inner.probe()).await {
            Err(error) if error.kind == ErrorKind::ReadOnly => Ok(Health::ReadOnly),
            probed => probed,
        }
    }

    async fn newest_version(&self) -> Result<Version, BackendError> {
        self.call(Op::Newest, self.inner.newest_version()).await
    }

    async fn sweep(&self, older_than: Version, at_most: usize) -> Result<usize, BackendError> {
        self.call(Op::Sweep, self.inner.sweep(older_than, at_most)).await
    }

    fn transactions(&self) -> Option<&dyn Transactions> {
        self.inner.transactions().map(|_| self as &dyn Transactions)
    }
}

#[async_trait]
impl<B: Backend + ?Sized> Transactions for FaultyBackend<B> {
    async fn begin(&self, write: &FencedWrite) -> Result<Box<dyn Transaction>, BackendError> {
        let Some(transactions) = self.inner.transactions() else {
            return Err(BackendError::permanent("this backend has no transactions"));
        };
        let inner = self.call(Op::Apply, transactions.begin(write)).await?;
        Ok(Box::new(FaultyTransaction { inner, write: write.clone(), faults: self.faults.clone() }))
    }
}

struct FaultyTransaction {
    inner: Box<dyn Transaction>,
    write: FencedWrite,
    faults: Faults,
}

#[async_trait]
impl Transaction for FaultyTransaction {
    async fn commit(self: Box<Self>) -> Result<Applied, BackendError> {
        let Self { inner, write, faults } = *self;
        let call = faults.begin(Op::Commit);
        if let Fault::LateZombie(late) = call.fault {
            tokio::spawn(async move {
                sleep(late).await;
                commit(inner, &write, &faults).await
            });
            return Err(injected(ErrorKind::Unknown, "the connection was reset", "reset"));
        }
        meet(call, commit(inner, &write, &faults)).await
    }

    async fn rollback(self: Box<Self>) -> Result<(), BackendError> {
        self.inner.rollback().await
    }
}

async fn commit(inner: Box<dyn Transaction>, write: &FencedWrite, faults: &Faults) -> Result<Applied, BackendError> {
    faults.reached(Op::Commit);
    let applied = inner.commit().await?;
    faults.accepted(write, applied);
    Ok(applied)
}
