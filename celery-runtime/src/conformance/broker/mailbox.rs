//! Cases about broadcasts and mailboxes.

use std::time::Duration;

use celery_protocol::Value;

use super::{BrokerSetup, message};
use crate::boundary::{Exchange, Mailbox, Publication, Queue, Subscription};
use crate::conformance::{unique_name, wait_for};

/// Each subscription whose pattern matches receives a copy of a broadcast.
pub async fn broadcast_reaches_matching_subscribers(setup: &dyn BrokerSetup) {
    let (broker, other) = (setup.broker(), setup.broker());
    let exchange = Exchange::topic(unique_name("events"));
    let mut all = wait_for(
        "subscribe",
        broker.subscribe(&Mailbox::of(exchange.clone(), "#")),
    )
    .await
    .expect("subscribed");
    let mut some = wait_for(
        "subscribe",
        other.subscribe(&Mailbox::of(exchange.clone(), "worker.*")),
    )
    .await
    .expect("subscribed");
    for key in ["task.sent", "worker.online"] {
        let mut note = message("event");
        note.headers.set("key", Value::from(key)).expect("set");
        wait_for("broadcast", broker.broadcast(&exchange, key, &note))
            .await
            .expect("sent");
    }
    assert_eq!(next_key(&mut *all).await, "task.sent");
    assert_eq!(next_key(&mut *all).await, "worker.online");
    assert_eq!(next_key(&mut *some).await, "worker.online");
}

/// Returns the header `key` of the next message.
async fn next_key(subscription: &mut dyn Subscription) -> String {
    let message = wait_for("subscription", subscription.next())
        .await
        .expect("a message");
    let raw = message
        .headers
        .find("key")
        .expect("headers")
        .expect("the header");
    raw.decode().expect("a text")
}

/// Messages sent to a mailbox by its name arrive there.
pub async fn named_mailbox_receives_replies(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let name = unique_name("reply");
    let expires = Duration::from_secs(10);
    let mut replies = wait_for(
        "subscribe",
        broker.subscribe(&Mailbox::named(&name, expires)),
    )
    .await
    .expect("opened");
    for n in ["1", "2"] {
        let mut reply = message(n);
        reply.headers.set("key", Value::from(n)).expect("set");
        let batch = [Publication::to_queue(reply, name.as_str())];
        wait_for("publish", setup.broker().publish(&batch))
            .await
            .remove(0)
            .expect("sent");
        assert_eq!(next_key(&mut *replies).await, n);
    }
}

/// A mailbox at a direct exchange receives the messages with its routing key, from
/// every client, and no others.
pub async fn direct_mailbox_receives_only_its_key(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let exchange = Exchange::direct(unique_name("reply")).transient();
    let mut mailboxes = Vec::new();
    for key in ["mine", "yours"] {
        let mailbox = Mailbox::control(unique_name(key), exchange.clone(), key);
        let opened = wait_for("subscribe", broker.subscribe(&mailbox)).await;
        mailboxes.push(opened.expect("opened"));
    }
    let sender = setup.broker();
    for (key, text) in [
        ("mine", "1"),
        ("theirs", "2"),
        ("yours", "3"),
        ("mine", "4"),
    ] {
        let mut reply = message("reply");
        reply.headers.set("key", Value::from(text)).expect("set");
        wait_for("broadcast", sender.broadcast(&exchange, key, &reply))
            .await
            .expect("sent");
    }
    let [mine, yours] = &mut mailboxes[..] else {
        panic!("two mailboxes");
    };
    assert_eq!(next_key(&mut **mine).await, "1");
    assert_eq!(next_key(&mut **mine).await, "4");
    assert_eq!(next_key(&mut **yours).await, "3");
}

/// A message whose routing key matches no mailbox is neither an error nor kept.
pub async fn unmatched_broadcast_is_dropped(setup: &dyn BrokerSetup) {
    let broker = setup.broker();
    let exchange = Exchange::direct(unique_name("reply")).transient();
    let (here, away) = (unique_name("here"), unique_name("away"));
    let mailbox = Mailbox::control(&here, exchange.clone(), "here");
    let mut opened = wait_for("subscribe", broker.subscribe(&mailbox))
        .await
        .expect("opened");
    for to in [&away, "here"] {
        let mut reply = message("reply");
        reply.headers.set("key", Value::from(to)).expect("set");
        wait_for("broadcast", broker.broadcast(&exchange, to, &reply))
            .await
            .expect("a broadcast without a receiver");
    }
    assert_eq!(next_key(&mut *opened).await, "here");
    let depth = wait_for("depth", broker.depth(&Queue::new(&away))).await;
    assert_eq!(depth.expect("depth"), 0);
}
