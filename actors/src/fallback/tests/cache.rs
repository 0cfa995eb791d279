use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::time::Instant;

use crate::fallback::{Cache, CacheConfig, CacheStats, FillToken};
use crate::models;
use crate::operation::Version;
use crate::record::{Key, Record};

const SECOND: Duration = Duration::from_secs(1);

fn cache(max_size: usize) -> Cache {
    Cache::new(CacheConfig { max_size, ..CacheConfig::default() })
}

fn record(key: &Key, version: u64) -> Arc<Record> {
    Arc::new(Record::new(key.clone()).with("version", version))
}

fn version(cache: &Cache, key: &Key, now: Instant) -> Option<u64> {
    cache.get(key, now).map(|hit| hit.version.0)
}

#[test]
fn what_was_put_is_given_with_its_age_until_its_ttl() {
    let (start, key, cache) = (Instant::now(), Key::new("k"), cache(10));
    assert!(cache.put(&key, Version(1), Some(record(&key, 1)), start));
    let hit = cache.get(&key, start + 299 * SECOND).expect("it is young enough");
    assert_eq!((hit.version, hit.age), (Version(1), 299 * SECOND));
    assert_eq!(hit.record, Some(record(&key, 1)));
    assert_eq!(cache.get(&key, start + 300 * SECOND), None);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.hit_rate()), (1, 1, 0.5));
}

#[test]
fn the_cache_holds_exactly_as_many_entries_as_it_may_and_drops_the_least_recently_used() {
    let (now, cache) = (Instant::now(), cache(1_000));
    let key = |i: u64| Key::new(format!("{i}"));
    for i in 1..=1_000 {
        assert!(cache.put(&key(i), Version(i), None, now));
    }
    assert_eq!(cache.stats().entries, 1_000);
    assert!(cache.get(&key(1), now).is_some());
    assert!(cache.put(&key(1_001), Version(1_001), None, now));
    assert_eq!((cache.stats().entries, cache.stats().evictions), (1_000, 1));
    assert!(cache.get(&key(1), now).is_some(), "it was used after the others");
    assert_eq!(cache.get(&key(2), now), None);
}

#[test]
fn the_cache_is_bounded_in_bytes_too_and_a_record_that_does_not_fit_displaces_only_its_predecessor() {
    let now = Instant::now();
    let cache = Cache::new(CacheConfig { max_bytes: 10_000, ..CacheConfig::default() });
    let big = |key: &Key, bytes: usize| Some(Arc::new(Record::new(key.clone()).with("text", "x".repeat(bytes))));
    let [a, b, c] = ["a", "b", "c"].map(Key::new);
    assert!(cache.put(&a, Version(1), big(&a, 4_000), now));
    assert!(cache.put(&b, Version(2), big(&b, 4_000), now));
    assert!(cache.put(&c, Version(3), big(&c, 4_000), now));
    assert_eq!(cache.get(&a, now), None);
    assert!(cache.stats().bytes <= 10_000);
    cache.put(&b, Version(9), big(&b, 20_000), now);
    assert_eq!(cache.get(&b, now), None, "the old record must not stand for the new one");
    assert!(cache.get(&c, now).is_some());
    assert!(!cache.put(&b, Version(8), big(&b, 1), now), "nor an older one come late");
}

#[test]
fn trap_15_a_delete_masks_the_record_for_longer_than_the_record_would_have_lived() {
    let (start, key, cache) = (Instant::now(), Key::new("k"), cache(10));
    assert!(cache.put(&key, Version(1), Some(record(&key, 1)), start));
    let token = cache.begin_fill(&key, start);
    assert!(cache.put(&key, Version(2), None, start));
    // The read that was under way, a late put, and a fill from a backend that has not seen the delete.
    assert!(!cache.fill(token, Version(1), Some(record(&key, 1))));
    assert!(!cache.put(&key, Version(1), Some(record(&key, 1)), start + SECOND));
    for second in [1, 301, 3_599, 3_601, 100_000] {
        let now = start + Duration::from_secs(second);
        assert!(!cache.fill(cache.begin_fill(&key, now), Version(1), Some(record(&key, 1))), "after {second} s");
        let hit = cache.get(&key, now);
        assert_eq!(hit.is_some(), second < 3_600);
        assert!(hit.is_none_or(|hit| hit.record.is_none()));
    }
}

