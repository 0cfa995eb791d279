//! Chapters 1 to 3, in the process that is going to be killed: a load, an outage, a second outage.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::book::Job;
use crate::client::{Client, GaveUp};
use crate::input::Catalogue;
use crate::report::{Report, Reporter};
use crate::screen;
use crate::service::Service;

/// Records that the story shows, where the input has them.
const SHOWN: [&str; 4] = ["postgresql", "nginx", "sqlite3", "wget"];
/// How long the story waits for something that has to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the story until the process is killed.
pub(crate) async fn run(dir: &Path, catalogue: Arc<Catalogue>, reporter: Arc<Reporter>) -> Result<(), Box<dyn Error>> {
    let service = Service::start(dir, catalogue.dimension, true).await?;
    let events = service.runtime.subscribe();
    let follower = Arc::clone(&reporter);
    tokio::spawn(async move { follower.follow(events).await });
    let client = Client { handle: service.runtime.handle(), catalogue, reporter };

    load(&client).await?;
    graph_goes_down(&client, &service).await?;
    vector_goes_down(&client, &service).await?;
    client.reporter.tell(Report::ReadyToBeKilled);
    write_until_killed(&client).await
}

/// How many records are stored before the first outage.
fn calm(catalogue: &Catalogue) -> usize {
    catalogue.records.len() * 5 / 9
}

async fn load(client: &Client) -> Result<(), GaveUp> {
    client.reporter.chapter("1  Store, search, walk");
    let records = &client.catalogue.records[..calm(&client.catalogue)];
    let jobs = records.iter().map(|record| Job::Store { key: record.key.clone() }).collect();
    client.perform("records stored", jobs).await?;
    show_receipts(client);
    show_questions(client).await;
    Ok(())
}

async fn graph_goes_down(client: &Client, service: &Service) -> Result<(), Box<dyn Error>> {
    client.reporter.chapter("2  The graph store goes down, in the middle of the load");
    let calm = calm(&client.catalogue);
    let jobs: Vec<Job> =
        client.catalogue.records[calm..].iter().map(|record| Job::Store { key: record.key.clone() }).collect();
    // Somewhere among these writes, not between them.
    let outage = calm + jobs.len() / 4;
    let take_down = async {
        until(|| client.reporter.book().acknowledged().count() >= outage).await;
        service.graph.down();
        client.reporter.line("now the graph store cannot be reached");
    };
    let (written, ()) = tokio::join!(client.perform("records stored", jobs), take_down);
    written?;
    // The breaker asks again after its wait, hears that nothing is better, and waits again.
    until(|| client.reporter.book().transitions(Some("graph")) >= 3).await;
    show_receipts(client);

    client.perform("records updated", changes(client, 9, |key| Job::Update { key, revision: 1 })).await?;
    client.perform("records deleted", changes(client, 31, |key| Job::Delete { key })).await?;
    show_receipts(client);
    let reads = client.read_all().await;
    client.reporter.line(reads.to_string());
    show_questions(client).await;
    Ok(())
}

async fn vector_goes_down(client: &Client, service: &Service) -> Result<(), Box<dyn Error>> {
    client.reporter.chapter("3  The vector store goes down too");
    service.vector.down();
    client.perform("records updated", changes(client, 4, |key| Job::Update { key, revision: 2 })).await?;
    until(|| client.handle.status().level.name() == "in_memory").await;
    service.quiet().await;
    client.reporter.tell(Report::Effects(service.effects()));
    show_receipts(client);
    let reads = client.read_all().await;
    client.reporter.line(reads.to_string());
    if let Some(record) = client.catalogue.pick(&SHOWN).first() {
        client.search_like(record).await;
    }
    Ok(())
}

async fn write_until_killed(client: &Client) -> Result<(), Box<dyn Error>> {
    for revision in 3.. {
        client
            .perform("updates, and then the process is killed", changes(client, 1, |key| Job::Update { key, revision }))
            .await?;
    }
    Ok(())
}

/// A change to every n-th record that is there; none is deleted that the story shows.
fn changes(client: &Client, every: usize, job: impl Fn(seawall::record::Key) -> Job) -> Vec<Job> {
    let shown: Vec<_> = client.catalogue.pick(&SHOWN).into_iter().chain(client.catalogue.best_connected()).collect();
    let expected = client.reporter.book().expected(&client.catalogue);
    let there = expected.into_iter().filter(|(_, expected)| expected.record.is_some()).map(|(key, _)| key);
    let chosen = there.skip(every / 2).step_by(every).map(job);
    chosen.filter(|job| !matches!(job, Job::Delete { key } if shown.iter().any(|shown| shown.key == *key))).collect()
}

async fn show_questions(client: &Client) {
    let catalogue = Arc::clone(&client.catalogue);
    let shown = catalogue.pick(&SHOWN);
    for record in shown.iter().take(2) {
        client.search_like(record).await;
    }
    if let [.., one, other] = shown.as_slice() {
        client.search_between(one, other).await;
    }
    if let Some(record) = catalogue.best_connected() {
        client.walk_from(record).await;
    }
}

/// How many receipts of which kind there are, and the last one.
fn show_receipts(client: &Client) {
    let book = client.reporter.book();
    let (all, queued) = (book.acknowledged().count(), book.queued().count());
    let last = book.acknowledged().last().map(|(sent, receipt)| {
        format!("; the last one, for `{}`: {} as {}", sent.job.key(), screen::held(&receipt.held), receipt.version)
    });
    let (committed, refused) = (all - queued, book.refused);
    drop(book);
    let last = last.unwrap_or_default();
    client.reporter.line(format!("{all} receipts: {committed} Committed, {queued} Queued; {refused} refusals{last}"));
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    // What does not come is seen in the story, and found by the comparison.
    let _ = timeout(PATIENCE, wait).await;
}
