//! A polite client: it writes down what it sends, tries again what is refused, and checks what it reads.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use seawall::operation::{Found, Hit, OperationId, Search, Source, StandIn, Traversal};
use seawall::record::{Key, Record};
use seawall::{Handle, Refusal};
use tokio::time::{Instant, sleep};

use crate::book::{Expected, Job};
use crate::input::Catalogue;
use crate::report::{Report, Reporter};

/// Writes that are on their way at the same time.
const SIDE_BY_SIDE: usize = 8;
/// How long a write is tried before the demonstration is given up.
const PATIENCE: Duration = Duration::from_secs(60);
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
        self.insist(operation, &job).await?;
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
        let until = Instant::now() + PATIENCE;
        loop {
            let refusal = match self.handle.write(job.write(&self.catalogue, operation)).await {
                Ok(receipt) => {
                    self.reporter.tell(Report::Acknowledged(receipt));
                    return Ok(());
                }
                Err(refusal) => refusal,
            };
            let hopeless = matches!(refusal, Refusal::Invalid(_) | Refusal::Rejected { .. } | Refusal::ShuttingDown);
            if hopeless || Instant::now() > until {
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
