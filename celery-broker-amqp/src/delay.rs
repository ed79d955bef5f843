//! Routes of deferred messages, which wait in the broker until they are due.
//!
//! Celery's native delayed delivery is a cascade of 28 topic exchanges and
//! queues, `celery_delayed_27` to `celery_delayed_0`. A routing key begins with
//! the binary digits of the delay in seconds. If the digit of a level is 1, the
//! message waits in the queue of that level for 2^level seconds; then, or if the
//! digit is 0, it moves to the next level. The last level routes to the exchange
//! `celery_delayed_delivery`, to which the exchanges of task queues are bound.
//!
//! Celery uses the cascade for quorum queues whose exchange is not direct. This
//! crate routes *every* message through it that a worker cannot run yet, from
//! any queue, so that no worker holds messages that are not due. At the end of the
//! cascade such a message goes to the due queue of its task queue,
//! `celery_due.<queue>`, with a key of this crate:
//! `<28 digits>.<queue>.celery_due.f<tenths>`. The remaining tenths of a second are
//! spent in one of nine queues `celery_due_<n>00ms`.
//!
//! RabbitMQ drops a dead-lettered message that the next queue refuses. A task queue
//! may be full or deleted when the message is due; a due queue has no limits, and is not
//! deleted with its task queue. Workers consume it beside the task queue. Earlier versions
//! routed to the task queue itself, with the word `celery_parked`; messages that they
//! have deferred return there.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use celery_protocol::{Map, Value, time};
use celery_runtime::{Exchange, ExchangeKind, Publication, Queue, QueueType, ServiceError};

use crate::declaration_cache::{DeclarationCache, EntityKind};
use crate::declarer::Declarer;

/// The number of levels of Celery's cascade.
const LEVELS: u32 = 28;

/// The longest delay of the cascade in seconds, more than eight years.
const MAX_DELAY_SECONDS: u32 = (1 << LEVELS) - 1;

/// The exchange at the end of the cascade.
const DELIVERY_EXCHANGE: &str = "celery_delayed_delivery";

/// The exchange at the end of the queues for tenths of a second, the word of the
/// routing keys of deferred messages, and the prefix of the names of queues.
const DEFERRED_EXCHANGE: &str = "celery_due";

/// The word of the routing keys of messages that earlier versions have deferred.
const EARLIER_WORD: &str = "celery_parked";

/// The arguments that a due queue has in common with its task queue: the order of its
/// messages, the number of its readers, and how long it exists without one.
const DUE_QUEUE_ARGUMENTS: [&str; 3] = ["x-max-priority", "x-single-active-consumer", "x-expires"];

/// The prefix of the names of the levels.
const LEVEL_PREFIX: &str = "celery_delayed_";

/// The longest queue name that fits into a routing key with the other words.
const MAX_QUEUE_NAME_LEN: usize = 180;

/// The exchange and routing key that delay a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DelayRoute {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// The whole seconds of the delay.
    seconds: u32,
    /// The remaining tenths of a second of the delay.
    tenths: u32,
}

/// Returns the route that delivers a message to `queue` after `delay`, which is
/// rounded up to tenths of a second and limited to [`MAX_DELAY_SECONDS`].
pub(crate) fn deferred_route(queue: &str, delay: Duration) -> DelayRoute {
    let total_tenths = delay.as_millis().div_ceil(100);
    let total_tenths = total_tenths.min(u128::from(MAX_DELAY_SECONDS) * 10);
    let (seconds, tenths) = ((total_tenths / 10) as u32, (total_tenths % 10) as u32);
    let exchange = match levels(seconds).next_back() {
        None => DELIVERY_EXCHANGE.to_owned(),
        Some(highest) => level_name(highest),
    };
    DelayRoute {
        exchange,
        routing_key: format!(
            "{}{}.f{tenths}",
            delay_prefix(seconds),
            return_key(queue, DEFERRED_EXCHANGE)
        ),
        seconds,
        tenths,
    }
}

