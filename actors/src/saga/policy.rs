//! What a saga decides, from how its legs went. No clock, no I/O.

use std::time::Duration;

use crate::backend::{BackendError, BackendName, Happened};
use crate::fallback::WriteRule;
use crate::plane::{Cause, FailedCall, is_foreign};

/// Why a leg is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whether it may have been done all the same, by any of its tries.
    pub happened: Happened,
    /// Whether it never will be.
    pub hopeless: bool,
    /// What the backend, or its breaker, said.
    pub reason: String,
    /// When to try again, if that is known.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// A failure of something that surely did not happen and may work later.
    pub(crate) fn without_effect(reason: &str) -> Self {
        Self { happened: Happened::No, hopeless: false, reason: reason.to_owned(), retry_after: None }
    }
}

impl From<&BackendError> for Failure {
    fn from(error: &BackendError) -> Self {
        let verdict = error.verdict();
        Self {
            happened: verdict.happened,
            // With the version that it has, it never gets past somebody else's.
            hopeless: verdict.hopeless || is_foreign(error),
            reason: error.to_string(),
            retry_after: error.retry_after,
        }
    }
}

impl From<&FailedCall> for Failure {
    fn from(failed: &FailedCall) -> Self {
        let last = match &failed.cause {
            Cause::Backend(error) => Self::from(error),
            Cause::Denied(denied) => {
                Self { retry_after: Some(denied.retry_after()), ..Self::without_effect(&denied.to_string()) }
            }
        };
        Self { happened: failed.happened, ..last }
    }
}

/// How one leg stands when all tries in front of the caller are over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegEnd {
    /// The backend has the write.
    Done,
    /// It was not tried: it queues, behind an owed write of its key or because the mode says so.
    Owed,
    /// It was tried.
    Failed(Failure),
}

impl LegEnd {
    /// Whether the backend has nothing of the write for certain.
    pub(super) fn is_without_effect(&self) -> bool {
        match self {
            Self::Done => false,
            Self::Owed => true,
            Self::Failed(failure) => failure.happened == Happened::No,
        }
    }
}

/// How the saga ends for its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every required backend has the write.
    Commit,
    /// These still owe it, and will be given it.
    Owe(Vec<BackendName>),
    /// This backend cannot take it: undo what was done.
    RollBack {
        /// Which.
        cause: BackendName,
        /// Why.
        failure: Failure,
    },
    /// The caller has a receipt already, and this backend will never take it: park that leg for a person.
    Park {
        /// Which.
        cause: BackendName,
        /// Why.
        failure: Failure,
    },
}

/// Decides how a saga ends.
///
/// * A leg that will never be done rolls the write back, unless its caller was already told that it is kept.
/// * A leg that cannot be done now is owed where the mode has room for it. Where it has none (`Through`), it rolls
///   the write back; legs that queue behind an older owed write do not: that is their order, not a failure.
#[must_use]
pub fn verdict(rule: &WriteRule, legs: &[(BackendName, LegEnd)], acknowledged: bool) -> Verdict {
    let failed = |wanted: fn(&Failure) -> bool| {
        legs.iter().find_map(|(backend, end)| match end {
            LegEnd::Failed(failure) if wanted(failure) => Some((backend.clone(), failure.clone())),
            _ => None,
        })
    };
    if let Some((cause, failure)) = failed(|failure| failure.hopeless) {
        return if acknowledged { Verdict::Park { cause, failure } } else { Verdict::RollBack { cause, failure } };
    }
    if !acknowledged
        && *rule == WriteRule::Through
        && let Some((cause, failure)) = failed(|_| true)
    {
        return Verdict::RollBack { cause, failure };
    }
    let owing: Vec<BackendName> =
        legs.iter().filter(|(_, end)| *end != LegEnd::Done).map(|(backend, _)| backend.clone()).collect();
    if owing.is_empty() { Verdict::Commit } else { Verdict::Owe(owing) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failure(hopeless: bool, perhaps: bool) -> LegEnd {
        let happened = if perhaps { Happened::Perhaps } else { Happened::No };
        LegEnd::Failed(Failure { happened, hopeless, reason: String::new(), retry_after: None })
    }

    fn any_leg() -> impl Strategy<Value = LegEnd> {
        prop_oneof![
            Just(LegEnd::Done),
            Just(LegEnd::Owed),
            Just(failure(false, false)),
            Just(failure(false, true)),
            Just(failure(true, false)),
        ]
    }

    fn any_rule() -> impl Strategy<Value = WriteRule> {
        prop_oneof![Just(WriteRule::Through), Just(WriteRule::Memory), Just(WriteRule::Local), Just(WriteRule::Queue)]
    }

    proptest! {
        #[test]
        fn no_verdict_says_more_than_the_legs_do(
            rule in any_rule(),
            ends in prop::collection::vec(any_leg(), 1..5),
            acknowledged: bool,
        ) {
            let legs: Vec<(BackendName, LegEnd)> =
                ends.into_iter().enumerate().map(|(i, end)| (BackendName::from(format!("b{i}")), end)).collect();
            let not_done = legs.iter().filter(|(_, end)| *end != LegEnd::Done).count();
            let hopeless = legs.iter().any(|(_, end)| matches!(end, LegEnd::Failed(f) if f.hopeless));
            let failed = legs.iter().any(|(_, end)| matches!(end, LegEnd::Failed(_)));
            match verdict(&rule, &legs, acknowledged) {
                Verdict::Commit => prop_assert_eq!(not_done, 0),
                Verdict::Owe(owing) => {
                    prop_assert_eq!(owing.len(), not_done);
                    prop_assert!(!hopeless);
                    prop_assert!(acknowledged || rule != WriteRule::Through || !failed);
                }
                Verdict::RollBack { .. } => prop_assert!(!acknowledged && failed),
                Verdict::Park { .. } => prop_assert!(acknowledged && hopeless),
            }
        }
    }
}
