//! A writer, seen from outside.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use super::writer::{JOB, Job};

/// How long a writer may take to do what it is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A writer that runs.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Process {
    /// Starts this very program again, with these arguments, as a writer.
    pub fn start(job: &Job, arguments: &[&str]) -> Self {
        Self::start_with(job, arguments, |_| {})
    }

    /// The same, once the command has been changed.
    pub fn start_with(job: &Job, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let program = std::env::current_exe().expect("the path of this program");
        let mut command = Command::new(program);
        command.args(arguments).env(JOB, job.to_text()).stdin(Stdio::null()).stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().expect("this program starts");
        let out = child.stdout.take().expect("the output is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || follow(out, |line| sender.send(line).is_ok()));
        Self { child, lines, said: Vec::new() }
    }

    /// Waits until it says this. Gives `false` when it says that something is wrong, or nothing any more.
    pub fn says(&mut self, wanted: &str) -> bool {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let (found, wrong) = (line == wanted, line.starts_with("x "));
                    self.said.push(line);
                    if found || wrong {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {
                    self.said.push(format!("x nothing was heard for {PATIENCE:?} on the way to `{wanted}`"));
                    return false;
                }
            }
        }
    }

    /// Stops it, without a chance to do anything, until it is killed.
    pub fn stop(&self) {
        let pid = self.child.id().to_string();
        let stopped = Command::new("kill").args(["-STOP", &pid]).status();
        assert!(stopped.is_ok_and(|status| status.success()), "the writer can be stopped");
        for _ in 0..10_000 {
            if is_stopped(&pid) {
                return;
            }
            pause(Duration::from_millis(1));
        }
        panic!("the writer does not stop");
    }

    /// Kills it, and gives all that it said.
    pub fn kill(mut self) -> Vec<String> {
        self.child.kill().expect("the writer can be killed");
        self.child.wait().expect("the writer ends");
        self.said.extend(self.lines.iter());
        std::mem::take(&mut self.said)
    }
}

impl Drop for Process {
    /// Nobody is left behind by a test that fails.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Gives on every whole line; the last one may be cut.
fn follow(out: ChildStdout, mut give: impl FnMut(String) -> bool) {
    let mut out = BufReader::new(out.take(u64::MAX));
    let mut line = String::new();
    while out.read_line(&mut line).is_ok_and(|bytes| bytes > 0) && line.ends_with('\n') {
        line.pop();
        if !give(std::mem::take(&mut line)) {
            return;
        }
    }
}

/// Whether every thread is stopped, or deep in a system call out of which it will not come back.
fn is_stopped(pid: &str) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
        state.starts_with('T') || state.starts_with('D')
    })
}

/// Blocks this thread for about that long.
pub fn pause(time: Duration) {
    let until = tokio::time::Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}
