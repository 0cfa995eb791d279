//! What comes from outside, from arbitrary bytes. The targets in `fuzz/` call these for hours, the tests below for
//! seconds.

use std::sync::Arc;
use std::time::Duration;

use seawall_actors::breaker::{
    BreakerCell, BreakerConfig, BreakerState, BreakerStateStore, CallOutcome, LAST_SEQUENCE, MemoryStateStore, Purpose,
};
use seawall_actors::limits::Limits;
use seawall_actors::operation::{Change, Write};

use crate::breakers;
use crate::config::Config;
use crate::journal;

/// A record of the journal.
pub fn journal_record(data: &[u8]) {
    journal::fuzzing::record(data);
}

/// A generation of rows.
pub fn journal_rows(data: &[u8]) {
    journal::fuzzing::rows(data);
}

/// The mark of a journal.
pub fn journal_mark(data: &[u8]) {
    journal::fuzzing::mark(data);
}

/// The saved state of a breaker: it is used or refused, delays no call longer than is configured, and what is saved
/// of it is read back.
pub fn breaker_state(data: &[u8]) {
    let Ok(saved) = breakers::decode(data) else { return };
    if saved.sequence > LAST_SEQUENCE / 2 {
        // As no process gets to by counting; its successors could not be read back.
        return;
    }
    let forced = saved.manual.as_ref().is_some_and(|manual| manual.state.is_manual());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime without any driver but time").block_on(async {
        let (store, bus, config) = (Arc::new(MemoryStateStore::default()), Arc::default(), BreakerConfig::default());
        store.save(&"graph".into(), saved).await.expect("an empty store takes it");
        let wait = config.reset_timeout;
        let cell = BreakerCell::open("graph".into(), config, bus, Some(Arc::clone(&store) as _)).await;
        let breaker = cell.handle();
        assert!(forced || breaker.snapshot().retry_after.is_none_or(|after| after <= wait));
        assert!(!breaker.explain().to_string().is_empty());
        cell.save().await.expect("its successor is saved");
        tokio::time::advance(wait).await;
        match breaker.gate().try_acquire(Purpose::Live) {
            Ok(lease) => lease.settle(CallOutcome::Failure),
            Err(rejected) => assert!(forced && rejected.state == BreakerState::ForcedOpen, "{rejected:?}"),
        }
        breaker.reset();
        assert!(breaker.gate().try_acquire(Purpose::Live).is_ok());
        cell.save().await.expect("its successor is saved");
        let last = store.get(&"graph".into()).expect("it was saved");
        let row = rmp_serde::to_vec_named(&last).expect("it is written");
        assert_eq!(breakers::decode(&row).expect("it is read back"), last);
        tokio::time::advance(Duration::from_secs(1)).await;
    });
}

/// A configuration: TOML, and after a line of dashes variables. What is accepted can be used; what is not says why.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (toml, variables) = text.split_once("\n---\n").unwrap_or((text, ""));
    let variables = variables.lines().filter_map(|line| line.split_once('='));
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for read in [Config::from_toml(toml), Config::load_with(None, variables)] {
        match read {
            Ok(config) => assert_eq!(config.validate(), Ok(())),
            Err(error) => assert!(!error.problems.is_empty() && error.to_string().lines().count() > 1),
        }
    }
}

/// A write, as JSON: what the limits let in, the journal keeps as it is.
pub fn write(data: &[u8]) {
    let Ok(changes) = serde_json::from_slice::<Vec<Change>>(data) else { return };
    let mut write = Write::delete("");
    write.changes = changes;
    let limits = Limits { nesting: 100, ..Limits::default() };
    if limits.check_write(&write).is_ok() {
        assert!(write.weight() <= limits.write_bytes);
        journal::fuzzing::kept(&write.changes);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Inputs made of those in the corpus, for each target. The same ones each time.
    const MADE: usize = 4_000;

    /// Runs the corpus of a target, and what comes of it by a few random changes.
    fn run(target: &str, call: fn(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        let corpus: Vec<Vec<u8>> = names.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(!corpus.is_empty());
        corpus.iter().for_each(|data| call(data));
        call(&[]);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..MADE {
            let mut data = corpus[random.usize(..corpus.len())].clone();
            for _ in 0..random.usize(1..6) {
                change(&mut data, &corpus, &mut random);
            }
            call(&data);
        }
    }

    fn change(data: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut fastrand::Rng) {
        let at = random.usize(..=data.len());
        match random.u8(..6) {
            0 if at < data.len() => data[at] ^= 1 << random.u8(..8),
            1 if at < data.len() => data[at] = *random.choice(&[0, 1, 0x7F, 0x80, 0xC0, 0xDF, 0xFF]).unwrap(),
            2 => data.insert(at, random.u8(..)),
            3 => data.truncate(at),
            4 => {
                let other = &corpus[random.usize(..corpus.len())];
                let (from, to) = (random.usize(..=other.len()), random.usize(..=other.len()));
                data.splice(at..at, other[from.min(to)..from.max(to)].iter().copied());
            }
            _ => {
                let to = (at + random.usize(..8)).min(data.len());
                data.drain(at..to);
            }
        }
    }

    #[test]
    fn a_journal_record_of_any_bytes_is_read_or_refused() {
        run("journal_record", journal_record);
    }

    #[test]
    fn journal_rows_of_any_bytes_are_read_or_told_as_lost() {
        run("journal_rows", journal_rows);
    }

    #[test]
    fn a_journal_mark_of_any_bytes_is_one_that_was_written_or_unreadable() {
        run("journal_mark", journal_mark);
    }

    #[test]
    fn a_breaker_state_of_any_bytes_delays_no_call_longer_than_is_configured() {
        run("breaker_state", breaker_state);
    }

    #[test]
    fn a_configuration_of_any_bytes_can_be_used_or_says_why_not() {
        run("configuration", configuration);
    }

    #[test]
    fn a_write_of_any_bytes_is_refused_or_kept_as_it_is() {
        run("write", write);
    }
}
