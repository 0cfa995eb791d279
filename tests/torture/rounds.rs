//! Kill, open, drain, compare, and again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::process::{self, Process};
use super::told::{Figures, Told};
use super::writer::{Job, Scene};

/// Judgements after which a fresh directory is begun.
const ROUNDS: u64 = 25;

/// What was done and what was counted.
#[derive(Default, Serialize)]
pub struct Report {
    pub kills: u64,
    pub kills_by_scene: BTreeMap<&'static str, u64>,
    pub judgements: u64,
    pub seed: u64,
    pub seconds: u64,
    #[serde(flatten)]
    pub figures: Figures,
    /// What is wrong, in words.
    #[serde(skip)]
    pub problems: Vec<String>,
}

/// Kills so often, in directories at this place, writers that this program becomes with these arguments. A directory
/// in which something is wrong is kept.
pub fn run(kills: u64, seed: u64, place: Option<PathBuf>, arguments: &[&str]) -> Report {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut report = Report { seed, ..Report::default() };
    // A kill takes nothing from the page cache, so memory does as well as a disk.
    let memory = PathBuf::from("/dev/shm");
    let place = place.unwrap_or_else(|| if memory.is_dir() { memory } else { std::env::temp_dir() });
    while report.kills < kills {
        let dir = tempfile::Builder::new().prefix("seawall-torture-").tempdir_in(&place).expect("a directory");
        let mut told = Told::default();
        for _ in 0..ROUNDS {
            if report.kills >= kills {
                break;
            }
            kill_some(&mut told, dir.path(), arguments, &mut random, &mut report);
            let figures = runtime.block_on(told.judge(dir.path()));
            report.judgements += 1;
            report.figures += &figures;
            if !figures.is_clean() {
                report.problems.append(&mut told.problems);
                report.problems.push(format!("what it left is in {}", dir.keep().display()));
                break;
            }
            if report.judgements.is_multiple_of(50) {
                eprintln!("{} kills, {} acknowledged", report.kills, report.figures.acked);
            }
        }
    }
    report
}

/// Kills in one scene, and perhaps again while it recovers.
fn kill_some(told: &mut Told, dir: &Path, arguments: &[&str], random: &mut fastrand::Rng, report: &mut Report) {
    let scene = Scene::ALL[random.usize(..Scene::ALL.len())];
    let again = if random.u32(..3) == 0 { random.usize(1..3) } else { 0 };
    for scene in std::iter::once(scene).chain(std::iter::repeat_n(Scene::Open, again)) {
        let job = Job { dir: dir.to_owned(), scene, seed: random.u64(..), first: told.next() };
        let mut process = Process::start(&job, arguments);
        let most = match scene {
            Scene::Open => 60,
            Scene::Drain => 120,
            Scene::Load | Scene::Compaction | Scene::Saga => 400,
        };
        let begun = match scene {
            Scene::Open => true,
            Scene::Drain => process.says("drain"),
            Scene::Load | Scene::Compaction | Scene::Saga => process.says("ready"),
        };
        if begun {
            process::pause(Duration::from_micros(random.u64(..most * 1_000)));
        }
        told.hear(&process.kill());
        report.kills += 1;
        *report.kills_by_scene.entry(scene.name()).or_default() += 1;
    }
}
