//! A walk along relations, step by step. Plain state: no connection.

use std::collections::HashSet;
use std::sync::Arc;

use seawall_actors::operation::{Direction, Traversal};
use seawall_actors::record::{Key, Relation};

use super::statements::Arrow;

/// A relationship that leads from the frontier of a walk to a live record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Which key of the frontier it leads from.
    pub(super) place: usize,
    /// Whether that key points to the record, or the record to that key.
    pub(super) outgoing: bool,
    /// The record.
    pub(super) to: Key,
    /// The kind of the relation.
    pub(super) kind: String,
}

/// A record that was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) key: Key,
    pub(super) step: u32,
    pub(super) via: Relation,
}

/// A walk that is going on.
pub(super) struct Walk<'a> {
    traversal: &'a Traversal,
    frontier: Vec<Key>,
    next: Vec<Key>,
    seen: HashSet<Key>,
    step: u32,
    reached: Vec<Reached>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(traversal: &'a Traversal) -> Self {
        let from = &traversal.from;
        Self {
            traversal,
            frontier: Vec::new(),
            next: vec![from.clone()],
            seen: HashSet::from([from.clone()]),
            step: 0,
            reached: Vec::new(),
        }
    }

    /// Which way it goes.
    pub(super) fn arrow(&self) -> Arrow {
        match self.traversal.direction {
            Direction::Outgoing => Arrow("-", "->"),
            Direction::Incoming => Arrow("<-", "-"),
            Direction::Both => Arrow("-", "-"),
        }
    }

    /// Goes on to the next step, if there is one: from where, and what was seen.
    pub(super) fn advance(&mut self) -> Option<(&[Key], &HashSet<Key>)> {
        if self.step == self.traversal.depth || self.next.is_empty() || self.is_full() {
            return None;
        }
        self.step += 1;
        self.frontier = std::mem::take(&mut self.next);
        Some((&self.frontier, &self.seen))
    }

    /// Takes a way of this step; `false` when no more are wanted.
    pub(super) fn take(&mut self, way: Way) -> bool {
        if let Some(from) = self.frontier.get(way.place)
            && !self.is_full()
            && self.seen.insert(way.to.clone())
        {
            let points_to = if way.outgoing { &way.to } else { from };
            let via = Relation { kind: Arc::from(way.kind), to: points_to.clone() };
            self.next.push(way.to.clone());
            self.reached.push(Reached { key: way.to, step: self.step, via });
        }
        !self.is_full()
    }

    /// What it reached, nearest first.
    pub(super) fn into_reached(self) -> Vec<Reached> {
        self.reached
    }

    fn is_full(&self) -> bool {
        self.reached.len() >= self.traversal.limit
    }
}
