//! Chapters 4 to 6, in the process that did the killing: a restart on the same directory, recovery, comparison.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use seawall::backend::BackendName;
use seawall::backends::{GraphBackend, GraphConfig, VectorBackend, VectorConfig};
use seawall::operation::Outcome;

use crate::client::Client;
use crate::input::Catalogue;
use crate::report::{Report, Reporter};
use crate::service::Service;
use crate::summary::{self, Findings};
use crate::verdict::Verdict;

/// Goes on where the killed process stopped.
pub(crate) async fn run(
    dir: &Path,
    catalogue: Arc<Catalogue>,
    reporter: Arc<Reporter>,
    slowly: bool,
) -> Result<Findings, Box<dyn Error>> {
    reporter.chapter("4  Started again on the same directory; both stores are still down");
    let service = Service::start(dir, catalogue.dimension, false).await?;
    let events = service.runtime.subscribe();
    let follower = Arc::clone(&reporter);
    let follower = tokio::spawn(async move { follower.follow(events).await });
    let client = Client { handle: service.runtime.handle(), catalogue, reporter, slowly };
    show_what_is_remembered(&client);
    settle_unanswered(&client).await?;
    client.read_all().await;
    client.breathe().await;

    client.reporter.chapter("5  Both stores come back");
    service.graph.up();
    service.vector.up();
    client.reporter.happened("both stores can be reached from now on");
    client.drain().await;
    client.walk().await;
    client.read_all().await;
    client.breathe().await;

    let drained = client.drained();
    let dead_letters = client.handle.status().dead_letters;
    let effects = service.effects();
    service.stop().await?;
    follower.await?;

    client.reporter.tell(Report::Effects(effects));
    client.reporter.chapter("6  Both stores, opened anew, against every receipt");
    let verdicts = compare(dir, &client.catalogue, &client.reporter).await?;
    Ok(Findings { drained, dead_letters, verdicts })
}

fn show_what_is_remembered(client: &Client) {
    let status = client.handle.status();
    let breakers: Vec<String> =
        status.backends.iter().map(|backend| format!("{} {}", backend.name, backend.breaker)).collect();
    client.reporter.line(format!(
        "{} owed writes were read back from the journal; breakers: {}; level {}, mode {}",
        status.owed,
        breakers.join(", "),
        status.level.name(),
        status.mode.name()
    ));
}

/// Asks what became of the writes that the killed process did not answer, and sends them again under their ids.
async fn settle_unanswered(client: &Client) -> Result<(), Box<dyn Error>> {
    let unanswered = client.reporter.book().unanswered();
    let accepted = unanswered.iter().filter(|sent| client.handle.outcome(sent.operation) != Outcome::NotFound).count();
    for sent in &unanswered {
        client.insist(sent.operation, &sent.job).await?;
    }
    client.reporter.line(format!(
        "{} writes had no answer when the process died: {accepted} of them had been accepted; all were sent again\n\
         under their ids, which has the effect of one",
        unanswered.len()
    ));
    Ok(())
}

async fn compare(
    dir: &Path,
    catalogue: &Catalogue,
    reporter: &Reporter,
) -> Result<Vec<(BackendName, Verdict)>, Box<dyn Error>> {
    let graph = GraphBackend::open(dir.join("graph"), GraphConfig::default()).await?;
    let vector = VectorBackend::open(dir.join("vector"), VectorConfig::default()).await?;
    let verdicts = summary::compare(&[&graph, &vector], catalogue, reporter).await?;
    graph.close().await?;
    vector.close().await?;
    Ok(verdicts)
}
