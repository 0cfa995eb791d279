//! A copy of the repository in which one bug after another is planted.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::bugs::{Bug, Killer};

/// How long the tests of one bug may take. Who hangs is found out, too.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long all tests of one program may take when nothing is planted.
const CLEAN_PATIENCE: Duration = Duration::from_secs(600);
/// How often the tests are run until they notice a bug.
const DRAWS: usize = 3;
/// What is not copied.
const LEFT_OUT: [&str; 3] = ["target", ".git", "seawall-data"];

/// What the suite says of a bug.
pub(super) enum Verdict {
    /// Tests fail.
    Killed {
        /// These were run.
        by: Killer,
        /// These failed.
        tests: Vec<String>,
    },
    /// All tests pass.
    Survived,
    /// It could not be found out, because of this.
    NotApplicable(String),
}

impl Verdict {
    /// Whether the same tests would say the same again.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Survived)
    }
}

/// One copy with its own build.
pub(super) struct Lane {
    root: PathBuf,
    tree: PathBuf,
    build: PathBuf,
    /// Held by whoever works in it.
    _lock: File,
}

impl Lane {
    /// Brings the copy of this number up to date.
    pub(super) fn open(root: &Path, number: usize) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        // target/debug/deps/planted-…
        let debug = program.ancestors().nth(2).ok_or("this program is not in a target directory")?;
        let place = debug.with_file_name("planted").join(number.to_string());
        let io = |error: io::Error| format!("{}: {error}", place.display());
        fs::create_dir_all(&place).map_err(io)?;
        let lock = File::create(place.join("lock")).map_err(io)?;
        lock.lock().map_err(io)?;
        let lane = Self { root: root.to_owned(), tree: place.join("tree"), build: place.join("build"), _lock: lock };
        mirror(root, &lane.tree, 0).map_err(io)?;
        if !lane.build.exists() {
            // What is built already need not be built again; without it everything works all the same.
            for part in ["deps", ".fingerprint", "build"] {
                take_over(&debug.join(part), &lane.build.join("debug").join(part)).map_err(io)?;
            }
        }
        Ok(lane)
    }

    /// Makes the mistake, runs its tests, and takes it back.
    pub(super) fn plant(&self, bug: &Bug) -> Verdict {
        let file = self.tree.join(&bug.file);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) => return Verdict::NotApplicable(format!("{}: {error}", bug.file)),
        };
        let times = text.matches(&bug.find).count();
        if times != 1 {
            return Verdict::NotApplicable(format!("what it replaces is {times} times in {}", bug.file));
        }
        let verdict = match fs::write(&file, text.replacen(&bug.find, &bug.plant, 1)) {
            // Some tests draw what they try: one that notices nothing once may do so the next time.
            Ok(()) => {
                (0..DRAWS).map(|_| self.judge(&bug.killed_by)).find(Verdict::is_final).unwrap_or(Verdict::Survived)
            }
            Err(error) => Verdict::NotApplicable(error.to_string()),
        };
        match fs::write(&file, text) {
            Ok(()) => verdict,
            Err(error) => Verdict::NotApplicable(format!("it could not be taken back: {error}")),
        }
    }

    /// Runs tests with nothing planted; each of the filters has to stand for some.
    pub(super) fn clean(&self, killer: &Killer) -> Verdict {
        let Run { passed, failed } = match self.run(killer, CLEAN_PATIENCE) {
            Ok(run) => run,
            Err(error) => return Verdict::NotApplicable(error),
        };
        if !failed.is_empty() {
            return Verdict::Killed { by: killer.clone(), tests: failed };
        }
        let stands_for_none = |filter: &&String| !passed.iter().any(|test| test.contains(filter.as_str()));
        match killer.filters.iter().find(stands_for_none) {
            Some(filter) => Verdict::NotApplicable(format!("no test is called {filter}")),
            None => Verdict::Survived,
        }
    }

    /// Runs tests until some fail.
    fn judge(&self, killers: &[Killer]) -> Verdict {
        for killer in killers {
            match self.run(killer, PATIENCE) {
                Ok(Run { failed, .. }) if failed.is_empty() => {}
                Ok(Run { failed, .. }) => return Verdict::Killed { by: killer.clone(), tests: failed },
                Err(error) => return Verdict::NotApplicable(error),
            }
        }
        Verdict::Survived
    }

    fn run(&self, killer: &Killer, patience: Duration) -> Result<Run, String> {
        self.test(&self.build(&killer.target)?, killer, patience)
    }

    /// Builds a test program.
    fn build(&self, target: &str) -> Result<PathBuf, String> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["test", "--no-run", "--locked", "--message-format=json-render-diagnostics", "--manifest-path"]);
        cargo.arg(self.tree.join("Cargo.toml"));
        // With the root package, so that all dependencies have the features that they have in every other run.
        cargo.args(["-p", "seawall-workspace"]);
        match home_of(target) {
            Some(_) => cargo.args(["-p", target, "--lib"]),
            None => cargo.args(["--test", target]),
        };
        // From the root, whose configuration would otherwise be met twice, and change the flags.
        cargo.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.build).env("CARGO_PROFILE_DEV_DEBUG", "0");
        // Without it, what has no debug information is stripped, and the dependencies would all be built again.
        cargo.env("CARGO_PROFILE_DEV_STRIP", "none");
        // Here the same is built over and over, with a line changed.
        cargo.env("CARGO_INCREMENTAL", "1");
        let output = cargo.stdin(Stdio::null()).output().map_err(|error| format!("cargo: {error}"))?;
        if !output.status.success() {
            return Err(format!("it does not build:\n{}", String::from_utf8_lossy(&output.stderr)));
        }
        let messages = String::from_utf8_lossy(&output.stdout);
        let mut programs = messages.lines().filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            message.get("executable")?.as_str().map(PathBuf::from)
        });
        programs.next_back().ok_or_else(|| format!("cargo built no program for {target}"))
    }

    fn test(&self, program: &Path, killer: &Killer, patience: Duration) -> Result<Run, String> {
        let home = self.tree.join(home_of(&killer.target).unwrap_or_default());
        let mut test = tokio::process::Command::new(program);
        test.args(&killer.filters).current_dir(&home).env("CARGO_MANIFEST_DIR", &home);
        // What one bug makes fail is no seed for the next.
        test.env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
        test.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (text, ended) = runtime.map_err(|error| error.to_string())?.block_on(async {
            let mut child = test.spawn().map_err(|error| format!("{}: {error}", program.display()))?;
            let mut out = child.stdout.take().ok_or("the test program has no output")?;
            let mut text = Vec::new();
            let ending = async {
                let _ = out.read_to_end(&mut text).await;
                child.wait().await
            };
            let ended = tokio::time::timeout(patience, ending).await;
            Ok::<_, String>((String::from_utf8_lossy(&text).into_owned(), ended))
        })?;
        let said = |end: &str| -> Vec<String> {
            let tests = text.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(end));
            tests.map(str::to_owned).collect()
        };
        let (passed, mut failed) = (said(" ... ok"), said(" ... FAILED"));
        failed.sort();
        match ended {
            Ok(status) => {
                let status = status.map_err(|error| error.to_string())?;
                if !status.success() && failed.is_empty() {
                    failed.push(format!("(the program: {status})"));
                }
            }
            Err(_) => failed.push(format!("(no end after {} s)", patience.as_secs())),
        }
        Ok(Run { passed, failed })
    }
}

