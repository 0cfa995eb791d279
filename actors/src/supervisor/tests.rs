//! Deaths of every kind, under paused time, and a hammer on real threads.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr};
use tokio::time::Instant;

use super::*;
use crate::event::{EventBus, EventKind, Update};

const SECOND: Duration = Duration::from_secs(1);

/// What happened, in order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// An actor that dies on request, and echoes until then.
struct Mortal {
    name: &'static str,
    diary: Diary,
}

enum Order {
    Echo(u64, RpcReplyPort<u64>),
    Panic,
    Fail,
    Hang(RpcReplyPort<u64>),
    Sleep(Duration),
    Keep(RpcReplyPort<u64>, Arc<Mutex<Option<RpcReplyPort<u64>>>>),
}

impl Actor for Mortal {
    type Msg = Order;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Order>, (): ()) -> Result<(), ActorProcessingErr> {
        self.diary.write(format!("{} starts", self.name));
        Ok(())
    }

    async fn handle(&self, _: ActorRef<Order>, order: Order, (): &mut ()) -> Result<(), ActorProcessingErr> {
        match order {
            Order::Echo(number, reply) => {
                let _ = reply.send(number);
            }
            Order::Panic => panic!("told to"),
            Order::Fail => return Err("told to fail".into()),
            Order::Hang(reply) => {
                let _reply = reply;
                std::future::pending::<()>().await;
            }
            Order::Keep(reply, place) => *place.lock().unwrap() = Some(reply),
            Order::Sleep(time) => tokio::time::sleep(time).await,
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Order>, (): &mut ()) -> Result<(), ActorProcessingErr> {
        self.diary.write(format!("{} stops", self.name));
        Ok(())
    }
}

fn mortal(name: &'static str, slot: &Slot<Order>, diary: &Diary) -> ChildSpec {
    let diary = diary.clone();
    ChildSpec::actor(name, slot.clone(), move || (Mortal { name, diary: diary.clone() }, ()))
}

fn eager() -> RestartConfig {
    RestartConfig {
        intensity: 1_000_000,
        backoff_base: Duration::ZERO,
        backoff_max: Duration::ZERO,
        ..RestartConfig::default()
    }
}

/// Collects escalations.
fn hook() -> (OnEscalation, Arc<Mutex<Vec<Escalation>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let place = Arc::clone(&told);
    (Arc::new(move |escalation| place.lock().unwrap().push(escalation)), told)
}

fn no_hook() -> OnEscalation {
    Arc::new(|escalation| panic!("escalated: {escalation:?}"))
}

fn tell(slot: &Slot<Order>, order: Order) {
    assert!(slot.cast(order).is_ok(), "nobody stands here");
}

async fn echoes(slot: &Slot<Order>) -> bool {
    slot.call(SECOND, |reply| Order::Echo(7, reply)).await == Ok(7)
}

/// Waits in virtual time, a millisecond at a time.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < 600 * SECOND, "never came to be: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

struct Family {
    tree: Tree,
    slots: Vec<Slot<Order>>,
    diary: Diary,
    events: Arc<EventBus>,
}

