//! One write at a time a key.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::record::Key;

const SHARDS: usize = 32;

/// The keys that are held, each with those who wait for it, in their order.
type Shard = Mutex<HashMap<Key, VecDeque<oneshot::Sender<()>>, RandomState>>;

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
    /// Most writes have one key.
    held: SmallVec<[Lock; 1]>,
}

/// The lock of one key, or a place in the queue for it.
struct Lock {
    shard: usize,
    key: Key,
    /// It is told here when the lock is handed over, if it has to wait for that.
    turn: Option<oneshot::Receiver<()>>,
}

impl KeyLocks {
    /// Waits for all of these keys. They are taken in one order by everybody, so nobody waits in a circle.
    /// Dropping the future gives back what it holds.
    pub async fn lock(&self, keys: impl IntoIterator<Item = Key>) -> KeyGuard {
        let mut keys: SmallVec<[Key; 1]> = keys.into_iter().collect();
        keys.sort_unstable();
        keys.dedup();
        let mut guard = KeyGuard { shards: Arc::clone(&self.shards), held: SmallVec::new() };
        for key in keys {
            let shard = usize::try_from(self.hasher.hash_one(&key) % SHARDS as u64).unwrap_or(0);
            let turn = match lock(&self.shards[shard]).entry(key.clone()) {
                Entry::Vacant(free) => {
                    free.insert(VecDeque::new());
                    None
                }
                Entry::Occupied(mut held) => {
                    let (hand_over, turn) = oneshot::channel();
                    held.get_mut().push_back(hand_over);
                    Some(turn)
                }
            };
            guard.held.push(Lock { shard, key, turn });
            if let Some(Lock { turn: waiting @ Some(_), .. }) = guard.held.last_mut() {
                if let Some(turn) = waiting {
                    // Whoever holds a lock hands it over before going.
                    let _ = turn.await;
                }
                *waiting = None;
            }
        }
        guard
    }
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        for Lock { shard, key, turn } in self.held.drain(..) {
            let mut shard = lock(&self.shards[shard]);
            let has_come = turn.is_none_or(|mut turn| {
                turn.close();
                turn.try_recv().is_ok()
            });
            if has_come && let Entry::Occupied(mut held) = shard.entry(key) {
                // Those who gave up meanwhile are passed over.
                let handed_over = std::iter::from_fn(|| held.get_mut().pop_front()).any(|next| next.send(()).is_ok());
                if !handed_over {
                    held.remove();
                }
            }
        }
    }
}

fn lock(shard: &Shard) -> MutexGuard<'_, HashMap<Key, VecDeque<oneshot::Sender<()>>, RandomState>> {
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
    async fn one_that_gives_up_when_its_turn_has_come_hands_on_the_lock() {
        let locks = Arc::new(KeyLocks::default());
        let first = locks.lock(["a".into()]).await;
        let mut second = Box::pin(locks.lock(["a".into()]));
        assert!(futures::poll!(&mut second).is_pending());
        let mut third = Box::pin(locks.lock(["a".into()]));
        assert!(futures::poll!(&mut third).is_pending());
        drop(first);
        drop(second);
        drop(tokio::time::timeout(Duration::from_secs(1), third).await.expect("it is its turn"));
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
