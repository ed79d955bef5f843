//! Result documents, compressed or not.

#![no_main]

use celery_protocol::{ResultDocument, Serializer};
use libfuzzer_sys::fuzz_target;

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else {
        return;
    };
    let serializer = match first % 3 {
        0 => Serializer::Json,
        1 => Serializer::MsgPack,
        _ => Serializer::Yaml,
    };
    let Ok(document) = ResultDocument::decode(serializer, data, LIMIT) else {
        return;
    };
    if let Ok(Some(exception)) = document.exception() {
        let _ = exception.to_string();
    }
    // A value with malformed content is detected only here.
    if let Ok(written) = document.encode(serializer)
        && let Ok(again) = ResultDocument::decode(serializer, &written, usize::MAX)
    {
        assert_eq!(
            (again.status, again.task_id),
            (document.status, document.task_id)
        );
    }
});
