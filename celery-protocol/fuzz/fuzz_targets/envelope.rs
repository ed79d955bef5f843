//! An envelope is decoded as in a worker, and encoded again.

#![no_main]

use bytes::Bytes;
use celery_protocol::kombu::{self, EnvelopeRoute};
use celery_protocol::{Accept, Raw, Serializer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let raw = Bytes::copy_from_slice(data);
    let Ok(message) = kombu::decode(&raw) else {
        return;
    };
    let accept = Accept::of([Serializer::Json, Serializer::MsgPack, Serializer::Yaml]);
    if let Ok(payload) = message.payload(&accept, 1 << 16)
        && let Ok((headers, body)) = payload.task()
    {
        let _ = (headers.eta_time(), headers.expires_time());
        let _ = body.arguments().map(|arguments| {
            arguments
                .positional
                .iter()
                .map(Raw::to_value)
                .filter(Result::is_ok)
                .count()
        });
        let _ = (
            body.embed.callbacks(),
            body.embed.chain(),
            body.embed.chord(),
        );
    }
    let route = EnvelopeRoute {
        exchange: &message.properties.delivery_info.exchange,
        routing_key: &message.properties.delivery_info.routing_key,
    };
    let Ok(written) = kombu::encode(&message, route, "tag") else {
        return;
    };
    let again = kombu::decode(&written.into()).expect("an encoded envelope is decoded");
    assert_eq!(again.body, message.body);
});
