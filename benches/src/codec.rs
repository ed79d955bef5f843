//! The operations of the wire protocol.

use std::hint::black_box;

use bytes::Bytes;
use celery_protocol::kombu::{self, Route};
use celery_protocol::{
    Accept, Body, Compression, Embed, Headers, Message, Properties, Serializer, TaskHeaders, Value,
    encode_body, repr, v1,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Measure, Name};

/// Task and id of the Go client's own benches, so that the figures compare.
const TASK: &str = "myproject.apps.myapp.tasks.mytask";
const ID: &str = "0ad73c66-f4c9-4600-bd20-96746e720eed";

/// Protocol 1 of the Go client always has an ETA.
const ETA: &str = "2009-11-17T12:30:56Z";

/// What a body may unpack to.
const LIMIT: usize = 1 << 20;

const QUEUE: Route<'static> = Route {
    exchange: "",
    routing_key: "celery",
};

/// Shows every operation to `measure`.
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

/// What others take for the same, in nanoseconds on a machine like the one that the first figures
/// of this project are from: the Go client for bodies, an earlier Rust crate for whole messages.
///
/// Go's times include base64. That of a body of protocol 2 without parameters is a constant in
/// both, so there is nothing to compare.
pub fn reference(name: &Name) -> Option<f64> {
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

/// The keyword arguments of the Go client's benches: `{"b": "bazz"}`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Kwargs<'a> {
    b: &'a str,
}

const ARGS: (&str,) = ("fizz",);
const KWARGS: Kwargs<'static> = Kwargs { b: "bazz" };

/// How long does writing a body of protocol 2 take?
///
/// The Go client publishes 477 ns for positional, 594 for keyword and 826 for both kinds of
/// arguments, base64 included, with 4 to 10 allocations; without any it takes a constant. Ours
/// writes base64 later, straight into the envelope. The goal is a fifth of Go's time and one
/// allocation.
pub fn encode_v2(measure: &mut impl Measure) {
    let mut case = |case, operation: fn() -> Vec<u8>| {
        measure.measure(Name::new("encode v2", case), operation);
    };
    case("no params", || v2(&(), &()));
    case("args", || v2(&ARGS, &()));
    case("kwargs", || v2(&(), &KWARGS));
    case("args and kwargs", || v2(&ARGS, &KWARGS));
}

/// The same for protocol 1, whose body holds the headers as well.
///
/// The Go client publishes 925 ns without arguments, 1022 for positional, 1395 for keyword and
/// 1534 for both kinds, base64 included. The goal is a sixth.
pub fn encode_v1(measure: &mut impl Measure) {
    let mut headers = TaskHeaders::new(TASK, ID);
    headers.eta = Some(ETA.into());
    let headers = &headers;
    let mut case = |case, operation: &dyn Fn() -> Vec<u8>| {
        measure.measure(Name::new("encode v1", case), operation);
    };
    case("no params", &|| v1(headers, &(), &()));
    case("args", &|| v1(headers, &ARGS, &()));
    case("kwargs", &|| v1(headers, &(), &KWARGS));
    case("args and kwargs", &|| v1(headers, &ARGS, &KWARGS));
}

/// How long does it take from the bytes of a body of protocol 2 to arguments of their own types?
pub fn decode_v2(measure: &mut impl Measure) {
    let mut headers = TaskHeaders::new(TASK, ID);
    headers.argsrepr = Some("('fizz',)".into());
    let mut case = |case, body| {
        let message = Message::task(headers.clone(), Serializer::Json, body);
        measure.measure(Name::new("decode v2", case), || {
            let payload = message.payload(&Accept::json(), LIMIT).expect(WELL_FORMED);
            typed(&payload.body().expect(WELL_FORMED));
        });
    };
    case("no params", v2(&(), &()));
    case("args", v2(&ARGS, &()));
    case("kwargs", v2(&(), &KWARGS));
    case("args and kwargs", v2(&ARGS, &KWARGS));
}

/// The same for protocol 1, the headers included, since they are in the body.
pub fn decode_v1(measure: &mut impl Measure) {
    let mut headers = TaskHeaders::new(TASK, ID);
    headers.eta = Some(ETA.into());
    let mut case = |case, body: Vec<u8>| {
        let message = Message::new(Headers::empty(), Properties::default(), body);
        measure.measure(Name::new("decode v1", case), || {
            let payload = message.payload(&Accept::json(), LIMIT).expect(WELL_FORMED);
            let (headers, body) = payload.task_v1().expect(WELL_FORMED);
            typed(&body);
            headers.retries
        });
    };
    case("no params", v1(&headers, &(), &()));
    case("args", v1(&headers, &ARGS, &()));
    case("kwargs", v1(&headers, &(), &KWARGS));
    case("args and kwargs", v1(&headers, &ARGS, &KWARGS));
}

