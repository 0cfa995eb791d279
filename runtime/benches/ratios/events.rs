//! Telling subscribers, against the channel that does it: row 11.

use std::sync::Arc;

use seawall::event::{Event, EventBus, EventKind, Subscription, Update};
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tokio::task::JoinSet;

use crate::measure::{Effort, interleave, per_task_call};
use crate::stage::current_thread;
use crate::table::{Aim, Row, both};

/// Fewer than a subscriber may be behind, and than tokio lets a task receive at one go.
const BURST: u64 = 64;

pub(crate) fn rows(effort: Effort) -> Vec<Row> {
    [("11a", 1), ("11b", 10), ("11c", 100)].map(|(number, subscribers)| row(effort, number, subscribers)).into()
}

fn kind(n: u64) -> EventKind {
    EventKind::DrainStopped { backend: "graph".into(), drained: n as usize, owed: 0 }
}

async fn hear(mut subscription: Subscription, events: u64) {
    for _ in 0..events {
        assert!(matches!(subscription.next().await, Some(Update::Event(_))));
    }
}

async fn hear_directly(mut receiver: broadcast::Receiver<Arc<Event>>, events: u64) {
    for _ in 0..events {
        receiver.recv().await.expect("nobody is behind");
    }
}

/// Publishes in bursts, and lets all subscribers hear each.
async fn publish(mut listeners: JoinSet<()>, events: u64, publish: impl Fn(u64)) {
    for n in 0..events {
        publish(n);
        if n % BURST == BURST - 1 {
            tokio::task::yield_now().await;
        }
    }
    while let Some(heard) = listeners.join_next().await {
        heard.expect("a subscriber does not panic");
    }
}

fn by_the_bus(tokio: &Runtime, events: u64, subscribers: u64) -> f64 {
    per_task_call(tokio, events, async move {
        let bus = EventBus::new();
        let listeners = (0..subscribers).map(|_| hear(bus.subscribe(), events)).collect();
        publish(listeners, events, |n| bus.publish(kind(n))).await;
    })
}

fn directly(tokio: &Runtime, events: u64, subscribers: u64) -> f64 {
    per_task_call(tokio, events, async move {
        let sender = broadcast::Sender::new(seawall::event::CAPACITY);
        let listeners = (0..subscribers).map(|_| hear_directly(sender.subscribe(), events)).collect();
        publish(listeners, events, |n| drop(sender.send(Arc::new(Event { sequence: n, kind: kind(n) })))).await;
    })
}

fn row(effort: Effort, number: &'static str, subscribers: u64) -> Row {
    let events = effort.pick(256, 32) * BURST / subscribers.isqrt();
    let tokio = current_thread();
    let rounds = interleave(
        effort.rounds(),
        [&mut || by_the_bus(&tokio, events, subscribers), &mut || directly(&tokio, events, subscribers)],
    );
    let medians = both(rounds.median(0), rounds.median(1));
    let what = format!("an event to {subscribers} subscriber{}", if subscribers == 1 { "" } else { "s" });
    Row::ratio(number, what, "`tokio::sync::broadcast`", rounds.ratio(0, 1), medians, Aim::AtMost(1.2))
}
