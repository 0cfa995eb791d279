//! Reads: the newest acknowledged state that can be had, and what it is worth.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use crate::backend::{Backend, Capability, Role, Stored};
use crate::breaker::Purpose;
use crate::error::Refusal;
use crate::fallback::{FillToken, Plan, ReadRule};
use crate::operation::{Degraded, Direction, Found, Hit, Near, Retrieved, Search, Source, StandIn, Traversal, Version};
use crate::plane::{Call, DataPlane, FailedCall, Store, Tries};
use crate::record::{Key, Properties, Record};

/// One read.
pub(super) struct Reader {
    plane: Arc<DataPlane>,
    plan: Arc<Plan>,
    deadline: Instant,
}

/// What a backend is asked.
trait Question {
    type Answer;

    fn put<'a>(&'a self, backend: &'a dyn Backend) -> Call<'a, Self::Answer>;
}

/// What it holds under these keys.
struct Held<'k>(&'k [Key]);

impl Question for Held<'_> {
    type Answer = Vec<Option<Stored>>;

    fn put<'a>(&'a self, backend: &'a dyn Backend) -> Call<'a, Self::Answer> {
        backend.read(self.0)
    }
}

/// Which records it finds.
enum Query<'q> {
    Nearest(&'q Search),
    Walk(&'q Traversal),
    Exact(&'q Properties, usize),
}

impl Query<'_> {
    /// What it has to be able to do.
    fn capability(&self) -> Capability {
        match self {
            Self::Nearest(_) => Capability::VectorSearch,
            Self::Walk(_) => Capability::GraphTraversal,
            Self::Exact(..) => Capability::ExactMatch,
        }
    }
}

impl Question for Query<'_> {
    type Answer = Vec<Hit>;

    fn put<'a>(&'a self, backend: &'a dyn Backend) -> Call<'a, Self::Answer> {
        match self {
            Self::Nearest(search) => backend.search(search),
            Self::Walk(traversal) => backend.traverse(traversal),
            Self::Exact(filter, limit) => backend.find(filter, *limit),
        }
    }
}

/// What a backend or the cache says of a key.
struct Base {
    record: Option<Record>,
    version: Version,
    source: Source,
    stale: bool,
    /// By a backend that is only told of writes, and may have missed some.
    copied: bool,
}

impl Reader {
    pub(super) fn new(plane: Arc<DataPlane>, deadline: Instant) -> Self {
        let plan = plane.fallback.plan().get();
        Self { plane, plan, deadline }
    }

    pub(super) async fn retrieve(&self, key: &Key) -> Result<Retrieved, Refusal> {
        // Before the look at what is owed, so that a write in between spoils the fill.
        let token = self.plane.fallback.cache().begin_fill(key, Instant::now());
        let overlay = self.plane.ledger().overlay(key);
        let Some(overlay) = overlay else {
            return self.base(key, Some(token)).await.map(|base| Retrieved {
                record: base.record,
                version: (base.version > Version(0)).then_some(base.version),
                source: base.source,
                partial: false,
                stale: base.stale,
            });
        };
        let version = overlay.version();
        let owed = |record, partial, stale| {
            let source = Source::Owed;
            Retrieved { record, version: Some(version), source, partial, stale }
        };
        if overlay.is_full() {
            return Ok(owed(overlay.over(None, Version(0)), false, false));
        }
        Ok(match self.base(key, None).await {
            Ok(base) if !overlay.goes_over(base.version) => Retrieved {
                record: base.record,
                version: Some(base.version),
                source: base.source,
                partial: false,
                stale: base.stale,
            },
            // A copy may have missed what lies between.
            Ok(base) => owed(overlay.over(base.record, base.version), false, base.copied),
            // Something newer may be in a backend that cannot be asked.
            Err(refusal) if overlay.passed => return Err(refusal),
            // Only what was acknowledged is known; that is shown, and said.
            Err(_) => owed(overlay.over(None, Version(0)), !overlay.says_all(), overlay.recovered),
        })
    }

