//! What an answer of Qdrant, or none, means for a write.
//!
//! Messages are ours: what the other side says may be anything, payloads too.

use std::error::Error;
use std::time::Duration;

use qdrant_client::qdrant::{UpdateResult, UpdateStatus};
use seawall_actors::backend::BackendError;
use tonic::{Code, ConnectError, Status};

/// The server's words for a log that it cannot write to, said before it writes anything.
const DISK_FULL: &str = "No space left on device: WAL buffer size exceeds available disk space";
/// What it says when one shard has done its part of a request and another has not. The code is that of the first error.
const PARTIAL: &str = "shards failed to apply operation";

/// Judges a call that failed.
///
/// | what came back | kind | why |
/// |---|---|---|
/// | no connection | transient | nothing was sent |
/// | a connection that broke, a timeout here or there | unknown | it may have arrived |
/// | `Internal`, `Unavailable`, `Aborted`, `DataLoss`, `FailedPrecondition` and what is not known | unknown | it may be in the server's log, and applied after a restart |
/// | "N out of M shards failed", whatever the code | unknown | the other shards have done it |
/// | no room for its log | read only | it looks before it writes |
/// | `ResourceExhausted` | refused | a rate limit, with a time to come again |
/// | `Unauthenticated`, `PermissionDenied` | transient | a person changes the key, and then everything that is owed goes through |
/// | `NotFound` | transient | the collection is gone: a person brings it back (see [`crate::backends::QdrantBackend`]) |
/// | `InvalidArgument`, `OutOfRange`, `AlreadyExists`, `Unimplemented` | permanent | it will never take this |
pub(super) fn judge(status: &Status) -> BackendError {
    if let Some(cause) = status.source() {
        return not_answered(cause);
    }
    let code = status.code();
    let error = match code {
        _ if status.message().contains(PARTIAL) => BackendError::unknown("Qdrant did a part of it: some shards failed"),
        _ if status.message().contains(DISK_FULL) => BackendError::read_only("the disk of Qdrant is full"),
        Code::ResourceExhausted => {
            return throttled(status);
        }
        Code::Unauthenticated => BackendError::transient("Qdrant does not accept the key; set `api_key`"),
        Code::PermissionDenied => {
            BackendError::transient("Qdrant does not allow this with the key; set an `api_key` that may write")
        }
        Code::NotFound => BackendError::transient(
            "the collection is not there any more; restore it, or start the service again to have an empty one made",
        ),
        Code::InvalidArgument | Code::OutOfRange | Code::AlreadyExists | Code::Unimplemented => {
            BackendError::permanent("Qdrant rejects the request")
        }
        _ => BackendError::unknown("Qdrant failed, and may have done it"),
    };
    error.with_code(name(code))
}

/// Judges an update that was answered: only a completed one is known to be done.
pub(super) fn completed(result: Option<UpdateResult>) -> Result<(), BackendError> {
    let status = result.map_or(UpdateStatus::UnknownUpdateStatus, |result| result.status());
    let (code, message) = match status {
        UpdateStatus::Completed => return Ok(()),
        UpdateStatus::Acknowledged => ("acknowledged", "Qdrant has the write in its log and did not wait for it"),
        UpdateStatus::WaitTimeout => ("wait_timeout", "Qdrant has the write in its log and waited too long for it"),
        UpdateStatus::ClockRejected => ("clock_rejected", "a replica of Qdrant took the write for an old one"),
        UpdateStatus::UnknownUpdateStatus => ("unknown_status", "Qdrant does not say what became of the write"),
    };
    Err(BackendError::unknown(message).with_code(code))
}

/// A call that took longer than it may.
pub(super) fn late(after: Duration) -> BackendError {
    BackendError::unknown(format!("no answer within {after:?}")).with_code("timeout")
}

