//! Bodies of both protocols, and the signatures in them level by level.

#![no_main]

use celery_protocol::{Body, Raw, Serializer, WireSignature, encode_body};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let serializer = match first % 3 {
        0 => Serializer::Json,
        1 => Serializer::MsgPack,
        _ => Serializer::Yaml,
    };
    let Ok(raw) = Raw::read(serializer, data) else {
        return;
    };
    walk(&raw);
    let Ok(body) = Body::read(&raw) else { return };
    for signatures in [
        body.embed.callbacks(),
        body.embed.errbacks(),
        body.embed.chain(),
    ] {
        signatures
            .into_iter()
            .flatten()
            .for_each(|signature| walk(&signature.kwargs));
    }
    let (Ok(args), Ok(kwargs)) = (body.args.to_value(), body.kwargs.to_value()) else {
        return;
    };
    if let Ok(written) = encode_body(serializer, &args, &kwargs, &body.embed) {
        let raw = Raw::read(serializer, &written).expect("what was written is read");
        Body::read(&raw).expect("what was written is a body");
    }
});

/// Follows the first signature of each level down.
fn walk(raw: &Raw<'_>) {
    let mut raw = raw.clone();
    while let Ok(signature) = WireSignature::read(&raw) {
        let _ = (signature.is_compound(), signature.option("task_id"));
        raw = signature.kwargs;
    }
}
