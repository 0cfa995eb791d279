//! What was found in the end, and how it is told.

use std::collections::HashMap;

use seawall::backend::{Backend, BackendError, BackendName, Stored};
use seawall::record::Key;
use serde::Serialize;

use crate::input::Catalogue;
use crate::report::Reporter;
use crate::verdict::Verdict;

/// What was found in the end.
pub(crate) struct Findings {
    /// Acknowledged as queued, and in both stores in the end.
    pub(crate) drained: usize,
    pub(crate) dead_letters: usize,
    pub(crate) verdicts: Vec<(BackendName, Verdict)>,
}

/// Asks every store what it holds, and compares it with what was acknowledged.
pub(crate) async fn compare(
    stores: &[&dyn Backend],
    catalogue: &Catalogue,
    reporter: &Reporter,
) -> Result<Vec<(BackendName, Verdict)>, BackendError> {
    let expected = reporter.book().expected(catalogue);
    let keys: Vec<Key> = expected.keys().cloned().collect();
    let mut verdicts = Vec::new();
    for store in stores {
        let stored = store.read(&keys).await?;
        let held: HashMap<Key, Option<Stored>> = keys.iter().cloned().zip(stored).collect();
        let verdict = Verdict::of(&store.name(), &held, &expected, &reporter.book());
        verdicts.push((store.name(), verdict));
    }
    Ok(verdicts)
}

/// The result, as `--json` prints it.
#[derive(Serialize)]
pub(crate) struct Summary {
    /// Writes that got a receipt.
    acknowledged: usize,
    /// Of those: in both stores when the receipt was given.
    committed: usize,
    /// Of those: in the journal when the receipt was given.
    queued: usize,
    /// Refusals; each of these writes was tried again until it was acknowledged.
    refused: u64,
    /// Writes that were acknowledged as queued and are committed in the end.
    drained: usize,
    /// Keys and stores where the last acknowledged write is missing, and reads that gave less than that.
    lost: u64,
    /// Keys and stores where a write had its effect more than once.
    duplicated: usize,
    /// Keys and stores where an older write went over a newer one.
    reordered: usize,
    dead_letters: usize,
    breaker_transitions: usize,
}

impl Summary {
    pub(crate) fn of(reporter: &Reporter, findings: &Findings) -> Self {
        let book = reporter.book();
        let (acknowledged, queued) = (book.acknowledged().count(), book.queued().count());
        let sum = |count: fn(&Verdict) -> usize| findings.verdicts.iter().map(|(_, v)| count(v)).sum();
        let lost: usize = sum(|verdict| verdict.lost.len());
        Self {
            acknowledged,
            committed: acknowledged - queued,
            queued,
            refused: book.refused,
            drained: findings.drained,
            lost: lost as u64 + book.wrong_reads,
            duplicated: sum(|verdict| verdict.duplicated.len()),
            reordered: sum(|verdict| verdict.reordered.len()),
            dead_letters: findings.dead_letters,
            breaker_transitions: book.transitions(None),
        }
    }

    pub(crate) fn is_right(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.reordered == 0
    }

    /// Tells it to people.
    pub(crate) fn show(&self, findings: &Findings, reporter: &Reporter) {
        let Self { acknowledged, committed, queued, refused, drained, dead_letters, breaker_transitions, .. } = self;
        reporter.line(format!(
            "\n{:<8}{:>9}{:>9}{:>7}{:>12}{:>11}",
            "store", "records", "deletes", "lost", "duplicated", "reordered"
        ));
        for (store, verdict) in &findings.verdicts {
            let Verdict { live, deleted, lost, duplicated, reordered } = verdict;
            let (lost, duplicated, reordered) = (lost.len(), duplicated.len(), reordered.len());
            let store = store.as_str();
            reporter.line(format!("{store:<8}{live:>9}{deleted:>9}{lost:>7}{duplicated:>12}{reordered:>11}"));
        }
        let book = reporter.book();
        let (wrong_reads, taken_back) = (book.wrong_reads, book.taken_back);
        drop(book);
        reporter.line(format!(
            "\nacknowledged        {acknowledged:>6}   {committed} as Committed, {queued} as Queued\n\
             drained             {drained:>6}   of those that were queued\n\
             refused             {refused:>6}   each tried again until it was acknowledged\n\
             taken back          {taken_back:>6}   among those: one store had the write already\n\
             dead letters        {dead_letters:>6}\n\
             breaker transitions {breaker_transitions:>6}\n\
             wrong reads         {wrong_reads:>6}\n"
        ));
        reporter.line(if self.is_right() {
            "Every acknowledged write is in both stores, once and in order."
        } else {
            "NOT every acknowledged write is in both stores, once and in order."
        });
    }
}
