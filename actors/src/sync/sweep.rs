//! Forgetting deletes. A tombstone keeps an older write from bringing a record back, and goes when none can come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::breaker::Purpose;
use crate::operation::Version;
use crate::plane::{DataPlane, FailedCall, Store};

/// Deletes that are forgotten in one call, about.
const AT_MOST: usize = 256;

/// Below which version deletes may be forgotten. No clock, no I/O.
#[derive(Debug, Default)]
pub(super) struct Horizon {
    /// Everything below this was finished when it was set.
    finished: Version,
}

impl Horizon {
    /// Called as often as the longest time that a write can be on its way, with the oldest version that is not
    /// finished and the last that was given out. What was finished the last time has arrived by now, or never will; but a
    /// version may have been owed again since then.
    pub(super) fn advance(&mut self, oldest: Option<Version>, last: Version) -> Version {
        let finished = oldest.map_or(last, |oldest| oldest.min(last));
        std::mem::replace(&mut self.finished, finished).min(finished)
    }
}

/// Lets all stores forget deletes, now and then.
pub(super) async fn sweep(plane: Arc<DataPlane>, after: Duration) {
    if after.is_zero() {
        return;
    }
    let mut horizon = Horizon::default();
    let mut advance = || horizon.advance(plane.ledger().oldest(), plane.versions.last());
    advance();
    loop {
        sleep(after).await;
        let older_than = advance();
        if older_than == Version(0) {
            continue;
        }
        for store in &plane.stores {
            // What is refused now is done the next time.
            if let Err(error) = sweep_store(&plane, store, older_than).await {
                tracing::debug!(backend = %store.name, %error, "deletes are not forgotten now");
            }
        }
    }
}

async fn sweep_store(plane: &DataPlane, store: &Arc<Store>, older_than: Version) -> Result<(), FailedCall> {
    while plane.fallback.plan().load().may_drain() {
        let mut permit = store.permit(Purpose::Drain)?;
        let until = Instant::now() + store.config.timeout;
        match permit.call_once(until, |backend| backend.sweep(older_than, AT_MOST)).await? {
            0 => break,
            swept => store.swept(swept),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Each version is finished at some tick, or never; between ticks all of them may be on their way.
        #[test]
        fn nothing_is_forgotten_that_was_not_finished_a_tick_before(
            ends in prop::collection::vec(prop::option::of(0..20_usize), 1..40),
        ) {
            let mut horizon = Horizon::default();
            let mut begun = 0;
            for tick in 0..20 {
                begun = (begun + 2).min(ends.len());
                let open_at = |tick: usize| {
                    let open = |end: &Option<usize>| end.is_none_or(|end| end >= tick);
                    ends[..begun].iter().position(open).map(|at| Version(at as u64 + 1))
                };
                let below = horizon.advance(open_at(tick), Version(begun as u64));
                for version in 1..below.0 {
                    let end = ends[version as usize - 1];
                    prop_assert!(end.is_some_and(|end| tick > 0 && end < tick - 1), "{version} at {tick}, ends {end:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_owed_again_holds_it_back() {
        let mut horizon = Horizon::default();
        horizon.advance(None, Version(9));
        assert_eq!(horizon.advance(Some(Version(4)), Version(9)), Version(4));
        assert_eq!(horizon.advance(None, Version(9)), Version(4));
        assert_eq!(horizon.advance(None, Version(9)), Version(9));
    }
}
