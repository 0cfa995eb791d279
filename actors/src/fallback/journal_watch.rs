//! Whether the journal still answers.

use std::time::Duration;

use tokio::time::Instant;

use crate::journal::{JournalHealth, JournalProgress};

/// How often the journal is looked at.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Judges a journal by its progress.
///
/// Appends become durable in order, so the oldest unanswered one waits for as long as none is answered while some
/// are submitted. That wait is what counts as a stall: a journal that is slow but moves is healthy.
#[derive(Debug)]
pub struct JournalWatch {
    stall: Duration,
    last: Option<(Instant, JournalProgress)>,
    waited: Duration,
}

impl JournalWatch {
    /// A watch that calls a journal stalled when it has answered nothing for this long, up to one
    /// [`WATCH_INTERVAL`] late.
    #[must_use]
    pub fn new(stall: Duration) -> Self {
        Self { stall, last: None, waited: Duration::ZERO }
    }

    /// Judges the journal, which is this far now. Meant to be asked every [`WATCH_INTERVAL`].
    pub fn observe(&mut self, now: Instant, progress: JournalProgress) -> JournalHealth {
        let owes = |progress: JournalProgress| progress.submitted > progress.answered;
        self.waited = match self.last.replace((now, progress)) {
            Some((then, last)) if owes(last) && owes(progress) && last.answered == progress.answered => {
                // A process that was stopped for a minute must not blame its journal, which was stopped as well.
                self.waited + now.saturating_duration_since(then).min(2 * WATCH_INTERVAL)
            }
            _ => Duration::ZERO,
        };
        if progress.failed {
            JournalHealth::Failed
        } else if self.waited >= self.stall {
            JournalHealth::Stalled
        } else {
            JournalHealth::Healthy
        }
    }
}
