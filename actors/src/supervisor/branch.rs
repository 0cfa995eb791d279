//! A supervisor and its children, as data, and what is known of them whichever incarnation supervises.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use ractor::{ActorCell, ActorStatus};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::policy::{RestartConfig, Strategy};
use super::spec::ChildSpec;
use crate::event::{EventBus, EventKind};

/// A supervisor with its children: a branch of the tree. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Branch(Arc<Inner>);

struct Inner {
    name: String,
    strategy: Strategy,
    config: RestartConfig,
    children: Vec<ChildSpec>,
    events: Arc<EventBus>,
    book: Mutex<Book>,
}

/// What outlives the supervisor.
#[derive(Default)]
struct Book {
    /// Nobody is started any more.
    closing: bool,
    entries: Vec<Entry>,
    escalation: Option<Escalation>,
}

#[derive(Clone, Default)]
struct Entry {
    cell: Option<ActorCell>,
    /// Was started at least once.
    known: bool,
    /// Is stopped for good.
    retired: bool,
    restarts: u64,
    last_reason: Option<String>,
}

/// Why a supervisor gave up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escalation {
    /// The child that died once too often.
    pub actor: String,
    /// Why it died the last time.
    pub reason: String,
}

/// The state of a child, and of those under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStatus {
    /// Its name.
    pub name: String,
    /// Whether it runs now.
    pub alive: bool,
    /// How often it was restarted.
    pub restarts: u64,
    /// Why it died the last time, if it ever did.
    pub last_reason: Option<String>,
    /// Its children, in the order of their start, when it is a supervisor.
    pub children: Vec<ChildStatus>,
}

/// Who stopped by itself and who had to be killed, both in the order in which they ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopReport {
    /// Stopped by themselves (or were dead already).
    pub stopped: Vec<String>,
    /// Did not stop in time.
    pub killed: Vec<String>,
}

