//! One child, as its worker sees it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use celery_protocol::{Message, Raw, ResultDocument, Serializer, kombu};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Handle;

use crate::boundary::{Record, ServiceError};
use crate::env;
use crate::execution::{Job, ProcessLost, RunError, RunResult, TaskError};
use crate::worker::isolated::frame::{Frame, FrameError};
use crate::worker::isolated::process::Process;
use crate::worker::isolated::program::Program;
use crate::worker::isolated::protocol::{
    Call, Handshake, PROTOCOL, StoreRefusal, ToChild, ToWorker, Welcome,
};
use crate::worker::isolated::{ChildError, exit_status};

/// How long a child may take from its start to its first word.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process and the line to it. Dropped, it hangs up, and the child ends.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    line: ChildChannel,
    /// How many tasks were given to it.
    pub(super) tasks: u64,
}

/// How a child came off a task.
pub(super) enum ChildRun {
    /// The task ended, the child goes on.
    Ended(RunResult),
    /// The child is gone, or was sent away.
    Lost(ProcessLost),
}

/// A child that was started and has not said yet who it is.
#[derive(Debug)]
pub(super) struct Unknown(Child);

impl Unknown {
    /// Starts a child. `on_end` is called when it has ended.
    pub(super) fn start(
        program: &Program,
        worker: &str,
        on_end: impl FnOnce(u32) + Send + 'static,
    ) -> Result<Self, ChildError> {
        let failed = |error: io::Error| ChildError::new(program.name(), error.to_string());
        let (ours, theirs) = Pair::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let mut command: Command = program.command(worker);
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        // The command goes with this call, and with it our copy of its end.
        let process = Process::start(command, on_end).map_err(failed)?;
        Ok(Self(Child {
            process,
            line: ChildChannel {
                socket: UnixStream::from_std(ours).map_err(failed)?,
                arrived: BytesMut::new(),
            },
            tasks: 0,
        }))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it says who it is, and tells it what it has to know.
    pub(super) async fn greet(
        self,
        program: &Program,
        welcome: &Welcome,
    ) -> Result<Child, ChildError> {
        let Self(mut child) = self;
        let greeted = Self::talk(&mut child, program, welcome).await;
        if greeted.is_err() {
            child.process.kill();
        }
        greeted.map(|()| child)
    }

    async fn talk(
        child: &mut Child,
        program: &Program,
        welcome: &Welcome,
    ) -> Result<(), ChildError> {
        let failed = |cause: String| ChildError::new(program.name(), cause);
        let said = tokio::time::timeout(PATIENCE, child.line.next()).await;
        let hello = match said {
            Ok(Ok(Frame {
                head: ToWorker::Handshake(hello),
                ..
            })) => hello,
            Ok(Ok(Frame { head, .. })) => {
                return Err(failed(format!("its first word was {head:?}")));
            }
            Ok(Err(ChildFailure::HungUp)) => {
                let status = child.process.ending().await;
                let told = exit_status::told(status);
                return Err(failed(format!(
                    "it ended ({told}) before its main called Worker::run_until"
                )));
            }
            Ok(Err(ChildFailure::Garbage(error))) => {
                return Err(failed(format!("it does not speak our language: {error}")));
            }
            Err(_) => {
                return Err(failed(format!(
                    "its main did not call Worker::run_until within {PATIENCE:?}, for a worker \
                     of the same tasks and queues"
                )));
            }
        };
        check(&hello, program.expected_build()).map_err(failed)?;
        let welcome = Frame::new(ToChild::Welcome(welcome.clone()));
        let sent = child.line.send(&welcome).await;
        sent.map_err(|_| failed("it hung up".to_owned()))
    }
}

fn check(hello: &Handshake, expected: Option<String>) -> Result<(), String> {
    if hello.protocol != PROTOCOL {
        return Err(format!(
            "it speaks version {} of the protocol with children, this worker version {PROTOCOL}: \
             use ::the same version of celery in both",
            hello.protocol
        ));
    }
    match expected {
        Some(expected) if expected != hello.build => Err(format!(
            "it is another build ({}) than this worker ({expected}): restart the worker",
            hello.build
        )),
        _ => Ok(()),
    }
}

impl Child {
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.process.has_ended()
    }

