//! The power goes: what reached the disk by then is mounted again, and every acknowledged write has to be in it.
//!
//! A service writes to an ext4 file system on a loop device. At a random moment it is stopped, and the image is copied
//! as it is: what is only in the page cache of that file system is not in the copy, as it would not be on a disk
//! after a power cut. The copy is mounted (ext4 replays its journal), opened, drained and compared with what the
//! service was told. sled alone, without the guards, must fail the same treatment: that proves the treatment.
//!
//! Needs root and loop devices. `SEAWALL_POWER_CUTS` sets how often; without it nothing is done.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod torture;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use torture::writer::{JOB, Job};
use torture::{Figures, Process, Scene, Told, process};

const IMAGE_BYTES: u64 = 192 << 20;
/// Cuts after which a fresh file system is made.
const ROUNDS: usize = 10;
/// Cuts until sled alone must have lost something. One in four is the least that was ever measured.
const CONTROL_CUTS: usize = 24;

/// Not a test of its own: the process whose power goes.
#[test]
fn service_that_writes_until_the_power_goes() {
    if let Some(job) = Job::of_this_process() {
        job.run();
    }
}

/// Not a test of its own: the same with sled alone. It says `h n` when row `n` is flushed.
#[test]
fn sled_that_writes_until_the_power_goes() {
    let Some(dir) = std::env::var_os("SEAWALL_CONTROL_DIR") else { return };
    let db = sled::open(PathBuf::from(dir)).unwrap();
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nready").unwrap();
    for n in 0_u64.. {
        db.insert(n.to_be_bytes(), vec![7; 200]).unwrap();
        db.flush().unwrap();
        writeln!(out, "h {n}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let Some(cuts) = cuts() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let mut figures = Figures::default();
    let (mut disk, mut told) = (Disk::new(), Told::default());
    for cut in 1..=cuts {
        if cut.is_multiple_of(ROUNDS) {
            (disk, told) = (Disk::new(), Told::default());
        }
        let scene = Scene::ALL[cut % Scene::ALL.len()];
        let mounted = disk.mount();
        let job = Job { dir: mounted.path.clone(), scene, seed: random.u64(..), first: told.next() };
        let test = ["--exact", "service_that_writes_until_the_power_goes", "--nocapture", "--test-threads=1"];
        let mut service = Process::start(&job, &test);
        let most = if scene == Scene::Open { 150 } else { 1_500 };
        if scene == Scene::Open || service.says(if scene == Scene::Drain { "drain" } else { "ready" }) {
            process::pause(Duration::from_millis(random.u64(..most)));
        }
        service.stop();
        let after = disk.cut();
        told.hear(&service.kill());
        drop(mounted);
        disk = after;
        let mounted = disk.mount();
        let counted = runtime.block_on(told.judge(&mounted.path));
        assert!(counted.is_clean(), "cut {cut}, {}: {counted:?}\n{}", scene.name(), told.problems.join("\n"));
        figures += &counted;
    }
    let Figures { acked, recovered, .. } = figures;
    println!("{cuts} power cuts, {acked} acknowledged, {recovered} unfinished ones recovered, 0 lost");
    assert!(acked > 20 * cuts as u64, "too little was written to mean anything: {figures:?}");
}

#[test]
fn sled_without_the_guards_fails_the_same_treatment() {
    if cuts().is_none() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(12);
    for cut in 1..=CONTROL_CUTS {
        let disk = Disk::new();
        let mounted = disk.mount();
        let job = Job { dir: PathBuf::new(), scene: Scene::Load, seed: 0, first: 0 };
        let test = ["--exact", "sled_that_writes_until_the_power_goes", "--nocapture", "--test-threads=1"];
        let dir = mounted.path.join("sled");
        let mut service = Process::start_with(&job, &test, |command| {
            command.env_remove(JOB).env("SEAWALL_CONTROL_DIR", &dir);
        });
        service.says("ready");
        process::pause(Duration::from_millis(random.u64(200..1_500)));
        service.stop();
        let after = disk.cut();
        let said = service.kill();
        drop(mounted);
        let acked: BTreeSet<u64> = said.iter().filter_map(|line| line.strip_prefix("h ")?.parse().ok()).collect();
        let mounted = after.mount();
        let found = catch_unwind(AssertUnwindSafe(|| {
            let db = sled::open(mounted.path.join("sled")).ok()?;
            let rows = db.iter().keys().map_while(Result::ok);
            Some(rows.filter_map(|key| Some(u64::from_be_bytes(key.as_ref().try_into().ok()?))).collect())
        }));
        let found: Option<BTreeSet<u64>> = found.ok().flatten();
        let lost = found.as_ref().map(|found| acked.difference(found).count());
        println!("control, cut {cut}: {} acknowledged, lost {lost:?} (None: does not open)", acked.len());
        if lost.is_none_or(|lost| lost > 0) {
            return;
        }
    }
    panic!("sled alone lost nothing in {CONTROL_CUTS} power cuts: this treatment shows nothing");
}

/// How many cuts are asked for; `None` after saying why none is made.
fn cuts() -> Option<usize> {
    let Some(cuts) = std::env::var("SEAWALL_POWER_CUTS").ok().and_then(|cuts| cuts.parse().ok()).filter(|n| *n > 0)
    else {
        println!("power cuts are skipped: SEAWALL_POWER_CUTS is not set");
        return None;
    };
    Some(cuts)
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system in a file.
struct Disk {
    dir: tempfile::TempDir,
}

/// … that can be reached at a path.
struct Mounted {
    path: PathBuf,
}

impl Disk {
    /// An empty file in memory, where it can be: what counts is what the file system above hands down to it.
    fn empty() -> Self {
        let dir = tempfile::Builder::new().prefix("seawall-power-").tempdir_in("/dev/shm");
        Self { dir: dir.or_else(|_| tempfile::tempdir()).unwrap() }
    }

    fn new() -> Self {
        let disk = Self::empty();
        File::create(disk.image()).unwrap().set_len(IMAGE_BYTES).unwrap();
        let eager = "lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-E", eager]).arg(disk.image()));
        disk
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn mount(&self) -> Mounted {
        let path = self.dir.path().join("mounted");
        fs::create_dir_all(&path).unwrap();
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(self.image()).arg(&path));
        Mounted { path }
    }

    /// The disk as it is at this moment. Should it have been written to meanwhile, the copy is no moment, and is made
    /// again.
    fn cut(&self) -> Self {
        let copy = Self::empty();
        for _ in 0..100 {
            run(Command::new("cp").arg("--sparse=always").arg(self.image()).arg(copy.image()));
            if same(&self.image(), &copy.image()) {
                return copy;
            }
        }
        panic!("the disk does not come to rest");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process that was killed may hold it a little longer.
        for _ in 0..200 {
            let unmounted = Command::new("umount").arg(&self.path).stderr(Stdio::null()).status();
            if unmounted.is_ok_and(|status| status.success()) {
                return;
            }
            process::pause(Duration::from_millis(20));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

fn same(one: &Path, other: &Path) -> bool {
    let (mut one, mut other) = (File::open(one).unwrap(), File::open(other).unwrap());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for _ in 0..IMAGE_BYTES >> 20 {
        one.read_exact(&mut left).unwrap();
        other.read_exact(&mut right).unwrap();
        if left != right {
            return false;
        }
    }
    true
}