#[test]
fn a_tombstone_that_was_evicted_still_keeps_late_writes_and_reads_out() {
    let (now, cache) = (Instant::now(), cache(1));
    let (key, other) = (Key::new("k"), Key::new("other"));
    let token = cache.begin_fill(&key, now);
    assert!(cache.put(&key, Version(2), None, now));
    assert!(cache.put(&other, Version(3), None, now));
    assert!(!cache.put(&key, Version(1), Some(record(&key, 1)), now));
    assert!(!cache.fill(token, Version(1), Some(record(&key, 1))));
    assert_eq!(cache.get(&key, now), None);
    // A read that began after the delete was acknowledged knows of it: what it says is true, however old.
    assert!(cache.fill(cache.begin_fill(&key, now), Version(1), Some(record(&key, 1))));
}

#[test]
fn a_merged_write_drops_what_it_was_merged_into_and_what_is_being_read() {
    let (now, key, cache) = (Instant::now(), Key::new("k"), cache(10));
    assert!(cache.put(&key, Version(1), Some(record(&key, 1)), now));
    let token = cache.begin_fill(&key, now);
    cache.invalidate(&key, Version(2));
    assert_eq!(cache.get(&key, now), None);
    assert!(!cache.fill(token, Version(1), Some(record(&key, 1))));
    assert!(!cache.put(&key, Version(1), Some(record(&key, 1)), now));
    assert!(cache.put(&key, Version(4), Some(record(&key, 4)), now));
    cache.invalidate(&key, Version(3));
    assert_eq!(version(&cache, &key, now), Some(4), "an older merge does not concern a newer record");
}

#[test]
fn what_a_compensation_has_undone_is_forgotten_and_not_filled_in_again() {
    let (now, key, cache) = (Instant::now(), Key::new("k"), cache(10));
    // A read that saw the write before it was undone, under the version that the compensation keeps.
    let early = cache.begin_fill(&key, now);
    let late = cache.begin_fill(&key, now);
    assert!(cache.fill(early, Version(2), Some(record(&key, 2))));
    cache.forget(&key);
    assert!(!cache.fill(late, Version(2), Some(record(&key, 2))));
    assert_eq!(cache.get(&key, now), None);
    assert!(cache.fill(cache.begin_fill(&key, now), Version(2), Some(record(&key, 1))));
}

#[test]
fn the_age_of_a_fill_counts_from_the_beginning_of_its_read() {
    let (start, key, cache) = (Instant::now(), Key::new("k"), cache(10));
    let slow = cache.begin_fill(&key, start);
    let quick = cache.begin_fill(&key, start + 5 * SECOND);
    assert!(cache.fill(quick, Version(1), Some(record(&key, 1))));
    assert!(cache.fill(slow, Version(1), Some(record(&key, 1))));
    let hit = cache.get(&key, start + 7 * SECOND).expect("it is there");
    assert_eq!(hit.age, 2 * SECOND, "a read that began earlier makes nothing older");
}

#[test]
fn a_key_that_was_never_written_is_remembered_as_such() {
    let (now, key, cache) = (Instant::now(), Key::new("k"), cache(10));
    assert!(cache.fill(cache.begin_fill(&key, now), Version(0), None));
    assert_eq!(cache.get(&key, now).map(|hit| (hit.version, hit.record)), Some((Version(0), None)));
    assert!(cache.put(&key, Version(1), Some(record(&key, 1)), now));
    assert_eq!(version(&cache, &key, now), Some(1));
}

#[test]
fn a_token_of_another_cache_fills_nothing() {
    let (now, key) = (Instant::now(), Key::new("k"));
    let (one, other) = (cache(10), cache(10));
    let _same_stamp = one.begin_fill(&key, now);
    assert!(!one.fill(other.begin_fill(&key, now), Version(1), None));
    assert_eq!(one.get(&key, now), None);
}

