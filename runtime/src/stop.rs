//! Stopping in order: nobody new is let in, who is inside finishes, what is decided is saved, the journal closes last.

use std::time::Duration;

use seawall_actors::event::EventKind;
use tokio::time::timeout;

use crate::runtime::Runtime;

/// How long operations in flight may take to finish.
const OPERATIONS: Duration = Duration::from_secs(30);
/// How long the actors may take to stop, all together.
const ACTORS: Duration = Duration::from_secs(10);
/// How long each breaker may take to save its state.
const SAVE: Duration = Duration::from_secs(5);
/// How long the last commit may take.
const JOURNAL: Duration = Duration::from_secs(30);

/// How a shutdown went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Operations that did not finish in time and were cancelled; what they had begun is in the journal.
    pub cancelled: usize,
    /// Actors that did not stop and were killed.
    pub killed: Vec<String>,
    /// Accepted writes that are still owed, and are in the journal.
    pub owed: usize,
    /// Whether everything that was accepted is durable: the journal was closed in time.
    pub journal_closed: bool,
}

impl Runtime {
    /// Stops in order, each step with a deadline of its own:
    ///
    /// 1. the door closes: new requests are answered [`ShuttingDown`](crate::Refusal::ShuttingDown);
    /// 2. the prober and the sync worker stop;
    /// 3. operations in flight finish (30 s), or are cancelled;
    /// 4. the other actors stop (10 s);
    /// 5. breakers save what is left of their waits;
    /// 6. the journal makes durable what it has, and closes.
    ///
    /// A runtime that is dropped instead loses no acknowledged write, as with a crash.
    pub async fn shutdown(mut self) -> ShutdownReport {
        self.door.close();
        self.plane.events.publish(EventKind::Stopping);
        let mut killed = Vec::new();
        for name in ["prober", "sync"] {
            if let Some(report) = self.tree.stop_child(name, ACTORS).await {
                killed.extend(report.killed);
            }
        }
        let cancelled = self.plane.tasks.close_and_wait(OPERATIONS).await;
        killed.extend(self.tree.stop(ACTORS).await.killed);
        for cell in &self.cells {
            if !matches!(timeout(SAVE, cell.save()).await, Ok(Ok(()))) {
                tracing::warn!("a breaker could not save its state; after a restart it goes on from an older one");
            }
        }
        let journal_closed = timeout(JOURNAL, self.plane.journal.close()).await.is_ok();
        if let Some(telemetry) = self.telemetry.take() {
            telemetry.stop().await;
        }
        // Late messages are still answered.
        let _ = self.gateway.drain();
        let _ = self.gateway.wait(Some(ACTORS)).await;
        ShutdownReport { cancelled, killed, owed: self.plane.ledger().len(), journal_closed }
    }
}
