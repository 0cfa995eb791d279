//! Which records are still needed, and in which generation they lie.

use std::collections::{BTreeMap, HashMap, HashSet};

use seawall_actors::operation::Version;

use super::codec::Meaning;
use super::retention::Retention;

/// Where a record lies: its place in the log, which never changes, and the generation that holds it, by the number
/// of that one's first row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    lsn: u64,
    generation: u64,
}

/// All records that have to be kept: those of open entries, the last outcomes, the last reservation.
#[derive(Debug)]
pub(super) struct Index {
    live: HashMap<Version, Vec<Place>>,
    closed: HashMap<Version, Place>,
    /// The outcomes by the places of their records, so that the oldest is known.
    closings: BTreeMap<u64, Version>,
    reserved: Option<(Version, Place)>,
    needed: HashMap<u64, usize>,
    outcomes: usize,
    pub(super) retention: Retention,
}

impl Index {
    /// For a journal that remembers this many outcomes, and keeps finished entries as this says.
    pub(super) fn new(outcomes: usize, retention: Retention) -> Self {
        Self {
            live: HashMap::new(),
            closed: HashMap::new(),
            closings: BTreeMap::new(),
            reserved: None,
            needed: HashMap::new(),
            outcomes,
            retention,
        }
    }

    /// A record was appended, after all that were added before. A record of an entry that is not open is not
    /// needed; an intent of an entry that is open replaces it.
    pub(super) fn add(&mut self, lsn: u64, generation: u64, meaning: Meaning) {
        let place = Place { lsn, generation };
        match meaning {
            Meaning::Opens(version) => {
                let replaced = self.live.insert(version, vec![place]);
                self.release(replaced.unwrap_or_default());
                self.need(generation);
            }
            Meaning::Belongs(version) => {
                if let Some(places) = self.live.get_mut(&version) {
                    places.push(place);
                    self.need(generation);
                }
            }
            Meaning::Closes(version) => self.close(version, place),
            Meaning::Dates(moment) => self.retention.tick(lsn, generation, moment),
            Meaning::Reserves(version) => {
                if self.reserved.is_none_or(|(highest, _)| highest <= version) {
                    let replaced = self.reserved.replace((version, place));
                    self.release(replaced.map(|(_, place)| place));
                    self.need(generation);
                }
            }
        }
    }

    fn close(&mut self, version: Version, place: Place) {
        let places = self.live.remove(&version).unwrap_or_default();
        let begun = places.first().map(|place| place.generation);
        if begun.is_some() || !self.closed.contains_key(&version) {
            self.retention.finished(begun, place.generation);
        }
        self.release(places);
        if self.outcomes == 0 {
            return;
        }
        if let Some(earlier) = self.closed.insert(version, place) {
            self.closings.remove(&earlier.lsn);
            self.release([earlier]);
        }
        self.closings.insert(place.lsn, version);
        self.need(place.generation);
        while self.closings.len() > self.outcomes {
            let oldest = self.closings.pop_first().and_then(|(_, version)| self.closed.remove(&version));
            self.release(oldest);
        }
    }

    /// A record was copied to another generation. Nothing changes when it is no longer needed.
    pub(super) fn carried(&mut self, lsn: u64, meaning: Meaning, to: u64) {
        if let Some(place) = self.place_mut(lsn, meaning) {
            let from = std::mem::replace(&mut place.generation, to);
            self.release([Place { lsn, generation: from }]);
            self.need(to);
        }
    }

    /// Whether this generation holds the only needed copy of a record.
    pub(super) fn is_needed_in(&mut self, generation: u64, lsn: u64, meaning: Meaning) -> bool {
        self.place_mut(lsn, meaning).is_some_and(|place| place.generation == generation)
    }

    fn place_mut(&mut self, lsn: u64, meaning: Meaning) -> Option<&mut Place> {
        let place = match meaning {
            Meaning::Opens(version) | Meaning::Belongs(version) => {
                self.live.get_mut(&version)?.iter_mut().find(|place| place.lsn == lsn)
            }
            Meaning::Closes(version) => self.closed.get_mut(&version),
            Meaning::Reserves(_) => self.reserved.as_mut().map(|(_, place)| place),
            Meaning::Dates(_) => None,
        };
        place.filter(|place| place.lsn == lsn)
    }

    /// How many needed records a generation holds.
    pub(super) fn needed_in(&self, generation: u64) -> usize {
        self.needed.get(&generation).copied().unwrap_or(0)
    }

    /// How many records are needed.
    pub(super) fn needed(&self) -> usize {
        self.needed.values().sum()
    }

    /// The places in the log of the needed records of a generation.
    pub(super) fn places(&self, generation: u64) -> HashSet<u64> {
        let live = self.live.values().flatten();
        let reserved = self.reserved.as_ref().map(|(_, place)| place);
        live.chain(self.closed.values())
            .chain(reserved)
            .filter(|place| place.generation == generation)
            .map(|place| place.lsn)
            .collect()
    }

    /// The highest version that was reserved.
    pub(super) fn reserved(&self) -> Version {
        self.reserved.map_or(Version(0), |(version, _)| version)
    }

    fn need(&mut self, generation: u64) {
        *self.needed.entry(generation).or_default() += 1;
    }

    fn release(&mut self, places: impl IntoIterator<Item = Place>) {
        for Place { generation, .. } in places {
            if let Some(needed) = self.needed.get_mut(&generation) {
                *needed -= 1;
                if *needed == 0 {
                    self.needed.remove(&generation);
                }
            }
        }
    }
}
