//! What a refusal of RabbitMQ means: the only place that compares its texts.

use celery_runtime::ServiceErrorKind::{self, Denied, Disconnected, Invalid, Unsupported};

use self::When::{Always, First, Later};

/// A reason for which RabbitMQ closes a channel or connection.
#[derive(Debug)]
pub(super) struct Refusal {
    /// AMQP's reply codes; none means every code.
    codes: &'static [u16],
    /// Part of the server's text; empty for every text.
    text: &'static str,
    when: When,
    pub(super) kind: ServiceErrorKind,
    /// Empty for the remedy of the kind.
    pub(super) remedy: &'static str,
}

/// The stage of the client in which a row applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// Until the client has connected, or declared the object, for the first time: a wrong setting
    /// is likely.
    First,
    /// After that: the object existed and may exist again soon.
    Later,
}

/// A connection is refused for now while the limit is reached.
const CONNECTION_LIMIT: &str = "raise the limit of connections (`rabbitmqctl set_vhost_limits`, \
    `rabbitmqctl set_user_limits`, connection_max), or close other connections";

const CHANNEL_LIMIT: &str = "a worker needs 4 channels: raise the limit of channels \
    (`rabbitmqctl set_user_limits`, channel_max, channel_max_per_node)";

const VHOST_DOWN: &str = "RabbitMQ starts or has stopped the virtual host: see its log, \
    `rabbitmqctl restart_vhost` starts it";

const VHOST_UNKNOWN: &str =
    "check the virtual host in the URL; `rabbitmqctl add_vhost` creates one";

const VHOST_DENIED: &str =
    "`rabbitmqctl set_permissions` gives the user access to the virtual host";

const QUEUE_DOWN: &str = "the node of this queue is down or starts; a quorum queue \
    (task_default_queue_type) is available while most of its nodes are";

const DELETED: &str = "it was deleted while it was in use; the next declaration creates it again";

const EXCLUSIVE_CONSUMER: &str = "another consumer uses the queue exclusively: stop it, or wait \
    until it ends";

const EXCLUSIVE_QUEUE: &str = "another connection consumes this mailbox: RabbitMQ releases it \
    when it detects that a lost connection is dead; if the error persists, another worker runs \
    under this name";

const SINGLE_ACTIVE_CONSUMER: &str = "a quorum queue with x-single-active-consumer needs a \
    consumer with a prefetch: do not set worker_disable_prefetch";

const CONSUMER_TIMEOUT: &str = "a task ran for longer than RabbitMQ's consumer_timeout before it \
    was acknowledged: raise consumer_timeout, or do not acknowledge this task late (RabbitMQ 3.x \
    to 4.2; from 4.3 on the timeout does not apply to classic queues)";

const INEQUIVALENT: &str = "make the settings agree (task_queues, task_queue_max_priority, \
    task_default_queue_type), or delete the existing queue or exchange";

const QUEUE_LIMIT: &str =
    "raise the limit of queues (`rabbitmqctl set_vhost_limits`), or delete unused queues";

const MESSAGE_SIZE: &str =
    "raise max_message_size of RabbitMQ, or keep large values outside of messages";

const STREAM: &str = "a stream cannot be a queue of tasks: delete it, or use another queue";

/// The reply codes of a queue that is not available for now.
const UNAVAILABLE: &[u16] = &[404, 504, 541, 320];