/// Reports whether a message with this routing key was deferred for `queue`.
pub(crate) fn is_deferred_for(queue: &str, routing_key: &str) -> bool {
    strip_delay_prefix(routing_key)
        .and_then(|rest| rest.rsplit_once(".f"))
        .is_some_and(|(key, tenths)| {
            let is_key = |word| key == return_key(queue, word);
            tenths.len() == 1 && [DEFERRED_EXCHANGE, EARLIER_WORD].into_iter().any(is_key)
        })
}

/// Returns the routing key that a message had before Celery's native delay.
pub(crate) fn original_routing_key<'a>(exchange: &str, routing_key: &'a str) -> Option<&'a str> {
    let is_delayed = exchange == DELIVERY_EXCHANGE || exchange.starts_with(LEVEL_PREFIX);
    is_delayed.then(|| strip_delay_prefix(routing_key))?
}

/// Reports whether Celery's clients delay messages for this queue natively.
pub(crate) fn has_native_delay(queue: &Queue) -> bool {
    queue.is_quorum() && accepts_native_delay(queue)
}

/// Reports whether the queue's exchange can be bound to the end of the cascade.
pub(crate) fn accepts_native_delay(queue: &Queue) -> bool {
    !queue.exchange.name.is_empty() && queue.exchange.kind != ExchangeKind::Direct
}

/// Returns the route that Celery's clients use for a task with a countdown of at
/// least one second.
pub(crate) fn native_route(publication: &Publication, now: SystemTime) -> Option<DelayRoute> {
    let queue = publication.queue.as_deref()?;
    if !has_native_delay(queue) || publication.exchange.is_empty() {
        return None;
    }
    let eta = publication.message.headers.find("eta").ok()??;
    let eta: String = eta.decode().ok()?;
    let seconds = time::parse(&eta).ok()?.duration_since(now).ok()?.as_secs();
    let seconds = u32::try_from(seconds).ok()?.min(MAX_DELAY_SECONDS);
    (seconds > 0).then(|| DelayRoute {
        exchange: level_name(LEVELS - 1),
        routing_key: format!("{}{}", delay_prefix(seconds), publication.routing_key),
        seconds,
        tenths: 0,
    })
}

/// Declares the cascade and binds a queue to it, so that Celery's clients can
/// delay its messages.
pub(crate) async fn bind_native(
    declarer: &mut Declarer<'_>,
    queue: &Queue,
    queue_type: QueueType,
) -> Result<(), ServiceError> {
    declare_levels(declarer, 0..LEVELS, queue_type).await?;
    // Celery binds with `#.<key>`, which also matches other keys that end with
    // this one. The number of digits is fixed, so this pattern is exact.
    let pattern = format!("{}{}", wildcards(LEVELS), queue.routing_key);
    declarer
        .bind_exchange(&queue.exchange.name, DELIVERY_EXCHANGE, &pattern)
        .await?;
    match queue.exchange.kind {
        // The routing key still begins with the digits.
        ExchangeKind::Topic => {
            let no_arguments = Map::new();
            declarer
                .bind_queue(&queue.name, &queue.exchange.name, &pattern, &no_arguments)
                .await
        }
        _ => Ok(()),
    }
}

/// Returns the name of the queue that holds the deferred messages of a queue when
/// they are due. A queue that the server deletes has none: its messages return to it
/// directly, and are dropped with it.
pub(crate) fn due_queue_name(queue: &Queue) -> Option<String> {
    let name = &queue.name;
    let words = match name.len() {
        ..=MAX_QUEUE_NAME_LEN => name.clone(),
        _ => hashed(name),
    };
    (!queue.auto_delete).then(|| format!("{DEFERRED_EXCHANGE}.{words}"))
}

