//! What a seed brings: how the runtime is configured, and what happens to it.

use std::time::Duration;

use seawall::breaker::BreakerConfig;
use seawall::call::{BudgetConfig, CallConfig, RetryConfig};
use seawall::config::{BackendConfig, Config};
use seawall::fallback::{JournalFallback, Mode};
use seawall::saga::Durability;

pub(crate) const MS: Duration = Duration::from_millis(1);

/// A flaw of the world that no runtime can make good for. The checker has to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A store answers a write and has lost it.
    StoreForgets,
    /// The journal answers before anything is durable.
    JournalLies,
}

/// How a process ends that is not the last one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// Before it has done this many things.
    Crash(u64),
    /// After this time, without any order.
    Drop(Duration),
    /// After this time, in order.
    Shutdown(Duration),
    /// After this time it is told to stop, and crashes before it has done this many things more.
    CrashInShutdown(Duration, u64),
}

/// How a store behaves when nothing in particular is wrong with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// How likely a call meets trouble.
    pub(crate) trouble: f64,
    /// How long a call takes at most, each way.
    pub(crate) latency: Duration,
    /// The longest delay of a call that is delayed, or done a second time.
    pub(crate) delay: Duration,
    /// How likely a write is done twice.
    pub(crate) twice: f64,
    /// Errors that say never.
    pub(crate) permanent: bool,
    pub(crate) panics: bool,
}

/// How the journal's disk behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskHabits {
    /// How long a sync takes at most.
    pub(crate) latency: Duration,
    /// How likely a sync fails, and after how long at most the journal is open again.
    pub(crate) fails: f64,
    pub(crate) reopens: Duration,
    /// How likely a sync hangs, and how long at most.
    pub(crate) stalls: f64,
    pub(crate) stall: Duration,
}

/// What happens beside the clients.
#[derive(Clone, Debug)]
pub(crate) struct Storm {
    /// The time between two things that happen, at most.
    pub(crate) pace: Duration,
    /// The longest time that a store is in one condition.
    pub(crate) flap: Duration,
    /// Modes that are set by hand.
    pub(crate) modes: Vec<Mode>,
    pub(crate) kills: bool,
    /// Breakers are forced, lifted and reset.
    pub(crate) overrides: bool,
    /// Dead letters are retried and discarded meanwhile.
    pub(crate) letters: bool,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) config: Config,
    /// Required backends.
    pub(crate) required: usize,
    /// Whether the last of them has native transactions.
    pub(crate) native: bool,
    /// Owed writes that a backend takes in one call.
    pub(crate) batch: usize,
    /// Whether there is a best-effort backend too.
    pub(crate) copy: bool,
    pub(crate) keys: u64,
    pub(crate) clients: u64,
    /// Requests of each client in each life, at most.
    pub(crate) requests: u32,
    /// The longest pause of a client.
    pub(crate) pause: Duration,
    /// Clients send bursts.
    pub(crate) bursts: bool,
    /// All lives but the last.
    pub(crate) ends: Vec<End>,
    pub(crate) habits: Habits,
    pub(crate) disk: DiskHabits,
    pub(crate) storm: Storm,
    /// Dead letters are retried at the end, until there are none; else only when nothing else is left to do.
    pub(crate) revive: bool,
    pub(crate) flaw: Option<Flaw>,
}

