//! The whole tree: started, looked at, stopped in order.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, SpawnErr};
use tokio::time::Instant;

use super::actor::Supervisor;
use super::branch::{Branch, ChildStatus, Escalation, StopReport};
use super::spec::KILL_PATIENCE;

/// Called once, when the root gives up; by then all actors are dead or dying and all slots are empty.
pub type OnEscalation = Arc<dyn Fn(Escalation) + Send + Sync>;

/// A running tree.
pub struct Tree {
    pub(super) root: ActorCell,
    pub(super) branch: Branch,
}

impl Tree {
    /// Starts a tree from its root; everybody has been started once when this returns. `on_escalation` is called
    /// when the root gives up or dies, and not when the tree is stopped.
    ///
    /// # Errors
    /// When the root cannot be started: a child could not be, and the intensity is 0.
    pub async fn start(branch: Branch, on_escalation: OnEscalation) -> Result<Self, SpawnErr> {
        let root = match Supervisor::spawn(None, Supervisor, branch.clone()).await {
            Ok((root, _)) => root.get_cell(),
            Err(error) => {
                branch.vacate();
                return Err(error);
            }
        };
        let (watched, of) = (root.clone(), branch.clone());
        tokio::spawn(async move {
            // Never fails without a timeout.
            let _ = watched.wait(None).await;
            of.vacate();
            if !of.is_closing() {
                on_escalation(of.publish_escalation());
            }
        });
        Ok(Self { root, branch })
    }

    /// The state of all actors. Does not ask any of them.
    #[must_use]
    pub fn status(&self) -> Vec<ChildStatus> {
        self.branch.status()
    }

    /// Stops one child for good, those under it first; see [`Branch::stop_child`].
    pub async fn stop_child(&self, name: &str, patience: Duration) -> Option<StopReport> {
        self.branch.stop_child(name, patience).await
    }

    /// Kills one child, as a rehearsal: it is restarted like one that died by itself. `false` when there is none of
    /// this name, or it is dead already.
    #[must_use]
    pub fn kill_child(&self, name: &str) -> bool {
        self.branch.kill_child(name)
    }

    /// Stops everybody: the last child first, those under it before it, each within its own timeout and all within
    /// this one; who does not stop is killed. Stopping a stopped tree does nothing.
    pub async fn stop(&self, patience: Duration) -> StopReport {
        let (mut report, until) = (StopReport::default(), Instant::now() + patience);
        self.branch.stop_children(until, &mut report).await;
        self.root.stop(None);
        let rest = until.saturating_duration_since(Instant::now()).max(KILL_PATIENCE);
        if self.root.wait(Some(rest)).await.is_err() {
            self.root.kill();
        }
        report
    }

    /// Kills everybody at once. Nothing is waited for or finished.
    pub fn kill(&self) {
        self.branch.close();
        self.root.kill();
    }
}
