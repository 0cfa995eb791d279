//! What threads share without a message: atomics, and the one kind of lock.
//!
//! These are those of `std`. Only the tests that try out thread schedules (`tests/threads`) put those of loom or
//! shuttle in their place, which run one thread at a time and decide at each of these operations which.

#[cfg(all(test, seawall_loom))]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic};
#[cfg(all(test, seawall_shuttle))]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(all(test, any(seawall_loom, seawall_shuttle))))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

#[cfg(all(test, any(seawall_loom, seawall_shuttle)))]
pub(crate) mod schedules {
    //! Trying out what holds in every schedule.

    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    #[cfg(seawall_loom)]
    pub(crate) use loom::thread;
    #[cfg(seawall_shuttle)]
    pub(crate) use shuttle::thread;
    use tokio::runtime::{Builder, EnterGuard, Runtime};

    /// All schedules with at most so many preemptions; three find almost every bug that there is.
    #[cfg(seawall_loom)]
    const PREEMPTIONS: usize = 3;
    /// Random schedules, unless `SEAWALL_SCHEDULES` says how many.
    #[cfg(seawall_shuttle)]
    const RANDOM: usize = 10_000;

    /// Runs this in every schedule that there is with few preemptions, or in many random ones.
    pub(crate) fn explore(body: impl Fn() + Send + Sync + 'static) {
        let schedules = Arc::new(AtomicU64::new(0));
        let counted = {
            let schedules = Arc::clone(&schedules);
            move || {
                schedules.fetch_add(1, Ordering::Relaxed);
                body();
            }
        };
        #[cfg(seawall_loom)]
        {
            let mut model = loom::model::Builder::new();
            model.preemption_bound.get_or_insert(PREEMPTIONS);
            model.check(counted);
        }
        #[cfg(seawall_shuttle)]
        {
            let asked = std::env::var("SEAWALL_SCHEDULES").ok().and_then(|text| text.parse().ok());
            shuttle::check_random(counted, asked.unwrap_or(RANDOM));
        }
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        println!("{name}: {} schedules", schedules.load(Ordering::Relaxed));
    }

    /// The clock of one schedule: it stands still until it is told.
    #[derive(Clone)]
    pub(crate) struct Clock(Arc<Runtime>);

    impl Clock {
        pub(crate) fn new() -> Self {
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
            Self(Arc::new(runtime.expect("a runtime without any driver but time")))
        }

        /// Holds for all threads, which are one to the operating system.
        pub(crate) fn enter(&self) -> EnterGuard<'_> {
            self.0.enter()
        }

        pub(crate) fn pass(&self, time: Duration) {
            self.0.block_on(tokio::time::advance(time));
        }
    }
}
