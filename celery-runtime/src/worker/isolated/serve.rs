//! The child's side of the channel: runs tasks for the parent worker.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use celery_protocol::{Accept, Message, Serializer, kombu};
use tokio::sync::{mpsc, oneshot};

use crate::app::inner::AppInner;
use crate::client::Client;
use crate::env;
use crate::execution::{
    BlockingPool, ErasedTask, Job, Registry, TaskControl, TaskError, WorkerContext,
};
use crate::task::AutoRetry;
use crate::worker::delivery::event::Outcome;
use crate::worker::effects::run_task;
use crate::worker::isolated::backend::ChannelBackend;
use crate::worker::isolated::frame::Frame;
use crate::worker::isolated::protocol::{
    ChildConfig, Handshake, PROTOCOL, RunTask, StoreError, ToChild, ToWorker,
};
use crate::worker::isolated::wire_error::WireError;
use crate::worker::isolated::{ChildError, program};

/// How long the program may take to exit after the parent has closed the socket.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The exit code after an invalid message of the parent; `EX_SOFTWARE`.
const EXIT_PROTOCOL_ERROR: i32 = 70;

/// Runs the tasks that the parent sends until it closes the socket.
pub(super) async fn serve(
    socket: UnixStream,
    registry: Arc<Registry>,
    app: &AppInner,
) -> Result<(), ChildError> {
    let failed = |error: std::io::Error| ChildError::new("this process", error.to_string());
    ignore_interrupts();
    let reader = socket.try_clone().map_err(failed)?;
    let channel = Arc::new(ParentChannel::new(socket));
    channel.send(&Frame::new(ToWorker::Handshake(Handshake {
        protocol: PROTOCOL,
        build: program::build(),
    })));
    // Unbounded: the parent sends the next task after the end of the last one.
    let (sender, mut assignments) = mpsc::unbounded_channel();
    let listener = FrameListener {
        channel: Arc::clone(&channel),
        registry,
        accept: app.config.accept_content,
        client: Client::new(app),
        services: None,
        running: None,
        assignments: sender,
    };
    // A thread, so that the end of the parent is detected even if the task blocks
    // the runtime. It ends with the process.
    env::spawn_thread("celery-child", move || listener.run(reader)).map_err(failed)?;
    while let Some(Assignment { job, run, auto }) = assignments.recv().await {
        let outcome = run_assignment(&channel, run, job).await;
        let frame = outcome_frame(outcome, auto.as_ref());
        channel.is_busy.store(false, Ordering::SeqCst);
        channel.send(&frame);
    }
    Ok(())
}

/// Ctrl-C in a terminal is meant for the parent. The child is in another process
/// group, but some process managers send SIGINT to each process.
fn ignore_interrupts() {
    let interrupt = tokio::signal::unix::SignalKind::interrupt();
    // The default action stays disabled when the stream is dropped.
    if let Err(error) = tokio::signal::unix::signal(interrupt) {
        tracing::debug!("cannot ignore interrupts: {error}");
    }
}

/// Runs a task, and reports once if it handles its soft time limit.
async fn run_assignment(
    channel: &ParentChannel,
    run: Arc<dyn ErasedTask>,
    job: Arc<Job>,
) -> Outcome {
    let mut running = std::pin::pin!(run_task::run(run, Arc::clone(&job)));
    let mut is_unreported = true;
    loop {
        tokio::select! {
            biased;
            outcome = &mut running => return outcome,
            () = job.control.soft_limit_subscribed(), if is_unreported => {
                is_unreported = false;
                channel.send(&Frame::new(ToWorker::HandlesSoftLimit));
            }
        }
    }
}

fn outcome_frame(outcome: Outcome, auto: Option<&AutoRetry>) -> Frame<ToWorker> {
    match outcome {
        Outcome::Value(None) => Frame::new(ToWorker::Value),
        Outcome::Value(Some(value)) => match value.serializer().encode(&value) {
            Ok(bytes) => Frame::new(ToWorker::Value).with(bytes),
            Err(error) => error_frame(encode_error(&error), None),
        },
        Outcome::Error { error, .. } => error_frame(error, auto),
        Outcome::Panic(message) => Frame::new(ToWorker::Panic(message)),
        Outcome::Lost(loss) => Frame::new(ToWorker::Panic(loss.message)),
    }
}

fn error_frame(error: TaskError, auto: Option<&AutoRetry>) -> Frame<ToWorker> {
    match WireError::encode(error, auto) {
        Ok(error) => Frame::new(ToWorker::Error(error)),
        Err(error) => Frame::new(ToWorker::Panic(error.to_string())),
    }
}

fn encode_error(error: &dyn std::fmt::Display) -> TaskError {
    TaskError::named("kombu.exceptions", "EncodeError", error.to_string())
}

/// The sending half of the channel to the parent.
#[derive(Debug)]
pub(super) struct ParentChannel {
    writer: Mutex<UnixStream>,
    is_busy: AtomicBool,
    /// Updates that wait for their result, by number.
    updates: Mutex<HashMap<u64, oneshot::Sender<Option<StoreError>>>>,
    next_update: AtomicU64,
}

impl ParentChannel {
    fn new(socket: UnixStream) -> Self {
        Self {
            writer: Mutex::new(socket),
            is_busy: AtomicBool::new(false),
            updates: Mutex::default(),
            next_update: AtomicU64::new(0),
        }
    }

    /// Sends a document to the parent and waits until it is stored; returns the
    /// error if it is not.
    pub(super) async fn update(&self, id: &str, document: Vec<u8>) -> Option<StoreError> {
        let number = self.next_update.fetch_add(1, Ordering::Relaxed);
        let (reply, result) = oneshot::channel();
        self.updates().insert(number, reply);
        let id = id.to_owned();
        self.send(&Frame::new(ToWorker::Update { number, id }).with(document));
        // The parent replies, or this process exits.
        result.await.unwrap_or_default()
    }

