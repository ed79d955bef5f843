//! Overhead of the runtime: no-op tasks over the in-memory broker.
//!
//! The encoded messages are in the queue before the measurement; there is no result backend. The
//! time is from the start of the worker to the end of the last task. For each task it includes:
//! receiving, decoding headers and body, the state machine of the delivery, the early or late
//! acknowledgement, binding the arguments, a spawned tokio task, and handling its outcome.
//!
//! The goal is 500,000 tasks per second on one thread, which is not reached yet.
//!
//! Instructions per task as counted by valgrind (about 19,000, more than twice the number that the
//! goal allows): reading the delivery 4,800 (headers 1,200; body and
//! arguments 1,600), the driver's events 4,600 (dropping job and entry 2,000; `tokio::spawn` 1,100;
//! the state machine 700), receiving 3,000 (cloning the message 1,100), binding and
//! running 2,200, settling 1,000. Allocation is a fifth of everything, copying an eighth.

use std::sync::Arc;
use std::time::Duration;

use benches::noop::{NOOP, consume};
use celery_protocol::{Embed, Message, Serializer, TaskHeaders, encode_body};
use celery_runtime::memory::MemoryBroker;
use celery_runtime::{App, Broker, Publication, Task};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use tokio::runtime::{Builder, Runtime};

/// The number of tasks in one run of the worker.
const TASKS: u64 = 100_000;

/// The number of messages in one call of `publish` before the measurement.
const BATCH: u64 = 1000;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    one_thread(&mut criterion);
    two_threads(&mut criterion);
    criterion.final_summary();
}

/// A case: the name of the acknowledgement mode, the task with that mode, and the slots.
type Case = (&'static str, Task<(), ()>, usize);

/// Measures the no-op tasks per second of one thread by slots and acknowledgement mode.
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

/// Measures the effect of a second thread. The driver stays on one thread; for no-op tasks the move
/// to the other thread costs more than it gains, unlike for tasks that compute.
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

/// Returns the time of several runs of the worker, without setup and shutdown.
fn measure(runtime: &Runtime, runs: u64, task: Task<(), ()>, slots: usize) -> Duration {
    let one_run = || async {
        let app = App::new(Arc::new(filled_broker().await));
        consume(&app, task, TASKS, slots).await
    };
    (0..runs).map(|_| runtime.block_on(one_run())).sum()
}

/// Prints the processor time per task, which does not depend on the load of the machine; prints
/// nothing where the system does not report it.
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

/// Returns the processor time of this thread.
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
            answer.expect("the in-memory broker accepts every message");
        }
    }
    broker
}

/// Returns a message like that of a client.
fn publication(number: u64) -> Publication {
    let body = encode_body(Serializer::Json, &(), &(), &Embed::default());
    let mut headers = TaskHeaders::new(NOOP.name(), format!("{number:08x}-{ID_SUFFIX}"));
    headers.argsrepr = Some("()".into());
    headers.kwargsrepr = Some("{}".into());
    headers.origin = Some("gen1@host".into());
    let body = body.expect("empty arguments can be encoded");
    let mut message = Message::task(headers, Serializer::Json, body);
    message.properties.reply_to = Some(format!("00000000-{ID_SUFFIX}"));
    message.properties.priority = Some(0);
    Publication::to_queue(message, "celery")
}

/// The suffix that makes an id as long as a UUID.
const ID_SUFFIX: &str = "f4c9-4600-bd20-96746e720eed";
