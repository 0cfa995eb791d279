//! A store, what makes it fail, and what it has confirmed.

use std::sync::Arc;

use seawall::backend::{Backend, Fence};
use seawall::backends::{Accepted, Fault, Faults, FaultyBackend, Ops};

use crate::book::Effect;

/// A store and what makes it fail.
pub(crate) struct Switch<B> {
    faults: Faults,
    pub(crate) store: Arc<B>,
}

impl<B: Backend> Switch<B> {
    /// Around a store that can be reached.
    pub(crate) fn new(store: B) -> Self {
        let faults = Faults::new();
        faults.keep_history();
        Self { faults, store: Arc::new(store) }
    }

    pub(crate) fn backend(&self) -> FaultyBackend<B> {
        FaultyBackend::around(Arc::clone(&self.store), &self.faults)
    }

    /// From now on the store cannot be reached.
    pub(crate) fn down(&self) {
        self.faults.set(Ops::ALL, Fault::Down);
    }

    /// It can be reached again.
    pub(crate) fn up(&self) {
        self.faults.heal(Ops::ALL);
    }

    /// How many calls to it are running.
    pub(crate) fn running(&self) -> u64 {
        self.faults.counts().running
    }

    /// What it did so far.
    pub(crate) fn effects(&self) -> impl Iterator<Item = Effect> {
        let store = self.store.name();
        let effect = move |Accepted { operation, key, version, fence, applied, .. }| Effect {
            store: store.clone(),
            operation,
            key,
            version,
            compensation: fence == Fence::Compensation,
            changed: applied.superseded_by.is_none(),
        };
        self.faults.history().into_iter().map(effect)
    }
}