    /// Writes a frame. Blocks until the socket has room; the parent reads at all
    /// times. Exits if the parent is gone.
    fn send(&self, frame: &Frame<ToWorker>) {
        let bytes = frame.encode().or_else(|error| {
            // The frame is too large, which is an error of the task.
            error_frame(encode_error(&error), None).encode()
        });
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = match bytes {
            Ok(bytes) => writer.write_all(&bytes).is_ok(),
            Err(_) => false,
        };
        if !sent {
            // The parent is gone.
            std::process::exit(0);
        }
    }

    fn updates(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<StoreError>>>> {
        self.updates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task on its way from the listener to the runtime.
struct Assignment {
    job: Arc<Job>,
    run: Arc<dyn ErasedTask>,
    auto: Option<AutoRetry>,
}

/// Reads the frames of the parent in a separate thread.
struct FrameListener {
    channel: Arc<ParentChannel>,
    registry: Arc<Registry>,
    accept: Accept,
    client: Client,
    /// Set by [`ToChild::Configure`].
    services: Option<Arc<WorkerContext>>,
    /// The job that runs, or that ran last.
    running: Option<Arc<Job>>,
    assignments: mpsc::UnboundedSender<Assignment>,
}

impl FrameListener {
    fn run(mut self, mut reader: UnixStream) {
        let mut buffer = BytesMut::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            match Frame::decode(&mut buffer) {
                Ok(Some(frame)) => {
                    if let Err(error) = self.handle(frame) {
                        tracing::error!("invalid message from the parent worker: {error}");
                        std::process::exit(EXIT_PROTOCOL_ERROR);
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!("invalid message from the parent worker: {error}");
                    std::process::exit(EXIT_PROTOCOL_ERROR);
                }
            }
            match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // The parent is gone, so that the result of a running task is not needed.
        if self.channel.is_busy.load(Ordering::SeqCst) {
            std::process::exit(0);
        }
        drop(self);
        // `Worker::run_until` returns now, and the program's `main` should exit.
        thread::sleep(EXIT_TIMEOUT);
        std::process::exit(0);
    }

    /// Handles one frame; an error is a protocol violation.
    fn handle(&mut self, frame: Frame<ToChild>) -> Result<(), String> {
        match frame.head {
            ToChild::Configure(config) => self.services = Some(Arc::new(self.services(config)?)),
            ToChild::Run(ref call) => {
                let bytes = |index| frame.blob(index).map_err(|error| error.to_string());
                let message = message(bytes(0)?, bytes(1)?.clone())?;
                self.start(call, message)?;
            }
            ToChild::SoftLimit => {
                if let Some(job) = &self.running {
                    job.control.signal_soft_limit();
                }
            }
            ToChild::Stop => {
                if let Some(job) = &self.running {
                    job.control.signal_shutdown();
                }
            }
            ToChild::Updated { number, error } => {
                if let Some(reply) = self.channel.updates().remove(&number) {
                    // Fails if the task has dropped the future.
                    let _ = reply.send(error);
                }
            }
        }
        Ok(())
    }

    /// Passes a task to the runtime.
    fn start(&mut self, call: &RunTask, message: Message) -> Result<(), String> {
        self.channel.is_busy.store(true, Ordering::SeqCst);
        self.channel.send(&Frame::new(ToWorker::Started));
        let services = self
            .services
            .clone()
            .ok_or("a task before the configuration")?;
        let Some(registered) = self.registry.find(&call.task) else {
            let error = TaskError::named("celery.exceptions", "NotRegistered", call.task.clone());
            self.channel.is_busy.store(false, Ordering::SeqCst);
            self.channel.send(&error_frame(error, None));
            return Ok(());
        };
        let job = Arc::new(Job {
            id: call.id.clone(),
            task: Arc::clone(&registered.name),
            retries: call.retries,
            redelivered: call.redelivered,
            stores_result: call.stores_result,
            wants_value: call.wants_value,
            soft_limit: call.soft_limit,
            hard_limit: call.hard_limit,
            message,
            services,
            control: TaskControl::default(),
            children: Mutex::default(),
            uncompressed: OnceLock::new(),
            failure: None,
        });
        self.running = Some(Arc::clone(&job));
        let assignment = Assignment {
            job,
            run: Arc::clone(&registered.run),
            auto: registered.declaration.options.autoretry,
        };
        if self.assignments.send(assignment).is_err() {
            // The program has dropped its worker, so it is about to exit.
            std::process::exit(0);
        }
        Ok(())
    }

    fn services(&self, config: ChildConfig) -> Result<WorkerContext, String> {
        let serializer = &config.result_serializer;
        Ok(WorkerContext {
            store: None,
            backend: Some(Arc::new(ChannelBackend::new(Arc::clone(&self.channel)))),
            hostname: config.hostname,
            accept: self.accept,
            body_limit: config.body_limit,
            result_serializer: Serializer::from_name(serializer)
                .ok_or_else(|| format!("unknown serializer {serializer}"))?,
            result_extended: config.result_extended,
            // One task at a time needs one thread.
            blocking: BlockingPool::new(1),
            client: self.client.clone(),
            registry: Arc::clone(&self.registry),
            // The task that uses it is never isolated.
            chord_retry_interval: Duration::ZERO,
        })
    }
}

fn message(envelope: &Bytes, body: Bytes) -> Result<Message, String> {
    let mut message = kombu::decode(envelope).map_err(|error| error.to_string())?;
    message.body = body;
    Ok(message)
}