/// Declares the due queue of a queue, and binds it to the exchanges that deferred
/// messages return through.
pub(crate) async fn bind_deferred(
    declarer: &mut Declarer<'_>,
    queue: &Queue,
) -> Result<(), ServiceError> {
    for exchange in [DELIVERY_EXCHANGE, DEFERRED_EXCHANGE] {
        declarer
            .declare_exchange(&Exchange::topic(exchange))
            .await?;
    }
    let due_queue = due_queue_name(queue);
    if let Some(name) = &due_queue {
        let mut due_queue = Queue::new(name.as_str()).argument("x-queue-type", "classic");
        for argument in DUE_QUEUE_ARGUMENTS {
            if let Some(value) = queue.arguments.get(argument) {
                due_queue = due_queue.argument(argument, value.clone());
            }
        }
        declarer
            .declare_queue_with_any_arguments(&due_queue)
            .await?;
    }
    let target = due_queue.as_ref().unwrap_or(&queue.name);
    let key = return_key(&queue.name, DEFERRED_EXCHANGE);
    let pattern = |tenths: &str| format!("{}{key}.{tenths}", wildcards(LEVELS));
    declarer
        .bind_queue(target, DELIVERY_EXCHANGE, &pattern("f0"), &Map::new())
        .await?;
    declarer
        .bind_queue(target, DEFERRED_EXCHANGE, &pattern("*"), &Map::new())
        .await
}

impl DelayRoute {
    /// Declares the exchanges and queues of the route.
    pub(crate) async fn declare(
        &self,
        declarer: &mut Declarer<'_>,
        queue_type: QueueType,
    ) -> Result<(), ServiceError> {
        declare_levels(declarer, levels(self.seconds), queue_type).await?;
        match self.tenths {
            0 => Ok(()),
            tenths => declare_tenths(declarer, tenths).await,
        }
    }

    /// Removes the exchanges and queues of the route from the cache.
    pub(crate) fn forget_declarations(&self, declarations: &DeclarationCache) {
        for level in levels(self.seconds) {
            declarations.remove(EntityKind::Exchange, &level_name(level));
        }
        declarations.remove(EntityKind::Queue, &tenths_queue_name(self.tenths));
    }
}

/// Declares these levels of the cascade.
async fn declare_levels(
    declarer: &mut Declarer<'_>,
    levels: Range<u32>,
    queue_type: QueueType,
) -> Result<(), ServiceError> {
    for level in levels {
        let name = level_name(level);
        if declarer
            .declarations()
            .contains(EntityKind::Exchange, &name)
        {
            continue;
        }
        let next = match level {
            0 => Exchange::topic(DELIVERY_EXCHANGE),
            _ => Exchange::topic(level_name(level - 1)),
        };
        let prefix = wildcards(LEVELS - 1 - level);
        declarer.declare_exchange(&next).await?;
        declarer
            .declare_exchange(&Exchange::topic(name.as_str()))
            .await?;
        let delay = Duration::from_secs(1 << level);
        declarer
            .declare_queue_with_any_arguments(&delay_queue(&name, delay, &next.name, queue_type))
            .await?;
        declarer
            .bind_queue(&name, &name, &format!("{prefix}1.#"), &Map::new())
            .await?;
        declarer
            .bind_exchange(&next.name, &name, &format!("{prefix}0.#"))
            .await?;
        declarer.declarations().insert(EntityKind::Exchange, &name);
    }
    Ok(())
}

/// Declares a queue for tenths of a second. It is always classic: quorum queues
/// of RabbitMQ 3.10 that several workers declare at the same moment may never
/// dead-letter their messages.
async fn declare_tenths(declarer: &mut Declarer<'_>, tenths: u32) -> Result<(), ServiceError> {
    let name = tenths_queue_name(tenths);
    if declarer.declarations().contains(EntityKind::Queue, &name) {
        return Ok(());
    }
    let delay = Duration::from_millis(u64::from(tenths) * 100);
    declarer
        .declare_queue_with_any_arguments(&delay_queue(
            &name,
            delay,
            DEFERRED_EXCHANGE,
            QueueType::Classic,
        ))
        .await?;
    let pattern = format!("#.{DEFERRED_EXCHANGE}.f{tenths}");
    declarer
        .bind_queue(&name, DELIVERY_EXCHANGE, &pattern, &Map::new())
        .await?;
    declarer.declarations().insert(EntityKind::Queue, &name);
    Ok(())
}

