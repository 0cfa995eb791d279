//! A polite client: it writes down what it sends, tries again what is refused, and checks what it reads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use seawall::operation::{Found, Hit, OperationId, Outcome, Search, Source, StandIn, Traversal};
use seawall::record::{Key, Record};
use seawall::{Handle, Refusal};
use tokio::time::{Instant, sleep, timeout};

use crate::book::{Expected, Job};
use crate::input::Catalogue;
use crate::report::{Report, Reporter};
use crate::screen;

/// Writes that are on their way at the same time.
const SIDE_BY_SIDE: usize = 8;
/// How long a write is tried before the demonstration is given up, and how long the stores may take to get what they
/// are owed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a write is tried whose outcome nobody knows.
const DOUBT: Duration = Duration::from_secs(3);
/// Hits that are shown of an answer.
const SHOWN: usize = 4;
/// Pauses for those who watch: after a chapter, and after a write.
const CHAPTER: Duration = Duration::from_millis(1_500);
const WRITE: Duration = Duration::from_millis(40);

/// A client of a running Seawall.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) handle: Handle,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) reporter: Arc<Reporter>,
    /// Whether somebody watches: then there are pauses to read in.
    pub(crate) slowly: bool,
}

/// A refusal that trying again does not help.
#[derive(Debug, thiserror::Error)]
#[error("the write to `{key}` was refused: {refusal}")]
pub(crate) struct GaveUp {
    key: Key,
    refusal: Refusal,
}

/// How the reads of all keys went, by where the answers came from.
#[derive(Default)]
pub(crate) struct Reads {
    right: usize,
    wrong: usize,
    backends: usize,
    owed: usize,
    partial: usize,
    cached: usize,
    refused: usize,
}

impl Client {
    /// Performs writes side by side. Each has to be to another key: what is sent side by side has no order.
    pub(crate) async fn perform(&self, label: &str, jobs: Vec<Job>) -> Result<(), GaveUp> {
        self.reporter.tell(Report::Task { label: label.to_owned(), steps: jobs.len() as u64 });
        let writes = stream::iter(jobs).map(|job| self.send(job)).buffer_unordered(SIDE_BY_SIDE);
        let sent = writes.try_collect().await;
        self.reporter.tell(Report::TaskDone);
        sent
    }

    async fn send(&self, job: Job) -> Result<(), GaveUp> {
        let operation = OperationId::generate();
        self.reporter.tell(Report::Sent { operation, job: job.clone() });
        match self.try_for(operation, &job, DOUBT).await {
            // Until the store is back that may have it. It stays in the book as unanswered.
            Err(GaveUp { refusal: Refusal::Unknown { .. }, .. }) => {}
            sent => sent?,
        }
        if self.slowly {
            sleep(WRITE).await;
        }
        Ok(())
    }

    /// Gives who watches time to read.
    pub(crate) async fn breathe(&self) {
        if self.slowly {
            sleep(CHAPTER).await;
        }
    }

    /// Sends a write under its id until it is acknowledged. However often that is, it has the effect of one.
    pub(crate) async fn insist(&self, operation: OperationId, job: &Job) -> Result<(), GaveUp> {
        self.try_for(operation, job, PATIENCE).await
    }

    async fn try_for(&self, operation: OperationId, job: &Job, doubt: Duration) -> Result<(), GaveUp> {
        let began = Instant::now();
        let (until, doubt) = (began + PATIENCE, began + doubt);
        loop {
            let refusal = match self.handle.write(job.write(&self.catalogue, operation)).await {
                Ok(receipt) => {
                    self.reporter.tell(Report::Acknowledged(receipt));
                    return Ok(());
                }
                Err(refusal) => refusal,
            };
            let hopeless = matches!(refusal, Refusal::Invalid(_) | Refusal::Rejected { .. } | Refusal::ShuttingDown);
            let in_doubt = matches!(refusal, Refusal::Unknown { .. }) && Instant::now() > doubt;
            if hopeless || in_doubt || Instant::now() > until {
                return Err(GaveUp { key: job.key().clone(), refusal });
            }
            self.reporter.tell(Report::Refused { operation, reason: refusal.to_string() });
            sleep(refusal.retry_after().unwrap_or(Duration::from_millis(100))).await;
        }
    }

