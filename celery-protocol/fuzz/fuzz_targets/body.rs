//! Bodies of protocol 2, and the signatures in them level by level.

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
    read_levels(&raw);
    let Ok(body) = Body::read(&raw) else { return };
    for signatures in [
        body.embed.callbacks(),
        body.embed.errbacks(),
        body.embed.chain(),
    ] {
        signatures
            .into_iter()
            .flatten()
            .for_each(|signature| read_levels(&signature.kwargs));
    }
    let (Ok(args), Ok(kwargs)) = (body.args.to_value(), body.kwargs.to_value()) else {
        return;
    };
    if let Ok(written) = encode_body(serializer, &args, &kwargs, &body.embed) {
        let raw = Raw::read(serializer, &written).expect("an encoded body is read");
        Body::read(&raw).expect("an encoded body is a body");
    }
});

/// Reads a signature and the signature in its keyword arguments, level by
/// level.
fn read_levels(raw: &Raw<'_>) {
    let mut raw = raw.clone();
    while let Ok(signature) = WireSignature::read(&raw) {
        let _ = (signature.is_compound(), signature.option("task_id"));
        raw = signature.kwargs;
    }
}
