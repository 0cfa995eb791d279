//! What a process tells the terminal: over a pipe when it is the one that is going to be killed.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use seawall::event::{Event, Subscription, Update};
use seawall::operation::{OperationId, Receipt};
use seawall::record::Key;
use serde::{Deserialize, Serialize};

use crate::book::{Book, Effect, Job};
use crate::screen::Screen;

/// One thing that is told. Over the pipe each is one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A new part of the story begins.
    Chapter(String),
    /// A line of the story.
    Line(String),
    /// Something that was done to the stores or the process, for the timeline.
    Happened(String),
    /// Work of so many steps begins.
    Task { label: String, steps: u64 },
    /// So many of its steps are done. (An acknowledged write is one too.)
    Step { done: u64 },
    /// The work is done.
    TaskDone,
    /// A write is about to be sent.
    Sent { operation: OperationId, job: Job },
    /// It was acknowledged.
    Acknowledged(Receipt),
    /// It was refused.
    Refused { operation: OperationId, reason: String },
    /// A read did not give what was acknowledged.
    WrongRead { key: Key },
    /// What stores did since the last time.
    Effects(Vec<Effect>),
    /// The runtime changed its state.
    Event(Event),
    /// From now on this process can be killed at any moment.
    ReadyToBeKilled,
}

enum Out {
    Pipe,
    Screen(Box<Screen>),
}

/// Writes every report into the book, and shows it or sends it on.
pub(crate) struct Reporter {
    book: Mutex<Book>,
    out: Out,
}

impl Reporter {
    /// For the process that talks to a terminal in another process.
    pub(crate) fn pipe() -> Self {
        Self { book: Mutex::default(), out: Out::Pipe }
    }

    /// For the process that is the terminal.
    pub(crate) fn screen(screen: Screen) -> Self {
        Self { book: Mutex::default(), out: Out::Screen(Box::new(screen)) }
    }

    /// What is known so far.
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells one thing.
    pub(crate) fn tell(&self, report: Report) {
        let mut book = self.book();
        book.hear(&report);
        match &self.out {
            Out::Screen(screen) => screen.show(&report, &book),
            Out::Pipe => {
                drop(book);
                let told = serde_json::to_string(&report).map_err(std::io::Error::from);
                if told.and_then(|line| writeln!(std::io::stdout(), "{line}")).is_err() {
                    // Nobody listens any more, so nobody would know what was acknowledged.
                    std::process::exit(2);
                }
            }
        }
    }

    pub(crate) fn chapter(&self, title: impl Into<String>) {
        self.tell(Report::Chapter(title.into()));
    }

    pub(crate) fn happened(&self, text: impl Into<String>) {
        self.tell(Report::Happened(text.into()));
    }

    pub(crate) fn line(&self, text: impl Into<String>) {
        self.tell(Report::Line(text.into()));
    }

    /// Tells all state changes of a runtime, until it ends.
    pub(crate) async fn follow(&self, mut events: Subscription) {
        while let Some(update) = events.next().await {
            match update {
                Update::Event(event) => self.tell(Report::Event(Event::clone(&event))),
                Update::Lagged { missed } => self.line(format!("{missed} events were missed")),
            }
        }
    }
}
