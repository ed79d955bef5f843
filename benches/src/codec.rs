//! Operations of the wire protocol.

use std::hint::black_box;

use bytes::Bytes;
use celery_protocol::kombu::{self, EnvelopeRoute};
use celery_protocol::{
    Accept, Body, Compression, Embed, Headers, Message, Properties, Serializer, TaskHeaders, Value,
    encode_body, repr, v1,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Measure, OperationName};

/// The task and id of the Go client's benchmarks, so that the figures are comparable.
const TASK: &str = "myproject.apps.myapp.tasks.mytask";
const ID: &str = "0ad73c66-f4c9-4600-bd20-96746e720eed";

/// The ETA: the Go client always sets one with protocol 1.
const ETA: &str = "2009-11-17T12:30:56Z";

/// The maximum size of a decompressed body.
const BODY_LIMIT: usize = 1 << 20;

const QUEUE: EnvelopeRoute<'static> = EnvelopeRoute {
    exchange: "",
    routing_key: "celery",
};

/// Passes every operation to `measure`.
pub fn all(measure: &mut impl Measure) {
    encode_v2(measure);
    encode_v1(measure);
    decode_v2(measure);
    decode_v1(measure);
    build(measure);
    parse(measure);
    serializers(measure);
    compressions(measure);
}

/// Returns the time of other implementations in nanoseconds, measured on a machine similar to that
/// of this project's first figures: the Go client for bodies, an earlier Rust crate for messages.
///
/// The times of Go include base64. A body of protocol 2 without parameters is a constant in both
/// implementations, so there is no time for it.
pub fn reference(name: &OperationName) -> Option<f64> {
    const TIMES: [(&str, &str, f64); 9] = [
        ("encode v2", "args", 477.0),
        ("encode v2", "kwargs", 594.0),
        ("encode v2", "args and kwargs", 826.0),
        ("encode v1", "no params", 925.0),
        ("encode v1", "args", 1022.0),
        ("encode v1", "kwargs", 1395.0),
        ("encode v1", "args and kwargs", 1534.0),
        ("build", "with given ids", 3100.0),
        ("build", "with fresh ids", 3100.0),
    ];
    let row = TIMES
        .iter()
        .find(|row| (row.0, row.1) == (name.group, &*name.case))?;
    Some(row.2)
}

/// The keyword arguments of the Go client's benchmarks: `{"b": "bazz"}`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Kwargs<'a> {
    b: &'a str,
}

const ARGS: (&str,) = ("fizz",);
const KWARGS: Kwargs<'static> = Kwargs { b: "bazz" };

/// Measures encoding a body of protocol 2.
///
/// The published times of the Go client are 477 ns for positional, 594 ns for keyword and 826 ns
/// for both kinds of arguments, including base64, with 4 to 10 allocations; without arguments it
/// uses a constant. This project writes base64 later, directly into the envelope. The goal is a
/// fifth of Go's time and one allocation.
pub fn encode_v2(measure: &mut impl Measure) {
    let mut case = |case, operation: fn() -> Vec<u8>| {
        measure.measure(OperationName::new("encode v2", case), operation);
    };
    case("no params", || v2(&(), &()));
    case("args", || v2(&ARGS, &()));
    case("kwargs", || v2(&(), &KWARGS));
    case("args and kwargs", || v2(&ARGS, &KWARGS));
}

/// Measures encoding a body of protocol 1, which contains the headers.
///
/// The published times of the Go client are 925 ns without arguments, 1022 ns for positional,
/// 1395 ns for keyword and 1534 ns for both kinds, including base64. The goal is a sixth.
pub fn encode_v1(measure: &mut impl Measure) {
    let mut headers = TaskHeaders::new(TASK, ID);
    headers.eta = Some(ETA.into());
    let headers = &headers;
    let mut case = |case, operation: &dyn Fn() -> Vec<u8>| {
        measure.measure(OperationName::new("encode v1", case), operation);
    };
    case("no params", &|| v1(headers, &(), &()));
    case("args", &|| v1(headers, &ARGS, &()));
    case("kwargs", &|| v1(headers, &(), &KWARGS));
    case("args and kwargs", &|| v1(headers, &ARGS, &KWARGS));
}

