//! Headers as JSON text.

#![no_main]

use bytes::Bytes;
use celery_protocol::{Headers, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(mut headers) = Headers::from_json(Bytes::copy_from_slice(data)) else {
        return;
    };
    let _ = headers.find("compression");
    if let Ok(Some(task)) = headers.task() {
        let _ = (task.eta_time(), task.expires_time());
        let task = task.into_owned();
        let sent = Headers::from_task(task.clone());
        let mut text = Vec::new();
        // An extra header with malformed content is detected only here.
        if sent.write_json(&mut text).is_ok()
            && let Ok(read) = Headers::from_json(text.into())
            && let Ok(Some(again)) = read.task()
        {
            assert_eq!(
                (again.task, again.id, again.retries),
                (task.task, task.id, task.retries)
            );
        }
    }
    if headers.set("redelivered", Value::Bool(true)).is_ok() {
        let found = headers
            .find("redelivered")
            .expect("headers that could be set");
        assert_eq!(found.map(|raw| raw.decode::<bool>()), Some(Ok(true)));
    }
});