impl Family {
    async fn start(strategy: Strategy, names: &[&'static str], config: RestartConfig, hook: OnEscalation) -> Self {
        let (diary, events) = (Diary::default(), Arc::new(EventBus::new()));
        let slots: Vec<_> = names.iter().map(|_| Slot::default()).collect();
        let children = names.iter().zip(&slots).map(|(name, slot)| mortal(name, slot, &diary)).collect();
        let branch = Branch::new("root", strategy, config, Arc::clone(&events), children);
        let tree = Tree::start(branch, hook).await.unwrap();
        assert!(slots.iter().all(Slot::is_filled));
        Self { tree, slots, diary, events }
    }

    fn restarts(&self) -> Vec<u64> {
        self.tree.status().iter().map(|child| child.restarts).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn every_way_of_dying_leads_to_a_restart_and_a_filled_slot() {
    type Death = fn(&Slot<Order>);
    let deaths: [(&str, Death); 5] = [
        ("told to", |slot| drop(slot.cast(Order::Panic))),
        ("told to fail", |slot| drop(slot.cast(Order::Fail))),
        ("killed", |slot| slot.get().unwrap().kill()),
        ("stopped unasked", |slot| slot.get().unwrap().stop(None)),
        ("Drained", |slot| slot.get().unwrap().drain().unwrap()),
    ];
    let family = Family::start(Strategy::OneForOne, &["a"], eager(), no_hook()).await;
    let mut subscription = family.events.subscribe();
    for (index, (reason, die)) in deaths.iter().enumerate() {
        let before = family.slots[0].get().unwrap().get_id();
        die(&family.slots[0]);
        until(reason, || family.restarts() == [index as u64 + 1]).await;
        assert_ne!(family.slots[0].get().unwrap().get_id(), before);
        assert!(echoes(&family.slots[0]).await);
        let status = &family.tree.status()[0];
        assert!(status.alive && status.last_reason.as_ref().unwrap().contains(reason), "{status:?}");
        let Some(Update::Event(event)) = subscription.try_next() else { panic!("no event") };
        let EventKind::ActorRestarted { actor, restarts, .. } = &event.kind else { panic!("{event:?}") };
        assert_eq!((actor.as_str(), *restarts), ("a", index as u64 + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_is_a_death_too() {
    let slot = Slot::default();
    let task = Arc::new(Mutex::new(None));
    let (place, filled, emptied) = (Arc::clone(&task), slot.clone(), slot.clone());
    let start = move |supervisor| {
        let (place, slot) = (Arc::clone(&place), filled.clone());
        async move {
            let actor = Mortal { name: "a", diary: Diary::default() };
            let (actor, handle) = Mortal::spawn_linked(None, actor, (), supervisor).await?;
            *place.lock().unwrap() = Some(handle);
            slot.fill(actor.clone());
            Ok(actor.get_cell())
        }
    };
    let child = ChildSpec::new("a", start, move || emptied.clear());
    let branch = Branch::new("root", Strategy::OneForOne, eager(), Arc::new(EventBus::new()), vec![child]);
    let tree = Tree::start(branch, no_hook()).await.unwrap();
    task.lock().unwrap().take().unwrap().abort();
    until("restart", || tree.status()[0].restarts == 1).await;
    assert!(echoes(&slot).await);
    assert_eq!(tree.status()[0].last_reason.as_deref(), Some("actor_task_cancelled"));
}

#[tokio::test(start_paused = true)]
async fn restarts_wait_longer_and_longer_and_then_the_tree_gives_up_with_a_reason() {
    let (hook, escalations) = hook();
    let family = Family::start(Strategy::OneForOne, &["a", "b"], RestartConfig::default(), hook).await;
    let mut subscription = family.events.subscribe();
    let mut waits = Vec::new();
    for restart in 1..=10 {
        let died = Instant::now();
        tell(&family.slots[0], Order::Panic);
        until("restart", || family.restarts()[0] == restart).await;
        waits.push(died.elapsed());
    }
    assert!(waits[0] <= Duration::from_millis(2), "{waits:?}");
    for (index, wait) in waits.iter().enumerate().skip(1) {
        let longest = (Duration::from_millis(50) * (1 << (index - 1))).min(5 * SECOND);
        assert!(*wait >= longest / 2 && *wait <= longest + Duration::from_millis(5), "{waits:?}");
    }
    assert!(escalations.lock().unwrap().is_empty());
    tell(&family.slots[0], Order::Panic);
    until("escalation", || !escalations.lock().unwrap().is_empty()).await;
    assert_eq!(*escalations.lock().unwrap(), [Escalation { actor: "a".into(), reason: "told to".into() }]);
    assert!(family.slots.iter().all(|slot| !slot.is_filled()));
    assert_eq!(family.slots[1].call(SECOND, |reply| Order::Echo(1, reply)).await, Err(CallError::Vacant));
    let mut last = None;
    while let Some(Update::Event(event)) = subscription.try_next() {
        last = Some(event);
    }
    assert!(matches!(&last.unwrap().kind, EventKind::Escalated { actor, .. } if actor == "a"));
    assert_eq!(family.tree.status().iter().filter(|child| child.alive).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn callers_in_flight_are_answered_when_the_tree_gives_up() {
    let (hook, escalations) = hook();
    let config = RestartConfig { intensity: 0, ..RestartConfig::default() };
    let family = Family::start(Strategy::OneForOne, &["a", "b"], config, hook).await;
    let slot = family.slots[1].clone();
    let hanging = tokio::spawn(async move { slot.call(3_600 * SECOND, Order::Hang).await });
    tokio::task::yield_now().await;
    let start = Instant::now();
    tell(&family.slots[0], Order::Panic);
    assert_eq!(hanging.await.unwrap(), Err(CallError::Died));
    assert!(start.elapsed() < SECOND);
    until("escalation", || escalations.lock().unwrap().len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn rest_for_one_restarts_those_that_lean_on_the_dead_one_in_their_order() {
    let family = Family::start(Strategy::RestForOne, &["a", "b", "c"], eager(), no_hook()).await;
    assert_eq!(family.diary.take(), ["a starts", "b starts", "c starts"]);
    let untouched = family.slots[0].get().unwrap().get_id();
    // A sibling that is busy dies at its next await; nobody is started before it has.
    tell(&family.slots[2], Order::Sleep(60 * SECOND));
    tell(&family.slots[1], Order::Fail);
    until("restart", || family.restarts() == [0, 1, 1]).await;
    assert_eq!(family.diary.take(), ["b starts", "c starts"]);
    assert_eq!(family.slots[0].get().unwrap().get_id(), untouched);
    assert!(echoes(&family.slots[1]).await && echoes(&family.slots[2]).await);
    let reasons: Vec<_> = family.tree.status().into_iter().map(|child| child.last_reason.unwrap_or_default()).collect();
    assert_eq!(reasons, ["", "told to fail", "leans on `b`, which died: told to fail"]);
}

#[tokio::test(start_paused = true)]
async fn a_death_before_a_planned_restart_takes_the_plan_over() {
    let config = RestartConfig { backoff_base: 10 * SECOND, backoff_max: 10 * SECOND, ..RestartConfig::default() };
    let family = Family::start(Strategy::RestForOne, &["a", "b", "c"], config, no_hook()).await;
    for restart in 1..=2 {
        tell(&family.slots[1], Order::Panic);
        if restart == 1 {
            until("first restart", || family.restarts() == [0, 1, 1]).await;
        }
    }
    // Now `b` and `c` wait 5 to 10 s. `a` dies meanwhile; its restart is immediate and takes them along.
    until("death", || !family.slots[1].is_filled()).await;
    family.diary.take();
    let start = Instant::now();
    tell(&family.slots[0], Order::Panic);
    until("restart", || family.restarts() == [1, 2, 2]).await;
    assert!(start.elapsed() < SECOND);
    tokio::time::sleep(20 * SECOND).await;
    assert_eq!(family.diary.take(), ["a starts", "b starts", "c starts"]);
}

/// A child whose start fails as often as told, in one way or another.
fn stillborn(failures: u32, slot: &Slot<Order>) -> (ChildSpec, Arc<AtomicU32>) {
    let attempts = Arc::new(AtomicU32::new(0));
    let (counted, filled, emptied) = (Arc::clone(&attempts), slot.clone(), slot.clone());
    let start = move |supervisor| {
        let (attempt, slot) = (counted.fetch_add(1, Ordering::Relaxed), filled.clone());
        async move {
            if attempt < failures {
                match attempt % 3 {
                    0 => return Err(SpawnErr::StartupFailed("no luck".into())),
                    1 => panic!("a bug in a start"),
                    _ => std::future::pending::<()>().await,
                }
            }
            let actor = Mortal { name: "late", diary: Diary::default() };
            let (actor, _) = Mortal::spawn_linked(None, actor, (), supervisor).await?;
            slot.fill(actor.clone());
            Ok(actor.get_cell())
        }
    };
    (ChildSpec::new("late", start, move || emptied.clear()), attempts)
}

#[tokio::test(start_paused = true)]
async fn a_child_that_cannot_be_started_is_tried_again_and_its_elder_siblings_do_not_notice() {
    let (slot, elder, younger, diary) = (Slot::default(), Slot::default(), Slot::default(), Diary::default());
    let (late, attempts) = stillborn(6, &slot);
    let children = vec![mortal("elder", &elder, &diary), late, mortal("younger", &younger, &diary)];
    let events = Arc::new(EventBus::new());
    let branch = Branch::new("root", Strategy::RestForOne, RestartConfig::default(), events, children);
    let tree = Tree::start(branch, no_hook()).await.unwrap();
    assert!(elder.is_filled() && !younger.is_filled(), "the younger one leans on the one that is not there");
    until("start", || slot.is_filled() && younger.is_filled()).await;
    assert_eq!(attempts.load(Ordering::Relaxed), 7);
    assert_eq!(diary.take(), ["elder starts", "younger starts"]);
    assert_eq!(tree.status().iter().map(|child| child.restarts).collect::<Vec<_>>(), [0, 0, 0]);
    assert!(echoes(&slot).await && echoes(&younger).await);
}

#[tokio::test(start_paused = true)]
async fn starts_that_fail_count_towards_the_intensity() {
    let (hook, escalations) = hook();
    let slot = Slot::default();
    let (late, attempts) = stillborn(u32::MAX, &slot);
    let config = RestartConfig { intensity: 4, ..RestartConfig::default() };
    let branch = Branch::new("root", Strategy::OneForOne, config, Arc::new(EventBus::new()), vec![late]);
    let _tree = Tree::start(branch, hook).await.unwrap();
    until("escalation", || !escalations.lock().unwrap().is_empty()).await;
    assert_eq!(attempts.load(Ordering::Relaxed), 5);
    assert_eq!(escalations.lock().unwrap()[0].actor, "late");
}

#[tokio::test(start_paused = true)]
async fn a_root_that_cannot_start_and_may_not_retry_is_an_error() {
    let (hook, escalations) = hook();
    let (elder, diary) = (Slot::default(), Diary::default());
    let (late, _) = stillborn(1, &Slot::default());
    let config = RestartConfig { intensity: 0, ..RestartConfig::default() };
    let children = vec![mortal("elder", &elder, &diary), late];
    let branch = Branch::new("root", Strategy::OneForOne, config, Arc::new(EventBus::new()), children);
    assert!(Tree::start(branch, hook).await.is_err());
    assert!(!elder.is_filled());
    assert!(escalations.lock().unwrap().is_empty());
}

/// `root (one for one) ─ { top, core (rest for one) ─ { a, b } }`
async fn nested(core: RestartConfig, root: RestartConfig, hook: OnEscalation) -> (Tree, [Slot<Order>; 3], Diary) {
    let (diary, events) = (Diary::default(), Arc::new(EventBus::new()));
    let slots: [Slot<Order>; 3] = Default::default();
    let inner = vec![mortal("a", &slots[1], &diary), mortal("b", &slots[2], &diary)];
    let core = Branch::new("core", Strategy::RestForOne, core, Arc::clone(&events), inner);
    let outer = vec![mortal("top", &slots[0], &diary), ChildSpec::branch(core)];
    let root = Branch::new("root", Strategy::OneForOne, root, events, outer);
    (Tree::start(root, hook).await.unwrap(), slots, diary)
}

#[tokio::test(start_paused = true)]
async fn an_escalation_is_a_death_of_the_supervisor_and_its_children_come_back_with_it() {
    let core = RestartConfig { intensity: 2, ..eager() };
    let (tree, slots, diary) = nested(core, RestartConfig::default(), no_hook()).await;
    let top = slots[0].get().unwrap().get_id();
    for death in 1..=3 {
        tell(&slots[1], Order::Panic);
        until("restart", || tree.status()[1].children[0].restarts == death).await;
        until("all back", || slots.iter().all(Slot::is_filled)).await;
    }
    let core = &tree.status()[1];
    assert_eq!((core.alive, core.restarts), (true, 1));
    assert!(core.last_reason.as_ref().unwrap().contains("`a` died"), "{core:?}");
    assert_eq!(core.children[1].last_reason.as_deref(), Some("its supervisor died"));
    assert_eq!(slots[0].get().unwrap().get_id(), top);
    assert!(echoes(&slots[1]).await && echoes(&slots[2]).await);
    let starts = diary.take().iter().filter(|line| *line == "b starts").count();
    assert_eq!(starts, 4);
    // The next incarnation counts afresh.
    tell(&slots[1], Order::Panic);
    until("restart", || tree.status()[1].children[0].restarts == 4).await;
    assert_eq!(tree.status()[1].restarts, 1);
}

#[tokio::test(start_paused = true)]
async fn escalations_that_do_not_end_reach_the_root() {
    let (hook, escalations) = hook();
    let (core, root) = (RestartConfig { intensity: 0, ..eager() }, RestartConfig { intensity: 1, ..eager() });
    let (tree, slots, _) = nested(core, root, hook).await;
    tell(&slots[2], Order::Panic);
    until("back", || tree.status()[1].children[1].restarts == 1).await;
    tell(&slots[2], Order::Panic);
    until("escalation", || !escalations.lock().unwrap().is_empty()).await;
    let escalation = escalations.lock().unwrap()[0].clone();
    assert_eq!(escalation.actor, "core");
    assert!(escalation.reason.contains("`b` died") && escalation.reason.contains("told to"), "{escalation:?}");
    assert!(slots.iter().all(|slot| !slot.is_filled()));
}

#[tokio::test(start_paused = true)]
async fn a_killed_supervisor_comes_back_with_its_children_and_never_two_of_one() {
    let (tree, slots, _) = nested(eager(), eager(), no_hook()).await;
    tell(&slots[2], Order::Sleep(60 * SECOND));
    let before = [slots[1].get().unwrap(), slots[2].get().unwrap()];
    assert!(tree.kill_child("core") && !tree.kill_child("nobody"));
    until("restart", || tree.status()[1].children.iter().all(|child| child.restarts == 1)).await;
    assert!(before.iter().all(|old| old.get_status() == ractor::ActorStatus::Stopped));
    assert!(echoes(&slots[1]).await && echoes(&slots[2]).await);
}

#[tokio::test(start_paused = true)]
async fn a_dead_root_is_told_of() {
    let (hook, escalations) = hook();
    let family = Family::start(Strategy::OneForOne, &["a"], eager(), hook).await;
    family.tree.root.kill();
    until("escalation", || !escalations.lock().unwrap().is_empty()).await;
    assert_eq!(escalations.lock().unwrap()[0].actor, "root");
    assert!(!family.slots[0].is_filled());
}

#[tokio::test(start_paused = true)]
async fn a_tree_stops_in_reverse_order_the_inner_ones_first_and_kills_who_does_not() {
    let (tree, slots, diary) = nested(eager(), eager(), no_hook()).await;
    diary.take();
    tell(&slots[1], Order::Sleep(60 * SECOND));
    tokio::task::yield_now().await;
    let start = Instant::now();
    let report = tree.stop(30 * SECOND).await;
    assert_eq!(report.stopped, ["b", "core", "top"]);
    assert_eq!(report.killed, ["a"]);
    assert_eq!(start.elapsed().as_secs(), DEFAULT_STOP_TIMEOUT.as_secs());
    assert_eq!(diary.take(), ["b stops", "top stops"], "a killed actor has no post_stop");
    assert!(slots.iter().all(|slot| !slot.is_filled()));
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!(diary.take(), Vec::<String>::new(), "nobody is started again");
    tree.stop(SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_keeps_to_its_patience() {
    let names = ["a", "b", "c", "d"];
    let family = Family::start(Strategy::OneForOne, &names, eager(), no_hook()).await;
    for slot in &family.slots {
        tell(slot, Order::Sleep(3_600 * SECOND));
    }
    tokio::task::yield_now().await;
    let start = Instant::now();
    assert_eq!(family.tree.stop(7 * SECOND).await.killed, ["d", "c", "b", "a"]);
    assert!(start.elapsed() <= 8 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_drained_child_handles_what_is_queued_and_a_stopped_one_does_not() {
    let (slots, diary): ([Slot<Order>; 2], _) = (Default::default(), Diary::default());
    let children = vec![mortal("stopped", &slots[0], &diary), mortal("drained", &slots[1], &diary).drained()];
    let branch = Branch::new("root", Strategy::OneForOne, eager(), Arc::new(EventBus::new()), children);
    let tree = Tree::start(branch, no_hook()).await.unwrap();
    let busy = [3 * SECOND, SECOND].into_iter();
    let calls: Vec<_> = slots
        .iter()
        .zip(busy)
        .map(|(slot, time)| {
            let slot = slot.clone();
            tell(&slot, Order::Sleep(time));
            tokio::spawn(async move { slot.call(60 * SECOND, |reply| Order::Echo(1, reply)).await })
        })
        .collect();
    tokio::task::yield_now().await;
    tree.stop(60 * SECOND).await;
    let ends: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(ends, [Err(CallError::Died), Ok(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_child_stopped_for_good_stays_stopped_and_does_not_hold_up_the_others() {
    let family = Family::start(Strategy::RestForOne, &["a", "b", "c"], eager(), no_hook()).await;
    assert_eq!(family.tree.stop_child("b", SECOND).await.unwrap().stopped, ["b"]);
    assert_eq!(family.tree.stop_child("nobody", SECOND).await, None);
    tell(&family.slots[0], Order::Panic);
    until("restart", || family.restarts() == [1, 0, 1]).await;
    assert!(!family.slots[1].is_filled() && family.slots[2].is_filled());
}

#[tokio::test(start_paused = true)]
async fn status_is_serializable() {
    let (tree, _, _) = nested(eager(), eager(), no_hook()).await;
    let text = serde_json::to_string(&tree.status()).unwrap();
    assert_eq!(serde_json::from_str::<Vec<ChildStatus>>(&text).unwrap(), tree.status());
}

/// The hammer: callers, casters and killers at the same actor, on real threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_a_thousand_deaths_every_call_ends_with_an_answer_or_a_typed_error() {
    const CLIENTS: usize = 16;
    const DEATHS: u64 = 1_000;
    let family = Arc::new(Family::start(Strategy::OneForOne, &["a"], eager(), no_hook()).await);
    let (done, answered, refused) =
        (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let clients: Vec<_> = (0..CLIENTS as u64)
        .map(|client| {
            let slot = family.slots[0].clone();
            let (done, answered, refused) = (Arc::clone(&done), Arc::clone(&answered), Arc::clone(&refused));
            tokio::spawn(async move {
                let mut number = client << 32;
                while done.load(Ordering::Relaxed) == 0 {
                    number += 1;
                    match slot.call(60 * SECOND, |reply| Order::Echo(number, reply)).await {
                        Ok(echo) => {
                            assert_eq!(echo, number);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(CallError::Late) => panic!("a call hung"),
                        Err(_) => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            tokio::task::yield_now().await;
                        }
                    }
                }
            })
        })
        .collect();
    for death in 0..DEATHS {
        let victim = family.slots[0].get().unwrap();
        match death % 4 {
            0 => tell(&family.slots[0], Order::Panic),
            1 => tell(&family.slots[0], Order::Fail),
            2 => victim.kill(),
            _ => victim.stop(None),
        }
        let restarted = async {
            while family.restarts()[0] == death {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(60 * SECOND, restarted).await.expect("a dead actor is restarted");
    }
    done.store(1, Ordering::Relaxed);
    for client in clients {
        tokio::time::timeout(60 * SECOND, client).await.expect("no call hangs").unwrap();
    }
    assert!(echoes(&family.slots[0]).await);
    assert!(answered.load(Ordering::Relaxed) > 0 && refused.load(Ordering::Relaxed) > 0);
    assert_eq!(family.restarts(), [DEATHS]);
}

#[tokio::test(start_paused = true)]
async fn a_reply_port_that_outlives_its_actor_does_not_keep_the_caller_waiting() {
    let family = Family::start(Strategy::OneForOne, &["a"], eager(), no_hook()).await;
    let kept = Arc::new(Mutex::new(None));
    let (slot, place) = (family.slots[0].clone(), Arc::clone(&kept));
    let call = tokio::spawn(async move { slot.call(3_600 * SECOND, |reply| Order::Keep(reply, place)).await });
    until("kept", || kept.lock().unwrap().is_some()).await;
    tell(&family.slots[0], Order::Panic);
    let start = Instant::now();
    assert_eq!(call.await.unwrap(), Err(CallError::Died));
    assert!(start.elapsed() < SECOND);
}

/// The race in which a bare call hangs for ever: the message is pushed after the dying actor has drained its mailbox.
#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn a_call_at_the_moment_of_a_death_ends_promptly() {
    for round in 0..2_500_u64 {
        let slot = Slot::default();
        let actor = Mortal { name: "a", diary: Diary::default() };
        let (actor, _) = Mortal::spawn(None, actor, ()).await.unwrap();
        slot.fill(actor.clone());
        let callers: Vec<_> = (0..8)
            .map(|_| {
                let slot = slot.clone();
                tokio::spawn(async move {
                    loop {
                        let end = slot.call(60 * SECOND, |reply| Order::Echo(1, reply)).await;
                        if end != Ok(1) {
                            return end;
                        }
                    }
                })
            })
            .collect();
        for _ in 0..round % 16 {
            tokio::task::yield_now().await;
        }
        match round % 3 {
            0 => actor.kill(),
            1 => actor.stop(None),
            _ => tell(&slot, Order::Fail),
        }
        for caller in callers {
            let end = tokio::time::timeout(30 * SECOND, caller).await.expect("no call hangs").unwrap();
            assert!(matches!(end, Err(CallError::Vacant | CallError::Died)), "{end:?}");
        }
    }
}
