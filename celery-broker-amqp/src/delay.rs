//! Messages that wait in the broker for their time.
//!
//! Celery's native delayed delivery is a cascade of 28 topic exchanges and
//! queues `celery_delayed_27` to `celery_delayed_0`. A routing key begins with
//! the binary digits of the delay in seconds; where the digit of a level is 1,
//! the message waits in the queue of that level for its power of two, then
//! goes on to the next. At the end it comes to `celery_delayed_delivery`, to
//! which exchanges of task queues are bound.
//!
//! Celery uses it for topic exchanges and quorum queues only. We send *every*
//! message through it that a worker cannot run yet, whatever queue it came
//! from, so that nobody holds what is not due. For that the task's queue is
//! bound by itself, under a key that nobody else uses:
//! `<28 digits>.<queue>.celery_parked.f<tenths>`. The tenths of a second that
//! are left wait in one of nine queues `celery_parked_<n>00ms` of our own.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use celery_protocol::{Map, Value, time};
use celery_runtime::{Exchange, ExchangeKind, Publication, Queue, QueueType, ServiceError};

use crate::known::{Kind, Known};
use crate::topology::Desk;

/// The levels of Celery's cascade.
const LEVELS: u32 = 28;

/// The most seconds that they hold, more than eight years.
const LONGEST: u32 = (1 << LEVELS) - 1;

/// Where the cascade ends.
const DELIVERY: &str = "celery_delayed_delivery";

/// Where our tenths of a second end.
const PARKED: &str = "celery_parked";

/// What the names of the levels begin with.
const LEVEL: &str = "celery_delayed_";

/// The longest name of a queue that fits into a routing key with the rest.
const LONGEST_NAME: usize = 180;

/// Where a message that has to wait is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Detour {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    /// The whole seconds of the delay.
    seconds: u32,
    /// What is left of it, in tenths of a second.
    tenths: u32,
}

/// The way of a message that is to come to `queue` after `delay`, rounded up
/// to tenths of a second and at most eight years.
pub(crate) fn park(queue: &str, delay: Duration) -> Detour {
    let all = delay.as_millis().div_ceil(100);
    let all = all.min(u128::from(LONGEST) * 10);
    let (seconds, tenths) = ((all / 10) as u32, (all % 10) as u32);
    let exchange = match levels(seconds).next_back() {
        None => DELIVERY.to_owned(),
        Some(highest) => level_name(highest),
    };
    Detour {
        exchange,
        routing_key: format!("{}{}.f{tenths}", digits(seconds), home(queue)),
        seconds,
        tenths,
    }
}

/// Whether a message with this routing key was parked for `queue`.
pub(crate) fn is_parked_for(queue: &str, routing_key: &str) -> bool {
    without_digits(routing_key)
        .and_then(|rest| rest.rsplit_once(".f"))
        .is_some_and(|(home_words, tenths)| tenths.len() == 1 && home_words == home(queue))
}

/// The routing key before Celery's own delay.
pub(crate) fn undelayed<'a>(exchange: &str, routing_key: &'a str) -> Option<&'a str> {
    let is_delayed = exchange == DELIVERY || exchange.starts_with(LEVEL);
    is_delayed.then(|| without_digits(routing_key))?
}

/// Whether Celery delays messages for this queue natively.
pub(crate) fn is_native(queue: &Queue) -> bool {
    queue.is_quorum() && has_pattern(queue)
}

/// Whether the queue's exchange passes on what comes out of the cascade.
pub(crate) fn has_pattern(queue: &Queue) -> bool {
    !queue.exchange.name.is_empty() && queue.exchange.kind != ExchangeKind::Direct
}

/// The way that Celery's own clients take for a task with a countdown of a
/// second or more.
pub(crate) fn native(publication: &Publication, now: SystemTime) -> Option<Detour> {
    let queue = publication.queue.as_deref()?;
    if !is_native(queue) || publication.exchange.is_empty() {
        return None;
    }
    let eta = publication.message.headers.find("eta").ok()??;
    let eta: String = eta.decode().ok()?;
    let seconds = time::parse(&eta).ok()?.duration_since(now).ok()?.as_secs();
    let seconds = u32::try_from(seconds).ok()?.min(LONGEST);
    (seconds > 0).then(|| Detour {
        exchange: level_name(LEVELS - 1),
        routing_key: format!("{}{}", digits(seconds), publication.routing_key),
        seconds,
        tenths: 0,
    })
}

