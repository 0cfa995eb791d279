//! The cache: what was last known of the records that were used last.
//!
//! It answers when no backend can, so it must never say less than what was acknowledged. Three things could make
//! it lie, and each has its guard:
//!
//! - *A delete is forgotten and the record comes back.* Deletes stay as tombstones, for longer than records do.
//! - *A read fetches an old value, a write comes, the read puts the old value in.* A read takes a [`FillToken`]
//!   **before** it looks anywhere; any write to the key makes the token worthless. The versions of entries would
//!   not be enough, for an entry can be evicted while the read is under way, and its version with it.
//! - *Two writes are acknowledged in one order and put here in the other.* The entry keeps the higher version;
//!   where it has been dropped meanwhile, the **floor** stands in for it: the highest version that was ever
//!   dropped. A write that is not above the floor is not cached. That costs a hit now and then, never the truth.
//!   Fills do not need the floor, so old records can be cached all the same.
//!
//! What the users of the cache have to do for that:
//!
//! | who | when | what |
//! |---|---|---|
//! | a write whose records are known | before its acknowledgement | [`Cache::put`] per key, `None` for a delete |
//! | a write that was merged into what a backend has | the same | [`Cache::invalidate`] |
//! | a compensation | when it has been decided | [`Cache::forget`]: it leaves another record under the same version |
//! | a discarded dead letter | when it is discarded | [`Cache::forget`]: what was acknowledged will not come |
//! | a read | before it looks at what is owed | [`Cache::begin_fill`] |
//! | | when a required backend has answered, and nothing was owed for the key | [`Cache::fill`] |
//!
//! The lifetime is strict: what is older than its TTL is not given, however much a caller would like to have
//! anything at all. How stale an answer may be is the service's choice, and `ttl` is where it makes it.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::ConfigProblem;
use crate::operation::Version;
use crate::record::{Key, Record};

/// What an entry takes beside its key and record, about, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 128;

/// How large the cache may grow and how long it remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Entries, tombstones included. Default 1 000 (documents 000 and 001), range 1 to 10 000 000. Exact: the
    /// entry that was used longest ago goes first.
    pub max_size: usize,
    /// Bytes that all entries may take, as [`Record::weight`] counts them. Default 64 MiB, range 64 KiB to 64 GiB.
    /// A record that does not fit alone is not cached.
    pub max_bytes: usize,
    /// For how long a record is given after it was last known to be current. Default 5 min, range 1 s to 365 d.
    #[serde(with = "crate::config::seconds")]
    pub ttl: Duration,
    /// The same for the knowledge that there is no record. Default 1 h, range [`ttl`](Self::ttl) to 365 d: a
    /// deleted record must not outlive its deletion.
    #[serde(with = "crate::config::seconds")]
    pub tombstone_ttl: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            max_size: 1_000,
            max_bytes: 64 << 20,
            ttl: Duration::from_secs(300),
            tombstone_ttl: Duration::from_secs(3_600),
        }
    }
}

impl CacheConfig {
    /// Adds everything that is wrong with these settings, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let mut check = |right: bool, field: &str, problem: String| {
            if !right {
                problems.push(ConfigProblem { path: format!("{path}.{field}"), problem });
            }
        };
        let year = Duration::from_secs(365 * 24 * 3_600);
        let Self { max_size, max_bytes, ttl, tombstone_ttl } = self;
        check(
            (1..=10_000_000).contains(max_size),
            "max_size",
            format!("{max_size} entries; it must be 1 to 10 000 000"),
        );
        check(
            (64 << 10..=64 << 30).contains(max_bytes),
            "max_bytes",
            format!("{max_bytes} bytes; it must be 64 KiB to 64 GiB"),
        );
        check((Duration::from_secs(1)..=year).contains(ttl), "ttl", format!("{ttl:?}; it must be 1 s to 365 d"));
        check(
            (*ttl..=year).contains(tombstone_ttl),
            "tombstone_ttl",
            format!("{tombstone_ttl:?}; it must be {ttl:?} (`ttl`) to 365 d, or a deleted record could come back"),
        );
    }
}

