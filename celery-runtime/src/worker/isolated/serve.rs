//! The child's side: serves the worker at the other end of the line.

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
    Call, Handshake, PROTOCOL, StoreRefusal, ToChild, ToWorker, Welcome,
};
use crate::worker::isolated::wire_error::WireError;
use crate::worker::isolated::{ChildError, program};

/// How long the program may take to end after its worker has hung up.
const LAST_MOMENTS: Duration = Duration::from_secs(5);

/// What a process ends with that does not understand its worker.
const CONFUSED: i32 = 70;

/// Runs what the worker says until it hangs up.
pub(super) async fn serve(
    socket: UnixStream,
    registry: Arc<Registry>,
    app: &AppInner,
) -> Result<(), ChildError> {
    let failed = |error: std::io::Error| ChildError::new("this process", error.to_string());
    ignore_interrupts();
    let ear = socket.try_clone().map_err(failed)?;
    let line = Arc::new(ParentChannel::new(socket));
    line.send(&Frame::new(ToWorker::Handshake(Handshake {
        protocol: PROTOCOL,
        build: program::build(),
    })));
    // Unbounded: the worker waits for the end of a task before the next one.
    let (work, mut works) = mpsc::unbounded_channel();
    let listener = FrameListener {
        line: Arc::clone(&line),
        registry,
        accept: app.config.accept_content,
        client: Client::new(app),
        services: None,
        running: None,
        work,
    };
    // A thread, since it has to hear the end of the worker whatever the task
    // does to the runtime. It ends with the process.
    env::spawn_thread("celery-child", move || listener.listen(ear)).map_err(failed)?;
    while let Some(Assignment { job, run, auto }) = works.recv().await {
        let outcome = run_one(&line, run, job).await;
        let frame = ending(outcome, auto.as_ref());
        line.is_busy.store(false, Ordering::SeqCst);
        line.send(&frame);
    }
    Ok(())
}

/// Ctrl-C in a terminal is for the worker. It does not reach another process
/// group, but some supervisors send it to each process.
fn ignore_interrupts() {
    let interrupt = tokio::signal::unix::SignalKind::interrupt();
    // It stays ignored when this is dropped.
    if let Err(error) = tokio::signal::unix::signal(interrupt) {
        tracing::debug!("cannot ignore interrupts: {error}");
    }
}

async fn run_one(line: &ParentChannel, run: Arc<dyn ErasedTask>, job: Arc<Job>) -> Outcome {
    let mut running = std::pin::pin!(run_task::run(run, Arc::clone(&job)));
    let mut is_silent = true;
    loop {
        tokio::select! {
            biased;
            outcome = &mut running => return outcome,
            () = job.control.soft_limit_subscribed(), if is_silent => {
                is_silent = false;
                line.send(&Frame::new(ToWorker::Listens));
            }
        }
    }
}

fn ending(outcome: Outcome, auto: Option<&AutoRetry>) -> Frame<ToWorker> {
    match outcome {
        Outcome::Value(None) => Frame::new(ToWorker::Value),
        Outcome::Value(Some(value)) => match value.serializer().encode(&value) {
            Ok(bytes) => Frame::new(ToWorker::Value).with(bytes),
            Err(error) => fault(encode_error(&error), None),
        },
        Outcome::Error { error, .. } => fault(error, auto),
        Outcome::Panic(message) => Frame::new(ToWorker::Panic(message)),
        Outcome::Lost(loss) => Frame::new(ToWorker::Panic(loss.message)),
    }
}

fn fault(error: TaskError, auto: Option<&AutoRetry>) -> Frame<ToWorker> {
    match WireError::tell(error, auto) {
        Ok(fault) => Frame::new(ToWorker::WireError(fault)),
        Err(error) => Frame::new(ToWorker::Panic(error.to_string())),
    }
}

fn encode_error(error: &dyn std::fmt::Display) -> TaskError {
    TaskError::named("kombu.exceptions", "EncodeError", error.to_string())
}

/// The line to the worker, as tasks use it.
#[derive(Debug)]
pub(super) struct ParentChannel {
    mouth: Mutex<UnixStream>,
    is_busy: AtomicBool,
    updates: Mutex<HashMap<u64, oneshot::Sender<Option<StoreRefusal>>>>,
    next_update: AtomicU64,
}

impl ParentChannel {
    fn new(socket: UnixStream) -> Self {
        Self {
            mouth: Mutex::new(socket),
            is_busy: AtomicBool::new(false),
            updates: Mutex::default(),
            next_update: AtomicU64::new(0),
        }
    }

    /// Asks the worker to store a document; answers with why not, if so.
    pub(super) async fn update(&self, id: &str, document: Vec<u8>) -> Option<StoreRefusal> {
        let number = self.next_update.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.updates().insert(number, answer);
        let id = id.to_owned();
        self.send(&Frame::new(ToWorker::Update { number, id }).with(document));
        // There is an answer, or this process ends.
        answered.await.unwrap_or_default()
    }

