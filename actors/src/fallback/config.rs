//! The settings of the fallback.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CacheConfig, DegradationLevel, Mode, Profile};
use crate::config::ConfigProblem;

/// The mode while the journal takes no writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalFallback {
    /// Refuse writes: nothing is acknowledged that a crash could take away.
    #[default]
    ReadOnly,
    /// Take writes in memory, and say so in every receipt.
    MemoryOnly,
}

impl JournalFallback {
    /// The mode that this is.
    #[must_use]
    pub fn mode(self) -> Mode {
        match self {
            Self::ReadOnly => Mode::ReadOnly,
            Self::MemoryOnly => Mode::MemoryOnly,
        }
    }
}

/// Which mode follows from which level, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FallbackConfig {
    /// The table that numbers the levels. Default: [`Profile::Engine`] for one required backend, else
    /// [`Profile::Stores`].
    pub profile: Option<Profile>,
    /// The mode at level 0. Default [`Mode::Disabled`].
    pub mode_when_normal: Mode,
    /// The mode below level 0 (`FALLBACK_MODE` of document 004). Default [`Mode::QueueWrites`].
    #[serde(alias = "mode")]
    pub mode_when_degraded: Mode,
    /// Another mode for single levels below level 0. Default: none.
    pub levels: BTreeMap<DegradationLevel, Mode>,
    /// The mode while the journal takes no writes. Default [`JournalFallback::ReadOnly`].
    pub journal_unavailable: JournalFallback,
    /// How long an append may go unanswered, with none answered meanwhile, before the journal counts as stalled.
    /// Default 8 s (a healthy sync on a busy disk was measured below 1 s), range 1 s to 10 min. It is looked at
    /// once a second.
    #[serde(with = "crate::config::seconds")]
    pub journal_stall: Duration,
    /// How long level 0 must have held before the policy goes back to
    /// [`mode_when_normal`](Self::mode_when_normal). Default 0, range 0 to 1 h. The level itself is told at once.
    #[serde(with = "crate::config::seconds")]
    pub recover_after: Duration,
    /// The cache.
    pub cache: CacheConfig,
}

impl Default for FallbackConfig {
    fn default() -> Self {
        Self {
            profile: None,
            mode_when_normal: Mode::Disabled,
            mode_when_degraded: Mode::QueueWrites,
            levels: BTreeMap::new(),
            journal_unavailable: JournalFallback::default(),
            journal_stall: Duration::from_secs(8),
            recover_after: Duration::ZERO,
            cache: CacheConfig::default(),
        }
    }
}

impl FallbackConfig {
    /// The mode that the policy chooses at this level.
    #[must_use]
    pub fn mode_at(&self, level: DegradationLevel) -> Mode {
        match level {
            DegradationLevel::Normal => self.mode_when_normal,
            degraded => self.levels.get(&degraded).copied().unwrap_or(self.mode_when_degraded),
        }
    }

    /// Adds everything that is wrong with these settings, under this path.
    pub fn problems(&self, path: &str, problems: &mut Vec<ConfigProblem>) {
        let mut wrong = |field: &str, problem: String| {
            problems.push(ConfigProblem { path: format!("{path}.{field}"), problem });
        };
        if self.levels.contains_key(&DegradationLevel::Normal) {
            wrong("levels.normal", "level 0 has a setting of its own: use `mode_when_normal`".into());
        }
        let mut check_range = |field: &str, value: Duration, range: RangeInclusive<Duration>| {
            if !range.contains(&value) {
                wrong(field, format!("{value:?} is not within {:?} and {:?}", range.start(), range.end()));
            }
        };
        let [second, minute] = [Duration::from_secs(1), Duration::from_secs(60)];
        check_range("journal_stall", self.journal_stall, second..=10 * minute);
        check_range("recover_after", self.recover_after, Duration::ZERO..=60 * minute);
        self.cache.problems(&format!("{path}.cache"), problems);
    }
}