/// A store, a cache of one entry, and who works on them, step by step.
struct World {
    cache: Cache,
    now: Instant,
    key: Key,
    backend: u64,
    acknowledged: u64,
    tokens: Vec<Option<FillToken>>,
    seen: Vec<u64>,
}

impl World {
    fn new() -> Self {
        let (now, cache, key) = (Instant::now(), cache(1), Key::new("k"));
        assert!(cache.put(&key, Version(1), Some(record(&key, 1)), now));
        Self { cache, now, key, backend: 1, acknowledged: 1, tokens: vec![None, None], seen: vec![0, 0] }
    }

    fn read(&mut self, reader: usize, step: usize) {
        match step {
            0 => self.tokens[reader] = Some(self.cache.begin_fill(&self.key, self.now)),
            1 => self.seen[reader] = self.backend,
            _ => {
                let token = self.tokens[reader].take().expect("it was begun");
                let seen = self.seen[reader];
                self.cache.fill(token, Version(seen), Some(record(&self.key, seen)));
            }
        }
    }

    fn write(&mut self, version: u64, step: usize) {
        match step {
            0 => self.backend = self.backend.max(version),
            _ => {
                self.cache.put(&self.key, Version(version), Some(record(&self.key, version)), self.now);
                self.acknowledged = self.acknowledged.max(version);
            }
        }
    }

    fn check(&self, schedule: &[usize]) {
        if let Some(hit) = self.cache.get(&self.key, self.now) {
            assert!(hit.version.0 >= self.acknowledged, "{hit:?} after v{}: {schedule:?}", self.acknowledged);
            assert_eq!(hit.record, Some(record(&self.key, hit.version.0)));
        }
    }
}

/// Calls back with every order in which these actors can take this many steps each.
fn schedules(left: &mut [usize], schedule: &mut Vec<usize>, each: &mut impl FnMut(&[usize])) {
    if left.iter().all(|steps| *steps == 0) {
        return each(schedule);
    }
    for actor in 0..left.len() {
        if left[actor] > 0 {
            left[actor] -= 1;
            schedule.push(actor);
            schedules(left, schedule, each);
            schedule.pop();
            left[actor] += 1;
        }
    }
}

#[test]
fn trap_16_no_schedule_of_readers_writers_and_evictions_leaves_an_old_record_behind() {
    let mut count = 0;
    // A reader, a writer of v2, a writer of v3, and two evictions.
    schedules(&mut [3, 2, 2, 1, 1], &mut Vec::new(), &mut |schedule| {
        let mut world = World::new();
        let mut step = [0; 5];
        for &actor in schedule {
            match actor {
                0 => world.read(0, step[0]),
                1 => world.write(2, step[1]),
                2 => world.write(3, step[2]),
                other => {
                    // Filled, since an unrelated record may be older than all that was dropped.
                    let key = Key::new(format!("other {other}"));
                    assert!(world.cache.fill(world.cache.begin_fill(&key, world.now), Version(1), None));
                }
            }
            step[actor] += 1;
            world.check(schedule);
        }
        count += 1;
    });
    assert_eq!(count, 15_120);
}

#[test]
fn trap_16_two_readers_and_a_writer_neither() {
    schedules(&mut [3, 3, 2, 1], &mut Vec::new(), &mut |schedule| {
        let mut world = World::new();
        let mut step = [0; 4];
        for &actor in schedule {
            match actor {
                0 | 1 => world.read(actor, step[actor]),
                2 => world.write(2, step[2]),
                _ => assert!(world.cache.put(&Key::new("other"), Version(9), None, world.now)),
            }
            step[actor] += 1;
            world.check(schedule);
        }
    });
}

