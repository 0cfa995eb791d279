//! Callers, and the log of what they asked and were told.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use seawall::operation::{Source, Write};
use seawall::{Handle, Refusal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::torture::Told;
use crate::torture::writer::id;

/// How long a caller waits: longer than any other patience here.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
/// How much later than that an answer may come to a caller on a busy machine.
const GRACE: Duration = Duration::from_secs(5);
/// The pace of a caller, so that there is as much to judge in a long outage as in a short one, and not more.
const PACE: Duration = Duration::from_millis(5);

/// What was asked and told, in the words of `torture::writer`.
pub(crate) struct Log {
    told: Mutex<Told>,
    next: AtomicU64,
    /// Whether it is said on the standard output too.
    aloud: bool,
}

impl Log {
    pub(crate) fn new(told: Told, aloud: bool) -> Self {
        let next = AtomicU64::new(told.next());
        Self { told: Mutex::new(told), next, aloud }
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on after what somebody else has said.
    pub(crate) fn hear(&self, lines: &[String]) {
        let mut told = self.told();
        told.hear(lines);
        self.next.fetch_max(told.next(), Ordering::SeqCst);
    }

    pub(crate) fn say(&self, line: String) {
        if self.aloud {
            let mut out = std::io::stdout().lock();
            // Nobody listens any more: the end is near.
            let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
        }
        self.told().hear(&[line]);
    }

    /// One write, answered. Gives whether it was acknowledged.
    pub(crate) async fn write(&self, handle: &Handle) -> bool {
        let operation = self.next.fetch_add(1, Ordering::SeqCst);
        let changes = self.told().changes(operation);
        self.say(format!("a {operation}"));
        let batch = Write::store_batch([]).with_operation(id(operation)).with_timeout(WRITE_TIMEOUT);
        let asked = Instant::now();
        let answer = handle.write(Write { changes, ..batch }).await;
        self.say(match &answer {
            Ok(receipt) => format!("h {operation} {}", receipt.version.0),
            Err(Refusal::Unknown { .. }) => format!("u {operation}"),
            Err(_) => format!("r {operation}"),
        });
        let took = asked.elapsed();
        if took > WRITE_TIMEOUT + GRACE {
            self.say(format!("x operation {operation} was answered after {took:?}: {answer:?}"));
        }
        answer.is_ok()
    }

    /// One read: it never falls behind what was acknowledged when it began.
    async fn read(&self, handle: &Handle, random: &mut fastrand::Rng) {
        let operation = random.u64(..=self.next.load(Ordering::SeqCst));
        let Some(change) = self.told().changes(operation).into_iter().next() else { return };
        let key = change.key();
        let floor = self.told().floor(key);
        let Ok(read) = handle.retrieve(key.clone()).await else { return };
        let version = read.version.unwrap_or_default();
        // A best-effort copy may have missed what it was told; when nobody else can be asked, that is said.
        let excused = read.stale && read.source == Source::Backend("cache".into());
        if version < floor && !excused {
            self.say(format!("x a read of {key} gave {version} from {:?} after {floor}", read.source));
        }
    }
}

/// Callers who write and read.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(handle: &Handle, log: &Arc<Log>, writers: usize, readers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..writers + readers)
            .map(|caller| {
                let (handle, log, stop) = (handle.clone(), Arc::clone(log), Arc::clone(&stop));
                let mut random = fastrand::Rng::with_seed(caller as u64);
                tokio::spawn(async move {
                    while !stop.load(Ordering::SeqCst) {
                        match caller < writers {
                            true => _ = log.write(&handle).await,
                            false => log.read(&handle, &mut random).await,
                        }
                        sleep(PACE).await;
                    }
                })
            })
            .collect();
        Self { stop, callers }
    }

    /// Waits until everybody has the answer that he waits for.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        for caller in self.callers {
            caller.await.expect("no caller panics");
        }
    }
}