impl Weather {
    pub(crate) fn draw(random: &mut fastrand::Rng, flaw: Option<Flaw>) -> Self {
        let random = &mut Draw(random);
        let required = [2, 2, 2, 2, 2, 2, 1, 3][random.below(8)];
        let ends =
            if random.chance(0.55) { (0..1 + random.below(3)).map(|_| random.end()).collect() } else { Vec::new() };
        let permanent = random.chance(0.2);
        let config = random.config();
        let reset = config.breaker.reset_timeout;
        let modes = if random.chance(0.35) { random.modes(!ends.is_empty()) } else { Vec::new() };
        let mut weather = Self {
            required,
            native: random.chance(0.15),
            batch: [1, 1, 2, 8][random.below(4)],
            copy: random.chance(0.15),
            keys: 1 + random.below(6) as u64,
            clients: 1 + random.below(6) as u64,
            requests: 0,
            pause: random.time(MS, 2_000 * MS),
            bursts: random.chance(0.15),
            habits: Habits {
                trouble: [0.0, 0.05, 0.15, 0.4][random.below(4)],
                latency: [Duration::ZERO, MS, 5 * MS, 60 * MS][random.below(4)],
                delay: if random.chance(0.02) { 600_000 * MS } else { random.time(20 * MS, 10_000 * MS) },
                twice: [0.0, 0.1, 0.1, 0.3][random.below(4)],
                permanent,
                panics: random.chance(0.2),
            },
            disk: DiskHabits {
                latency: [Duration::ZERO, 2 * MS, 10 * MS, 100 * MS][random.below(4)],
                fails: if random.chance(0.2) { 0.08 } else { 0.0 },
                reopens: random.time(100 * MS, 10_000 * MS),
                stalls: if random.chance(0.1) { 0.05 } else { 0.0 },
                stall: random.time(500 * MS, 30_000 * MS),
            },
            storm: Storm {
                pace: random.time(20 * MS, 3_000 * MS),
                flap: reset.mul_f64(10_f64.powf(3.0 * random.0.f64() - 1.0)),
                modes,
                kills: random.chance(0.3),
                overrides: random.chance(0.25),
                letters: random.chance(0.3),
            },
            revive: random.chance(0.7),
            ends,
            config,
            flaw,
        };
        let lives = weather.ends.len() as u64 + 1;
        let operations = 20 + random.below(40) as u64;
        // What is on its way has arrived by then: from a store that is slow, and when it is done a second time, too.
        weather.config.sync.sweep_after = 3 * weather.habits.delay + 2 * weather.storm.flap + 1_000 * MS;
        weather.requests = u32::try_from(operations / lives / weather.clients).unwrap_or(1).max(1) * 2;
        weather
    }

    /// Whether writes may be accepted into memory only.
    pub(crate) fn may_be_volatile(&self) -> bool {
        let fallback = &self.config.fallback;
        fallback.mode_when_normal == Mode::MemoryOnly
            || fallback.mode_when_degraded == Mode::MemoryOnly
            || fallback.journal_unavailable == JournalFallback::MemoryOnly
            || self.storm.modes.contains(&Mode::MemoryOnly)
    }

    /// Whether no store may be given a write whose intent is not durable.
    pub(crate) fn is_strict(&self) -> bool {
        self.required > 1 && !self.may_be_volatile() && self.config.saga.durability == Durability::Strict
    }
}

struct Draw<'a>(&'a mut fastrand::Rng);

