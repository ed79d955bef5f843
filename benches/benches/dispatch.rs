//! What the runtime itself costs: tasks that do nothing, over the in-memory broker.
//!
//! The messages wait in the queue, encoded, before the clock starts; there is no result backend.
//! The clock runs from the start of the worker until the last task has run. What is measured for
//! each task is thus: taking it from the queue, reading headers and body, the state machine of the
//! delivery, the early or late acknowledgement, binding the arguments, a spawned tokio task, and
//! the way back of its outcome.
//!
//! The goal is 500,000 tasks a second on one thread, which is not reached yet.
//!
//! Where the cost goes, in instructions for each task as valgrind counts them (about 19,000 in all,
//! of which the goal allows less than a half): reading the delivery 4,800 (headers 1,200; body and
//! arguments 1,600), the driver's events 4,600 (dropping job and entry 2,000; `tokio::spawn` 1,100;
//! the state machine 700), taking it from the queue 3,000 (cloning the message 1,100), binding and
//! running 2,200, settling 1,000. Allocation is a fifth of everything, copying an eighth.

use std::sync::Arc;
use std::time::Duration;

use benches::noop::{NOOP, consume};
use celery_protocol::{Embed, Message, Serializer, TaskHeaders, encode_body};
use celery_runtime::memory::MemoryBroker;
use celery_runtime::{App, Broker, Publication, Task};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use tokio::runtime::{Builder, Runtime};

/// Tasks in one run of the worker.
const TASKS: u64 = 100_000;

/// Messages in one publish, before the clock starts.
const BATCH: u64 = 1000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    one_thread(&mut criterion);
    two_threads(&mut criterion);
    criterion.final_summary();
}

/// What a worker is asked for: the acknowledgement in words and as an option, and its slots.
type Case = (&'static str, Task<(), ()>, usize);

/// How many no-op tasks does one thread run in a second, by the number of slots and the moment of
/// the acknowledgement?
fn one_thread(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    let mut group = criterion.benchmark_group("dispatch, one thread");
    let cases: [Case; 4] = [
        ("early ack", NOOP.acks_early(), 64),
        ("early ack", NOOP.acks_early(), 256),
        ("early ack", NOOP.acks_early(), 512),
        ("late ack", NOOP.acks_late(), 256),
    ];
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Elements(TASKS));
    for (name, task, slots) in cases {
        group.bench_function(
            BenchmarkId::new(name, format!("{slots} slots")),
            |bencher| {
                bencher.iter_custom(|runs| measure(&runtime, runs, task, slots));
            },
        );
    }
    group.finish();
    print_processor_time(&runtime, &cases);
}

/// What does a second thread change? The driver stays on one of them; no-op tasks that move to the
/// other one cost more than they are worth, tasks that compute gain.
fn two_threads(criterion: &mut Criterion) {
    let mut runtime = Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime starts");
    let mut group = criterion.benchmark_group("dispatch, two threads");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Elements(TASKS));
    for (name, task) in [
        ("early ack", NOOP.acks_early()),
        ("late ack", NOOP.acks_late()),
    ] {
        group.bench_function(BenchmarkId::new(name, "256 slots"), |bencher| {
            bencher.iter_custom(|runs| measure(&runtime, runs, task, 256));
        });
    }
}

/// The time of several runs of the worker, without what comes before and after.
fn measure(runtime: &Runtime, runs: u64, task: Task<(), ()>, slots: usize) -> Duration {
    let one_run = || async {
        let app = App::new(Arc::new(filled_broker().await));
        consume(&app, task, TASKS, slots).await
    };
    (0..runs).map(|_| runtime.block_on(one_run())).sum()
}

/// Prints what a task costs on the processor, which does not depend on what else the machine does
/// meanwhile; where the system does not tell, nothing.
fn print_processor_time(runtime: &Runtime, cases: &[Case]) {
    for (name, task, slots) in cases {
        let one_run = async {
            let app = App::new(Arc::new(filled_broker().await));
            let start = processor_time()?;
            consume(&app, *task, TASKS, *slots).await;
            Some(processor_time()? - start)
        };
        if let Some(time) = runtime.block_on(one_run) {
            let each = time.as_nanos() as u64 / TASKS;
            println!("{name}, {slots} slots: {each} ns of processor time per task");
        }
    }
}

/// How long this thread has run until now.
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds = text.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

async fn filled_broker() -> MemoryBroker {
    let broker = MemoryBroker::new();
    for start in (0..TASKS).step_by(BATCH as usize) {
        let batch: Vec<_> = (start..start + BATCH).map(publication).collect();
        for answer in broker.publish(&batch).await {
            answer.expect("the in-memory broker takes every message");
        }
    }
    broker
}

/// A message as a client sends it.
fn publication(number: u64) -> Publication {
    let body = encode_body(Serializer::Json, &(), &(), &Embed::default());
    let mut headers = TaskHeaders::new(NOOP.name(), format!("{number:08x}-{ID_REST}"));
    headers.argsrepr = Some("()".into());
    headers.kwargsrepr = Some("{}".into());
    headers.origin = Some("gen1@host".into());
    let body = body.expect("no arguments have a form in JSON");
    let mut message = Message::task(headers, Serializer::Json, body);
    message.properties.reply_to = Some(format!("00000000-{ID_REST}"));
    message.properties.priority = Some(0);
    Publication::to_queue(message, "celery")
}

/// What makes an id as long as a UUID.
const ID_REST: &str = "f4c9-4600-bd20-96746e720eed";
