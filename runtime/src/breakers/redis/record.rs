//! How a record looks in Redis: the JSON object of document 003, with fields of our own beside it.
//!
//! ```json
//! {"state": "open", "failure_count": 5, "opened_at": 1698765432.0, "half_open_attempts": 0,
//!  "format": 1, "sequence": 3, "generation": 1, "remaining_wait": "41s", "attempts": 1, "manual": null, "history": []}
//! ```
//!
//! Of an object with a `format`, `opened_at` is not read: what is left of a wait is in `remaining_wait`, and the wall
//! clock may have jumped. An object without one was written by another implementation: of that, `opened_at` is all
//! there is.

use std::time::Duration;

use seawall_actors::breaker::{BreakerState, FORMAT, LAST_SEQUENCE, SavedBreaker, StoreError, TransitionCause};
use serde::Deserialize;
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3_600);

/// The object for this record, `wall` since the epoch.
pub(super) fn encode(record: &SavedBreaker, wall: Duration) -> Result<Vec<u8>, StoreError> {
    let failed = |error: serde_json::Error| StoreError::Failed(error.to_string());
    let mut object = serde_json::to_value(record).map_err(failed)?;
    object["opened_at"] = opened_at(record, wall).into();
    serde_json::to_vec(&object).map_err(failed)
}

/// The record of this object. One that another implementation wrote waits for what `reset_timeout` leaves of its
/// wait, `wall` since the epoch, and gives way to any of ours: its sequence is 0.
pub(super) fn decode(object: &[u8], reset_timeout: Duration, wall: Duration) -> Result<SavedBreaker, StoreError> {
    let object: Value = serde_json::from_slice(object).map_err(|error| unreadable(&error))?;
    if object.get("format").is_none() {
        let foreign = Foreign::deserialize(object).map_err(|error| unreadable(&error))?;
        return foreign.saved(reset_timeout, wall);
    }
    if object["format"] != FORMAT {
        return Err(StoreError::Unreadable(format!("it is not of format {FORMAT}")));
    }
    let saved = SavedBreaker::deserialize(object).map_err(|error| unreadable(&error))?;
    if saved.sequence > LAST_SEQUENCE {
        return Err(StoreError::Unreadable(format!("sequence {}", saved.sequence)));
    }
    Ok(saved)
}

/// How long Redis is to keep a record: 24 h of an open breaker and 1 h of another (document 003), counted from the
/// last save. What a person has forced is kept for as long as it is meant to last.
pub(super) fn time_to_live(record: &SavedBreaker) -> Option<Duration> {
    let automatic = match record.state {
        BreakerState::Open => HOUR * 24,
        _ => HOUR,
    };
    match &record.manual {
        Some(manual) => manual.remaining.map(|remaining| automatic.saturating_add(remaining)),
        None => Some(automatic),
    }
}

/// When it was opened, in seconds since the epoch, as far as its history tells. For others to read.
fn opened_at(record: &SavedBreaker, wall: Duration) -> Option<f64> {
    if record.state == BreakerState::Closed {
        return None;
    }
    let opened = record
        .history
        .iter()
        .rev()
        .find(|past| past.to == BreakerState::Open && past.cause != TransitionCause::Restored);
    let age = opened.map_or(Duration::ZERO, |past| past.age);
    Some(wall.saturating_sub(age).as_secs_f64())
}

/// Says where it is wrong and not what is there.
fn unreadable(error: &serde_json::Error) -> StoreError {
    StoreError::Unreadable(match error.line() {
        0 => "it is not the state of a breaker".to_owned(),
        line => format!("it is no JSON at line {line}, column {}", error.column()),
    })
}

/// What document 003 keeps of a breaker.
#[derive(Deserialize)]
struct Foreign {
    state: String,
    #[serde(default)]
    failure_count: u32,
    #[serde(default)]
    opened_at: Option<f64>,
    #[serde(default)]
    half_open_attempts: u32,
}