/// What the cache knows of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheHit {
    /// The record, or that there is none.
    pub record: Option<Arc<Record>>,
    /// Its version; `Version(0)` for a key that was never written.
    pub version: Version,
    /// How long ago this was known to be current.
    pub age: Duration,
}

/// What the cache has done so far, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Lookups that gave something.
    pub hits: u64,
    /// Lookups that gave nothing.
    pub misses: u64,
    /// Entries that made room for others.
    pub evictions: u64,
    /// Puts and fills that came too late and were not taken.
    pub refused: u64,
    /// Entries now.
    pub entries: usize,
    /// Bytes that those take, about.
    pub bytes: usize,
}

impl CacheStats {
    /// Hits in all lookups, 0 to 1; 0 when there were none.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        match self.hits + self.misses {
            0 => 0.0,
            lookups => self.hits as f64 / lookups as f64,
        }
    }
}

/// The cache. Cloning gives another view of the same one.
#[derive(Clone)]
pub struct Cache(Arc<Mutex<Shelf>>);

impl Cache {
    /// An empty cache.
    #[must_use]
    pub fn new(config: CacheConfig) -> Self {
        Self(Arc::new(Mutex::new(Shelf {
            config,
            entries: LruCache::unbounded(),
            leases: HashMap::new(),
            stamp: 0,
            floor: Version(0),
            stats: CacheStats::default(),
        })))
    }

    /// What is known of a key, unless that is older than its TTL.
    #[must_use]
    pub fn get(&self, key: &Key, now: Instant) -> Option<CacheHit> {
        self.lock().get(key, now)
    }

    /// Puts in what a write has made of a key: the record, or `None` for a delete. Call it before the write is
    /// acknowledged. Gives whether it was taken; a newer write that is known here stands.
    pub fn put(&self, key: &Key, version: Version, record: Option<Arc<Record>>, now: Instant) -> bool {
        let mut shelf = self.lock();
        shelf.spoil_fills(key);
        let fence = shelf.entries.peek(key).map_or(Version(shelf.floor.0.saturating_add(1)), |entry| entry.version);
        let taken = version >= fence;
        if taken {
            shelf.place(key, Entry::new(key, version, record, now));
        } else {
            shelf.stats.refused += 1;
        }
        taken
    }

    /// Drops what an acknowledged write of this version has changed in a way that is not known here.
    pub fn invalidate(&self, key: &Key, version: Version) {
        let mut shelf = self.lock();
        shelf.spoil_fills(key);
        shelf.raise_floor(version);
        if shelf.entries.peek(key).is_some_and(|entry| entry.version < version) {
            shelf.remove(key);
        }
    }

    /// Drops all that is known of a key.
    pub fn forget(&self, key: &Key) {
        let mut shelf = self.lock();
        shelf.spoil_fills(key);
        shelf.remove(key);
    }

    /// Announces that a key is being read at a backend, in order to fill the cache. Call it before looking at what
    /// is owed for the key.
    pub fn begin_fill(&self, key: &Key, now: Instant) -> FillToken {
        let mut shelf = self.lock();
        shelf.stamp += 1;
        let new = Lease { readers: 0, stamp: shelf.stamp };
        let lease = shelf.leases.entry(key.clone()).or_insert(new);
        lease.readers += 1;
        FillToken { key: key.clone(), stamp: lease.stamp, begun: now, cache: self.clone() }
    }

    /// Puts in what a required backend holds: a record, a tombstone, or nothing (`Version(0)` and `None`). Gives
    /// whether it was taken; it is not when the key was written since the token was given out, or something newer
    /// is known. The age counts from the beginning of the read.
    pub fn fill(&self, token: FillToken, version: Version, record: Option<Arc<Record>>) -> bool {
        let mut shelf = self.lock();
        let valid = Arc::ptr_eq(&token.cache.0, &self.0)
            && shelf.leases.get(&token.key).is_some_and(|lease| lease.stamp == token.stamp)
            && shelf.entries.peek(&token.key).is_none_or(|entry| entry.version <= version);
        if valid {
            shelf.refresh(&token.key, Entry::new(&token.key, version, record, token.begun));
        } else {
            shelf.stats.refused += 1;
        }
        // The token takes the lock when it is dropped.
        drop(shelf);
        valid
    }