/// How tests went, by their names.
struct Run {
    passed: Vec<String>,
    failed: Vec<String>,
}

/// Where a package with unit tests lies.
fn home_of(target: &str) -> Option<&'static str> {
    match target {
        "seawall-actors" => Some("actors"),
        "seawall" => Some("runtime"),
        _ => None,
    }
}

/// Makes one directory like another, and writes only what differs: cargo builds what is newer than its build.
fn mirror(from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let is_left_out = |name: &OsStr| depth == 0 && LEFT_OUT.iter().any(|left_out| name == *left_out);
    for entry in fs::read_dir(to)? {
        let entry = entry?;
        let original = from.join(entry.file_name());
        if is_left_out(&entry.file_name()) || !original.exists() {
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if is_left_out(&entry.file_name()) {
            continue;
        } else if entry.file_type()?.is_dir() {
            mirror(&entry.path(), &copy, depth + 1)?;
        } else if fs::read(entry.path())? != fs::read(&copy).unwrap_or_default() || !copy.exists() {
            fs::copy(entry.path(), copy)?;
        }
    }
    Ok(())
}

/// Copies the build of the dependencies, with its times, by which cargo judges it.
fn take_over(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, copy) = (entry.file_name(), to.join(entry.file_name()));
        let is_program = from.ends_with("deps") && entry.path().extension().is_none();
        if name.to_string_lossy().contains("seawall") || is_program {
            continue;
        }
        if entry.file_type()?.is_dir() {
            take_over(&entry.path(), &copy)?;
        } else {
            fs::copy(entry.path(), &copy)?;
            File::options().write(true).open(&copy)?.set_modified(entry.metadata()?.modified()?)?;
        }
    }
    Ok(())
}