/// Measures decoding a body of protocol 2 into typed arguments.
pub fn decode_v2(measure: &mut impl Measure) {
    let mut headers = TaskHeaders::new(TASK, ID);
    headers.argsrepr = Some("('fizz',)".into());
    let mut case = |case, body| {
        let message = Message::task(headers.clone(), Serializer::Json, body);
        measure.measure(OperationName::new("decode v2", case), || {
            let payload = message
                .payload(&Accept::json(), BODY_LIMIT)
                .expect(WELL_FORMED);
            decode_arguments(&payload.body().expect(WELL_FORMED));
        });
    };
    case("no params", v2(&(), &()));
    case("args", v2(&ARGS, &()));
    case("kwargs", v2(&(), &KWARGS));
    case("args and kwargs", v2(&ARGS, &KWARGS));
}

/// Measures decoding a body of protocol 1 into headers and typed arguments.
pub fn decode_v1(measure: &mut impl Measure) {
    let mut headers = TaskHeaders::new(TASK, ID);
    headers.eta = Some(ETA.into());
    let mut case = |case, body: Vec<u8>| {
        let message = Message::new(Headers::empty(), Properties::default(), body);
        measure.measure(OperationName::new("decode v1", case), || {
            let payload = message
                .payload(&Accept::json(), BODY_LIMIT)
                .expect(WELL_FORMED);
            let (headers, body) = payload.task_v1().expect(WELL_FORMED);
            decode_arguments(&body);
            headers.retries
        });
    };
    case("no params", v1(&headers, &(), &()));
    case("args", v1(&headers, &ARGS, &()));
    case("kwargs", v1(&headers, &(), &KWARGS));
    case("args and kwargs", v1(&headers, &ARGS, &KWARGS));
}

/// Measures building a message in a client: headers, body and Redis envelope of `tasks.add(2, 3)`.
///
/// An earlier Rust crate takes 3.1 µs, including ids, and Python 30 µs. The goal is 1.2 µs.
pub fn build(measure: &mut impl Measure) {
    measure.measure(OperationName::new("build", "with given ids"), || {
        envelope(black_box(ID).to_owned(), black_box(TAG))
    });
    measure.measure(OperationName::new("build", "with fresh ids"), || {
        envelope(Uuid::new_v4().to_string(), &Uuid::new_v4().to_string())
    });
}

/// Measures parsing a message in a worker: from the bytes in Redis to typed arguments.
///
/// The goal is 1 µs.
pub fn parse(measure: &mut impl Measure) {
    let from_rust = Bytes::from(envelope(ID.to_owned(), TAG));
    let cases = [("from Rust", from_rust), ("from Python", from_python())];
    for (case, envelope) in cases {
        measure.measure(OperationName::new("parse", case), || {
            let message = kombu::decode(black_box(&envelope)).expect(WELL_FORMED);
            let payload = message
                .payload(&Accept::json(), BODY_LIMIT)
                .expect(WELL_FORMED);
            let (headers, body) = payload.task().expect(WELL_FORMED);
            let arguments = body.arguments().expect(WELL_FORMED);
            let x: i64 = arguments.positional[0].decode().expect(WELL_FORMED);
            let y: i64 = arguments.positional[1].decode().expect(WELL_FORMED);
            (headers.retries, x + y)
        });
    }
}

/// Compares the serializers with a document of about 1 KiB.
pub fn serializers(measure: &mut impl Measure) {
    let order = Order::sample(4711);
    for serializer in [Serializer::Json, Serializer::MsgPack, Serializer::Yaml] {
        let name = serializer.name();
        let bytes = serializer.encode(&order).expect(WELL_FORMED);
        measure.measure(
            OperationName::new("serializers", format!("{name} encode")),
            || serializer.encode(black_box(&order)).expect(WELL_FORMED),
        );
        measure.measure(
            OperationName::new("serializers", format!("{name} decode")),
            || {
                let order: Order = serializer.decode(black_box(&bytes)).expect(WELL_FORMED);
                order
            },
        );
        measure.measure(
            OperationName::new("serializers", format!("{name} decode untyped")),
            || {
                let value: Value = serializer.decode(black_box(&bytes)).expect(WELL_FORMED);
                value
            },
        );
    }
}

