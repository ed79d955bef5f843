//! Entries of the hash `unacked`: `[envelope, exchange, routing_key]` in JSON.

use bytes::Bytes;
use celery_protocol::{Message, Raw, Serializer, kombu};
use celery_runtime::env;

/// An entry written by this crate or by kombu.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnackedEntry {
    /// The message as it was in the queue, or as kombu encoded it again.
    pub(crate) envelope: Bytes,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
}

impl UnackedEntry {
    /// Parses an entry; returns `None` if it is malformed.
    pub(crate) fn parse(entry: &Bytes) -> Option<Self> {
        let elements = Raw::read(Serializer::Json, entry).ok()?.elements().ok()?;
        let [envelope, exchange, routing_key] = elements.as_slice() else {
            return None;
        };
        let envelope = envelope.as_json()?;
        envelope.trim_ascii_start().starts_with('{').then_some(())?;
        Some(Self {
            envelope: entry.slice_ref(envelope.as_bytes()),
            exchange: text(exchange)?,
            routing_key: text(routing_key)?,
        })
    }

    /// Returns the text after the envelope in entries of messages from `queue`:
    /// the anonymous exchange and the name of the queue, so that a restore
    /// finds the queue without any binding.
    pub(crate) fn suffix(queue: &str) -> String {
        let queue = serde_json::Value::from(queue);
        format!(",\"\",{queue}]")
    }
}

/// Decodes a text. Null stands for the anonymous exchange.
fn text(value: &Raw<'_>) -> Option<String> {
    value
        .decode::<Option<String>>()
        .ok()
        .map(Option::unwrap_or_default)
}

/// An envelope to push back to a queue.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RequeuedEnvelope {
    pub(crate) envelope: Bytes,
    pub(crate) priority: Option<u8>,
}

impl RequeuedEnvelope {
    /// Returns the envelope with both of kombu's redelivered flags set. An
    /// envelope that cannot be decoded or encoded again stays unchanged.
    pub(crate) fn redelivered(envelope: &Bytes) -> Self {
        let flagged = kombu::decode(envelope).ok().and_then(Self::flagged);
        flagged.unwrap_or_else(|| Self::unchanged(envelope))
    }

    /// Returns the envelope of a message from `queue` with both flags set; `None` if it
    /// cannot be encoded.
    pub(crate) fn of_message(message: &Message, queue: &str) -> Option<Self> {
        let mut message = message.clone();
        let info = &mut message.properties.delivery_info;
        if info.exchange.is_empty() && info.routing_key.is_empty() {
            queue.clone_into(&mut info.routing_key);
        }
        Self::flagged(message)
    }

    fn flagged(mut message: Message) -> Option<Self> {
        message.properties.delivery_info.redelivered = true;
        message.headers.set("redelivered", true.into()).ok()?;
        Some(Self {
            envelope: encode_again(&message)?,
            priority: message.properties.priority,
        })
    }

    /// Returns the envelope as it is.
    pub(crate) fn unchanged(envelope: &Bytes) -> Self {
        let message = kombu::decode(envelope).ok();
        Self {
            envelope: envelope.clone(),
            priority: message.and_then(|message| message.properties.priority),
        }
    }
}

/// Encodes a message as the envelope it came from.
fn encode_again(message: &Message) -> Option<Bytes> {
    let properties = &message.properties;
    let route = kombu::EnvelopeRoute {
        exchange: &properties.delivery_info.exchange,
        routing_key: &properties.delivery_info.routing_key,
    };
    let own;
    let tag = match &properties.delivery_tag {
        Some(tag) => tag,
        None => {
            own = env::uuid();
            &own
        }
    };
    kombu::encode(message, route, tag).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENVELOPE: &str = r#"{"body": "W10=", "content-encoding": "utf-8",
        "content-type": "application/json", "headers": {"id": "i", "task": "t", "n": 1e400},
        "properties": {"body_encoding": "base64", "priority": 4, "delivery_tag": "tag",
        "delivery_info": {"exchange": "e", "routing_key": "k"}, "other": [1]}}"#;

    fn bytes(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    #[test]
    fn entries_of_kombu_and_of_this_crate_are_parsed() {
        let ours = bytes(&format!("[{ENVELOPE}{}", UnackedEntry::suffix("a\"b\x06")));
        let entry = UnackedEntry::parse(&ours).unwrap();
        assert_eq!(entry.routing_key, "a\"b\x06");
        assert_eq!(entry.envelope, ENVELOPE);
        let kombus = bytes(r#"[{"body": ""}, "celery", "celery"]"#);
        assert_eq!(UnackedEntry::parse(&kombus).unwrap().exchange, "celery");
        assert_eq!(
            UnackedEntry::parse(&bytes(r#"[{}, null, "q"]"#))
                .unwrap()
                .exchange,
            ""
        );
    }

    #[test]
    fn malformed_entries_are_rejected() {
        for text in [
            "",
            "garbage",
            "{}",
            "[]",
            "[1,2,3]",
            r#"[{},"e"]"#,
            r#"[{},"e",5]"#,
        ] {
            assert_eq!(UnackedEntry::parse(&bytes(text)), None, "{text}");
        }
        assert_eq!(
            UnackedEntry::parse(&Bytes::from_static(b"[{},\"\xff\",\"\"]")),
            None
        );
    }

    #[test]
    fn redelivered_sets_both_flags_and_keeps_the_rest() {
        let returned = RequeuedEnvelope::redelivered(&bytes(ENVELOPE));
        assert_eq!(returned.priority, Some(4));
        let message = kombu::decode(&returned.envelope).unwrap();
        assert!(message.properties.delivery_info.redelivered);
        let flag = message.headers.find("redelivered").unwrap().unwrap();
        assert_eq!(flag.as_json(), Some("true"));
        let before = kombu::decode(&bytes(ENVELOPE)).unwrap();
        assert_eq!(message.body, before.body);
        assert_eq!(
            message.properties.delivery_tag,
            before.properties.delivery_tag
        );
        assert_eq!(message.properties.extra, before.properties.extra);
        assert_eq!(message.properties.delivery_info.exchange, "e");
    }

    #[test]
    fn undecodable_envelope_stays_unchanged() {
        let returned = RequeuedEnvelope::redelivered(&bytes("{\"no\": \"body\"}"));
        assert_eq!(returned.envelope, "{\"no\": \"body\"}");
        assert_eq!(returned.priority, None);
    }
}