/// Returns a queue that holds each message for `delay` and then dead-letters it to
/// the exchange `next`.
fn delay_queue(name: &str, delay: Duration, next: &str, queue_type: QueueType) -> Queue {
    let milliseconds = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    let (type_name, is_replicated) = match queue_type {
        QueueType::Quorum => ("quorum", true),
        _ => ("classic", false),
    };
    let queue = Queue::new(name)
        .argument("x-queue-type", type_name)
        .argument("x-overflow", "reject-publish")
        .argument("x-message-ttl", Value::Int(milliseconds))
        .argument("x-dead-letter-exchange", next);
    if is_replicated {
        // The queue keeps a message until the next queue has confirmed it.
        queue.argument("x-dead-letter-strategy", "at-least-once")
    } else {
        queue
    }
}

fn tenths_queue_name(tenths: u32) -> String {
    format!("{DEFERRED_EXCHANGE}_{tenths}00ms")
}

fn level_name(level: u32) -> String {
    format!("{LEVEL_PREFIX}{level}")
}

/// Returns the words of a routing key that route to `queue` and to no other: its
/// name, or a hash if the name is too long or contains wildcards, and `word`.
fn return_key(queue: &str, word: &str) -> String {
    if queue.len() <= MAX_QUEUE_NAME_LEN && !queue.contains(['*', '#']) {
        return format!("{queue}.{word}");
    }
    format!("{}.{word}", hashed(queue))
}

/// Returns a hash of a queue's name. FNV-1a, because the hash must be the same in
/// every version of this library.
fn hashed(queue: &str) -> String {
    let hash = queue.bytes().fold(
        0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128,
        |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b),
    );
    format!("{hash:032x}")
}

/// Returns the levels that a delay of so many seconds may pass, lowest first.
fn levels(seconds: u32) -> Range<u32> {
    0..u32::BITS - seconds.leading_zeros()
}

/// Returns the binary digits of the delay, highest first, each followed by a
/// point.
fn delay_prefix(seconds: u32) -> String {
    (0..LEVELS)
        .rev()
        .flat_map(|level| [if seconds >> level & 1 == 1 { '1' } else { '0' }, '.'])
        .collect()
}

/// Returns a pattern that matches any `count` words.
fn wildcards(count: u32) -> String {
    "*.".repeat(count as usize)
}

/// Returns the routing key without the digits of a delay, if it begins with them.
fn strip_delay_prefix(routing_key: &str) -> Option<&str> {
    let (digits, rest) = routing_key.split_at_checked(2 * LEVELS as usize)?;
    let are_digits = digits
        .as_bytes()
        .chunks(2)
        .all(|pair| matches!(pair, [b'0' | b'1', b'.']));
    are_digits.then_some(rest)
}

#[cfg(test)]
mod tests {
    use celery_protocol::{Headers, Message, Properties, TaskHeaders};

    use super::*;

    #[test]
    fn delay_prefix_of_five_seconds_ends_in_101() {
        assert_eq!(
            delay_prefix(5),
            "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1."
        );
    }

    #[test]
    fn delay_is_rounded_up_to_tenths() {
        for (milliseconds, seconds, tenths, exchange) in [
            (1, 0, "f1", DELIVERY_EXCHANGE),
            (100, 0, "f1", DELIVERY_EXCHANGE),
            (950, 1, "f0", "celery_delayed_0"),
            (5_010, 5, "f1", "celery_delayed_2"),
        ] {
            let route = deferred_route("q.high", Duration::from_millis(milliseconds));
            assert_eq!(route.exchange, exchange, "{milliseconds}");
            let expected = format!("{}q.high.celery_due.{tenths}", delay_prefix(seconds));
            assert_eq!(route.routing_key, expected);
            assert!(is_deferred_for("q.high", &route.routing_key));
            assert!(!is_deferred_for("high", &route.routing_key));
        }
    }

