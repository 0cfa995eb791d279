//! How everything is measured.
//!
//! Work is measured in rounds; a round measures every variant once, a ratio is taken inside a round, and the median of
//! the ratios is what counts, with the quartiles beside it. So whatever slows the machine down for a while slows down
//! both sides. What is bound by the CPU is measured in CPU time, on a runtime of one thread, in a task that was
//! spawned: the main task of a runtime pays for a futex that nobody else does. Only what waits for a disk or for a
//! backend is measured by the clock on the wall.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;

/// How much is done.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Only to see whether it still runs.
    pub(crate) short: bool,
}

impl Effort {
    pub(crate) fn pick<T>(self, full: T, short: T) -> T {
        if self.short { short } else { full }
    }

    /// How many rounds most rows take.
    pub(crate) fn rounds(self) -> usize {
        self.pick(31, 5)
    }
}

/// CPU seconds of this process so far.
pub(crate) fn process_cpu() -> f64 {
    seconds(ClockId::ProcessCPUTime)
}

/// CPU seconds of this thread so far.
pub(crate) fn thread_cpu() -> f64 {
    seconds(ClockId::ThreadCPUTime)
}

/// Seconds on the wall.
pub(crate) fn wall() -> f64 {
    seconds(ClockId::Monotonic)
}

fn seconds(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The median and the quartiles of some samples.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// Of these samples; those that are no numbers were not taken. `None` without any.
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut samples: Vec<f64> = samples.into_iter().filter(|sample| sample.is_finite()).collect();
        if samples.is_empty() {
            return None;
        }
        samples.sort_by(f64::total_cmp);
        let [low, median, high] = [0.25, 0.5, 0.75].map(|share| quantile(&samples, share));
        Some(Self { low, median, high })
    }

    /// Of one exact number.
    pub(crate) fn exactly(value: f64) -> Self {
        Self { low: value, median: value, high: value }
    }
}

/// Of sorted samples, at least one.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// The 99th percentile.
pub(crate) fn p99(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    quantile(&samples, 0.99)
}

/// What every round measured of every variant.
pub(crate) struct Rounds {
    samples: Vec<Vec<f64>>,
}

impl Rounds {
    /// The median of a variant.
    pub(crate) fn median(&self, variant: usize) -> f64 {
        Spread::of(self.samples[variant].iter().copied()).map_or(f64::NAN, |spread| spread.median)
    }

    /// The median of what one variant cost of what another did in the same round.
    pub(crate) fn ratio(&self, subject: usize, reference: usize) -> Option<Spread> {
        Spread::of(self.samples[subject].iter().zip(&self.samples[reference]).map(|(subject, other)| subject / other))
    }
}

/// Measures all variants in rounds, each round in another order, after one round for warming up.
pub(crate) fn interleave<const N: usize>(rounds: usize, variants: [&mut dyn FnMut() -> f64; N]) -> Rounds {
    let mut samples = vec![Vec::with_capacity(rounds); N];
    for round in 0..=rounds {
        for turn in 0..N {
            let variant = (round + turn) % N;
            let sample = variants[variant]();
            if round > 0 {
                samples[variant].push(sample);
            }
        }
    }
    Rounds { samples }
}

/// CPU nanoseconds of this thread for one call.
pub(crate) fn per_call(calls: u64, mut call: impl FnMut()) -> f64 {
    let start = thread_cpu();
    (0..calls).for_each(|_| call());
    (thread_cpu() - start) / calls as f64 * 1e9
}

/// CPU nanoseconds of the process for one of so many calls that a spawned task makes.
pub(crate) fn per_task_call(runtime: &Runtime, calls: u64, task: impl Future<Output = ()> + Send + 'static) -> f64 {
    let task = async move {
        let start = process_cpu();
        task.await;
        process_cpu() - start
    };
    spawned(runtime, task) / calls as f64 * 1e9
}

/// Seconds on the wall for one of so many calls that a spawned task makes.
pub(crate) fn per_task_wait(runtime: &Runtime, calls: u64, task: impl Future<Output = ()> + Send + 'static) -> f64 {
    let task = async move {
        let start = wall();
        task.await;
        wall() - start
    };
    spawned(runtime, task) / calls as f64
}

/// What a spawned task gives.
pub(crate) fn spawned<T: Send + 'static>(runtime: &Runtime, task: impl Future<Output = T> + Send + 'static) -> T {
    runtime.block_on(async { tokio::spawn(task).await }).expect("a measured task does not panic")
}

/// CPU nanoseconds for one call by two threads that call at the same time; NaN when they never really ran side by
/// side, as on a machine that is busy.
pub(crate) fn per_contended_call(calls: u64, call: impl Fn() + Sync) -> f64 {
    const TRIES: usize = 200;
    let ready = AtomicUsize::new(0);
    let work = || {
        // Not by sleeping: whoever is woken comes late.
        ready.fetch_add(1, Ordering::AcqRel);
        while !ready.load(Ordering::Acquire).is_multiple_of(2) {
            std::hint::spin_loop();
        }
        let (began, start) = (wall(), thread_cpu());
        (0..calls).for_each(|_| call());
        (began, wall(), thread_cpu() - start)
    };
    for _ in 0..TRIES {
        let (one, two) = std::thread::scope(|scope| {
            let other = scope.spawn(work);
            (work(), other.join().expect("a measured thread does not panic"))
        });
        let took = one.1.max(two.1) - one.0.min(two.0);
        let spent = one.2 + two.2;
        if spent / took > 1.75 {
            return spent / (2 * calls) as f64 * 1e9;
        }
    }
    f64::NAN
}
