//! The cache, alone and through the gateway: row 9.

use std::hint::black_box;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use seawall::Handle;
use seawall::fallback::{Access, Cache, CacheConfig};
use seawall::operation::{Source, Version};
use seawall::record::{Key, Record};
use tokio::time::Instant;

use crate::measure::{Effort, interleave, per_call, per_task_call};
use crate::stage::{Echo, Noop, current_thread, records, roomy, start, store_all, until};
use crate::table::{Aim, Row, both};

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    vec![hit(effort), read(effort)]
}

const ENTRIES: usize = 1_000;

fn hit(effort: Effort) -> Row {
    let calls = effort.pick(300_000, 30_000);
    let keys: Vec<Key> = (0..ENTRIES).map(|n| format!("key-{n}").into()).collect();
    let cache = Cache::new(CacheConfig::default());
    let plain = Mutex::new(LruCache::unbounded());
    // The clock belongs to who asks.
    let now = Instant::now();
    for key in &keys {
        let record = Arc::new(Record::new(key.clone()));
        cache.put(key, Version(1), Some(Arc::clone(&record)), now);
        plain.lock().expect("nobody panics").put(key.clone(), record);
    }
    // Not in the order in which they were put.
    let key = |n: usize| &keys[n * 7 % ENTRIES];
    let (mut one, mut other) = (0, 0);
    let rounds = interleave(
        effort.rounds(),
        [
            &mut || {
                per_call(calls, || {
                    one += 1;
                    assert!(black_box(cache.get(key(one), now)).is_some());
                })
            },
            &mut || {
                per_call(calls, || {
                    other += 1;
                    let held = plain.lock().expect("nobody panics").get(key(other)).map(Arc::clone);
                    assert!(black_box(held).is_some());
                })
            },
        ],
    );
    let medians = both(rounds.median(0), rounds.median(1));
    Row::ratio("9a", "cache hit", "`lru` behind a mutex", rounds.ratio(0, 1), medians, Aim::AtMost(1.2))
}

async fn read_all(handle: Handle, keys: Vec<Key>) {
    for key in keys {
        let read = handle.retrieve(key).await.expect("is read");
        assert!(matches!(read.source, Source::Cache { .. }));
    }
}

fn read(effort: Effort) -> Row {
    let calls = effort.pick(10_000, 1_000);
    let tokio = current_thread();
    let runtime = tokio.block_on(async {
        let runtime = start(Noop::two(), roomy()).await;
        store_all(runtime.handle(), records(ENTRIES as u64)).await;
        let control = runtime.control();
        for backend in ["graph", "vector"] {
            control.breaker(backend).expect("it is there").force_open("to read from the cache", None);
        }
        let lost = || control.fallback().backends.iter().all(|(_, access)| *access == Access::None);
        until("the level follows the breakers", lost).await;
        runtime
    });
    let echo = tokio.block_on(Echo::start());
    let keys = || (0..calls).map(|n| format!("key-{}", n as usize % ENTRIES).into()).collect();
    let rounds = interleave(
        effort.rounds(),
        [&mut || per_task_call(&tokio, calls, read_all(runtime.handle(), keys())), &mut || {
            per_task_call(&tokio, calls, Echo::call(echo.clone(), calls))
        }],
    );
    let medians = both(rounds.median(0), rounds.median(1));
    let what = "read from the cache, through the handle";
    Row::ratio("9b", what, "one ractor `call!`", rounds.ratio(0, 1), medians, Aim::AtMost(1.3))
}