    /// Reads every key that was acknowledged, compares, and tells how that went.
    pub(crate) async fn read_all(&self) {
        let expected = self.reporter.book().expected(&self.catalogue);
        let mut reads = Reads::default();
        for (key, expected) in &expected {
            self.read(key, expected, &mut reads).await;
        }
        self.reporter.line(reads.to_string());
    }

    async fn read(&self, key: &Key, expected: &Expected, reads: &mut Reads) {
        // A refusal says that nobody knows just now. That is honest, and not wrong.
        let Ok(read) = self.handle.retrieve(key.clone()).await else {
            reads.refused += 1;
            return;
        };
        let right = if read.partial {
            // The rest is in stores that cannot be asked; what is shown must be part of what was acknowledged.
            reads.partial += 1;
            read.record.as_ref().zip(expected.record.as_ref()).is_some_and(|(read, expected)| {
                read.properties.iter().all(|(name, value)| expected.properties.get(name) == Some(value))
            })
        } else {
            match read.source {
                Source::Backend(_) => reads.backends += 1,
                Source::Owed => reads.owed += 1,
                Source::Cache { .. } => reads.cached += 1,
            }
            read.record == expected.record
        };
        if right {
            reads.right += 1;
        } else {
            reads.wrong += 1;
            self.reporter.tell(Report::WrongRead { key: key.clone() });
        }
    }

    /// A change to every n-th record that is there. None is deleted that the story shows.
    pub(crate) fn changes(&self, every: usize, shown: &[Key], job: impl Fn(Key) -> Job) -> Vec<Job> {
        let start = self.catalogue.best_connected().map(|record| &record.key);
        let is_shown = |key: &Key| shown.contains(key) || start == Some(key);
        let expected = self.reporter.book().expected(&self.catalogue);
        let there = expected.into_iter().filter(|(_, expected)| expected.record.is_some()).map(|(key, _)| key);
        let chosen = there.skip(every / 2).step_by(every).map(job);
        chosen.filter(|job| !(matches!(job, Job::Delete { .. }) && is_shown(job.key()))).collect()
    }

    /// Shows how many receipts of which kind there are, and the last one.
    pub(crate) fn show_receipts(&self) {
        let book = self.reporter.book();
        let (all, queued, refused) = (book.acknowledged().count(), book.queued().count(), book.refused);
        let last = book.acknowledged().last().map_or_else(String::new, |(sent, receipt)| {
            format!("\nthe last one, for `{}`: {} as {}", sent.job.key(), screen::held(&receipt.held), receipt.version)
        });
        drop(book);
        let committed = all - queued;
        let receipts = format!("{all} receipts so far: {committed} Committed, {queued} Queued; {refused} refusals");
        self.reporter.line(receipts + &last);
    }