    #[test]
    fn longest_delay_is_limited_to_eight_years() {
        let route = deferred_route("q", Duration::from_secs(u64::MAX));
        assert!(route.routing_key.starts_with(&"1.".repeat(28)), "{route:?}");
    }

    #[test]
    fn long_or_wildcard_queue_name_is_hashed() {
        for name in ["q".repeat(255), "jobs.*".to_owned(), "#".to_owned()] {
            let route = deferred_route(&name, Duration::from_secs(1));
            assert!(is_deferred_for(&name, &route.routing_key), "{name}");
            let has_pattern = route.routing_key.contains(['*', '#']);
            assert!(!has_pattern && route.routing_key.len() < 255, "{route:?}");
        }
        let keys = ["jobs.*", "jobs.#"].map(|name| return_key(name, DEFERRED_EXCHANGE));
        assert_ne!(keys[0], keys[1]);
    }

    #[test]
    fn unrelated_routing_key_is_not_stripped() {
        for key in [
            "celery",
            "a.celery_due.f0",
            "a.celery_parked.f0",
            "",
            "0.1.0",
        ] {
            assert!(!is_deferred_for("a", key), "{key}");
        }
        let delayed = format!("{}feed.import", delay_prefix(7));
        for exchange in [DELIVERY_EXCHANGE, "celery_delayed_0"] {
            assert_eq!(
                original_routing_key(exchange, &delayed),
                Some("feed.import")
            );
        }
        assert_eq!(original_routing_key("feeds", &delayed), None);
    }

    #[test]
    fn message_deferred_by_earlier_version_is_recognized() {
        let key = format!("{}q.high.celery_parked.f3", delay_prefix(2));
        assert!(is_deferred_for("q.high", &key));
        assert!(!is_deferred_for("high", &key));
    }

    #[test]
    fn due_queue_has_a_name_of_its_own_unless_the_server_deletes_its_queue() {
        let name = |queue: &Queue| due_queue_name(queue);
        assert_eq!(name(&Queue::new("q")).as_deref(), Some("celery_due.q"));
        assert_eq!(name(&Queue::new("a.*")).as_deref(), Some("celery_due.a.*"));
        let long = name(&Queue::new("q".repeat(255))).expect("it has one");
        assert_eq!(long.len(), "celery_due.".len() + 32);
        assert_eq!(name(&Queue::broadcast("news")), None);
    }

    #[test]
    fn native_route_applies_to_topic_exchanges_of_quorum_queues() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let sent = |queue: Queue, exchange: &str, countdown: u64| {
            let mut headers = TaskHeaders::new("t", "id");
            let eta = now + Duration::from_millis(countdown);
            headers.eta = Some(time::format(eta).into());
            let message = Message::new(
                Headers::from_task(headers),
                Properties::default(),
                Vec::new(),
            );
            let publication =
                Publication::to_exchange(message, exchange, "feed").declare_queue(queue.into());
            native_route(&publication, now)
        };
        let topic = Queue::new("q")
            .bound_to(Exchange::topic("feeds"), "feed")
            .quorum();
        let route = sent(topic.clone(), "feeds", 5_900).unwrap();
        assert_eq!(route.routing_key, format!("{}feed", delay_prefix(5)));
        assert_eq!(route.exchange, "celery_delayed_27");
        assert_eq!(sent(topic, "feeds", 900), None);
        assert_eq!(sent(Queue::new("q").quorum(), "", 5_000), None);
        let classic = Queue::new("q").bound_to(Exchange::topic("feeds"), "feed");
        assert_eq!(sent(classic, "feeds", 5_000), None);
    }
}