/// How long does a client take to build what it sends: headers, body and Redis envelope of
/// `tasks.add(2, 3)`?
///
/// An earlier Rust crate takes 3.1 µs, ids included, and Python 30 µs. The goal is 1.2 µs.
pub fn build(measure: &mut impl Measure) {
    measure.measure(Name::new("build", "with given ids"), || {
        envelope(black_box(ID).to_owned(), black_box(TAG))
    });
    measure.measure(Name::new("build", "with fresh ids"), || {
        envelope(Uuid::new_v4().to_string(), &Uuid::new_v4().to_string())
    });
}

/// How long does a worker take from what it got from Redis to the arguments in their own types:
/// envelope, headers, body?
///
/// The goal is 1 µs.
pub fn parse(measure: &mut impl Measure) {
    let ours = Bytes::from(envelope(ID.to_owned(), TAG));
    let cases = [("from Rust", ours), ("from Python", from_python())];
    for (case, envelope) in cases {
        measure.measure(Name::new("parse", case), || {
            let message = kombu::decode(black_box(&envelope)).expect(WELL_FORMED);
            let payload = message.payload(&Accept::json(), LIMIT).expect(WELL_FORMED);
            let (headers, body) = payload.task().expect(WELL_FORMED);
            let arguments = body.arguments().expect(WELL_FORMED);
            let x: i64 = arguments.positional[0].decode().expect(WELL_FORMED);
            let y: i64 = arguments.positional[1].decode().expect(WELL_FORMED);
            (headers.retries, x + y)
        });
    }
}

/// What do the serializers cost beside each other, on a document of about 1 KiB?
pub fn serializers(measure: &mut impl Measure) {
    let order = Order::sample(4711);
    for serializer in [Serializer::Json, Serializer::MsgPack, Serializer::Yaml] {
        let name = serializer.name();
        let bytes = serializer.encode(&order).expect(WELL_FORMED);
        measure.measure(Name::new("serializers", format!("{name} encode")), || {
            serializer.encode(black_box(&order)).expect(WELL_FORMED)
        });
        measure.measure(Name::new("serializers", format!("{name} decode")), || {
            let order: Order = serializer.decode(black_box(&bytes)).expect(WELL_FORMED);
            order
        });
        measure.measure(
            Name::new("serializers", format!("{name} decode untyped")),
            || {
                let value: Value = serializer.decode(black_box(&bytes)).expect(WELL_FORMED);
                value
            },
        );
    }
}

/// What do the compressions cost beside each other, on a body of 10 KiB?
pub fn compressions(measure: &mut impl Measure) {
    let body = body_of(10 << 10);
    for compression in Compression::all() {
        let name = compression.name();
        let packed = compression.compress(&body).expect(WELL_FORMED);
        let share = 100 * packed.len() / body.len();
        measure.measure(
            Name::new("compressions", format!("{name} to {share} percent")),
            || compression.compress(black_box(&body)).expect(WELL_FORMED),
        );
        measure.measure(Name::new("compressions", format!("{name} back")), || {
            let packed = black_box(&packed);
            compression.decompress(packed, LIMIT).expect(WELL_FORMED)
        });
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

/// Decodes the arguments as a task takes them: whichever of `"fizz"` and `b="bazz"` are there.
fn typed(body: &Body<'_>) {
    let arguments = body.arguments().expect(WELL_FORMED);
    let keyword = arguments.keyword.iter().find(|(name, _)| name == "b");
    let positional = arguments.positional.first();
    for raw in positional.into_iter().chain(keyword.map(|(_, raw)| raw)) {
        black_box(raw.decode::<&str>().expect(WELL_FORMED));
    }
}

/// `tasks.add(2, 3)` as a client sends it.
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

/// The same call as Python Celery sends it, recorded.
fn from_python() -> Bytes {
    const FIXTURE: &str = include_str!("../../celery-protocol/fixtures/v2-json-args.json");
    let fixture: Value = Serializer::Json
        .decode(FIXTURE.as_bytes())
        .expect(WELL_FORMED);
    let envelope = fixture.get("envelope").and_then(Value::as_str);
    Bytes::copy_from_slice(envelope.expect(WELL_FORMED).as_bytes())
}

/// An argument of the usual kind: texts, numbers, a list, nothing of a size of its own.
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
            article: format!("article {:x}", scattered(id + u64::from(number))),
            count: number,
            price: (scattered(id * u64::from(number)) % 10_000) as f64 / 100.0,
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

/// Digits without a pattern, always the same ones (the finalizer of SplitMix64).
fn scattered(seed: u64) -> u64 {
    let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 31
}

/// A body of about this size: one list of orders.
fn body_of(size: usize) -> Vec<u8> {
    let mut orders = Vec::new();
    loop {
        orders.push(Order::sample(orders.len() as u64));
        let body = v2(&(&orders,), &());
        if body.len() >= size {
            return body;
        }
    }
}