/// The cache, as plainly as it can be said: a list from the least to the most recently used.
#[derive(Clone, Debug, Default)]
struct Model {
    now: u64,
    entries: Vec<(usize, Shelved)>,
    /// Reads under way: of which key, since when, and whether nothing has happened to it meanwhile.
    reads: Vec<(usize, u64, bool)>,
    floor: u64,
    stats: CacheStats,
    /// What the last action gave: whether it was taken, or what was found.
    taken: bool,
    found: Option<(u64, bool, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Shelved {
    version: u64,
    /// Whether there is a record; its content is its version.
    record: bool,
    since: u64,
}

const SIZE: usize = 3;
const TTL: u64 = 10;
const TOMBSTONE_TTL: u64 = 25;

impl Model {
    fn take(&mut self, key: usize) -> Option<Shelved> {
        let at = self.entries.iter().position(|(k, _)| *k == key)?;
        Some(self.entries.remove(at).1)
    }

    fn place(&mut self, key: usize, entry: Shelved) {
        self.take(key);
        self.entries.push((key, entry));
        if self.entries.len() > SIZE {
            let (_, evicted) = self.entries.remove(0);
            self.floor = self.floor.max(evicted.version);
            self.stats.evictions += 1;
        }
    }

    fn held(&self, key: usize) -> Option<Shelved> {
        self.entries.iter().find(|(k, _)| *k == key).map(|(_, entry)| *entry)
    }

    fn spoil(&mut self, key: usize) {
        self.reads.iter_mut().filter(|(k, ..)| *k == key).for_each(|(.., sound)| *sound = false);
    }

    fn put(&mut self, key: usize, entry: Shelved) -> bool {
        self.spoil(key);
        let taken = self.held(key).map_or(entry.version > self.floor, |held| entry.version >= held.version);
        if taken {
            self.place(key, entry);
        } else {
            self.stats.refused += 1;
        }
        taken
    }

    fn fill(&mut self, read: usize, version: u64, record: bool) -> bool {
        let (key, begun, sound) = self.reads.remove(read);
        if !sound || self.held(key).is_some_and(|held| held.version > version) {
            self.stats.refused += 1;
            return false;
        }
        let since = self.held(key).filter(|held| held.version == version).map_or(begun, |held| held.since.max(begun));
        self.place(key, Shelved { version, record, since });
        true
    }

    fn drop_below(&mut self, key: usize, version: u64) {
        self.spoil(key);
        if self.held(key).is_some_and(|held| held.version < version)
            && let Some(entry) = self.take(key)
        {
            self.floor = self.floor.max(entry.version);
        }
    }

    fn get(&mut self, key: usize) -> Option<(u64, bool, u64)> {
        let hit = self.take(key).and_then(|entry| {
            self.entries.push((key, entry));
            let ttl = if entry.record { TTL } else { TOMBSTONE_TTL };
            let age = self.now.saturating_sub(entry.since);
            (age < ttl).then_some((entry.version, entry.record, age))
        });
        *(if hit.is_some() { &mut self.stats.hits } else { &mut self.stats.misses }) += 1;
        hit
    }
}

#[derive(Clone, Debug)]
enum Action {
    Pass(u64),
    Get(usize),
    Put(usize, u64, bool),
    Invalidate(usize, u64),
    Forget(usize),
    Begin(usize),
    /// A read that is under way ends, and is kept or not.
    Fill(usize, u64, bool),
    Abandon(usize),
    /// The process dies, and the next one has nothing: neither records nor what was dropped nor reads under way.
    Crash,
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Action;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(model: &Self) -> BoxedStrategy<Action> {
        let (key, version) = (0..6_usize, 0..40_u64);
        let alone = prop_oneof![
            8 => (1..4_u64).prop_map(Action::Pass),
            4 => key.clone().prop_map(Action::Get),
            4 => (key.clone(), version.clone(), any::<bool>()).prop_map(|(k, v, r)| Action::Put(k, v, r)),
            1 => (key.clone(), version.clone()).prop_map(|(k, v)| Action::Invalidate(k, v)),
            1 => key.clone().prop_map(Action::Forget),
            4 => key.prop_map(Action::Begin),
            1 => Just(Action::Crash),
        ];
        if model.reads.is_empty() {
            return alone.boxed();
        }
        let read = 0..model.reads.len();
        prop_oneof![
            23 => alone,
            4 => (read.clone(), version, any::<bool>()).prop_map(|(t, v, r)| Action::Fill(t, v, r)),
            1 => read.prop_map(Action::Abandon),
        ]
        .boxed()
    }

    fn preconditions(model: &Self, action: &Action) -> bool {
        match action {
            Action::Fill(read, ..) | Action::Abandon(read) => *read < model.reads.len(),
            _ => true,
        }
    }

    fn apply(mut model: Self, action: &Action) -> Self {
        let since = model.now;
        match *action {
            Action::Pass(seconds) => model.now += seconds,
            Action::Get(key) => model.found = model.get(key),
            Action::Put(key, version, record) => model.taken = model.put(key, Shelved { version, record, since }),
            Action::Invalidate(key, version) => {
                model.drop_below(key, version);
                model.floor = model.floor.max(version);
            }
            Action::Forget(key) => model.drop_below(key, u64::MAX),
            Action::Begin(key) => model.reads.push((key, since, true)),
            Action::Fill(read, version, record) => model.taken = model.fill(read, version, record),
            Action::Abandon(read) => drop(model.reads.remove(read)),
            Action::Crash => model = Self { now: model.now, ..Self::default() },
        }
        model
    }
}

/// The cache against the list; reads under way are at the same index in both.
struct Shelf {
    start: Instant,
    cache: Cache,
    tokens: Vec<FillToken>,
}

impl Shelf {
    fn empty() -> Cache {
        Cache::new(CacheConfig {
            max_size: SIZE,
            ttl: Duration::from_secs(TTL),
            tombstone_ttl: Duration::from_secs(TOMBSTONE_TTL),
            ..CacheConfig::default()
        })
    }
}

impl StateMachineTest for Shelf {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        Self { start: Instant::now(), cache: Self::empty(), tokens: Vec::new() }
    }

    fn apply(mut shelf: Self, model: &Model, action: Action) -> Self {
        let now = shelf.start + Duration::from_secs(model.now);
        let key = |key: usize| Key::new(format!("{key}"));
        let content = |version, exists: bool| exists.then(|| record(&key(0), version));
        match action {
            Action::Pass(_) => {}
            Action::Get(k) => {
                let found = shelf.cache.get(&key(k), now);
                let plain = found.as_ref().map(|hit| (hit.version.0, hit.record.is_some(), hit.age.as_secs()));
                assert_eq!(plain, model.found);
                if let Some(hit) = found {
                    assert_eq!(hit.record, content(hit.version.0, hit.record.is_some()));
                }
            }
            Action::Put(k, version, exists) => {
                let taken = shelf.cache.put(&key(k), Version(version), content(version, exists), now);
                assert_eq!(taken, model.taken);
            }
            Action::Invalidate(k, version) => shelf.cache.invalidate(&key(k), Version(version)),
            Action::Forget(k) => shelf.cache.forget(&key(k)),
            Action::Begin(k) => shelf.tokens.push(shelf.cache.begin_fill(&key(k), now)),
            Action::Fill(read, version, exists) => {
                let token = shelf.tokens.remove(read);
                assert_eq!(shelf.cache.fill(token, Version(version), content(version, exists)), model.taken);
            }
            Action::Abandon(read) => drop(shelf.tokens.remove(read)),
            Action::Crash => {
                shelf.tokens.clear();
                shelf.cache = Self::empty();
            }
        }
        shelf
    }

    fn check_invariants(shelf: &Self, model: &Model) {
        let stats = shelf.cache.stats();
        assert_eq!(stats, CacheStats { entries: model.entries.len(), bytes: stats.bytes, ..model.stats });
        assert_eq!(stats.bytes == 0, stats.entries == 0);
    }

    fn teardown(shelf: Self, _: Model) {
        drop(shelf.tokens);
        assert_eq!(shelf.cache.reads_under_way(), 0, "no lease outlives its token");
    }
}

prop_state_machine! {
    #![proptest_config(models::cases(400))]

    #[test]
    fn the_cache_does_what_a_plain_list_does(sequential 1..150 => Shelf);
}
