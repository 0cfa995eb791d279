//! Chapters 1 to 3, in the process that is going to be killed: a load, an outage, a second outage.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use seawall::fallback::DegradationLevel;
use seawall::record::Key;

use crate::book::Job;
use crate::client::{Client, GaveUp, until};
use crate::input::Catalogue;
use crate::report::{Report, Reporter};
use crate::service::Service;

/// Records that the story shows, where the input has them.
const SHOWN: [&str; 4] = ["postgresql", "nginx", "sqlite3", "wget"];

/// Tells the story until the process is killed.
pub(crate) async fn run(
    dir: &Path,
    catalogue: Arc<Catalogue>,
    reporter: Arc<Reporter>,
    slowly: bool,
) -> Result<(), Box<dyn Error>> {
    let service = Service::start(dir, catalogue.dimension, true).await?;
    let events = service.runtime.subscribe();
    let follower = Arc::clone(&reporter);
    tokio::spawn(async move { follower.follow(events).await });
    let client = Client { handle: service.runtime.handle(), catalogue, reporter, slowly };
    let story = Story { shown: client.catalogue.pick(&SHOWN), client, service };
    story.load().await?;
    story.graph_goes_down().await?;
    story.vector_goes_down().await?;
    story.write_until_killed().await
}

struct Story {
    client: Client,
    service: Service,
    /// The records that it shows.
    shown: Vec<Key>,
}

impl Story {
    async fn load(&self) -> Result<(), GaveUp> {
        self.client.reporter.chapter("1  Store, search, walk");
        let (calm, _) = self.halves();
        self.client.perform("records stored", calm).await?;
        self.client.show_receipts();
        self.show_questions().await;
        self.client.breathe().await;
        Ok(())
    }

    async fn graph_goes_down(&self) -> Result<(), Box<dyn Error>> {
        let reporter = &self.client.reporter;
        reporter.chapter("2  The graph store goes down, in the middle of the load");
        let (calm, rest) = self.halves();
        // Somewhere among these writes, not between them.
        let outage = calm.len() + rest.len() / 4;
        let take_down = async {
            until(|| reporter.book().acknowledged().count() >= outage).await;
            reporter.happened("the graph store cannot be reached from now on");
            self.service.graph.down();
        };
        let (written, ()) = tokio::join!(self.client.perform("records stored", rest), take_down);
        written?;
        // The breaker asks again after its wait, hears that nothing is better, and waits again.
        until(|| reporter.book().transitions(Some("graph")) >= 3).await;
        self.client.show_receipts();

        let updates = self.changes(9, |key| Job::Update { key, revision: 1 });
        self.client.perform("records updated", updates).await?;
        let deletes = self.changes(31, |key| Job::Delete { key });
        self.client.perform("records deleted", deletes).await?;
        self.client.show_receipts();
        self.client.read_all().await;
        if let Some(key) = self.shown.first() {
            self.client.search_like(key).await;
        }
        self.client.walk().await;
        self.client.breathe().await;
        Ok(())
    }

    async fn vector_goes_down(&self) -> Result<(), Box<dyn Error>> {
        let reporter = &self.client.reporter;
        reporter.chapter("3  The vector store goes down too");
        reporter.happened("the vector store cannot be reached from now on");
        self.service.vector.down();
        let updates = self.changes(4, |key| Job::Update { key, revision: 2 });
        self.client.perform("records updated", updates).await?;
        until(|| self.client.handle.status().level == DegradationLevel::InMemory).await;
        self.service.quiet().await;
        reporter.tell(Report::Effects(self.service.effects()));
        self.client.show_receipts();
        self.client.read_all().await;
        if let Some(key) = self.shown.first() {
            self.client.search_like(key).await;
        }
        self.client.breathe().await;
        Ok(())
    }

    async fn write_until_killed(&self) -> Result<(), Box<dyn Error>> {
        self.client.reporter.tell(Report::ReadyToBeKilled);
        for revision in 3.. {
            let updates = self.changes(1, |key| Job::Update { key, revision });
            self.client.perform("records updated, until the process is killed", updates).await?;
        }
        Ok(())
    }

    /// What is stored before the first outage, and the rest.
    fn halves(&self) -> (Vec<Job>, Vec<Job>) {
        let keys = self.client.catalogue.in_order(&self.shown);
        let mut calm: Vec<Job> = keys.into_iter().map(|key| Job::Store { key }).collect();
        let rest = calm.split_off((calm.len() * 5).div_ceil(9));
        (calm, rest)
    }

    /// A change to every n-th record that is there.
    fn changes(&self, every: usize, job: impl Fn(Key) -> Job) -> Vec<Job> {
        self.client.changes(every, &self.shown, job)
    }

    async fn show_questions(&self) {
        for key in self.shown.iter().take(2) {
            self.client.search_like(key).await;
        }
        if let [.., one, other] = self.shown.as_slice() {
            self.client.search_between(one, other).await;
        }
        self.client.walk().await;
    }
}