/// Binds a queue so that Celery's clients may delay its messages.
pub(crate) async fn bind_native(
    desk: &mut Desk<'_>,
    queue: &Queue,
    queue_type: QueueType,
) -> Result<(), ServiceError> {
    declare_levels(desk, 0..LEVELS, queue_type).await?;
    // Celery binds by `#.<key>`, which also lets other keys through that end
    // in this one. The digits are always as many.
    let pattern = format!("{}{}", any(LEVELS), queue.routing_key);
    desk.bind_exchange(&queue.exchange.name, DELIVERY, &pattern)
        .await?;
    match queue.exchange.kind {
        // The digits are still before the key.
        ExchangeKind::Topic => {
            let none = Map::new();
            desk.bind_queue(&queue.name, &queue.exchange.name, &pattern, &none)
                .await
        }
        _ => Ok(()),
    }
}

/// Makes sure that what is parked for a queue finds its way back.
pub(crate) async fn bind_parked(desk: &mut Desk<'_>, queue: &str) -> Result<(), ServiceError> {
    for exchange in [DELIVERY, PARKED] {
        desk.exchange(&Exchange::topic(exchange)).await?;
    }
    let pattern = |tenths: &str| format!("{}{}.{tenths}", any(LEVELS), home(queue));
    desk.bind_queue(queue, DELIVERY, &pattern("f0"), &Map::new())
        .await?;
    desk.bind_queue(queue, PARKED, &pattern("*"), &Map::new())
        .await
}

/// Makes the way back to a queue again where messages may be on it: with a
/// queue that is deleted its bindings go, too. Answers whether there may be.
pub(crate) async fn rebind_parked(
    desk: &mut Desk<'_>,
    queues: &[Queue],
) -> Result<bool, ServiceError> {
    if !desk.exchange_exists(PARKED).await? {
        return Ok(false);
    }
    for queue in queues {
        bind_parked(desk, &queue.name).await?;
    }
    Ok(true)
}

impl Detour {
    /// Declares what the message passes on its way.
    pub(crate) async fn declare(
        &self,
        desk: &mut Desk<'_>,
        queue_type: QueueType,
    ) -> Result<(), ServiceError> {
        declare_levels(desk, levels(self.seconds), queue_type).await?;
        match self.tenths {
            0 => Ok(()),
            tenths => declare_tenths(desk, tenths).await,
        }
    }

    /// Takes nothing of it for known any more.
    pub(crate) fn forget(&self, known: &Known) {
        for level in levels(self.seconds) {
            known.forget(Kind::Exchange, &level_name(level));
        }
        known.forget(Kind::Queue, &tenths_name(self.tenths));
    }
}

async fn declare_levels(
    desk: &mut Desk<'_>,
    levels: Range<u32>,
    queue_type: QueueType,
) -> Result<(), ServiceError> {
    for level in levels {
        let name = level_name(level);
        if desk.known().has(Kind::Exchange, &name) {
            continue;
        }
        let next = match level {
            0 => Exchange::topic(DELIVERY),
            _ => Exchange::topic(level_name(level - 1)),
        };
        let before = any(LEVELS - 1 - level);
        desk.exchange(&next).await?;
        desk.exchange(&Exchange::topic(name.as_str())).await?;
        let delay = Duration::from_secs(1 << level);
        desk.queue_of_any_type(&waiting_queue(&name, delay, &next.name, queue_type))
            .await?;
        desk.bind_queue(&name, &name, &format!("{before}1.#"), &Map::new())
            .await?;
        desk.bind_exchange(&next.name, &name, &format!("{before}0.#"))
            .await?;
        desk.known().note(Kind::Exchange, &name);
    }
    Ok(())
}

/// Always classic: quorum queues of RabbitMQ 3.10 that several workers declare
/// at the same moment may never pass anything on.
async fn declare_tenths(desk: &mut Desk<'_>, tenths: u32) -> Result<(), ServiceError> {
    let name = tenths_name(tenths);
    if desk.known().has(Kind::Queue, &name) {
        return Ok(());
    }
    let delay = Duration::from_millis(u64::from(tenths) * 100);
    desk.queue_of_any_type(&waiting_queue(&name, delay, PARKED, QueueType::Classic))
        .await?;
    let pattern = format!("#.{PARKED}.f{tenths}");
    desk.bind_queue(&name, DELIVERY, &pattern, &Map::new())
        .await?;
    desk.known().note(Kind::Queue, &name);
    Ok(())
}

