//! What an error of Neo4j means. Nothing that the server says in words is repeated: it tells values and keys.

use std::borrow::Cow;

use neo4rs::Error;
use seawall_actors::backend::{BackendError, ErrorKind};

/// How far a write had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// In an open transaction, or before it: without a commit, nothing has happened.
    Open,
    /// The commit may have been on its way.
    Commit,
}

/// What a login that is refused is called; the crate keeps no code of it.
const LOGIN: &str = "Neo.ClientError.Security.Unauthorized";

/// What the runtime is to make of an error.
pub(super) fn classify(error: &Error, stage: Stage) -> BackendError {
    let failed = match stage {
        Stage::Open => ErrorKind::Transient,
        Stage::Commit => ErrorKind::Unknown,
    };
    match error {
        Error::Neo4j(error) => refusal(error.code(), stage),
        Error::AuthenticationError(_) => refusal(LOGIN, stage),
        Error::IOError { detail } => BackendError::new(failed, format!("the connection failed: {}", detail.kind())),
        Error::ConnectionTimedOut => BackendError::new(failed, "Neo4j did not answer in time"),
        Error::UnsupportedVersion(..) | Error::ProtocolMismatch(_) => {
            BackendError::new(failed, "what answers is no Neo4j: it does not speak Bolt 4.4; check `uri`")
        }
        Error::StringTooLong | Error::MapTooBig | Error::BytesTooBig | Error::ListTooLong => {
            BackendError::permanent("the write is too large for the protocol").with_code("too_large")
        }
        Error::DeserializationError(_) | Error::ConversionError => unreadable(),
        _ => BackendError::new(failed, "the connection is out of step with Neo4j"),
    }
}

/// What is stored is not what was written.
pub(super) fn unreadable() -> BackendError {
    BackendError::permanent("a node is not as Seawall has written it; somebody else has changed it")
        .with_code("unreadable")
}

/// What it means that the server answered with this code.
fn refusal(code: &str, stage: Stage) -> BackendError {
    let plain = code.len() <= 128 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    let code = if plain { code } else { "an unknown error" };
    let message: Cow<'static, str> = match code {
        LOGIN => "Neo4j refuses the login; set `user` and `password` of the backend to what the server knows".into(),
        "Neo.ClientError.Database.DatabaseNotFound" => {
            "Neo4j has no such database; set `database` of the backend, or create it".into()
        }
        code => format!("Neo4j answers {code}").into(),
    };
    BackendError::new(kind_of(code, stage), message).with_code(code.to_owned())
}