    /// What the backends, or else the cache, hold.
    async fn base(&self, key: &Key, token: Option<FillToken>) -> Result<Base, Refusal> {
        let ReadRule { backends, cache } = self.plan.read_rule();
        let cached = || {
            let hit = cache.then(|| self.plane.fallback.cache().get(key, Instant::now())).flatten()?;
            let record = hit.record.as_deref().cloned();
            let source = Source::Cache { age: hit.age };
            Some(Base { record, version: hit.version, source, stale: true, copied: false })
        };
        let mut refusal = None;
        let readers = if backends { self.readers(None) } else { SmallVec::new() };
        for (place, store) in readers.iter().enumerate() {
            let keys = std::slice::from_ref(key);
            let result = match self.call(store, &readers[place + 1..], &Held(keys)).await {
                Ok(stored) => stored.into_iter().next().flatten(),
                Err(error) => {
                    refusal.get_or_insert(error);
                    continue;
                }
            };
            let copied = store.role == Role::BestEffort;
            // What a copy does not hold may exist all the same.
            if copied && result.as_ref().is_none_or(|stored| stored.record.is_none()) {
                continue;
            }
            let Stored { version, record } = result.unwrap_or(Stored { version: Version(0), record: None });
            if let (false, Some(token)) = (copied, token) {
                self.plane.fallback.cache().fill(token, version, record.clone().map(Arc::new));
            } else if let Some(newer) = cached().filter(|cached| copied && cached.version > version) {
                return Ok(newer);
            }
            return Ok(Base { record, version, source: Source::Backend(store.name.clone()), stale: copied, copied });
        }
        cached().ok_or_else(|| {
            refusal.unwrap_or_else(|| Refusal::Unavailable {
                backend: self.plane.stores.first().map_or_else(|| "".into(), |store| store.name.clone()),
                reason: self.plan.reason(),
                retry_after: None,
            })
        })
    }

    pub(super) async fn search(&self, search: &Search) -> Result<Found, Refusal> {
        let mut refusal = match self.ask(&Query::Nearest(search)).await {
            Ok(found) => return Ok(filtered(found, search)),
            // Nothing is lost: the store answered. Unless what it does not know is on its way to it.
            Err(refusal @ Refusal::Rejected { .. }) if !self.is_owed(&search.near) => return Err(refusal),
            Err(refusal) => refusal,
        };
        if let Near::Key(key) = &search.near {
            let walk = Traversal::from(key.clone()).direction(Direction::Both).depth(2).limit(search.limit);
            match self.ask(&Query::Walk(&walk)).await {
                Ok(found) => return Ok(self.degraded(filtered(found, search), StandIn::Neighbours)),
                Err(other) => refusal = prefer(refusal, other),
            }
        }
        if !search.filter.is_empty()
            && let Ok(found) = self.ask(&Query::Exact(&search.filter, search.limit)).await
        {
            return Ok(self.degraded(filtered(found, search), StandIn::ExactMatch));
        }
        Err(self.lost(Capability::VectorSearch, refusal))
    }

    pub(super) async fn traverse(&self, traversal: &Traversal) -> Result<Found, Refusal> {
        let refusal = match self.ask(&Query::Walk(traversal)).await {
            Ok(found) => return Ok(found),
            Err(refusal) => refusal,
        };
        let near = Search::like(traversal.from.clone()).limit(traversal.limit);
        match self.ask(&Query::Nearest(&near)).await {
            Ok(found) => Ok(self.degraded(found, StandIn::VectorSearch)),
            Err(_) => Err(self.lost(Capability::GraphTraversal, refusal)),
        }
    }