    /// Waits until the stores have what they are owed.
    pub(crate) async fn drain(&self) {
        let owed = self.handle.status().owed;
        self.reporter.tell(Report::Task { label: "owed writes drained".to_owned(), steps: owed as u64 });
        let until = Instant::now() + PATIENCE;
        loop {
            let status = self.handle.status();
            self.reporter.tell(Report::Step { done: owed.saturating_sub(status.owed) as u64 });
            // Dead letters wait for a person.
            if status.owed == status.dead_letters || Instant::now() > until {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.reporter.tell(Report::TaskDone);
        let left = self.handle.status().owed;
        self.reporter.line(format!("{} of {owed} owed writes were given to the stores", owed.saturating_sub(left)));
    }

    /// How many writes that were acknowledged as queued are in both stores.
    pub(crate) fn drained(&self) -> usize {
        let queued: Vec<_> = self.reporter.book().queued().collect();
        let in_both = |operation: &_| matches!(self.handle.outcome(*operation), Outcome::Committed(_));
        queued.iter().filter(|operation| in_both(operation)).count()
    }

    /// Searches near a record, and shows what is found.
    pub(crate) async fn search_like(&self, key: &Key) {
        let found = self.handle.search(Search::like(key.clone()).limit(3)).await;
        self.show_found(&format!("most like {}:", self.described(key)), found);
    }

    /// Searches between two records: a point that is no record, as a question that was embedded would be.
    pub(crate) async fn search_between(&self, one: &Key, other: &Key) {
        let embedding = |key| self.catalogue.get(key).and_then(|record| record.embedding.as_ref());
        let (Some(a), Some(b)) = (embedding(one), embedding(other)) else { return };
        let middle: Vec<f32> = a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| (a + b) / 2.0).collect();
        let found = self.handle.search(Search::near(middle).limit(SHOWN)).await;
        self.show_found(&format!("between `{one}` and `{other}`:"), found);
    }

    /// Walks from the best place, and shows what is reached.
    pub(crate) async fn walk(&self) {
        let Some(Record { key, .. }) = self.catalogue.best_connected() else { return };
        let found = self.handle.traverse(Traversal::from(key.clone()).depth(2).limit(100)).await;
        self.show_found(&format!("two steps from {}:", self.described(key)), found);
    }

    /// A record by its name and what it says.
    fn described(&self, key: &Key) -> String {
        format!("`{key}` ({})", self.catalogue.get(key).map_or("", text))
    }

    fn show_found(&self, title: &str, found: Result<Found, Refusal>) {
        match found {
            Ok(found) => self.reporter.line(format!("{title}\n{}", Answer(&found))),
            Err(refusal) => self.reporter.line(format!("{title}\n  refused: {refusal}")),
        }
    }
}

/// Waits for something that has to happen, for a while.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    // What does not come is seen in the story, and found by the comparison.
    let _ = timeout(PATIENCE / 2, wait).await;
}

fn text(record: &Record) -> &str {
    record.properties.get("text").and_then(|text| text.as_str()).unwrap_or("no text")
}

/// An answer to a search or a walk, to be read by people.
struct Answer<'a>(&'a Found);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { hits, degraded, .. } = self.0;
        if let Some(degraded) = degraded {
            let stand_in = match degraded.served_by {
                StandIn::VectorSearch => "its nearest in the vector store",
                StandIn::Neighbours => "its neighbours in the graph",
                StandIn::ExactMatch => "exact matches",
            };
            writeln!(f, "  degraded, at level {}: instead of what was asked, {stand_in}", degraded.level.name())?;
        }
        // Those at each number of steps for a walk, all together for a search.
        let distance = |hit: &Hit| hit.via.as_ref().map(|_| hit.score);
        for group in hits.chunk_by(|one, other| distance(one) == distance(other)) {
            for hit in group.iter().take(SHOWN) {
                let how = match &hit.via {
                    Some(via) if hit.score == 1.0 => format!("1 step, {}", via.kind),
                    Some(via) => format!("{} steps, {}", hit.score, via.kind),
                    None => format!("{:.2}", hit.score),
                };
                writeln!(f, "  {:<25} {how:<20} {}", hit.record.key.as_str(), text(&hit.record))?;
            }
            if group.len() > SHOWN {
                writeln!(f, "  … and {} more", group.len() - SHOWN)?;
            }
        }
        if hits.is_empty() { write!(f, "  nothing") } else { Ok(()) }
    }
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { right, wrong, backends, owed, partial, cached, refused } = *self;
        let sources = [
            (backends, "from a backend"),
            (owed, "from owed writes"),
            (cached, "from the cache"),
            (partial, "in part, and marked so: the rest is in stores that are down"),
        ];
        let told: Vec<String> =
            sources.iter().filter(|(count, _)| *count > 0).map(|(count, source)| format!("{count} {source}")).collect();
        write!(f, "{} reads: {right} right, {wrong} wrong, {refused} refused", right + wrong + refused)?;
        if told.is_empty() { Ok(()) } else { write!(f, " ({})", told.join(", ")) }
    }
}
