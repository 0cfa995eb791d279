//! What the user sees: chapters, a timeline of state changes, a progress bar.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use seawall::event::{Event, EventKind};
use seawall::operation::Held;
use tokio::time::Instant;

use crate::book::Book;
use crate::report::Report;

/// The terminal. With `--json` everything goes to stderr, so that stdout has the one JSON object and nothing else.
pub(crate) struct Screen {
    started: Instant,
    bar: Mutex<ProgressBar>,
    to_stderr: bool,
    styled: bool,
}

impl Screen {
    pub(crate) fn new(to_stderr: bool) -> Self {
        let terminal = if to_stderr { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() };
        let styled = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { started: Instant::now(), bar: Mutex::new(ProgressBar::hidden()), to_stderr, styled }
    }

    /// Shows one report.
    pub(crate) fn show(&self, report: &Report, book: &Book) {
        match report {
            Report::Chapter(title) => self.chapter(title),
            Report::Line(text) => self.line(text),
            Report::Task { label, steps } => self.begin(label, *steps),
            Report::Step { done } => self.bar().set_position(*done),
            Report::TaskDone => self.bar().finish_and_clear(),
            Report::Happened(text) => self.mark('■', text),
            Report::Acknowledged(receipt) => {
                self.bar().inc(1);
                if receipt.held != Held::Committed && book.queued().count() == 1 {
                    self.mark(
                        '·',
                        &format!("first receipt of its kind: {} as {}", held(&receipt.held), receipt.version),
                    );
                }
            }
            Report::WrongRead { key } => self.mark('!', &format!("a read of `{key}` gave an older state")),
            // One is enough to see what is done; the summary counts them.
            Report::Event(Event { kind: EventKind::SagaRolledBack { .. }, .. }) if book.taken_back > 1 => {}
            Report::Event(event) => self.event(&event.kind),
            Report::Refused { reason, .. } if book.refused == 1 => {
                self.mark('·', &format!("first refusal (the client waits and tries again): {reason}"));
            }
            Report::Refused { .. } | Report::Sent { .. } | Report::Effects(_) | Report::ReadyToBeKilled => {}
        }
    }

    fn begin(&self, label: &str, steps: u64) {
        let mut bar = self.bar();
        bar.finish_and_clear();
        // It is drawn on stderr, and not at all when that is no terminal.
        *bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr()).with_message(label.to_owned());
        if let Ok(style) = ProgressStyle::with_template("           {bar:32} {pos:>4}/{len} {msg}") {
            bar.set_style(style.progress_chars("█▌░"));
        }
    }

    fn bar(&self) -> MutexGuard<'_, ProgressBar> {
        self.bar.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn chapter(&self, title: &str) {
        let rule = "─".repeat(96_usize.saturating_sub(title.chars().count()));
        let (bold, plain) = if self.styled { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.print(&format!("\n{bold}── {title} {rule}{plain}"));
    }

    /// A line of the story, under the time of the one before it.
    pub(crate) fn line(&self, text: &str) {
        for line in text.lines() {
            self.print(format!("           {line}").trim_end());
        }
    }

    /// A line of the timeline.
    fn mark(&self, mark: char, text: &str) {
        let time = self.elapsed().as_secs_f64();
        let (dim, plain) = if self.styled { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        self.print(&format!("{dim}{time:>7.2} s{plain} {mark} {text}"));
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Prints a line above the bar. A terminal that went away is no reason to stop.
    pub(crate) fn print(&self, line: &str) {
        self.bar().suspend(|| {
            let _ = if self.to_stderr {
                writeln!(std::io::stderr(), "{line}")
            } else {
                writeln!(std::io::stdout(), "{line}")
            };
        });
    }

    fn event(&self, kind: &EventKind) {
        if let Some((mark, text)) = words(kind) {
            self.mark(mark, &text);
        }
    }
}

/// A state change in words, unless others say the same.
fn words(kind: &EventKind) -> Option<(char, String)> {
    Some(match kind {
        EventKind::BreakerChanged { backend, from, to, cause, .. } => {
            ('◆', format!("{backend:<6} breaker {from} → {to}: {cause}"))
        }
        EventKind::LevelChanged { from, to } => {
            ('◆', format!("level  {} → {}, which offers {}", from.name(), to.name(), to.words().offers))
        }
        EventKind::ModeChanged { from, to, .. } => ('◆', format!("mode   {} → {}", from.name(), to.name())),
        EventKind::DrainStopped { backend, drained, owed } if *drained > 0 => {
            ('↧', format!("{backend:<6} was given {drained} of the writes that it owed; {owed} are left"))
        }
        EventKind::SagaRolledBack { version, .. } => {
            ('↶', format!("write {version} could not reach every store, and was taken back from where it was"))
        }
        EventKind::DeadLetterAdded { version, backend, reason, .. } => {
            ('†', format!("{backend:<6} will never take write {version}: {reason}"))
        }
        EventKind::ActorRestarted { actor, reason, .. } => ('↻', format!("{actor} was restarted: {reason}")),
        EventKind::AlertRaised { backend, alert } => ('!', format!("{backend:<6} alert: {alert:?}")),
        EventKind::AlertCleared { backend, alert } => ('✓', format!("{backend:<6} alert is over: {alert:?}")),
        _ => return None,
    })
}

/// How a write is held, in a word or two.
pub(crate) fn held(held: &Held) -> String {
    let owing = |backends: &[seawall::backend::BackendName]| {
        backends.iter().map(|backend| backend.as_str()).collect::<Vec<_>>().join(" and ")
    };
    match held {
        Held::Committed => "Committed".to_owned(),
        Held::Queued { owing: backends } => format!("Queued, owed to {}", owing(backends)),
        Held::Volatile { owing: backends } => format!("Volatile, owed to {}", owing(backends)),
    }
}