impl Branch {
    /// A supervisor of these children, which are started in this order and stopped in the reverse one. Their names
    /// should be unique in the tree: they name actors in events and in [`stop_child`](Self::stop_child).
    pub fn new(
        name: impl Into<String>,
        strategy: Strategy,
        config: RestartConfig,
        events: Arc<EventBus>,
        children: Vec<ChildSpec>,
    ) -> Self {
        let book = Book { entries: vec![Entry::default(); children.len()], ..Book::default() };
        Self(Arc::new(Inner { name: name.into(), strategy, config, children, events, book: Mutex::new(book) }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The state of its children, in the order of their start. Does not ask an actor: it answers also while they
    /// are busy.
    #[must_use]
    pub fn status(&self) -> Vec<ChildStatus> {
        let entries = self.book().entries.clone();
        let specs = self.0.children.iter();
        specs
            .zip(entries)
            .map(|(spec, entry)| ChildStatus {
                name: spec.name.clone(),
                alive: entry.cell.is_some_and(|cell| cell.get_status() < ActorStatus::Stopping),
                restarts: entry.restarts,
                last_reason: entry.last_reason,
                children: spec.branch.as_ref().map(Self::status).unwrap_or_default(),
            })
            .collect()
    }

    /// Stops one child for good, the children under it first, and does not restart it. `None` when there is no
    /// child of this name here or further down.
    pub async fn stop_child(&self, name: &str, patience: Duration) -> Option<StopReport> {
        let (branch, index) = self.find(name)?;
        let mut report = StopReport::default();
        branch.stop_at(index, Instant::now() + patience, &mut report).await;
        Some(report)
    }

    /// Stops all children, the last one first, those under it before it. Nobody is restarted any more. Children
    /// that do not stop within their own timeout, or when this patience is over, are killed.
    pub(super) fn stop_children<'a>(&'a self, until: Instant, report: &'a mut StopReport) -> BoxFuture<'a, ()> {
        async move {
            self.close();
            for index in (0..self.0.children.len()).rev() {
                self.stop_at(index, until, report).await;
            }
        }
        .boxed()
    }

    async fn stop_at(&self, index: usize, until: Instant, report: &mut StopReport) {
        self.book().entries[index].retired = true;
        let spec = &self.0.children[index];
        if let Some(branch) = &spec.branch {
            branch.stop_children(until, report).await;
        }
        let cell = self.book().entries[index].cell.clone();
        let patience = until.saturating_duration_since(Instant::now());
        let stopped = match cell {
            Some(cell) => spec.say_farewell(&cell, patience).await,
            None => true,
        };
        (spec.vacate)();
        self.book().entries[index].cell = None;
        if stopped { &mut report.stopped } else { &mut report.killed }.push(spec.name.clone());
    }

    /// Kills one child; see [`Tree::kill_child`](super::Tree::kill_child).
    pub(super) fn kill_child(&self, name: &str) -> bool {
        let Some((branch, index)) = self.find(name) else { return false };
        let cell = branch.book().entries[index].cell.clone();
        match cell {
            Some(cell) if cell.get_status() < ActorStatus::Stopping => {
                cell.kill();
                true
            }
            _ => false,
        }
    }

    fn find(&self, name: &str) -> Option<(Self, usize)> {
        if let Some(index) = self.0.children.iter().position(|spec| spec.name == name) {
            return Some((self.clone(), index));
        }
        self.0.children.iter().filter_map(|spec| spec.branch.as_ref()).find_map(|branch| branch.find(name))
    }

    pub(super) fn strategy(&self) -> Strategy {
        self.0.strategy
    }

    pub(super) fn config(&self) -> &RestartConfig {
        &self.0.config
    }

    pub(super) fn children(&self) -> &[ChildSpec] {
        &self.0.children
    }

    /// Empties the places of all children.
    pub(super) fn vacate(&self) {
        for spec in &self.0.children {
            (spec.vacate)();
        }
    }

    /// The living incarnation of the child of this name.
    #[cfg(test)]
    pub(super) fn cell(&self, name: &str) -> Option<ActorCell> {
        let (branch, index) = self.find(name)?;
        branch.book().entries[index].cell.clone()
    }

    /// Nobody is started any more.
    pub(super) fn close(&self) {
        self.book().closing = true;
    }

    pub(super) fn is_closing(&self) -> bool {
        self.book().closing
    }

    /// Whether this child may be started.
    pub(super) fn is_wanted(&self, index: usize) -> bool {
        let book = self.book();
        !book.closing && !book.entries[index].retired
    }

    /// Which child this is, if it is the living incarnation of one.
    pub(super) fn position(&self, cell: &ActorCell) -> Option<usize> {
        self.book().entries.iter().position(|entry| entry.cell.as_ref() == Some(cell))
    }

    /// Enters a child that was started. Gives `false`, and keeps nothing, when it is no longer wanted.
    pub(super) fn enter(&self, index: usize, cell: ActorCell) -> bool {
        let mut book = self.book();
        if book.closing || book.entries[index].retired {
            return false;
        }
        let entry = &mut book.entries[index];
        entry.cell = Some(cell);
        if !std::mem::replace(&mut entry.known, true) {
            return true;
        }
        entry.restarts += 1;
        let (restarts, reason) = (entry.restarts, entry.last_reason.clone().unwrap_or_default());
        drop(book);
        let actor = self.0.children[index].name.clone();
        tracing::warn!(actor, reason, restarts, "restarted an actor");
        self.0.events.publish(EventKind::ActorRestarted { actor, reason, restarts });
        true
    }

    /// Takes out a child that is dead or will be, and notes why. `None` when there was none.
    pub(super) fn remove(&self, index: usize, reason: &str) -> Option<ActorCell> {
        (self.0.children[index].vacate)();
        let cell = self.book().entries[index].cell.take()?;
        self.note(index, reason);
        Some(cell)
    }

    /// Notes why a child is not there.
    pub(super) fn note(&self, index: usize, reason: &str) {
        self.book().entries[index].last_reason = Some(reason.to_owned());
    }

    pub(super) fn give_up(&self, escalation: Escalation) {
        self.book().escalation = Some(escalation);
    }

    /// Tells, once, that this branch was the last to give up, and why.
    pub(super) fn publish_escalation(&self) -> Escalation {
        let given_up = self.book().escalation.take();
        let escalation = given_up.unwrap_or_else(|| Escalation {
            actor: self.0.name.clone(),
            reason: "the root supervisor itself died".to_owned(),
        });
        let Escalation { actor, reason } = escalation.clone();
        tracing::error!(actor, reason, "an actor died too often; giving up");
        self.0.events.publish(EventKind::Escalated { actor, reason });
        escalation
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
