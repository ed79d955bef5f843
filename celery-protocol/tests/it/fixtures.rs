//! Messages recorded from Python Celery: each is decoded, compared field by
//! field with what Python reads, encoded again and decoded to equal values.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use celery_protocol::kombu::{self, EnvelopeRoute};
use celery_protocol::{
    Accept, Body, Compression, DecodeError, DecodeErrorKind, DeliveryInfo, Embed, Headers, Message,
    Properties, Raw, Serializer, TaskHeaders, Value, WireSignature, encode_body, v1,
};
use serde_json::Value as Json;

use crate::tagged::{sorted, value};

/// A limit above the decompressed size of every recorded body.
pub(crate) const LIMIT: usize = 1 << 20;

pub(crate) const ALL: [Serializer; 3] = [Serializer::Json, Serializer::MsgPack, Serializer::Yaml];

/// One recorded file.
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) json: Json,
}

/// The recorded files that have all of the given entries, in order of name.
pub(crate) fn fixtures(entries: &[&str]) -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let files = fs::read_dir(&folder).expect("the fixtures directory");
    let mut found: Vec<Fixture> = files
        .map(|file| file.expect("a file in the directory").path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .map(|path| Fixture {
            name: path
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned(),
            json: serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON"),
        })
        .filter(|fixture| {
            entries
                .iter()
                .all(|entry| fixture.json.get(entry).is_some())
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

impl Fixture {
    pub(crate) fn expect(&self, part: &str) -> &Json {
        &self.json["expect"][part]
    }

    /// The message that was recorded, over Redis or over AMQP.
    pub(crate) fn message(&self) -> Message {
        match self.json["envelope"].as_str() {
            Some(envelope) => kombu::decode(&Bytes::copy_from_slice(envelope.as_bytes()))
                .unwrap_or_else(|error| panic!("{}: {error}", self.name)),
            None => self.amqp_message(),
        }
    }

    fn amqp_message(&self) -> Message {
        let given = &self.json["properties"];
        let text = |name: &str| given[name].as_str().map(str::to_owned);
        let mut properties = Properties::default();
        properties.content_type = text("content_type").expect("a content type").into();
        properties.content_encoding = text("content_encoding").expect("an encoding").into();
        properties.correlation_id = text("correlation_id");
        properties.reply_to = text("reply_to");
        properties.expiration = text("expiration");
        properties.priority = given["priority"].as_u64().map(|n| n as u8);
        properties.delivery_info =
            DeliveryInfo::new("", self.json["routing_key"].as_str().unwrap());
        let Some(Value::Map(headers)) = value(&self.json["headers"]) else {
            panic!("{}: headers are a mapping", self.name);
        };
        let body = BASE64
            .decode(self.json["body_base64"].as_str().unwrap())
            .unwrap();
        Message::new(Headers::from_map(headers), properties, body)
    }

    /// The headers that Python read; protocol 1 has them in its body.
    pub(crate) fn task(&self) -> &Json {
        let body = self.expect("task");
        if !body.is_null() {
            return body;
        }
        let headers = self.expect("headers");
        if !headers.is_null() {
            return headers;
        }
        &self.json["headers"]
    }

    /// Whether the message contains a text with lone surrogates, which Rust
    /// cannot represent.
    fn has_surrogates(&self) -> bool {
        self.name.ends_with("lone-surrogate")
    }
}

fn messages() -> Vec<Fixture> {
    let mut found = fixtures(&["envelope"]);
    found.extend(fixtures(&["body_base64"]));
    assert!(found.len() > 70, "only {} fixtures found", found.len());
    found
}

/// Whether an error reports that the feature of a serializer or compression is
/// off.
pub(crate) fn is_feature_off(error: &DecodeError) -> bool {
    matches!(error.kind(), DecodeErrorKind::FeatureOff { .. })
}

/// Whether the feature of the message's serializer is off.
pub(crate) fn is_compiled_out(message: &Message) -> bool {
    let serializer = Serializer::from_content_type(&message.properties.content_type);
    serializer.is_some_and(|serializer| serializer.encode(&()).is_err())
}

/// Runs `check` on the task of every recorded message that can be decoded.
fn each_task(check: impl Fn(&Fixture, TaskHeaders<'_>, Body<'_>)) {
    for fixture in messages() {
        let message = fixture.message();
        if is_compiled_out(&message) {
            continue;
        }
        let payload = message.payload(&Accept::of(ALL), LIMIT);
        let read = match &payload {
            Ok(payload) => payload.task(),
            Err(error) => Err(error.clone()),
        };
        match read {
            Ok((headers, body)) => check(&fixture, headers, body),
            Err(error) if is_feature_off(&error) => {}
            Err(error) if error.is_refused() => {
                assert_eq!(fixture.expect("refused").as_str(), error.content_type());
            }
            Err(error) => panic!("{}: {error}", fixture.name),
        }
    }
}

#[test]
fn decoded_properties_equal_python() {
    for fixture in fixtures(&["envelope"]) {
        let properties = fixture.message().properties;
        let info = &properties.delivery_info;
        let found = [
            ("content_type", Value::from(&*properties.content_type)),
            (
                "content_encoding",
                Value::from(&*properties.content_encoding),
            ),
            ("correlation_id", properties.correlation_id.clone().into()),
            ("reply_to", properties.reply_to.clone().into()),
            (
                "delivery_mode",
                properties.delivery_mode.map(i64::from).into(),
            ),
            ("priority", properties.priority.map(i64::from).into()),
            ("expiration", properties.expiration.clone().into()),
            ("delivery_tag", properties.delivery_tag.clone().into()),
            ("exchange", info.exchange.clone().into()),
            ("routing_key", info.routing_key.clone().into()),
            ("redelivered", Value::Bool(info.redelivered)),
        ];
        for (name, found) in found {
            let expected = value(&fixture.expect("properties")[name]).unwrap();
            assert_eq!(found, expected, "{}: {name}", fixture.name);
        }
    }
}

#[test]
fn decoded_headers_equal_python() {
    for fixture in fixtures(&["envelope"]) {
        let headers = fixture.message().headers.to_map();
        let Some(expected) = value(fixture.expect("headers")) else {
            assert!(fixture.has_surrogates() && headers.is_err());
            continue;
        };
        let headers = headers.unwrap();
        assert_eq!(
            sorted(Value::Map(headers)),
            sorted(expected),
            "{}",
            fixture.name
        );
    }
}

#[test]
fn decoded_task_fields_equal_python() {
    each_task(|fixture, headers, _| check_task(fixture, &headers));
}

#[test]
fn decoded_arguments_equal_python() {
    each_task(|fixture, _, body| {
        let arguments = body.arguments().unwrap();
        let args: Result<Vec<Value>, _> = arguments.positional.iter().map(Raw::to_value).collect();
        if fixture.has_surrogates() {
            let error = args.expect_err("a lone surrogate was read");
            assert!(error.to_string().contains("surrogate"), "{error}");
        } else {
            let expected = value(fixture.expect("args")).unwrap();
            assert_eq!(
                sorted(Value::Array(args.unwrap())),
                sorted(expected),
                "{}",
                fixture.name
            );
        }
        let kwargs = arguments.keyword.iter();
        let kwargs = kwargs.map(|(name, raw)| (Value::from(&**name), raw.to_value().unwrap()));
        let expected = value(fixture.expect("kwargs")).unwrap();
        assert_eq!(
            sorted(Value::Map(kwargs.collect())),
            sorted(expected),
            "{}",
            fixture.name
        );
    });
}

#[test]
fn decoded_signatures_equal_python() {
    each_task(|fixture, _, body| {
        let embed = &body.embed;
        let lists = [
            ("callbacks", embed.callbacks().unwrap()),
            ("errbacks", embed.errbacks().unwrap()),
            ("chain", embed.chain().unwrap()),
            ("chord", embed.chord().unwrap().into_iter().collect()),
        ];
        for (name, signatures) in lists {
            let expected = match &fixture.expect("embed")[name] {
                Json::Array(items) => items.clone(),
                Json::Null => Vec::new(),
                alone => vec![alone.clone()],
            };
            let found: Vec<Value> = signatures.iter().map(written).collect();
            let expected: Vec<Value> = expected
                .iter()
                .map(|item| sorted(value(item).unwrap()))
                .collect();
            assert_eq!(found, expected, "{}: {name}", fixture.name);
        }
    });
}

/// A signature encoded by this crate, including its inner signatures, and
/// decoded as a value.
fn written(signature: &WireSignature<'_>) -> Value {
    let text = Serializer::Json.encode(signature).unwrap();
    sorted(Serializer::Json.decode(&text).unwrap())
}

#[test]
fn reencoded_envelope_is_equal() {
    for fixture in fixtures(&["envelope"]) {
        let message = fixture.message();
        let again = kombu::decode(&written_envelope(&message)).unwrap();
        assert_eq!(again.headers, message.headers, "{}", fixture.name);
        assert_eq!(again.body, message.body, "{}", fixture.name);
        let mut properties = message.properties;
        // The encoder writes these even if the sender omitted them, because
        // kombu requires them.
        properties.priority.get_or_insert(0);
        properties.delivery_mode.get_or_insert(2);
        assert_eq!(again.properties, properties, "{}", fixture.name);
    }
}

pub(crate) fn written_envelope(message: &Message) -> Bytes {
    let info = &message.properties.delivery_info;
    let route = EnvelopeRoute {
        exchange: &info.exchange,
        routing_key: &info.routing_key,
    };
    let tag = message
        .properties
        .delivery_tag
        .as_deref()
        .unwrap_or("tag-1");
    kombu::encode(message, route, tag).unwrap().into()
}

#[test]
fn rebuilt_task_is_equal() {
    each_task(|fixture, headers, body| {
        if fixture.has_surrogates() {
            return;
        }
        let again = rebuilt(fixture, &headers, &body);
        let payload = again.payload(&Accept::of(ALL), LIMIT).unwrap();
        let (headers, body) = payload.task().unwrap();
        check_task(fixture, &headers);
        let same = |found: &Raw<'_>, part: &str| {
            let expected = sorted(value(fixture.expect(part)).unwrap());
            assert_eq!(
                sorted(found.to_value().unwrap()),
                expected,
                "{}: {part}",
                fixture.name
            );
        };
        same(&body.args, "args");
        same(&body.kwargs, "kwargs");
    });
}

/// The message that a sender encodes from the decoded values, in the recorded
/// protocol, serializer and compression.
pub(crate) fn rebuilt(fixture: &Fixture, headers: &TaskHeaders<'_>, body: &Body<'_>) -> Message {
    let recorded = fixture.message();
    let serializer = Serializer::from_content_type(&recorded.properties.content_type).unwrap();
    let args = body.args.to_value().unwrap();
    let kwargs = body.kwargs.to_value().unwrap();
    let mut headers = headers.clone().into_owned();
    headers.compression = None;
    let compression = recorded.headers.find("compression").unwrap();
    let compression = compression.map(|raw| raw.decode::<String>().unwrap());
    let mut message = if fixture.expect("protocol") == 1 {
        let written = v1::encode_body(serializer, &headers, &args, &kwargs, &body.embed, true);
        Message::new(Headers::empty(), recorded.properties, written.unwrap())
    } else {
        let written = encode_body(serializer, &args, &kwargs, &body.embed).unwrap();
        let mut message = Message::task(headers, serializer, written);
        message.properties = recorded.properties;
        message
    };
    if let Some(compression) = compression {
        let compression = Compression::from_content_type(&compression).unwrap();
        message.compress(compression).unwrap();
    }
    message
}

/// Compares every typed field with the value that Python read under its name.
fn check_task(fixture: &Fixture, headers: &TaskHeaders<'_>) {
    let text = |text: &Option<std::borrow::Cow<'_, str>>| Value::from(text.as_deref());
    let raw = |raw: &Option<Raw<'_>>, unset: Value| {
        raw.as_ref().map_or(unset, |raw| raw.to_value().unwrap())
    };
    let seconds = |seconds: Option<f64>| seconds.map_or(Value::Null, Value::Float);
    let limits = headers.timelimit;
    let typed = [
        ("lang", Value::from(&*headers.lang)),
        ("task", Value::from(&*headers.task)),
        ("id", Value::from(&*headers.id)),
        ("shadow", text(&headers.shadow)),
        ("eta", text(&headers.eta)),
        ("expires", text(&headers.expires)),
        ("group", text(&headers.group)),
        ("taskset", text(&headers.group)),
        ("group_index", Value::from(headers.group_index)),
        ("retries", Value::from(i64::from(headers.retries))),
        (
            "timelimit",
            Value::Array(vec![seconds(limits.hard), seconds(limits.soft)]),
        ),
        ("root_id", text(&headers.root_id)),
        ("parent_id", text(&headers.parent_id)),
        ("argsrepr", text(&headers.argsrepr)),
        ("kwargsrepr", text(&headers.kwargsrepr)),
        ("origin", text(&headers.origin)),
        (
            "ignore_result",
            headers.ignore_result.map_or(Value::Null, Value::Bool),
        ),
        (
            "replaced_task_nesting",
            Value::from(i64::from(headers.replaced_task_nesting)),
        ),
        (
            "stamped_headers",
            raw(&headers.stamped_headers, Value::Null),
        ),
        (
            "stamps",
            raw(&headers.stamps, Value::Map(Default::default())),
        ),
        ("compression", text(&headers.compression)),
    ];
    let expected = fixture.task().as_object().expect("a mapping");
    for (name, expected) in expected {
        // A representation with lone surrogates counts as absent.
        let expected = value(expected).unwrap_or(Value::Null);
        let expected = match name.as_str() {
            "timelimit" => as_seconds(&expected),
            // rusty-celery writes null for zero retries.
            "retries" if expected.is_null() => Value::Int(0),
            "utc" => continue,
            _ => expected,
        };
        let found = match typed.iter().find(|(typed, _)| typed == name) {
            Some((_, found)) => found.clone(),
            None => headers
                .extra(name)
                .unwrap_or_else(|| panic!("header {name} is missing"))
                .to_value()
                .unwrap(),
        };
        assert_eq!(sorted(found), sorted(expected), "{}: {name}", fixture.name);
    }
}

fn as_seconds(limits: &Value) -> Value {
    let limits = limits.as_array().expect("a pair").iter();
    limits
        .map(|limit| limit.as_f64().map_or(Value::Null, Value::Float))
        .collect()
}

#[test]
fn recorded_times_are_parsed() {
    let mut seen = 0;
    each_task(|_, headers, _| {
        assert_eq!(headers.eta_time().unwrap().is_some(), headers.eta.is_some());
        assert_eq!(
            headers.expires_time().unwrap().is_some(),
            headers.expires.is_some()
        );
    });
    for (name, recorded) in [
        ("option-eta-aware", 300),
        ("option-eta-naive", 300),
        ("option-countdown", 10),
    ] {
        let fixture = fixtures(&["envelope"])
            .into_iter()
            .find(|fixture| fixture.name == name)
            .unwrap();
        let message = fixture.message();
        let eta = message
            .headers
            .task()
            .unwrap()
            .unwrap()
            .eta_time()
            .unwrap()
            .unwrap();
        // The clock of the recorder is pinned to
        // 2030-01-02T03:04:05.678901+00:00.
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_micros(1_893_553_445_678_901);
        assert_eq!(
            eta.duration_since(now).unwrap().as_secs(),
            recorded,
            "{name}"
        );
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[test]
fn pickle_error_names_the_content_type() {
    let refused: Vec<String> = messages()
        .iter()
        .filter(|fixture| {
            fixture.message().properties.content_type == "application/x-python-serialize"
        })
        .map(|fixture| {
            fixture
                .message()
                .payload(&Accept::of(ALL), LIMIT)
                .unwrap_err()
                .to_string()
        })
        .collect();
    assert_eq!(refused.len(), 3);
    assert!(
        refused
            .iter()
            .all(|error| error.contains("application/x-python-serialize"))
    );
}

impl Fixture {
    /// The stored bytes of a result.
    pub(crate) fn document(&self) -> Vec<u8> {
        match self.json["document"].as_str() {
            Some(text) => text.as_bytes().to_vec(),
            None => BASE64
                .decode(self.json["document_base64"].as_str().unwrap())
                .unwrap(),
        }
    }

    pub(crate) fn serializer(&self) -> Serializer {
        Serializer::from_name(self.json["serializer"].as_str().unwrap()).unwrap()
    }
}

#[test]
fn empty_embed_equals_pythons() {
    let fixture = fixtures(&["envelope"])
        .into_iter()
        .find(|fixture| fixture.name == "v2-json-no-params");
    let recorded: Json = serde_json::from_slice(&fixture.unwrap().message().body).unwrap();
    let written = encode_body(Serializer::Json, &(), &(), &Embed::default()).unwrap();
    assert_eq!(serde_json::from_slice::<Json>(&written).unwrap(), recorded);
}