/// A queue that keeps everything for `delay` and passes it on to `next`.
fn waiting_queue(name: &str, delay: Duration, next: &str, queue_type: QueueType) -> Queue {
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
    match is_replicated {
        // Kept until the next queue has it.
        true => queue.argument("x-dead-letter-strategy", "at-least-once"),
        false => queue,
    }
}

fn tenths_name(tenths: u32) -> String {
    format!("{PARKED}_{tenths}00ms")
}

fn level_name(level: u32) -> String {
    format!("{LEVEL}{level}")
}

/// The words of a routing key that lead to `queue`, and to no other: its name,
/// or a fingerprint where the name is too long or would be a pattern.
fn home(queue: &str) -> String {
    if queue.len() <= LONGEST_NAME && !queue.contains(['*', '#']) {
        return format!("{queue}.{PARKED}");
    }
    // FNV-1a, the same in every version of this library.
    let mark = queue.bytes().fold(
        0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128,
        |mark, byte| (mark ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b),
    );
    format!("{mark:032x}.{PARKED}")
}

/// The levels that a delay of so many seconds may pass, lowest first.
fn levels(seconds: u32) -> Range<u32> {
    0..u32::BITS - seconds.leading_zeros()
}

/// The binary digits, highest first, each followed by a point.
fn digits(seconds: u32) -> String {
    (0..LEVELS)
        .rev()
        .flat_map(|level| [if seconds >> level & 1 == 1 { '1' } else { '0' }, '.'])
        .collect()
}

/// A pattern for any `count` words before others.
fn any(count: u32) -> String {
    "*.".repeat(count as usize)
}

fn without_digits(routing_key: &str) -> Option<&str> {
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
    fn five_seconds_are_101() {
        assert_eq!(
            digits(5),
            "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.1."
        );
    }

    #[test]
    fn delays_are_rounded_up_to_tenths() {
        for (milliseconds, seconds, tenths, exchange) in [
            (1, 0, "f1", DELIVERY),
            (100, 0, "f1", DELIVERY),
            (950, 1, "f0", "celery_delayed_0"),
            (5_010, 5, "f1", "celery_delayed_2"),
        ] {
            let way = park("q.high", Duration::from_millis(milliseconds));
            assert_eq!(way.exchange, exchange, "{milliseconds}");
            let expected = format!("{}q.high.celery_parked.{tenths}", digits(seconds));
            assert_eq!(way.routing_key, expected);
            assert!(is_parked_for("q.high", &way.routing_key));
            assert!(!is_parked_for("high", &way.routing_key));
        }
    }

    #[test]
    fn a_delay_of_centuries_is_eight_years() {
        let way = park("q", Duration::from_secs(u64::MAX));
        assert!(way.routing_key.starts_with(&"1.".repeat(28)), "{way:?}");
    }

    #[test]
    fn names_that_are_long_or_patterns_have_a_fingerprint() {
        for name in ["q".repeat(255), "jobs.*".to_owned(), "#".to_owned()] {
            let way = park(&name, Duration::from_secs(1));
            assert!(is_parked_for(&name, &way.routing_key), "{name}");
            let has_pattern = way.routing_key.contains(['*', '#']);
            assert!(!has_pattern && way.routing_key.len() < 255, "{way:?}");
        }
        assert_ne!(home("jobs.*"), home("jobs.#"));
    }

    #[test]
    fn other_routing_keys_are_left_alone() {
        for key in ["celery", "a.celery_parked.f0", "", "0.1.0"] {
            assert!(!is_parked_for("a", key), "{key}");
        }
        let delayed = format!("{}feed.import", digits(7));
        for exchange in [DELIVERY, "celery_delayed_0"] {
            assert_eq!(undelayed(exchange, &delayed), Some("feed.import"));
        }
        assert_eq!(undelayed("feeds", &delayed), None);
    }

    #[test]
    fn celerys_detour_is_for_topic_exchanges_of_quorum_queues() {
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
            native(&publication, now)
        };
        let topic = Queue::new("q")
            .bound_to(Exchange::topic("feeds"), "feed")
            .quorum();
        let way = sent(topic.clone(), "feeds", 5_900).unwrap();
        assert_eq!(way.routing_key, format!("{}feed", digits(5)));
        assert_eq!(way.exchange, "celery_delayed_27");
        assert_eq!(sent(topic, "feeds", 900), None);
        assert_eq!(sent(Queue::new("q").quorum(), "", 5_000), None);
        let classic = Queue::new("q").bound_to(Exchange::topic("feeds"), "feed");
        assert_eq!(sent(classic, "feeds", 5_000), None);
    }
}