impl Foreign {
    fn saved(self, reset_timeout: Duration, wall: Duration) -> Result<SavedBreaker, StoreError> {
        let state = match self.state.to_lowercase().as_str() {
            "closed" => BreakerState::Closed,
            "open" => BreakerState::Open,
            "half_open" | "half-open" => BreakerState::HalfOpen,
            _ => return Err(StoreError::Unreadable("its state is none that a breaker has".to_owned())),
        };
        let waited = self.opened_at.map_or(0.0, |at| wall.as_secs_f64() - at);
        let remaining_wait = match Duration::try_from_secs_f64(waited) {
            Ok(waited) => reset_timeout.saturating_sub(waited),
            // It was opened in the future, or longer ago than anything can be.
            Err(_) if waited < 0.0 => reset_timeout,
            Err(_) => Duration::ZERO,
        };
        Ok(SavedBreaker {
            format: FORMAT,
            sequence: 0,
            state,
            generation: 0,
            failure_count: self.failure_count,
            remaining_wait: if state == BreakerState::Open { remaining_wait } else { Duration::ZERO },
            attempts: u32::from(state != BreakerState::Closed),
            manual: None,
            half_open_attempts: self.half_open_attempts,
            history: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seawall_actors::breaker::{SavedOverride, Transition};

    use super::*;

    const WAIT: Duration = Duration::from_secs(60);
    const WALL: Duration = Duration::from_secs(1_698_765_432);

    fn transition(to: BreakerState, cause: TransitionCause, age: u64) -> Transition {
        Transition { from: BreakerState::Closed, to, cause, generation: 1, age: Duration::from_secs(age) }
    }

    fn open() -> SavedBreaker {
        SavedBreaker {
            format: FORMAT,
            sequence: LAST_SEQUENCE,
            state: BreakerState::Open,
            generation: 4,
            failure_count: 5,
            remaining_wait: Duration::from_millis(41_500),
            attempts: 2,
            manual: None,
            half_open_attempts: 1,
            history: vec![
                transition(BreakerState::Open, TransitionCause::ConsecutiveFailures(5), 32),
                transition(BreakerState::Open, TransitionCause::Restored, 2),
            ],
        }
    }

    fn foreign(text: &str) -> Result<SavedBreaker, StoreError> {
        decode(text.as_bytes(), WAIT, WALL)
    }

    #[test]
    fn the_fields_of_document_003_are_there_as_it_shows_them() {
        let object: Value = serde_json::from_slice(&encode(&open(), WALL).unwrap()).unwrap();
        assert_eq!(object["state"], "open");
        assert_eq!(object["failure_count"], 5);
        assert_eq!(object["opened_at"], 1_698_765_400.0);
        assert_eq!(object["half_open_attempts"], 1);
        let closed = SavedBreaker { state: BreakerState::Closed, ..open() };
        let object: Value = serde_json::from_slice(&encode(&closed, WALL).unwrap()).unwrap();
        assert_eq!((&object["state"], &object["opened_at"]), (&"closed".into(), &Value::Null));
    }

    #[test]
    fn the_wall_clock_changes_nothing_in_a_record_of_our_own() {
        let record = SavedBreaker {
            manual: Some(SavedOverride {
                state: BreakerState::ForcedOpen,
                reason: "\"format\": 7, }".to_owned(),
                remaining: Some(WAIT),
            }),
            ..open()
        };
        for wall in [Duration::ZERO, WALL, WALL * 2, Duration::MAX] {
            let object = encode(&record, wall).unwrap();
            for later in [Duration::ZERO, WALL, Duration::MAX] {
                assert_eq!(decode(&object, WAIT, later), Ok(record.clone()));
            }
        }
    }

    #[test]
    fn what_another_implementation_wrote_waits_for_the_rest_and_never_longer_than_configured() {
        for (opened_at, remaining) in [
            ("1698765432.0", 60),
            ("1698765412", 40),
            ("1698765372.0", 0),
            ("0", 0),
            ("-1e300", 0),
            ("1698769032.0", 60),
            ("1e300", 60),
            ("null", 60),
        ] {
            let saved = foreign(&format!(r#"{{"state":"open","failure_count":5,"opened_at":{opened_at}}}"#)).unwrap();
            assert_eq!(saved.remaining_wait, Duration::from_secs(remaining), "{opened_at}");
            assert_eq!((saved.state, saved.failure_count, saved.sequence), (BreakerState::Open, 5, 0));
        }
    }

    #[test]
    fn states_are_read_in_small_letters_and_in_capitals() {
        for (text, state) in [
            ("closed", BreakerState::Closed),
            ("CLOSED", BreakerState::Closed),
            ("OPEN", BreakerState::Open),
            ("half_open", BreakerState::HalfOpen),
            ("HALF_OPEN", BreakerState::HalfOpen),
        ] {
            assert_eq!(foreign(&format!(r#"{{"state":"{text}"}}"#)).map(|saved| saved.state), Ok(state));
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_without_what_is_there() {
        let newer = SavedBreaker { format: FORMAT + 1, ..open() };
        let endless = SavedBreaker { sequence: LAST_SEQUENCE + 1, ..open() };
        let encoded = |record| String::from_utf8(encode(record, WALL).unwrap()).unwrap();
        for text in [
            "",
            "hush",
            "\"hush\"",
            "[1]",
            "null",
            "{}",
            r#"{"state":"hush"}"#,
            r#"{"state":1,"failure_count":"hush"}"#,
            r#"{"format":"hush"}"#,
            r#"{"format":1,"state":"hush"}"#,
            &encoded(&newer),
            &encoded(&endless),
        ] {
            match foreign(text) {
                Err(StoreError::Unreadable(why)) => assert!(!why.contains("hush"), "{why}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_open_breaker_is_kept_for_a_day_another_for_an_hour_and_what_is_forced_for_as_long_as_it_lasts() {
        let closed = SavedBreaker { state: BreakerState::Closed, ..open() };
        let half_open = SavedBreaker { state: BreakerState::HalfOpen, ..open() };
        assert_eq!(time_to_live(&open()), Some(HOUR * 24));
        assert_eq!(time_to_live(&closed), Some(HOUR));
        assert_eq!(time_to_live(&half_open), Some(HOUR));
        let forced = |remaining| {
            let manual = SavedOverride { state: BreakerState::ForcedOpen, reason: String::new(), remaining };
            time_to_live(&SavedBreaker { manual: Some(manual), ..closed.clone() })
        };
        assert_eq!(forced(Some(HOUR * 48)), Some(HOUR * 49));
        assert_eq!(forced(None), None);
    }

    proptest! {
        #[test]
        fn whatever_is_there_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), at in any::<f64>()) {
            let _ = decode(&bytes, WAIT, WALL);
            let saved = foreign(&format!(r#"{{"state":"open","opened_at":{at:?}}}"#));
            prop_assert!(saved.is_ok_and(|saved| saved.remaining_wait <= WAIT) || !at.is_finite());
        }
    }
}