    /// Ends it in the middle of its task: by this signal, or at once.
    pub(super) fn end(mut self, signal: Option<i32>) {
        let Some(number) = signal else {
            return self.process.kill();
        };
        self.process.signal(number);
        // Without a runtime it hears that we hang up, and ends by that.
        if let Ok(runtime) = Handle::try_current() {
            // Ends soon: who survives the signal is killed.
            env::spawn_on(&runtime, async move {
                self.process.ended().await;
                // It must not end because of this before it does by the signal.
                drop(self.line);
            });
        }
    }

    /// Has it run a task, and serves the task meanwhile. `number` counts the
    /// tasks given to children; a state that the task reports has to be stored
    /// within `deadline`.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the child of a dropped future is in the middle of a
    /// task.
    pub(super) async fn run(&mut self, job: &Job, number: u64, deadline: Duration) -> ChildRun {
        self.tasks += 1;
        let call = match call(job) {
            Ok(call) => call,
            Err(error) => return ChildRun::Ended(Err(error.into())),
        };
        let mut began = false;
        if let Err(failure) = self.line.write(&call).await {
            return self.lost(failure, began, number).await;
        }
        drop(call);
        let mut soft_limit = pin!(job.control.soft_limit());
        let mut is_limited = true;
        let mut stop = pin!(job.control.shutdown_requested());
        let mut may_stop = true;
        loop {
            let said = tokio::select! {
                // Each of the first two is ready once, so that the child's
                // messages are not held up.
                biased;
                () = &mut soft_limit, if is_limited => {
                    is_limited = false;
                    // Who cannot be told has hung up, which is seen next.
                    let _ = self.line.send(&Frame::new(ToChild::SoftLimit)).await;
                    continue;
                }
                () = &mut stop, if may_stop => {
                    may_stop = false;
                    let _ = self.line.send(&Frame::new(ToChild::Stop)).await;
                    continue;
                }
                said = self.line.next() => said,
            };
            let frame = match said {
                Ok(frame) => frame,
                Err(failure) => return self.lost(failure, began, number).await,
            };
            let ended = match frame.head {
                ToWorker::Began => {
                    began = true;
                    continue;
                }
                ToWorker::Listens => {
                    job.control.subscribe_soft_limit();
                    continue;
                }
                ToWorker::Update { number, ref id } => {
                    let refusal = update(job, id, &frame, deadline).await;
                    let answer = Frame::new(ToChild::Updated { number, refusal });
                    let _ = self.line.send(&answer).await;
                    continue;
                }
                ToWorker::Value => value(job, &frame),
                ToWorker::WireError(fault) => fault
                    .understand()
                    .map(|error| Err(error.into()))
                    .map_err(|error| FrameError::Head(error.to_string())),
                ToWorker::Panic(message) => Ok(Err(RunError::Panic(message))),
                ToWorker::Handshake(_) => Err(FrameError::Head("a second hello".to_owned())),
            };
            return match ended {
                Ok(returned) => ChildRun::Ended(returned),
                Err(error) => self.lost(ChildFailure::Garbage(error), began, number).await,
            };
        }
    }

    async fn lost(&mut self, failure: ChildFailure, began: bool, number: u64) -> ChildRun {
        let message = match failure {
            ChildFailure::HungUp => exit_status::message(self.process.ending().await, number),
            ChildFailure::Garbage(error) => {
                self.process.kill();
                self.process.ended().await;
                format!("Worker said what cannot be read: {error} Job: {number}.")
            }
        };
        ChildRun::Lost(ProcessLost { message, began })
    }
}

