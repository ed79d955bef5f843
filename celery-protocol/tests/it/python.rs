//! Python (kombu and Celery) reads what this crate encodes.

use std::env;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use celery_protocol::{
    Accept, Compression, Embed, Exception, Message, Raw, ResultDocument, Serializer, State,
    TaskHeaders, Value, WireSignature, compress_document, encode_body, v1,
};
use serde_json::{Value as Json, json};

use crate::fixtures::{ALL, LIMIT, fixtures, is_compiled_out, rebuilt, written_envelope};
use crate::tagged::{tag, value};

#[test]
#[ignore = "needs Python Celery; run cargo xtask test"]
fn python_reads_encoded_messages() {
    let python =
        env::var_os("CELERY_TEST_PYTHON").expect("CELERY_TEST_PYTHON names the interpreter");
    let mut cases = recorded_messages();
    cases.extend(recorded_results());
    cases.extend(new_messages());
    cases.extend(new_results());
    assert!(cases.len() > 120, "only {} cases", cases.len());

    let file = env::temp_dir().join(format!("celery-protocol-cases-{}.json", std::process::id()));
    serde_json::to_writer(File::create(&file).unwrap(), &cases).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../xtask/python/verify.py");
    let run = Command::new(python)
        .arg(script)
        .arg(&file)
        .output()
        .expect("Python runs");
    std::fs::remove_file(&file).unwrap();
    let output = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success(),
        "{output}{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

/// Two cases per recorded message: the decoded message encoded again, and a
/// message built from its decoded values.
fn recorded_messages() -> Vec<Json> {
    let mut cases = Vec::new();
    for fixture in fixtures(&["envelope"]) {
        let message = fixture.message();
        let mut expect = fixture.json["expect"].clone();
        // The encoder writes these even if another producer omitted them,
        // because kombu requires them.
        expect["properties"]["priority"] = json!(message.properties.priority.unwrap_or(0));
        expect["properties"]["delivery_mode"] =
            json!(message.properties.delivery_mode.unwrap_or(2));
        cases.push(case(
            &format!("{} encoded again", fixture.name),
            &message,
            &expect,
        ));

        if is_compiled_out(&message) {
            continue;
        }
        let Ok(payload) = message.payload(&Accept::of(ALL), LIMIT) else {
            continue;
        };
        let Ok((headers, body)) = payload.task() else {
            continue;
        };
        if fixture.name.starts_with("foreign-") || fixture.name.ends_with("surrogate") {
            continue;
        }
        let again = rebuilt(&fixture, &headers, &body);
        cases.push(case(&format!("{} rebuilt", fixture.name), &again, &expect));
    }
    cases
}

fn case(name: &str, message: &Message, expect: &Json) -> Json {
    let envelope = written_envelope(message);
    let envelope = std::str::from_utf8(&envelope).expect("an envelope is a text");
    json!({"name": name, "envelope": envelope, "expect": expect})
}

fn recorded_results() -> Vec<Json> {
    let mut cases = Vec::new();
    for fixture in fixtures(&["serializer"]) {
        let bytes = fixture.document();
        let Ok(document) = ResultDocument::decode(fixture.serializer(), &bytes, LIMIT) else {
            continue;
        };
        let again = document.encode(fixture.serializer()).unwrap();
        let expect = fixture.json["expect"].clone();
        cases.push(result_case(
            &fixture.name,
            fixture.serializer(),
            &again,
            &expect,
        ));
    }
    cases
}

fn result_case(name: &str, serializer: Serializer, bytes: &[u8], expect: &Json) -> Json {
    json!({
        "name": name,
        "serializer": serializer.name(),
        "document_base64": BASE64.encode(bytes),
        "expect": expect,
    })
}

/// Values that every serializer represents without loss.
fn arguments() -> Value {
    value(&json!([
        null, true, 0, -1, i64::MIN, u64::MAX,
        {"$": "float", "text": "0.1"}, {"$": "float", "text": "1e300"},
        {"$": "float", "text": "1e16"}, {"$": "float", "text": "-0.0"},
        {"$": "float", "text": "5e-324"}, {"$": "float", "text": "inf"},
        {"$": "float", "text": "NaN"},
        "", "é ✓ 日本語 👍", "quote \" slash / backslash \\ tab \t line \n nul \u{0} del \u{7f}",
        "\u{85}\u{2028}\u{feff}", "yes", "null", "~", "1", "1.5", "2030-01-02", "a: b", "- a", "#",
        "{", "!", " lead", "trail ", {"$": "bytes", "hex": "ff00"}, {"$": "bytes", "hex": ""},
        [], [[], [[]]], {}, {"a": {"b": []}, "": 1, "key with: colon": 2},
    ]))
    .expect("values without surrogates")
}

fn new_messages() -> Vec<Json> {
    let mut cases = Vec::new();
    let enabled = ALL
        .into_iter()
        .filter(|serializer| serializer.encode(&()).is_ok());
    for serializer in enabled {
        for compression in std::iter::once(None).chain(Compression::all().map(Some)) {
            let name = format!("new {} {compression:?}", serializer.name());
            let Some(message) = compressed(task(serializer), compression) else {
                continue;
            };
            let expect = json!({
                "protocol": 2, "args": tag(&arguments()), "kwargs": tag(&keywords()),
                "headers": {"lang": "rust", "task": "tasks.add", "id": "id-1", "retries": 2},
                "embed": {"callbacks": [plain("tasks.mul")], "errbacks": null, "chain": null,
                          "chord": plain("tasks.xsum")},
            });
            let mut new = case(&name, &message, &expect);
            new["at_least"] = json!(["headers"]);
            cases.push(new);
        }
        cases.push(new_v1(serializer));
    }
    cases
}

fn task(serializer: Serializer) -> Message {
    let mut headers = TaskHeaders::new("tasks.add", "id-1");
    headers.retries = 2;
    let embed = Embed {
        callbacks: Some(Raw::encode(Serializer::Json, &[WireSignature::new("tasks.mul")]).unwrap()),
        chord: Some(Raw::encode(Serializer::Json, &WireSignature::new("tasks.xsum")).unwrap()),
        ..Embed::default()
    };
    let body = encode_body(serializer, &arguments(), &keywords(), &embed).unwrap();
    Message::task(headers, serializer, body)
}

/// Compresses the body, or returns `None` if the feature of the compression is
/// off.
fn compressed(mut message: Message, compression: Option<Compression>) -> Option<Message> {
    match compression {
        Some(compression) => message.compress(compression).ok().map(|()| message),
        None => Some(message),
    }
}

fn new_v1(serializer: Serializer) -> Json {
    let mut headers = TaskHeaders::new("tasks.add", "id-1");
    headers.timelimit.hard = Some(30.0);
    let embed = Embed::default();
    let body = v1::encode_body(
        serializer,
        &headers,
        &arguments(),
        &keywords(),
        &embed,
        true,
    )
    .unwrap();
    let mut message = task(serializer);
    message.headers = celery_protocol::Headers::empty();
    message.body = body.into();
    let expect = json!({
        "protocol": 1, "args": tag(&arguments()), "kwargs": tag(&keywords()),
        "task": {"task": "tasks.add", "id": "id-1", "timelimit": [30, null], "utc": true, "taskset": null},
    });
    let mut new = case(&format!("new v1 {}", serializer.name()), &message, &expect);
    new["at_least"] = json!(["task"]);
    new
}

fn keywords() -> Value {
    value(&json!({"y": 3, "schlüssel": "wert"})).expect("plain values")
}

fn plain(task: &str) -> Json {
    json!({"task": task, "args": [], "kwargs": {}, "options": {}, "subtask_type": null, "immutable": false})
}

fn new_results() -> Vec<Json> {
    let enabled = ALL
        .into_iter()
        .filter(|serializer| serializer.encode(&()).is_ok());
    let mut cases = Vec::new();
    for serializer in enabled {
        let exception = Exception::new("builtins", "ValueError", "boom");
        let result = Raw::encode(serializer, &exception).unwrap();
        let failed = ResultDocument::new("id-1", State::Failure, result)
            .encode(serializer)
            .unwrap();
        let expect = json!({"exception": "ValueError"});
        let name = format!("new failure {}", serializer.name());
        cases.push(result_case(&name, serializer, &failed, &expect));

        let result = Raw::from_value(arguments());
        let document = ResultDocument::new("id-1", State::Success, result)
            .encode(serializer)
            .unwrap();
        let expect = json!({"document": {
            "status": "SUCCESS", "result": tag(&arguments()), "traceback": null, "children": null,
            "date_done": null, "task_id": "id-1",
        }});
        let name = format!("new success {}", serializer.name());
        cases.push(result_case(&name, serializer, &document, &expect));
        for compression in Compression::all() {
            let Ok(stored) = compress_document(compression, &document) else {
                continue;
            };
            let name = format!("{name} {compression:?}");
            cases.push(result_case(&name, serializer, &stored, &expect));
        }
    }
    cases
}
