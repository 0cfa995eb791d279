//! One write at a time a key.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::record::Key;

const SHARDS: usize = 32;

type Shard = Mutex<HashMap<Key, Arc<AsyncMutex<()>>>>;

/// Locks by key: writes of one key are accepted, and given their versions, one after another. Fair: first come,
/// first served.
#[derive(Default)]
pub struct KeyLocks {
    shards: Arc<[Shard; SHARDS]>,
    hasher: RandomState,
}

/// Holds the locks of some keys until it is dropped.
pub struct KeyGuard {
    shards: Arc<[Shard; SHARDS]>,
    held: Vec<(usize, Key, Option<OwnedMutexGuard<()>>)>,
}

impl KeyLocks {
    /// Waits for all of these keys. They are taken in one order by everybody, so nobody waits in a circle.
    /// Dropping the future gives back what it holds.
    pub async fn lock(&self, keys: impl IntoIterator<Item = Key>) -> KeyGuard {
        let mut keys: Vec<Key> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup();
        let mut guard = KeyGuard { shards: Arc::clone(&self.shards), held: Vec::with_capacity(keys.len()) };
        for key in keys {
            let shard = usize::try_from(self.hasher.hash_one(&key) % SHARDS as u64).unwrap_or(0);
            let mutex = Arc::clone(lock(&self.shards[shard]).entry(key.clone()).or_default());
            guard.held.push((shard, key, None));
            let owned = mutex.lock_owned().await;
            if let Some(last) = guard.held.last_mut() {
                last.2 = Some(owned);
            }
        }
        guard
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        for (shard, key, owned) in self.held.drain(..) {
            let mut map = lock(&self.shards[shard]);
            drop(owned);
            // Clones are made under the shard's lock only, so a count of one means that nobody waits.
            if map.get(&key).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
                map.remove(&key);
            }
        }
    }
}

fn lock(shard: &Shard) -> MutexGuard<'_, HashMap<Key, Arc<AsyncMutex<()>>>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_writer_of_a_key_waits_and_no_lock_is_left_behind() {
        let locks = KeyLocks::default();
        let first = locks.lock(["a".into(), "b".into()]).await;
        assert!(tokio::time::timeout(Duration::from_secs(1), locks.lock(["b".into()])).await.is_err());
        drop(locks.lock(["c".into()]).await);
        drop(first);
        drop(locks.lock(["b".into(), "a".into(), "b".into()]).await);
        assert!(locks.shards.iter().all(|shard| lock(shard).is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_go_in_turn_and_one_that_gives_up_keeps_nobody_waiting() {
        let locks = Arc::new(KeyLocks::default());
        let turns = Arc::new(Mutex::new(Vec::new()));
        let first = locks.lock(["a".into()]).await;
        let mut waiters = Vec::new();
        for turn in 0..6 {
            let (locks, turns) = (Arc::clone(&locks), Arc::clone(&turns));
            waiters.push(tokio::spawn(async move {
                let _guard = locks.lock(["b".into(), "a".into()]).await;
                turns.lock().unwrap().push(turn);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }));
            tokio::task::yield_now().await;
        }
        // The third gives up in the middle of the queue, the first while it holds one of two keys.
        waiters[2].abort();
        waiters[0].abort();
        tokio::task::yield_now().await;
        drop(first);
        for waiter in waiters {
            let _ = waiter.await;
        }
        assert_eq!(*turns.lock().unwrap(), [1, 3, 4, 5]);
        assert!(locks.shards.iter().all(|shard| lock(shard).is_empty()));
    }

    #[tokio::test(start_paused = true)]
    async fn writers_of_the_same_keys_in_any_order_never_wait_in_a_circle() {
        let locks = Arc::new(KeyLocks::default());
        let tasks: Vec<_> = (0..50_u64)
            .map(|seed| {
                let locks = Arc::clone(&locks);
                tokio::spawn(async move {
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..20 {
                        let mut keys: Vec<Key> = ["a", "b", "c", "d"].map(Key::from).to_vec();
                        random.shuffle(&mut keys);
                        keys.truncate(random.usize(1..4));
                        let guard = locks.lock(keys);
                        // Some give up.
                        let patience = Duration::from_millis(random.u64(1..40));
                        if let Ok(_guard) = tokio::time::timeout(patience, guard).await {
                            tokio::time::sleep(Duration::from_millis(random.u64(0..3))).await;
                        }
                    }
                })
            })
            .collect();
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(3_600), task).await.expect("nobody waits for ever").expect("done");
        }
        assert!(locks.shards.iter().all(|shard| lock(shard).is_empty()));
    }
}