/// Compares the compressions with a body of 10 KiB.
pub fn compressions(measure: &mut impl Measure) {
    let body = body_of_size(10 << 10);
    for compression in Compression::all() {
        let name = compression.name();
        let packed = compression.compress(&body).expect(WELL_FORMED);
        let share = 100 * packed.len() / body.len();
        measure.measure(
            OperationName::new("compressions", format!("{name} to {share} percent")),
            || compression.compress(black_box(&body)).expect(WELL_FORMED),
        );
        measure.measure(
            OperationName::new("compressions", format!("{name} back")),
            || {
                let packed = black_box(&packed);
                compression
                    .decompress(packed, BODY_LIMIT)
                    .expect(WELL_FORMED)
            },
        );
    }
}

const WELL_FORMED: &str = "the sample is well-formed";
const TAG: &str = "3edffbde-1f4f-4f9e-902f-4fe14b5030f5";

fn v2<A: Serialize, K: Serialize>(args: &A, kwargs: &K) -> Vec<u8> {
    let (args, kwargs) = (black_box(args), black_box(kwargs));
    encode_body(Serializer::Json, args, kwargs, &Embed::default()).expect(WELL_FORMED)
}

fn v1<A: Serialize, K: Serialize>(headers: &TaskHeaders<'_>, args: &A, kwargs: &K) -> Vec<u8> {
    let (args, kwargs) = (black_box(args), black_box(kwargs));
    let embed = Embed::default();
    v1::encode_body(Serializer::Json, headers, args, kwargs, &embed, true).expect(WELL_FORMED)
}

/// Decodes the arguments like a task: `"fizz"` and `b="bazz"`, each if present.
fn decode_arguments(body: &Body<'_>) {
    let arguments = body.arguments().expect(WELL_FORMED);
    let keyword = arguments.keyword.iter().find(|(name, _)| name == "b");
    let positional = arguments.positional.first();
    for raw in positional.into_iter().chain(keyword.map(|(_, raw)| raw)) {
        black_box(raw.decode::<&str>().expect(WELL_FORMED));
    }
}

/// Returns the Redis envelope of `tasks.add(2, 3)`.
fn envelope(id: String, tag: &str) -> Vec<u8> {
    let args = black_box((2, 3));
    let body = encode_body(Serializer::Json, &args, &(), &Embed::default()).expect(WELL_FORMED);
    let mut headers = TaskHeaders::new("tasks.add", id);
    headers.argsrepr = Some(repr::args(&args).into());
    headers.kwargsrepr = Some(repr::kwargs(&()).into());
    headers.origin = Some(black_box("gen4711@host.example.com").into());
    let mut message = Message::task(headers, Serializer::Json, body);
    message.properties.reply_to = Some(black_box(TAG).to_owned());
    message.properties.priority = Some(0);
    kombu::encode(&message, QUEUE, tag).expect(WELL_FORMED)
}

/// Returns the recorded envelope of Python Celery for `tasks.add(2, 3)`.
fn from_python() -> Bytes {
    const FIXTURE: &str = include_str!("../../celery-protocol/fixtures/v2-json-args.json");
    let fixture: Value = Serializer::Json
        .decode(FIXTURE.as_bytes())
        .expect(WELL_FORMED);
    let envelope = fixture.get("envelope").and_then(Value::as_str);
    Bytes::copy_from_slice(envelope.expect(WELL_FORMED).as_bytes())
}

/// A typical argument: texts, numbers and a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
    note: Option<String>,
    paid: bool,
    total: f64,
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line {
    article: String,
    count: u32,
    price: f64,
}

impl Order {
    fn sample(id: u64) -> Self {
        let line = |number: u32| Line {
            article: format!("article {:x}", pseudo_random(id + u64::from(number))),
            count: number,
            price: (pseudo_random(id * u64::from(number)) % 10_000) as f64 / 100.0,
        };
        Self {
            id,
            customer: "Zoë Example, 1 Some Street, Anytown".to_owned(),
            note: None,
            paid: true,
            total: 1234.5,
            lines: (1..=14).map(line).collect(),
        }
    }
}

/// Returns a deterministic pseudo-random number (the finalizer of SplitMix64).
fn pseudo_random(seed: u64) -> u64 {
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 31
}

/// Returns a body of about this size: a list of orders.
fn body_of_size(size: usize) -> Vec<u8> {
    let mut orders = Vec::new();
    loop {
        orders.push(Order::sample(orders.len() as u64));
        let body = v2(&(&orders,), &());
        if body.len() >= size {
            return body;
        }
    }
}