    /// What it has done so far, and what it holds.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let shelf = self.lock();
        CacheStats { entries: shelf.entries.len(), ..shelf.stats }
    }

    #[cfg(test)]
    pub(super) fn reads_under_way(&self) -> usize {
        self.lock().leases.len()
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cache").field(&self.stats()).finish()
    }
}

/// The right to fill the cache with what a read of one key gives. Dropping it gives it up.
#[derive(Debug)]
#[must_use = "dropping the token gives up the right to fill"]
pub struct FillToken {
    key: Key,
    stamp: u64,
    begun: Instant,
    cache: Cache,
}

impl Drop for FillToken {
    fn drop(&mut self) {
        if let MapEntry::Occupied(mut lease) = self.cache.lock().leases.entry(self.key.clone()) {
            lease.get_mut().readers -= 1;
            if lease.get().readers == 0 {
                lease.remove();
            }
        }
    }
}

struct Entry {
    record: Option<Arc<Record>>,
    version: Version,
    bytes: usize,
    /// When this was known to be current.
    since: Instant,
}

impl Entry {
    fn new(key: &Key, version: Version, record: Option<Arc<Record>>, since: Instant) -> Self {
        let bytes = ENTRY_OVERHEAD_BYTES + key.as_str().len() + record.as_ref().map_or(0, |record| record.weight());
        Self { record, version, bytes, since }
    }
}

/// The reads of one key that are under way.
struct Lease {
    readers: usize,
    /// Changes with every write to the key. Tokens with another stamp are worthless.
    stamp: u64,
}

struct Shelf {
    config: CacheConfig,
    entries: LruCache<Key, Entry>,
    leases: HashMap<Key, Lease>,
    /// The last stamp that was given out.
    stamp: u64,
    /// The highest version that was dropped: puts at or below it may be older than what was dropped.
    floor: Version,
    /// `entries` is kept by the LRU itself.
    stats: CacheStats,
}

impl Shelf {
    fn get(&mut self, key: &Key, now: Instant) -> Option<CacheHit> {
        let ttls = (self.config.ttl, self.config.tombstone_ttl);
        // An expired entry stays until it is evicted: its version still fences.
        let hit = self.entries.get(key).and_then(|entry| {
            let age = now.saturating_duration_since(entry.since);
            let ttl = if entry.record.is_some() { ttls.0 } else { ttls.1 };
            (age < ttl).then(|| CacheHit { record: entry.record.clone(), version: entry.version, age })
        });
        match hit {
            Some(_) => self.stats.hits += 1,
            None => self.stats.misses += 1,
        }
        hit
    }

    /// Puts an entry in the place of an older read of the same version, unless that began later.
    fn refresh(&mut self, key: &Key, mut entry: Entry) {
        if let Some(held) = self.entries.peek(key)
            && held.version == entry.version
        {
            entry.since = entry.since.max(held.since);
        }
        self.place(key, entry);
    }

    fn place(&mut self, key: &Key, entry: Entry) {
        if entry.bytes > self.config.max_bytes {
            // Its predecessor must not stand, and no older write may take the place.
            self.raise_floor(entry.version);
            self.remove(key);
            return;
        }
        self.stats.bytes += entry.bytes;
        // The version of what is replaced is not higher, and so not lost.
        if let Some(replaced) = self.entries.put(key.clone(), entry) {
            self.stats.bytes -= replaced.bytes;
        }
        while self.entries.len() > self.config.max_size || self.stats.bytes > self.config.max_bytes {
            let Some((_, evicted)) = self.entries.pop_lru() else { break };
            self.stats.evictions += 1;
            self.dropped(&evicted);
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.pop(key) {
            self.dropped(&entry);
        }
    }

    fn dropped(&mut self, entry: &Entry) {
        self.stats.bytes -= entry.bytes;
        self.raise_floor(entry.version);
    }

    fn raise_floor(&mut self, version: Version) {
        self.floor = self.floor.max(version);
    }

    fn spoil_fills(&mut self, key: &Key) {
        if let Some(lease) = self.leases.get_mut(key) {
            self.stamp += 1;
            lease.stamp = self.stamp;
        }
    }
}