/// The first matching row applies; the last one matches every refusal. A server that closes for a
/// reason of its own may be available again soon; a request that it rejects will be rejected
/// again.
#[rustfmt::skip] // One line for each row.
static REFUSALS: &[Refusal] = &[
    row(&[530], "connection limit (", Always, Disconnected, CONNECTION_LIMIT),
    row(&[530, 541], "connection limit cannot be queried", Always, Disconnected, ""),
    row(&[530, 506], "number of channels opened", Always, Disconnected, CHANNEL_LIMIT),
    row(UNAVAILABLE, "process is stopped", Always, Disconnected, QUEUE_DOWN),
    row(UNAVAILABLE, "is down or inaccessible", Always, Disconnected, QUEUE_DOWN),
    row(UNAVAILABLE, "due to timeout", Always, Disconnected, QUEUE_DOWN),
    row(UNAVAILABLE, "may be stopping or being demoted", Always, Disconnected, QUEUE_DOWN),
    row(UNAVAILABLE, "has crashed and failed to restart", Always, Disconnected, QUEUE_DOWN),
    row(&[541, 530], "' is down", Always, Disconnected, VHOST_DOWN),
    row(&[530], "NOT_ALLOWED - vhost ", First, Invalid, VHOST_UNKNOWN),
    row(&[530], "NOT_ALLOWED - vhost ", Later, Disconnected, VHOST_UNKNOWN),
    row(&[530], "NOT_ALLOWED - access to vhost ", First, Denied, VHOST_DENIED),
    row(&[530], "NOT_ALLOWED - access to vhost ", Later, Disconnected, VHOST_DENIED),
    row(&[404], "no queue '", Later, Disconnected, DELETED),
    row(&[404], "no exchange '", Later, Disconnected, DELETED),
    row(&[403], "in exclusive use", Always, Disconnected, EXCLUSIVE_CONSUMER),
    // The connection that locks the queue may be a lost one of this client.
    row(&[405], "exclusive access to locked queue", Always, Disconnected, EXCLUSIVE_QUEUE),
    row(&[405], "with single active consumer", Always, Invalid, SINGLE_ACTIVE_CONSUMER),
    row(&[406], "delivery acknowledgement on channel", Always, Disconnected, CONSUMER_TIMEOUT),
    row(&[406], INEQUIVALENT_ARG, Always, Invalid, INEQUIVALENT),
    row(&[406], ": queue limit in ", Always, Disconnected, QUEUE_LIMIT),
    row(&[406], "is larger than ", Always, Invalid, MESSAGE_SIZE),
    row(&[406], "consumer prefetch count is not set for ", Always, Unsupported, STREAM),
    row(&[540], "not supported by stream", Always, Unsupported, STREAM),
    row(&[403], "", Always, Denied, ""),
    row(&[402, 404, 405, 406, 530], "", Always, Invalid, ""),
    row(&[540], "", Always, Unsupported, ""),
    row(&[], "", Always, Disconnected, ""),
];

const fn row(
    codes: &'static [u16],
    text: &'static str,
    when: When,
    kind: ServiceErrorKind,
    remedy: &'static str,
) -> Refusal {
    Refusal {
        codes,
        text,
        when,
        kind,
        remedy,
    }
}

/// Returns the row of a refusal. `connected` says whether the client has connected, or declared
/// the object, before.
pub(super) fn find(code: u16, text: &str, connected: bool) -> &'static Refusal {
    let stage = if connected { Later } else { First };
    let applies = |row: &&Refusal| {
        (row.codes.is_empty() || row.codes.contains(&code))
            && (row.when == Always || row.when == stage)
            && text.contains(row.text)
    };
    let last = &REFUSALS[REFUSALS.len() - 1];
    REFUSALS.iter().find(applies).unwrap_or(last)
}

/// Part of the text when a declaration differs from the existing object.
const INEQUIVALENT_ARG: &str = "inequivalent arg '";

/// Reports whether the exchange of a message or binding does not exist.
pub(super) fn is_missing_exchange(code: u16, text: &str) -> bool {
    code == 404 && text.contains("no exchange '")
}

/// The messages that a refusal is about. Others of the same channel are not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedMessage<'a> {
    /// Those for this exchange; empty for the default exchange.
    OfExchange(&'a str),
    /// Those with a larger body than so many bytes.
    LargerThan(usize),
}

impl RefusedMessage<'_> {
    /// Reports whether a message for this exchange and with a body of so many bytes is one of
    /// them.
    pub(crate) fn includes(self, exchange: &str, size: usize) -> bool {
        match self {
            Self::OfExchange(refused) => exchange == refused,
            Self::LargerThan(limit) => size > limit,
        }
    }
}

/// Returns the messages that a refusal is about, if its text tells.
pub(super) fn refused_message(text: &str) -> Option<RefusedMessage<'_>> {
    if let Some((_, text)) = text.split_once("exchange '") {
        let (exchange, _) = text.split_once('\'')?;
        return Some(RefusedMessage::OfExchange(match exchange {
            "amq.default" => "",
            exchange => exchange,
        }));
    }
    let (_, limit) = text.split_once(" is larger than ")?;
    let limit = limit.rsplit(' ').next()?;
    limit.parse().ok().map(RefusedMessage::LargerThan)
}

/// Reports whether the queue or exchange does not exist: a queue that is not available for now has
/// the same reply code.
pub(super) fn is_missing(code: u16, text: &str) -> bool {
    is_missing_exchange(code, text) || (code == 404 && text.contains("no queue '"))
}

/// Returns the difference between a declaration and the existing object, for example `it exists
/// with x-max-priority 10, and not none`.
pub(super) fn inequivalent_argument(text: &str) -> Option<String> {
    let (_, text) = text.split_once(INEQUIVALENT_ARG)?;
    let (argument, text) = text.split_once('\'')?;
    let (_, text) = text.split_once(": received ")?;
    let (declared, existing) = text.split_once(" but current is ")?;
    Some(format!(
        "it exists with {argument} {}, and not {}",
        argument_value(existing),
        argument_value(declared)
    ))
}

