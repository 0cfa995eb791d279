//! The data and the outage of the quickstart, on real servers: Neo4j and Qdrant.
//!
//! ```sh
//! tests/servers/install target/servers
//! cargo run --release --features neo4j,qdrant --example neo4j_qdrant -- --servers target/servers
//! ```
//!
//! starts both, kills one, freezes the other, brings them back, and compares both with what was acknowledged. On
//! servers of your own nothing is killed; what happens to them is up to you:
//!
//! ```sh
//! NEO4J_PASSWORD=… cargo run --release --features neo4j,qdrant --example neo4j_qdrant -- \
//!     --neo4j bolt://localhost:7687 --qdrant http://localhost:6334
//! ```
//!
//! How Seawall is pointed at servers is in [`site`], what is done to them in [`story`]; the rest is the quickstart's.

#[path = "../quickstart/book.rs"]
mod book;
#[path = "../quickstart/client.rs"]
mod client;
#[path = "../quickstart/input.rs"]
mod input;
#[path = "../quickstart/report.rs"]
#[expect(dead_code, reason = "the quickstart reports from a process that is killed, too")]
mod report;
#[path = "../quickstart/screen.rs"]
mod screen;
#[path = "../../tests/servers/mod.rs"]
mod servers;
mod site;
mod story;
#[path = "../quickstart/summary.rs"]
mod summary;
#[path = "../quickstart/switch.rs"]
#[expect(dead_code, reason = "these stores fail by themselves")]
mod switch;
#[path = "../quickstart/verdict.rs"]
mod verdict;

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use input::Catalogue;
use report::Reporter;
use screen::Screen;
use site::{Place, Site};
use story::Story;
use summary::Summary;

/// The data that comes with the examples.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/packages.ndjson");

/// Stores records through Seawall in Neo4j and Qdrant while they fail, and checks that nothing is lost.
///
/// Exit status: 0 when every acknowledged write is in both stores, once and in order; 1 when not; 2 when it could
/// not run.
#[derive(Parser)]
#[command(name = "neo4j_qdrant", override_usage = "neo4j_qdrant [--json] --servers DIR | --neo4j URI --qdrant URL")]
struct Args {
    /// Start servers from where `tests/servers/install DIR` has put them, and kill them.
    #[arg(long, value_name = "DIR", required_unless_present = "neo4j", conflicts_with_all = ["neo4j", "qdrant"])]
    servers: Option<PathBuf>,
    /// Your Neo4j: bolt://HOST:PORT, or bolt+s:// for TLS. User and password come from NEO4J_USER (default neo4j) and
    /// NEO4J_PASSWORD. Writes nodes with the label SeawallExample.
    #[arg(long, value_name = "URI", requires = "qdrant")]
    neo4j: Option<String>,
    /// Your Qdrant: http://HOST:PORT of its gRPC, or https:// for TLS. The key comes from QDRANT_API_KEY. Makes the
    /// collection seawall_example.
    #[arg(long, value_name = "URL", requires = "neo4j")]
    qdrant: Option<String>,
    /// How long your servers are written to.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Records as newline-delimited JSON with the fields of examples/data/packages.ndjson; `-` is the standard input.
    #[arg(long, value_name = "FILE", default_value = DATA, hide_default_value = true)]
    input: PathBuf,
    /// Print one JSON object as the last line; everything else goes to stderr.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    match Box::pin(run(Args::parse())).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: Args) -> Result<bool, Box<dyn Error>> {
    let catalogue = Arc::new(Catalogue::parse(&Catalogue::bytes(&args.input)?)?);
    let reporter = Arc::new(Reporter::screen(Screen::new(args.json)));
    let place = match (args.servers, args.neo4j, args.qdrant) {
        (Some(servers), ..) => Place::Installed(servers),
        (None, Some(neo4j), Some(qdrant)) => Place::Yours { neo4j, qdrant },
        _ => return Err("name --servers DIR, or --neo4j URI and --qdrant URL".into()),
    };
    introduce(&catalogue, &reporter);
    let site = Site::open(place, catalogue.dimension, &reporter).await?;
    let slowly = !args.json && std::io::stdout().is_terminal();
    let story = Story::begin(site, catalogue, Arc::clone(&reporter), slowly);
    let findings = Box::pin(story.tell(Duration::from_secs(args.seconds))).await?;
    let summary = Summary::of(&reporter, &findings);
    summary.show(&findings, &reporter);
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    }
    Ok(summary.is_right())
}

fn introduce(catalogue: &Catalogue, reporter: &Reporter) {
    let Catalogue { records, dimension, replaced, .. } = catalogue;
    reporter.line(format!(
        "Seawall keeps what it acknowledged, on real servers.\n\n\
         {} records with embeddings of {dimension} dimensions and {} relations",
        records.len(),
        catalogue.relations(),
    ));
    for (key, earlier, later) in replaced {
        reporter.line(format!("`{key}` is in the input more than once: line {later} replaces line {earlier}"));
    }
}