/// The kind of a server's error code, `Neo.CLASS.CATEGORY.TITLE`.
pub(super) fn kind_of(code: &str, stage: Stage) -> ErrorKind {
    let mut parts = code.split('.').skip(1);
    let [class, category, title] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let open = |kind| if stage == Stage::Open { kind } else { ErrorKind::Unknown };
    match (class, category, title) {
        // It takes writes elsewhere, or from others, or not at all; and reads go on.
        ("ClientError", "General", "ForbiddenOnReadOnlyDatabase" | "WriteOnReadOnlyAccessDatabase")
        | ("ClientError", "Cluster", "NotALeader")
        | ("ClientError", "Statement", "AccessMode")
        | ("ClientError", "Security", "Forbidden") => ErrorKind::ReadOnly,
        // A password is for a person to put right, and no write is the worse for it: not hopeless. And nothing can be
        // done until then: not alive, or every call would be one more wrong login, for which servers lock users out.
        ("ClientError", "Security" | "Database", _) => ErrorKind::Transient,
        // Never committed; another transaction was in the way. Stores that lock nothing find it out at the commit:
        // there, two have made the same node.
        ("TransientError", "Transaction", "DeadlockDetected" | "LockAcquisitionTimeout" | "Outdated")
        | ("TransientError", "Transaction", "ConstraintsChanged") => ErrorKind::Refused,
        ("ClientError", "Schema", "ConstraintValidationFailed") if stage == Stage::Commit => ErrorKind::Refused,
        // Something that was there is not any more, as when it is swept meanwhile.
        ("ClientError", "Statement", "EntityNotFound") => open(ErrorKind::Refused),
        ("ClientError", "Statement" | "Schema", _) => ErrorKind::Permanent,
        ("ClientError", "Transaction", title) if title.starts_with("TransactionTimedOut") => open(ErrorKind::Transient),
        ("ClientError" | "TransientError", "Transaction", _) | ("TransientError", "Request", _) => {
            open(ErrorKind::Refused)
        }
        // It failed in this statement and works otherwise: no reason to keep others from it.
        ("DatabaseError", "Statement", _) => open(ErrorKind::Refused),
        _ => open(ErrorKind::Transient),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn every_code_means_what_the_table_says() {
        use ErrorKind::{Permanent, ReadOnly, Refused, Transient, Unknown};
        let table = [
            // code, in an open transaction, at its commit
            ("Neo.ClientError.General.ForbiddenOnReadOnlyDatabase", ReadOnly, ReadOnly),
            ("Neo.ClientError.Cluster.NotALeader", ReadOnly, ReadOnly),
            ("Neo.ClientError.Security.Forbidden", ReadOnly, ReadOnly),
            ("Neo.ClientError.Security.Unauthorized", Transient, Transient),
            ("Neo.ClientError.Security.AuthenticationRateLimit", Transient, Transient),
            ("Neo.ClientError.Security.CredentialsExpired", Transient, Transient),
            ("Neo.ClientError.Database.DatabaseNotFound", Transient, Transient),
            ("Neo.ClientError.Schema.ConstraintValidationFailed", Permanent, Refused),
            ("Neo.ClientError.Statement.SyntaxError", Permanent, Permanent),
            ("Neo.ClientError.Statement.TypeError", Permanent, Permanent),
            ("Neo.ClientError.Statement.EntityNotFound", Refused, Unknown),
            ("Neo.ClientError.Transaction.Terminated", Refused, Unknown),
            ("Neo.ClientError.Transaction.TransactionTimedOutClientConfiguration", Transient, Unknown),
            ("Neo.ClientError.Request.Invalid", Transient, Unknown),
            ("Neo.TransientError.Transaction.DeadlockDetected", Refused, Refused),
            ("Neo.TransientError.Transaction.LockAcquisitionTimeout", Refused, Refused),
            ("Neo.TransientError.Transaction.BookmarkTimeout", Refused, Unknown),
            ("Neo.TransientError.Request.NoThreadsAvailable", Refused, Unknown),
            ("Neo.TransientError.General.DatabaseUnavailable", Transient, Unknown),
            ("Neo.TransientError.General.MemoryPoolOutOfMemoryError", Transient, Unknown),
            ("Neo.TransientError.Cluster.ReplicationFailure", Transient, Unknown),
            ("Neo.DatabaseError.Transaction.TransactionCommitFailed", Transient, Unknown),
            ("Neo.DatabaseError.Statement.ExecutionFailed", Refused, Unknown),
            ("Neo.DatabaseError.General.UnknownError", Transient, Unknown),
            ("Neo.SomeError.Of.AnotherYear", Transient, Unknown),
            ("", Transient, Unknown),
        ];
        for (code, open, commit) in table {
            assert_eq!((kind_of(code, Stage::Open), kind_of(code, Stage::Commit)), (open, commit), "{code}");
        }
    }

    #[test]
    fn a_connection_that_breaks_says_nothing_happened_before_a_commit_and_nothing_at_all_after_it() {
        let errors = [
            || Error::from(io::Error::from(io::ErrorKind::ConnectionRefused)),
            || Error::from(io::Error::from(io::ErrorKind::UnexpectedEof)),
            || Error::ConnectionTimedOut,
            || Error::IncompleteBoltExchange,
            || Error::UnexpectedMessage("tell".to_owned()),
        ];
        for error in errors {
            assert_eq!(classify(&error(), Stage::Open).kind, ErrorKind::Transient);
            let lost = classify(&error(), Stage::Commit);
            assert_eq!(lost.kind, ErrorKind::Unknown);
            assert!(!lost.message.contains("tell"));
        }
    }

    #[test]
    fn what_the_server_says_in_words_is_not_repeated() {
        let error = classify(&Error::AuthenticationError("hush is no password of neo4j".to_owned()), Stage::Open);
        assert!(error.message.contains("`password`") && !error.message.contains("hush"), "{error}");
        let error = refusal("hush; DROP", Stage::Open);
        assert!(!error.to_string().contains("hush") && error.code.as_deref() == Some("an unknown error"));
    }
}
