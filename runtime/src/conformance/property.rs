//! The properties, and how each of them is tried.

use std::fmt;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::timeout;

use super::ground::{Checked, Failure};
use super::{Finding, Judgement, Outage, Subject, capabilities, concurrency, fence, model, outage, records};

/// How long one property may take to try. What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

macro_rules! properties {
    ($($(#[doc = $doc:literal])+ $property:ident $sentence:literal => $try:expr;)+) => {
        /// Something that every backend has to do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Property {
            $($(#[doc = $doc])+ $property,)+
        }

        impl Property {
            /// All of them, those first on which others rest.
            pub const ALL: &[Self] = &[$(Self::$property),+];

            /// The property as a sentence.
            #[must_use]
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Self::$property => $sentence,)+
                }
            }

            fn attempt(self, subject: &dyn Subject) -> BoxFuture<'_, Checked> {
                match self {
                    $(Self::$property => {
                        let attempt: for<'a> fn(&'a dyn Subject) -> BoxFuture<'a, Checked> = $try;
                        attempt(subject)
                    })+
                }
            }
        }
    };
}

properties! {
    /// A read gives an answer for each key in the order of the keys; `None` for one that was never written.
    ReadOrder "a read answers for each key, in their order" => |s| records::read_order(s).boxed();
    /// [`Fence::Write`](crate::backend::Fence::Write), for each key alone, and told in
    /// [`Applied`](crate::backend::Applied).
    Fence "a write goes over lower versions alone, for each key by itself" => |s| fence::write(s).boxed();
    /// [`Fence::Compensation`](crate::backend::Fence::Compensation), and nothing newer.
    Compensation "a compensation goes over its own version and never over a newer one" => |s| fence::compensation(s).boxed();
    /// What a compensation leaves has its version, also where there was nothing to take back.
    EarlyCompensation "a compensation that comes first keeps its write from landing" => |s| fence::early_compensation(s).boxed();
    /// A write that comes twice, or again after others, has the effect of one.
    Idempotence "a write that comes again changes nothing" => |s| fence::idempotence(s).boxed();
    /// A delete leaves its version, and what is older does not bring the record back.
    Tombstones "a delete is remembered and not undone by what is older" => |s| fence::tombstones(s).boxed();
    /// [`Backend::sweep`](crate::backend::Backend::sweep), where there is one.
    Sweep "a sweep forgets deletes below a version, and nothing else" => |s| fence::sweep(s).boxed();
    /// From what a read gave, a compensation restores what was there.
    PreImages "what was read before a write restores it" => |s| fence::pre_images(s).boxed();
    /// [`Change::Merge`](crate::operation::Change::Merge).
    Merges "a merge replaces, removes and creates, and leaves the rest" => |s| fence::merges(s).boxed();
    /// The changes of one write, each under the fence of its own key.
    Batches "a batch changes each of its keys under the fence of that key" => |s| fence::batches(s).boxed();
    /// [`Backend::apply_batch`](crate::backend::Backend::apply_batch).
    SeveralWrites "several writes in one call do what each would do alone" => |s| fence::several(s).boxed();
    /// What the store rejects is [`ErrorKind::Permanent`](crate::backend::ErrorKind::Permanent), and nothing is left of
    /// the batch that it came in.
    Rejection "what is rejected is a permanent error and changes nothing, nor does its batch" => |s| fence::rejection(s).boxed();
    /// Text, numbers, embeddings and relations come back as they were, to the bit.
    Fidelity "a record comes back whole, to the last bit" => |s| records::fidelity(s).boxed();
    /// A megabyte of text in one property, and two hundred properties.
    LargeRecords "a large record comes back whole" => |s| records::large(s).boxed();
    /// [`Backend::newest_version`](crate::backend::Backend::newest_version).
    NewestVersion "the newest version is known, of deletes too" => |s| records::newest_version(s).boxed();
    /// [`Backend::probe`](crate::backend::Backend::probe) of a store that is well.
    Probe "a store that is well is healthy" => |s| records::probe(s).boxed();
    /// Sequences of writes, replays and compensations that nobody thought of, against a model of the fence.
    RandomWrites "random writes, replays and compensations leave what the model of the fence says" => |s| model::random(s).boxed();
    /// A caller that stops waiting at any await leaves a whole write or none, and a backend that works.
    Cancellation "a call that is dropped leaves its write whole or not there, and the backend in order" => |s| concurrency::cancellation(s).boxed();
    /// Whatever the order in which writes arrive.
    ConcurrentWriters "of many writers at the same time the highest version wins" => |s| concurrency::writers(s).boxed();
    /// Batches that race, and readers beside them.
    WholeBatches "of batches that race, no half is seen" => |s| concurrency::batches(s).boxed();
    /// [`Backend::transactions`](crate::backend::Backend::transactions), where there are any.
    Transactions "a transaction is visible when it is committed, and gone when it is dropped" => |s| fence::transactions(s).boxed();
    /// [`Backend::find`](crate::backend::Backend::find).
    ExactMatch "records are found by equal properties" => |s| capabilities::find(s).boxed();
    /// [`Backend::search`](crate::backend::Backend::search).
    VectorSearch "records are found by nearness, best first" => |s| capabilities::search(s).boxed();
    /// [`Backend::traverse`](crate::backend::Backend::traverse).
    GraphTraversal "records are found along relations, nearest first" => |s| capabilities::traverse(s).boxed();
    /// A backend that says that it cannot do something does not pretend.
    MissingCapabilities "what it cannot do is a permanent error" => |s| capabilities::missing(s).boxed();
    /// A server that is dead, and back.
    RefusedConnections "a refused connection is a transient error, and over when the server is back" => |s| outage::during(s, Outage::Refused).boxed();
    /// A server that is frozen, and goes on.
    HungServer "a call that hangs can be dropped, and is told as nothing that it is not" => |s| outage::during(s, Outage::Hung).boxed();
    /// A server that did the work, and lost the reply.
    LostReplies "a lost reply is an unknown outcome" => |s| outage::during(s, Outage::Reset).boxed();
}

impl Property {
    /// Whether the backends of this subject have it. Never panics for what a backend does.
    pub async fn check(self, subject: &dyn Subject) -> Finding {
        let judgement = match timeout(PATIENCE, self.attempt(subject)).await {
            Ok(Ok(())) => Judgement::Holds,
            Ok(Err(Failure::Skipped(why))) => Judgement::Skipped(why.to_owned()),
            Ok(Err(Failure::Broken(how))) => Judgement::Broken(how),
            Err(_) => Judgement::Broken(format!("it has not come to an end within {PATIENCE:?}")),
        };
        Finding { property: self, judgement }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}