/// A call on which this side gave up: before or after it was sent?
fn not_answered(cause: &(dyn Error + 'static)) -> BackendError {
    let chain = || std::iter::successors(Some(cause), |&error| error.source());
    if chain().any(|error| error.is::<ConnectError>()) {
        // The last one is of the operating system, or of TLS, and none of the server's.
        let why = chain().last().unwrap_or(cause);
        return BackendError::transient(format!("Qdrant cannot be reached: {why}")).with_code("unreachable");
    }
    BackendError::unknown("the connection to Qdrant broke before the answer").with_code("lost")
}

fn throttled(status: &Status) -> BackendError {
    let seconds = status.metadata().get("retry-after").and_then(|after| after.to_str().ok()?.parse().ok());
    let error = BackendError::refused("Qdrant limits how much it takes").with_code(name(Code::ResourceExhausted));
    match seconds {
        Some(seconds) => error.with_retry_after(Duration::from_secs(seconds)),
        None => error,
    }
}

/// The code in the letters of our other codes.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "collection_missing",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use seawall_actors::backend::ErrorKind;

    use super::*;

    const HUSH: &str = "hush-hush";

    #[test]
    fn every_answer_of_the_server_means_what_it_says() {
        let expected = [
            (Code::Cancelled, ErrorKind::Unknown),
            (Code::Unknown, ErrorKind::Unknown),
            (Code::InvalidArgument, ErrorKind::Permanent),
            (Code::DeadlineExceeded, ErrorKind::Unknown),
            (Code::NotFound, ErrorKind::Transient),
            (Code::AlreadyExists, ErrorKind::Permanent),
            (Code::PermissionDenied, ErrorKind::Transient),
            (Code::ResourceExhausted, ErrorKind::Refused),
            (Code::FailedPrecondition, ErrorKind::Unknown),
            (Code::Aborted, ErrorKind::Unknown),
            (Code::OutOfRange, ErrorKind::Permanent),
            (Code::Unimplemented, ErrorKind::Permanent),
            (Code::Internal, ErrorKind::Unknown),
            (Code::Unavailable, ErrorKind::Unknown),
            (Code::DataLoss, ErrorKind::Unknown),
            (Code::Unauthenticated, ErrorKind::Transient),
        ];
        let mut codes = std::collections::HashSet::new();
        for (code, kind) in expected {
            let error = judge(&Status::new(code, HUSH));
            assert_eq!(error.kind, kind, "{code:?}");
            assert!(codes.insert(error.code.clone()), "{code:?} has the code of another");
            assert!(!format!("{error} {error:?}").contains(HUSH), "{error}");
        }
    }

    #[test]
    fn what_one_shard_has_done_and_another_has_not_is_unknown_whatever_the_code() {
        for code in [Code::InvalidArgument, Code::ResourceExhausted, Code::NotFound, Code::Internal] {
            let message = "1 out of 2 shards failed to apply operation. First error captured: No space left on device: \
                           WAL buffer size exceeds available disk space";
            assert_eq!(judge(&Status::new(code, message)).kind, ErrorKind::Unknown, "{code:?}");
        }
    }

    #[test]
    fn a_full_disk_is_read_only_where_the_server_looked_before_it_wrote() {
        let looked = format!("Service internal error: {DISK_FULL}");
        assert_eq!(judge(&Status::internal(looked)).kind, ErrorKind::ReadOnly);
        // In the middle of a write: it may be in the log.
        let failed = Status::internal("Service internal error: No space left on device (os error 28)");
        assert_eq!(judge(&failed).kind, ErrorKind::Unknown);
    }

    #[test]
    fn a_rate_limit_says_when_to_come_again() {
        let mut status = Status::resource_exhausted("Rate limit exceeded");
        assert_eq!(judge(&status).retry_after, None);
        status.metadata_mut().insert("retry-after", "7".parse().unwrap());
        assert_eq!(judge(&status).retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn what_was_never_sent_did_not_happen_and_what_was_may_have() {
        let refused = || Box::new(io::Error::new(io::ErrorKind::ConnectionRefused, "connection refused"));
        let error = judge(&Status::from_error(Box::new(ConnectError(refused()))));
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Transient, Some("unreachable")));
        assert!(error.message.contains("connection refused"), "{error}");
        let error = judge(&Status::from_error(refused()));
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Unknown, Some("lost")));
        // The time that tonic itself keeps.
        let error = judge(&Status::from_error(Box::new(tonic::TimeoutExpired(()))));
        assert_eq!(error.kind, ErrorKind::Unknown);
        assert_eq!(late(Duration::from_secs(1)).kind, ErrorKind::Unknown);
    }

    #[test]
    fn only_a_completed_update_is_done() {
        let answer = |status: UpdateStatus| completed(Some(UpdateResult { operation_id: None, status: status.into() }));
        assert!(answer(UpdateStatus::Completed).is_ok());
        for status in [
            UpdateStatus::Acknowledged,
            UpdateStatus::WaitTimeout,
            UpdateStatus::ClockRejected,
            UpdateStatus::UnknownUpdateStatus,
        ] {
            assert_eq!(answer(status).unwrap_err().kind, ErrorKind::Unknown, "{status:?}");
        }
        assert_eq!(completed(None).unwrap_err().kind, ErrorKind::Unknown);
        assert_eq!(
            completed(Some(UpdateResult { operation_id: None, status: 99 })).unwrap_err().kind,
            ErrorKind::Unknown
        );
    }
}