/// Extracts the value from `the value '10' of type 'signedint'`, `none` or `'true'`.
fn argument_value(text: &str) -> &str {
    text.split('\'').nth(1).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts of RabbitMQ 3.10 and 4.0 with the kinds at both stages and part of the remedy.
    const TEXTS: &[(u16, &str, ServiceErrorKind, ServiceErrorKind, &str)] = &[
        (
            530,
            "NOT_ALLOWED - access to vhost 't0' refused for user 'guest': connection limit (0) is \
             reached",
            Disconnected,
            Disconnected,
            "set_vhost_limits",
        ),
        (
            530,
            "NOT_ALLOWED - connection refused for user 'u': user connection limit (0) is reached",
            Disconnected,
            Disconnected,
            "set_user_limits",
        ),
        (
            530,
            "NOT_ALLOWED - connection refused: node connection limit (1) is reached",
            Disconnected,
            Disconnected,
            "connection_max",
        ),
        (
            530,
            "NOT_ALLOWED - access to vhost 't0' refused for user 'u': connection limit cannot be \
             queried, timeout",
            Disconnected,
            Disconnected,
            "",
        ),
        (
            530,
            "NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed \
             user limit of (1)",
            Disconnected,
            Disconnected,
            "4 channels",
        ),
        (
            530,
            "NOT_ALLOWED - number of channels opened on node 'rabbit@a' has reached the maximum \
             allowed limit of (1)",
            Disconnected,
            Disconnected,
            "channel_max_per_node",
        ),
        (
            530,
            "NOT_ALLOWED - number of channels opened (8) has reached the negotiated channel_max (8)",
            Disconnected,
            Disconnected,
            "4 channels",
        ),
        (
            541,
            "INTERNAL_ERROR - access to vhost 't0' refused for user 'guest': vhost 't0' is down",
            Disconnected,
            Disconnected,
            "restart_vhost",
        ),
        (
            530,
            "NOT_ALLOWED - vhost t1 not found",
            Invalid,
            Disconnected,
            "add_vhost",
        ),
        (
            530,
            "NOT_ALLOWED - access to vhost 't0' refused for user 'u'",
            Denied,
            Disconnected,
            "set_permissions",
        ),
        (
            404,
            "NOT_FOUND - queue 'q' in vhost 't0' process is stopped by supervisor",
            Disconnected,
            Disconnected,
            "node of this queue",
        ),
        (
            404,
            "NOT_FOUND - home node 'rabbit@a' of durable queue 'q' in vhost '/' is down or \
             inaccessible",
            Disconnected,
            Disconnected,
            "node of this queue",
        ),
        (
            404,
            "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout",
            Disconnected,
            Disconnected,
            "node of this queue",
        ),
        (
            404,
            "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/': its leader \
             <1.2.3> may be stopping or being demoted",
            Disconnected,
            Disconnected,
            "node of this queue",
        ),
        (
            404,
            "NOT_FOUND - queue 'q' in vhost '/' has crashed and failed to restart",
            Disconnected,
            Disconnected,
            "node of this queue",
        ),
        (
            404,
            "NOT_FOUND - no queue 'none' in vhost 't0'",
            Invalid,
            Disconnected,
            "",
        ),
        (
            404,
            "NOT_FOUND - no exchange 'none' in vhost 't0'",
            Invalid,
            Disconnected,
            "",
        ),
        (
            403,
            "ACCESS_REFUSED - queue 'q' in vhost 't0' in exclusive use",
            Disconnected,
            Disconnected,
            "another consumer",
        ),
        (
            403,
            "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details \
             see the broker logfile.",
            Denied,
            Denied,
            "",
        ),
        (
            405,
            "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'mine' in vhost \
             't0'. It could be originally declared on another connection or the exclusive property \
             value does not match that of the original declaration.",
            Disconnected,
            Disconnected,
            "another connection",
        ),
        (
            405,
            "RESOURCE_LOCKED - cannot obtain access to locked queue 'sac' in vhost 't0'. basic.get \
             operations are not supported by quorum queues with single active consumer",
            Invalid,
            Invalid,
            "worker_disable_prefetch",
        ),
        (
            406,
            "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value \
             used: 1800000 ms. This timeout value can be configured, see consumers doc guide to \
             learn more",
            Disconnected,
            Disconnected,
            "RabbitMQ 3.x to 4.2",
        ),
        (
            406,
            "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost 't0': \
             received 'classic' but current is 'stream'",
            Invalid,
            Invalid,
            "task_default_queue_type",
        ),
        (
            406,
            "PRECONDITION_FAILED - cannot declare queue 'more': queue limit in vhost 't0' (0) is \
             reached",
            Disconnected,
            Disconnected,
            "limit of queues",
        ),
        (
            406,
            "PRECONDITION_FAILED - message size 16777217 is larger than configured max size \
             16777216",
            Invalid,
            Invalid,
            "max_message_size",
        ),
        (
            406,
            "PRECONDITION_FAILED - consumer prefetch count is not set for 'queue 'stream' in vhost \
             't0''",
            Unsupported,
            Unsupported,
            "a stream cannot",
        ),
        (
            406,
            "PRECONDITION_FAILED - consumer prefetch count is not set for stream queue 'stream' \
             in vhost 't0'",
            Unsupported,
            Unsupported,
            "a stream cannot",
        ),
        (
            540,
            "NOT_IMPLEMENTED - basic.get not supported by stream queues queue 'stream' in vhost \
             't0'",
            Unsupported,
            Unsupported,
            "a stream cannot",
        ),
        (
            540,
            "NOT_IMPLEMENTED - automatic acknowledgement not supported by stream queue 'stream' \
             in vhost 't0'",
            Unsupported,
            Unsupported,
            "a stream cannot",
        ),
        (402, "", Invalid, Invalid, ""),
        (403, "", Denied, Denied, ""),
        (404, "", Invalid, Invalid, ""),
        (405, "", Invalid, Invalid, ""),
        (406, "", Invalid, Invalid, ""),
        (530, "", Invalid, Invalid, ""),
        (540, "", Unsupported, Unsupported, ""),
        (320, "", Disconnected, Disconnected, ""),
        (506, "", Disconnected, Disconnected, ""),
        (541, "", Disconnected, Disconnected, ""),
    ];

    #[test]
    fn refusal_has_the_kind_of_its_stage_and_a_remedy() {
        for &(code, text, first, later, remedy) in TEXTS {
            let found = find(code, text, false);
            assert_eq!(found.kind, first, "{code} {text}");
            assert!(found.remedy.contains(remedy), "{code} {text}: {found:?}");
            assert_eq!(remedy.is_empty(), found.remedy.is_empty(), "{found:?}");
            assert_eq!(find(code, text, true).kind, later, "{code} {text}");
        }
    }

    #[test]
    fn every_row_applies_to_a_text() {
        let found: Vec<_> = TEXTS
            .iter()
            .flat_map(|&(code, text, ..)| [find(code, text, false), find(code, text, true)])
            .collect();
        for row in REFUSALS {
            let is_used = found.iter().any(|found| std::ptr::eq(*found, row));
            assert!(is_used, "{row:?}");
        }
    }

    #[test]
    fn unavailable_queue_is_not_missing() {
        let missing = |text: &str| (is_missing(404, text), is_missing_exchange(404, text));
        assert_eq!(
            missing("NOT_FOUND - no queue 'q' in vhost '/'"),
            (true, false)
        );
        assert_eq!(
            missing("NOT_FOUND - no exchange 'x' in vhost '/'"),
            (true, true)
        );
        let stopped = "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor";
        assert_eq!(missing(stopped), (false, false));
    }

    #[test]
    fn refused_message_is_found_in_the_text() {
        use RefusedMessage::{LargerThan, OfExchange};
        for (text, expected) in [
            (
                "NOT_FOUND - no exchange 'x' in vhost '/'",
                Some(OfExchange("x")),
            ),
            (
                "ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused for user \
                 'u'",
                Some(OfExchange("")),
            ),
            (
                "PRECONDITION_FAILED - message size 16777217 is larger than configured max size \
                 16777216",
                Some(LargerThan(16_777_216)),
            ),
            ("NOT_FOUND - no queue 'q' in vhost '/'", None),
        ] {
            assert_eq!(refused_message(text), expected, "{text}");
        }
        assert!(OfExchange("x").includes("x", 1) && !OfExchange("x").includes("", 1));
        assert!(LargerThan(4).includes("x", 5) && !LargerThan(4).includes("x", 4));
    }

    #[test]
    fn inequivalent_argument_is_reported_with_both_values() {
        for (text, expected) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost \
                 '/': received none but current is the value '10' of type 'signedint'",
                "it exists with x-max-priority 10, and not none",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost \
                 '/': received 'classic' but current is 'stream'",
                "it exists with x-queue-type stream, and not classic",
            ),
        ] {
            assert_eq!(inequivalent_argument(text).as_deref(), Some(expected));
        }
        assert_eq!(inequivalent_argument("NOT_FOUND - no queue 'q'"), None);
    }
}
