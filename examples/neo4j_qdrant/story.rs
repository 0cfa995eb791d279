//! What is done to the stores, and what every answer is worth meanwhile.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use seawall::fallback::DegradationLevel;
use seawall::record::Key;
use tokio::time::{Instant, sleep};

use crate::book::Job;
use crate::client::{Client, GaveUp, until};
use crate::input::Catalogue;
use crate::report::{Report, Reporter};
use crate::site::Site;
use crate::summary::{Findings, compare};

/// Records that the story shows, where the input has them.
const SHOWN: [&str; 4] = ["postgresql", "nginx", "sqlite3", "wget"];

/// The story, on servers of which some are ours.
pub(crate) struct Story {
    client: Client,
    site: Site,
    shown: Vec<Key>,
}

impl Story {
    pub(crate) fn begin(site: Site, catalogue: Arc<Catalogue>, reporter: Arc<Reporter>, slowly: bool) -> Self {
        let events = site.runtime.subscribe();
        let follower = Arc::clone(&reporter);
        tokio::spawn(async move { follower.follow(events).await });
        let shown = catalogue.pick(&SHOWN);
        Self { client: Client { handle: site.runtime.handle(), catalogue, reporter, slowly }, site, shown }
    }

    /// Tells it to the end. Servers that are not ours are written to for so long.
    pub(crate) async fn tell(mut self, yours: Duration) -> Result<Findings, Box<dyn Error>> {
        let rest = self.load().await?;
        if self.site.servers.is_some() {
            self.graph_is_killed(rest).await?;
            self.vector_hangs().await?;
            self.both_come_back().await?;
        } else {
            self.client.perform("records stored", rest).await?;
            self.whatever_happens(yours).await?;
        }
        self.compare().await
    }

    /// Stores one half, and gives the other.
    async fn load(&self) -> Result<Vec<Job>, GaveUp> {
        self.client.reporter.chapter("1  Store, search, walk");
        let keys = self.client.catalogue.in_order(&self.shown);
        let mut calm: Vec<Job> = keys.into_iter().map(|key| Job::Store { key }).collect();
        let rest = calm.split_off((calm.len() * 5).div_ceil(9));
        self.client.perform("records stored", calm).await?;
        self.client.show_receipts();
        if let [.., one, other] = self.shown.as_slice() {
            self.client.search_between(one, other).await;
        }
        self.ask().await;
        self.client.breathe().await;
        Ok(rest)
    }

    async fn graph_is_killed(&mut self, rest: Vec<Job>) -> Result<(), Box<dyn Error>> {
        let reporter = &self.client.reporter;
        reporter.chapter("2  The graph server is killed, in the middle of the load");
        let Some(servers) = &mut self.site.servers else { return Ok(()) };
        // Somewhere among these writes, not between them.
        let enough = reporter.book().acknowledged().count() + rest.len() / 4;
        let kill = async {
            until(|| reporter.book().acknowledged().count() >= enough).await;
            servers.graph.kill();
            reporter.happened(format!("{} was killed (SIGKILL)", servers.graph.what()));
        };
        let (written, ()) = tokio::join!(self.client.perform("records stored", rest), kill);
        written?;
        // The breaker asks again after its wait, hears that nothing is better, and waits again.
        until(|| reporter.book().transitions(Some("graph")) >= 3).await;
        let updates = self.client.changes(9, &self.shown, |key| Job::Update { key, revision: 1 });
        self.client.perform("records updated", updates).await?;
        let deletes = self.client.changes(31, &self.shown, |key| Job::Delete { key });
        self.client.perform("records deleted", deletes).await?;
        self.client.show_receipts();
        self.client.read_all().await;
        self.ask().await;
        self.client.breathe().await;
        Ok(())
    }

    async fn vector_hangs(&self) -> Result<(), Box<dyn Error>> {
        let reporter = &self.client.reporter;
        reporter.chapter("3  The vector server hangs too");
        if let Some(servers) = &self.site.servers {
            servers.vector.freeze().await;
        }
        reporter.happened("Qdrant was frozen (SIGSTOP): it takes connections and answers nothing");
        let updates = self.client.changes(4, &self.shown, |key| Job::Update { key, revision: 2 });
        self.client.perform("records updated", updates).await?;
        until(|| self.client.handle.status().level == DegradationLevel::InMemory).await;
        self.client.show_receipts();
        self.client.read_all().await;
        self.ask().await;
        self.client.breathe().await;
        Ok(())
    }

    async fn both_come_back(&mut self) -> Result<(), GaveUp> {
        let reporter = &self.client.reporter;
        reporter.chapter("4  Both come back");
        let Some(servers) = &mut self.site.servers else { return Ok(()) };
        servers.vector.thaw();
        reporter.happened("Qdrant goes on where it was (SIGCONT)");
        servers.graph.restart().await;
        reporter.happened(format!("{} was started again on its data", servers.graph.what()));
        self.settle().await
    }

    /// Writes to servers that somebody else stops and starts, or does not.
    async fn whatever_happens(&self, time: Duration) -> Result<(), Box<dyn Error>> {
        let reporter = &self.client.reporter;
        let seconds = time.as_secs();
        reporter.chapter(format!("2  {seconds} s of writes. Stop one of your servers, or both, and start them again"));
        let end = Instant::now() + time;
        for revision in 1.. {
            let updates = self.client.changes(9, &self.shown, |key| Job::Update { key, revision });
            self.client.perform("records updated", updates).await?;
            let status = self.client.handle.status();
            reporter.line(format!("{} writes are owed; the level is: {}", status.owed, status.level.name()));
            if Instant::now() >= end {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        self.client.show_receipts();
        self.client.read_all().await;
        reporter.chapter("3  What is owed is given to the stores, as soon as they are there");
        Ok(self.settle().await?)
    }

    /// Waits until everything is where it belongs, and asks again.
    async fn settle(&self) -> Result<(), GaveUp> {
        self.client.drain().await;
        let unanswered = self.client.reporter.book().unanswered();
        for sent in &unanswered {
            self.client.insist(sent.operation, &sent.job).await?;
        }
        self.client.reporter.line(format!("{} writes whose outcome nobody knew have one now", unanswered.len()));
        until(|| self.client.handle.status().level == DegradationLevel::Normal).await;
        self.client.read_all().await;
        self.ask().await;
        self.client.breathe().await;
        Ok(())
    }

    async fn ask(&self) {
        if let Some(key) = self.shown.first() {
            self.client.search_like(key).await;
        }
        self.client.walk().await;
    }

    async fn compare(self) -> Result<Findings, Box<dyn Error>> {
        let Self { client, site, .. } = self;
        let drained = client.drained();
        let dead_letters = client.handle.status().dead_letters;
        let (graph, vector) = site.anew()?;
        let reporter = Arc::clone(&client.reporter);
        reporter.chapter("Both servers, asked anew, against every receipt");
        site.runtime.shutdown().await;
        reporter.tell(Report::Effects(site.graph.effects().chain(site.vector.effects()).collect()));
        let verdicts = compare(&[&graph, &vector], &client.catalogue, &reporter).await?;
        Ok(Findings { drained, dead_letters, verdicts })
    }
}