impl Draw<'_> {
    fn below(&mut self, n: usize) -> usize {
        self.0.usize(0..n)
    }

    fn chance(&mut self, of: f64) -> bool {
        self.0.f64() < of
    }

    fn time(&mut self, low: Duration, high: Duration) -> Duration {
        time_between(self.0, low, high)
    }

    fn end(&mut self) -> End {
        let time = self.time(5 * MS, 20_000 * MS);
        match self.below(8) {
            // In its start, or in what it finds to do after it.
            0 | 1 => End::Crash(1 + self.0.u64(0..12)),
            2..=4 => End::Crash(1 + self.0.u64(0..150)),
            5 => End::Drop(time),
            6 => End::Shutdown(time),
            _ => End::CrashInShutdown(time, 1 + self.0.u64(0..20)),
        }
    }

    fn modes(&mut self, crashes: bool) -> Vec<Mode> {
        let all = [Mode::QueueWrites, Mode::ReadOnly, Mode::LocalStorage, Mode::Disabled, Mode::MemoryOnly];
        // What is in memory only is gone with the process, and then nothing can be said of its keys.
        let all = if crashes && self.chance(0.7) { &all[..4] } else { &all[..] };
        let mut modes: Vec<Mode> = all.iter().copied().filter(|_| self.0.bool()).collect();
        modes.push(all[self.0.usize(0..all.len())]);
        modes
    }

    fn config(&mut self) -> Config {
        let mut config = Config::default();
        self.of_requests(&mut config);
        self.of_breakers(&mut config.breaker);
        if self.chance(0.3) {
            let breaker = config.breaker.clone();
            #[allow(clippy::needless_update, reason = "there is more with features")]
            let graph = BackendConfig { breaker, call: self.of_calls(), ..BackendConfig::default() };
            config.backends.insert("graph".to_owned(), graph);
        }
        config.health.interval = self.time(500 * MS, 30_000 * MS);
        config.health.timeout = self.time(50 * MS, 5_000 * MS).min(config.health.interval);
        let fallback = &mut config.fallback;
        fallback.mode_when_degraded = match self.below(10) {
            0 => Mode::ReadOnly,
            1 => Mode::LocalStorage,
            2 => Mode::MemoryOnly,
            3 => Mode::Disabled,
            _ => Mode::QueueWrites,
        };
        fallback.mode_when_normal = if self.chance(0.2) { Mode::QueueWrites } else { Mode::Disabled };
        if self.chance(0.2) {
            fallback.journal_unavailable = JournalFallback::MemoryOnly;
        }
        fallback.recover_after = if self.chance(0.3) { self.time(10 * MS, 5_000 * MS) } else { Duration::ZERO };
        if self.chance(0.2) {
            fallback.cache.max_size = 1 + self.below(3);
        }
        config.supervisor.intensity = if self.chance(0.1) { 3 } else { 1_000_000 };
        config.metrics.sample_interval = Duration::from_secs(60);
        config
    }

    /// Half of them with a ramp, a quarter with the rules that are off by default.
    fn of_breakers(&mut self, breaker: &mut BreakerConfig) {
        breaker.failure_threshold = 1 + self.0.u32(0..6);
        breaker.success_threshold = 1 + self.0.u32(0..3);
        breaker.reset_timeout = self.time(50 * MS, 10_000 * MS);
        breaker.half_open_lease = self.time(100 * MS, 10_000 * MS);
        breaker.half_open_probes = self.chance(0.3).then(|| 1 + self.0.u32(0..3));
        breaker.slow_call = self.time(20 * MS, 10_000 * MS);
        breaker.gradual_recovery = self.chance(0.5);
        breaker.recovery_factor = [0.05, 0.5, 1.0][self.below(3)];
        breaker.recovery_steps = 1 + self.0.u32(0..4);
        breaker.recovery_step = self.time(10 * MS, 2_000 * MS);
        breaker.recovery_calls = [1, 2, 64][self.below(3)];
        if self.chance(0.25) {
            breaker.failure_rate = Some([0.1, 0.5, 1.0][self.below(3)]);
            breaker.slow_call_rate = Some([0.1, 0.5, 1.0][self.below(3)]);
            breaker.minimum_calls = 1 + self.0.u32(0..10);
            breaker.window_calls = 10 + self.0.u32(0..200);
            breaker.adaptive = self.chance(0.5);
            breaker.open_wait_growth = 1.0 + self.0.f64();
            breaker.open_wait_max = breaker.reset_timeout * 4;
            breaker.open_wait_jitter = self.0.f64();
        }
    }

    fn of_requests(&mut self, config: &mut Config) {
        config.gateway.write_timeout = self.time(100 * MS, 10_000 * MS);
        config.gateway.read_timeout = self.time(100 * MS, 5_000 * MS);
        if self.chance(0.1) {
            config.gateway.max_in_flight = 1 + self.below(5);
        }
        if self.chance(0.1) {
            config.queue.max_entries = 3 + self.below(20);
        }
        let saga = &mut config.saga;
        saga.timeout = self.time(200 * MS, 10_000 * MS);
        saga.rollback_timeout = self.time(50 * MS, 3_000 * MS);
        saga.durability = if self.chance(0.2) { Durability::Overlapped } else { Durability::Strict };
        let sync = &mut config.sync;
        sync.concurrency = 1 + self.below(8);
        sync.batch = 1 + self.below(3);
        sync.backoff = self.time(MS, 500 * MS);
        sync.max_backoff = sync.backoff.max(self.time(50 * MS, 10_000 * MS));
        config.call = self.of_calls();
    }

    fn of_calls(&mut self) -> CallConfig {
        let backoff = self.time(MS, 200 * MS);
        let budget = BudgetConfig {
            capacity: if self.chance(0.1) { 0 } else { self.0.u32(1..20) },
            per_call: self.0.f64(),
            per_second: if self.chance(0.2) { 0.0 } else { self.0.f64() * 10.0 },
        };
        let max_backoff = backoff.max(self.time(50 * MS, 2_000 * MS));
        CallConfig {
            timeout: self.time(20 * MS, 3_000 * MS),
            retry: RetryConfig { max_retries: self.0.u32(0..4), backoff, max_backoff, budget },
            max_concurrent: if self.chance(0.3) { 1 + self.below(4) } else { 256 },
        }
    }
}

/// A time between these; each order of magnitude is as likely as the others.
pub(crate) fn time_between(random: &mut fastrand::Rng, low: Duration, high: Duration) -> Duration {
    let (low, high) = (low.as_secs_f64().max(0.001), high.as_secs_f64().max(0.001));
    let seconds = low * (high / low).powf(random.f64());
    MS * u32::try_from((seconds * 1_000.0) as u64).unwrap_or(u32::MAX)
}

/// A time up to this.
pub(crate) fn time_up_to(random: &mut fastrand::Rng, high: Duration) -> Duration {
    let high = u64::try_from(high.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random.u64(0..=high))
}