    /// Asks the backends that can answer this, one after another, until one does.
    async fn ask(&self, query: &Query<'_>) -> Result<Found, Refusal> {
        let capability = query.capability();
        if !self.plan.supports(capability) {
            return Err(Refusal::Unsupported(capability));
        }
        let mut refusal = Refusal::CapabilityUnavailable { capability, retry_after: None };
        if !self.plan.read_rule().backends {
            return Err(refusal);
        }
        let readers = self.readers(Some(capability));
        for (place, store) in readers.iter().enumerate() {
            let owed = self.plane.ledger().owed(&store.name);
            match self.call(store, &readers[place + 1..], query).await {
                Ok(hits) => {
                    return Ok(Found {
                        hits: self.current(hits),
                        source: Source::Backend(store.name.clone()),
                        degraded: None,
                        // What it was given meanwhile may have come too late for the answer.
                        pending: self.plane.ledger().owed(&store.name).max(owed),
                    });
                }
                Err(other) => refusal = prefer(refusal, other),
            }
        }
        Err(refusal)
    }

    /// Replaces what an owed write has changed, and leaves out what one has deleted.
    fn current(&self, hits: Vec<Hit>) -> Vec<Hit> {
        let ledger = self.plane.ledger();
        if ledger.is_empty() {
            return hits;
        }
        hits.into_iter()
            .filter_map(|hit| match ledger.overlay(&hit.record.key) {
                Some(overlay) if overlay.goes_over(hit.version) => {
                    let record = overlay.over(Some(hit.record), hit.version)?;
                    Some(Hit { record, version: overlay.version(), ..hit })
                }
                _ => Some(hit),
            })
            .collect()
    }

    fn readers(&self, capability: Option<Capability>) -> SmallVec<[Arc<Store>; 2]> {
        let able = |store: &Store| capability.is_none_or(|capability| store.capabilities.has(capability));
        self.plan
            .readers()
            .filter_map(|facts| self.plane.store(&facts.name).ok())
            .filter(|store| able(store))
            .cloned()
            .collect()
    }

    /// Calls one backend before these others: none may use up the time of the others, and nobody waits for another
    /// try of one while another one can answer as well.
    async fn call<Q: Question>(
        &self,
        store: &Arc<Store>,
        others: &[Arc<Store>],
        question: &Q,
    ) -> Result<Q::Answer, Refusal> {
        let refusal = |failed: FailedCall| {
            let backend = store.name.clone();
            match (failed.denied(), failed.backend()) {
                (Some(denied), _) => denied.refusal(backend),
                (_, Some(error)) if error.verdict().hopeless => {
                    Refusal::Rejected { backend, reason: error.to_string() }
                }
                _ => Refusal::Unavailable { backend, reason: failed.to_string(), retry_after: failed.retry_after() },
            }
        };
        let mut permit = store.permit(Purpose::Live).map_err(|denied| refusal(denied.into()))?;
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        let until = now + left / u32::try_from(others.len() + 1).unwrap_or(u32::MAX);
        let elsewhere = others.iter().any(|other| other.role == Role::Required);
        let tries = if elsewhere { Tries::One } else { Tries::Several };
        permit.call(until, tries, |backend| question.put(backend)).await.map_err(refusal)
    }

    fn is_owed(&self, near: &Near) -> bool {
        matches!(near, Near::Key(key) if self.plane.ledger().overlay(key).is_some())
    }

    fn degraded(&self, found: Found, served_by: StandIn) -> Found {
        Found { degraded: Some(Degraded { level: self.plan.level, served_by }), ..found }
    }

    /// What to say when neither what was asked for nor a stand-in could be had.
    fn lost(&self, capability: Capability, refusal: Refusal) -> Refusal {
        match refusal {
            Refusal::Unsupported(_) => Refusal::Unsupported(capability),
            other => Refusal::CapabilityUnavailable { capability, retry_after: other.retry_after() },
        }
    }
}

/// The refusal that says more.
fn prefer(one: Refusal, other: Refusal) -> Refusal {
    match (&one, &other) {
        (_, Refusal::Unsupported(_)) => one,
        (Refusal::Unsupported(_), _) => one,
        _ if one.retry_after().is_some() => one,
        _ => other,
    }
}

/// What was found without what an owed write has changed so that it no longer fits.
fn filtered(mut found: Found, search: &Search) -> Found {
    let fits = |record: &Record| search.filter.iter().all(|(name, value)| record.properties.get(name) == Some(value));
    found.hits.retain(|hit| fits(&hit.record));
    found
}