/// The bytes that start a task.
fn call(job: &Job) -> Result<Vec<u8>, TaskError> {
    let failed = |error: &dyn std::fmt::Display| {
        TaskError::named("kombu.exceptions", "EncodeError", error.to_string())
    };
    let message = &job.message;
    let info = &message.properties.delivery_info;
    let route = kombu::Route {
        exchange: &info.exchange,
        routing_key: &info.routing_key,
    };
    let tag = message.properties.delivery_tag.as_deref();
    let outer = Message::new(
        message.headers.clone(),
        message.properties.clone(),
        Bytes::new(),
    );
    let envelope = kombu::encode(&outer, route, tag.unwrap_or_default());
    let call = ToChild::Run(Call {
        id: job.id.clone(),
        task: job.task.to_string(),
        retries: job.retries,
        redelivered: job.redelivered,
        stores_result: job.stores_result,
        wants_value: job.wants_value,
        soft_limit: job.soft_limit,
        hard_limit: job.hard_limit,
    });
    let frame = Frame::new(call)
        .with(envelope.map_err(|error| failed(&error))?)
        .with(message.body.clone());
    frame.write().map_err(|error| failed(&error))
}

fn value(job: &Job, frame: &Frame<ToWorker>) -> Result<RunResult, FrameError> {
    if !job.wants_value {
        return Ok(Ok(None));
    }
    let value = Raw::read(job.services.result_serializer, frame.blob(0)?)
        .map_err(|error| FrameError::Head(error.to_string()))?;
    Ok(Ok(Some(value.into_owned())))
}

/// Stores a state that the task reports; answers why not, if so.
async fn update(
    job: &Job,
    id: &str,
    frame: &Frame<ToWorker>,
    deadline: Duration,
) -> Option<StoreRefusal> {
    // The word of an earlier task that has left somebody behind.
    let backend = job.services.backend.as_deref().filter(|_| id == job.id)?;
    let store = async {
        let bytes = frame.blob(0).map_err(|error| invalid(id, &error))?;
        let document = ResultDocument::decode(Serializer::Json, bytes, usize::MAX)
            .map_err(|error| invalid(id, &error))?;
        let properties = &job.message.properties;
        let record = Record::new(&document).reply(
            properties.reply_to.as_deref(),
            properties.correlation_id.as_deref(),
        );
        backend.store(record).await
    };
    let stored = match tokio::time::timeout(deadline, store).await {
        Ok(stored) => stored,
        Err(_) => Err(ServiceError::no_answer(
            "store",
            format!("the state of task {id}"),
            deadline,
        )),
    };
    stored.as_ref().err().map(StoreRefusal::from)
}

fn invalid(id: &str, error: &dyn std::fmt::Display) -> ServiceError {
    ServiceError::new(
        crate::boundary::ServiceErrorKind::Invalid,
        "store",
        format!("the state of task {id}"),
        error.to_string(),
    )
}

/// The line to a child.
#[derive(Debug)]
struct ChildChannel {
    socket: UnixStream,
    arrived: BytesMut,
}

/// Why nothing more can be said or heard.
#[derive(Debug)]
enum ChildFailure {
    HungUp,
    Garbage(FrameError),
}

impl ChildChannel {
    /// # Cancel safety
    ///
    /// Cancel safe: what has arrived is kept.
    async fn next(&mut self) -> Result<Frame<ToWorker>, ChildFailure> {
        loop {
            match Frame::take(&mut self.arrived) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(ChildFailure::Garbage(error)),
            }
            match self.socket.read_buf(&mut self.arrived).await {
                Ok(0) | Err(_) => return Err(ChildFailure::HungUp),
                Ok(_) => {}
            }
        }
    }

    async fn send(&mut self, frame: &Frame<ToChild>) -> Result<(), ChildFailure> {
        let bytes = frame.write().map_err(ChildFailure::Garbage)?;
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ChildFailure> {
        let sent = self.socket.write_all(bytes).await;
        sent.map_err(|_| ChildFailure::HungUp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_program_is_refused() {
        let hello = |protocol, build: &str| Handshake {
            protocol,
            build: build.to_owned(),
        };
        assert_eq!(check(&hello(PROTOCOL, "a"), Some("a".to_owned())), Ok(()));
        assert_eq!(check(&hello(PROTOCOL, "a"), None), Ok(()));
        let other = check(&hello(PROTOCOL, "b"), Some("a".to_owned())).unwrap_err();
        assert!(other.contains("another build (b)"), "{other}");
        let newer = check(&hello(PROTOCOL + 1, "a"), None).unwrap_err();
        assert!(newer.contains("version 2"), "{newer}");
    }
}
