//! The main job, on real data: records go through Seawall into a graph store and a vector store, one store goes
//! down, then both, then the process itself is killed; and in the end both stores are compared with what was
//! acknowledged.
//!
//! ```sh
//! cargo run --release --example quickstart
//! ```
//!
//! This program is two processes. One runs Seawall and its stores and tells of each acknowledgement over a pipe
//! ([`before`]). The other is the terminal and the client's memory: it kills the first, starts Seawall again on the
//! same directory ([`after`]), and knows what was acknowledged whatever became of the first.
//!
//! To see how Seawall is used, read [`service`] and [`client`]; how the comparison is done, [`verdict`].

mod after;
mod before;
mod book;
mod client;
mod input;
mod report;
mod screen;
mod service;
mod summary;
mod switch;
mod verdict;

use std::error::Error;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use clap::Parser;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use input::Catalogue;
use report::{Report, Reporter};
use screen::Screen;
use summary::{Findings, Summary};

/// The data that comes with the example.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/packages.ndjson");
/// Writes that are acknowledged after the second outage, before the process is killed.
const BEFORE_THE_KILL: usize = 100;

/// Stores records through Seawall while its stores and its process fail, and checks that nothing is lost.
///
/// Exit status: 0 when every acknowledged write is in both stores, once and in order; 1 when not; 2 when it could
/// not run.
#[derive(Parser)]
#[command(name = "quickstart")]
struct Args {
    /// Records as newline-delimited JSON with the fields of examples/data/packages.ndjson; `-` is the standard input.
    #[arg(long, value_name = "FILE", default_value = DATA, hide_default_value = true)]
    input: PathBuf,
    /// Keep the journal and the stores in this directory [default: a temporary one, removed at the end].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print one JSON object as the last line; everything else goes to stderr.
    #[arg(long)]
    json: bool,
    /// Play the process that is killed.
    #[arg(long, hide = true, requires = "dir")]
    until_killed: bool,
    /// Pause, so that people can read.
    #[arg(long, hide = true)]
    slowly: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    match run(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(args: Args) -> Result<bool, Box<dyn Error>> {
    let text = Catalogue::bytes(&args.input)?;
    let catalogue = Arc::new(Catalogue::parse(&text)?);
    if let (true, Some(dir)) = (args.until_killed, &args.dir) {
        before::run(dir, catalogue, Arc::new(Reporter::pipe()), args.slowly).await?;
        return Ok(true);
    }
    let temporary;
    let dir = match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|error| format!("cannot use `{}`: {error}", dir.display()))?;
            dir.as_path()
        }
        None => {
            temporary = tempfile::Builder::new().prefix("seawall-quickstart-").tempdir()?;
            temporary.path()
        }
    };
    let slowly = args.slowly || (!args.json && std::io::stdout().is_terminal());
    let reporter = Arc::new(Reporter::screen(Screen::new(args.json)));
    introduce(&args, dir, &catalogue, &reporter);
    run_and_kill(dir, &text, &reporter, slowly).await?;
    let findings = after::run(dir, catalogue, Arc::clone(&reporter), slowly).await?;
    let summary = Summary::of(&reporter, &findings);
    conclude(&args, &reporter, &summary, &findings);
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    }
    Ok(summary.is_right())
}

/// Starts this program once more as the process that runs Seawall, shows what it tells, and kills it.
async fn run_and_kill(dir: &Path, text: &[u8], reporter: &Reporter, slowly: bool) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--until-killed", "--input", "-", "--dir"]).arg(dir).kill_on_drop(true);
    command.args(slowly.then_some("--slowly"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let id = child.id().unwrap_or_default();
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("the process has no pipes".into());
    };
    input.write_all(text).await?;
    drop(input);

    let mut lines = BufReader::new(output).lines();
    hear(&mut child, &mut lines, reporter, |report| matches!(report, Report::ReadyToBeKilled)).await?;
    let enough = reporter.book().acknowledged().count() + BEFORE_THE_KILL;
    hear(&mut child, &mut lines, reporter, |_| reporter.book().acknowledged().count() >= enough).await?;
    child.kill().await?;
    // What it said before it died is still in the pipe. The last line may be cut short, even within a letter.
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(report) = serde_json::from_str(&line) {
            reporter.tell(report);
        }
    }
    reporter.tell(Report::TaskDone);
    let unanswered = reporter.book().unanswered().len();
    reporter.happened(format!("process {id} was killed (SIGKILL), with {unanswered} writes on their way"));
    Ok(())
}

/// Shows what the process tells, until the last thing to wait for.
async fn hear(
    child: &mut Child,
    lines: &mut Lines<BufReader<ChildStdout>>,
    reporter: &Reporter,
    is_last: impl Fn(&Report) -> bool,
) -> Result<(), Box<dyn Error>> {
    while let Some(line) = lines.next_line().await? {
        let report: Report = serde_json::from_str(&line)?;
        reporter.tell(report.clone());
        if is_last(&report) {
            return Ok(());
        }
    }
    let status = child.wait().await?;
    Err(format!("the process that runs Seawall ended before it could be killed ({status})").into())
}

fn introduce(args: &Args, dir: &Path, catalogue: &Catalogue, reporter: &Reporter) {
    let Catalogue { records, dimension, replaced, .. } = catalogue;
    let keep = if args.dir.is_some() { "kept" } else { "removed at the end; --dir DIR keeps it" };
    reporter.line(format!(
        "Seawall keeps what it acknowledged, through two outages and a kill.\n\n\
         {} records with embeddings of {dimension} dimensions and {} relations, from {}\n\
         journal and stores in {} ({keep})\n{}",
        records.len(),
        catalogue.relations(),
        args.input.display(),
        dir.display(),
        service::SHORTENED
    ));
    for (key, earlier, later) in replaced {
        reporter.line(format!("`{key}` is in the input more than once: line {later} replaces line {earlier}"));
    }
}

fn conclude(args: &Args, reporter: &Reporter, summary: &Summary, findings: &Findings) {
    summary.show(findings, reporter);
    if args.dir.is_none() && std::io::stdout().is_terminal() {
        reporter.line("Next: examples/five_modes.rs, or --input with your own records.");
    }
}