    /// Waits until the worker's side has room, which it makes at all times.
    fn send(&self, frame: &Frame<ToWorker>) {
        let bytes = frame.write().or_else(|error| {
            // Too large: that is the task's own fault.
            fault(encode_error(&error), None).write()
        });
        let mut mouth = self.mouth.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = match bytes {
            Ok(bytes) => mouth.write_all(&bytes).is_ok(),
            Err(_) => false,
        };
        if !sent {
            // There is nobody left to work for.
            std::process::exit(0);
        }
    }

    fn updates(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<StoreRefusal>>>> {
        self.updates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task on its way from the listener to the runtime.
struct Assignment {
    job: Arc<Job>,
    run: Arc<dyn ErasedTask>,
    auto: Option<AutoRetry>,
}

/// Hears what the worker says.
struct FrameListener {
    line: Arc<ParentChannel>,
    registry: Arc<Registry>,
    accept: Accept,
    client: Client,
    services: Option<Arc<WorkerContext>>,
    /// The job that runs, or that ran last.
    running: Option<Arc<Job>>,
    work: mpsc::UnboundedSender<Assignment>,
}

impl FrameListener {
    fn listen(mut self, mut ear: UnixStream) {
        let mut arrived = BytesMut::new();
        let mut chunk = vec![0; 64 << 10];
        loop {
            match Frame::take(&mut arrived) {
                Ok(Some(frame)) => {
                    if let Err(error) = self.hear(frame) {
                        tracing::error!("cannot understand the worker: {error}");
                        std::process::exit(CONFUSED);
                    }
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!("cannot understand the worker: {error}");
                    std::process::exit(CONFUSED);
                }
            }
            match ear.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => arrived.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // The worker is gone. Nobody will ask for what runs.
        if self.line.is_busy.load(Ordering::SeqCst) {
            std::process::exit(0);
        }
        drop(self);
        // Now the program's `main` goes on, and should end.
        thread::sleep(LAST_MOMENTS);
        std::process::exit(0);
    }

    fn hear(&mut self, frame: Frame<ToChild>) -> Result<(), String> {
        match frame.head {
            ToChild::Welcome(welcome) => self.services = Some(Arc::new(self.services(welcome)?)),
            ToChild::Run(ref call) => {
                let bytes = |index| frame.blob(index).map_err(|error| error.to_string());
                let message = message(bytes(0)?, bytes(1)?.clone())?;
                self.begin(call, message)?;
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
            ToChild::Updated { number, refusal } => {
                if let Some(answer) = self.line.updates().remove(&number) {
                    // Its task may have lost interest.
                    let _ = answer.send(refusal);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, call: &Call, message: Message) -> Result<(), String> {
        self.line.is_busy.store(true, Ordering::SeqCst);
        self.line.send(&Frame::new(ToWorker::Began));
        let services = self.services.clone().ok_or("a task before the welcome")?;
        let Some(registered) = self.registry.find(&call.task) else {
            let error = TaskError::named("celery.exceptions", "NotRegistered", call.task.clone());
            self.line.is_busy.store(false, Ordering::SeqCst);
            self.line.send(&fault(error, None));
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
            uncompressed: OnceLock::new(),
            services,
            control: TaskControl::default(),
            children: Mutex::default(),
            failure: None,
        });
        self.running = Some(Arc::clone(&job));
        let work = Assignment {
            job,
            run: Arc::clone(&registered.run),
            auto: registered.declaration.options.autoretry,
        };
        if self.work.send(work).is_err() {
            // The program has given up its worker, so it is about to end.
            std::process::exit(0);
        }
        Ok(())
    }

    fn services(&self, welcome: Welcome) -> Result<WorkerContext, String> {
        let serializer = &welcome.result_serializer;
        Ok(WorkerContext {
            store: None,
            backend: Some(Arc::new(ChannelBackend::new(Arc::clone(&self.line)))),
            hostname: welcome.hostname,
            accept: self.accept,
            body_limit: welcome.body_limit,
            result_serializer: Serializer::from_name(serializer)
                .ok_or_else(|| format!("there is no serializer {serializer}"))?,
            result_extended: welcome.result_extended,
            // One task at a time has one thread.
            blocking: BlockingPool::new(1),
            client: self.client.clone(),
            registry: Arc::clone(&self.registry),
            // Its task is never isolated.
            chord_retry_interval: Duration::ZERO,
        })
    }
}

fn message(envelope: &Bytes, body: Bytes) -> Result<Message, String> {
    let mut message = kombu::decode(envelope).map_err(|error| error.to_string())?;
    message.body = body;
    Ok(message)
}
