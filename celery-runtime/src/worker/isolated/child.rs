//! The parent's side of the channel to one child process: [`Child`].

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

use crate::boundary::{ResultRecord, ServiceError};
use crate::env;
use crate::execution::{Job, ProcessLost, RunError, RunResult, TaskError};
use crate::worker::isolated::frame::{Frame, FrameError};
use crate::worker::isolated::process::Process;
use crate::worker::isolated::program::Program;
use crate::worker::isolated::protocol::{
    ChildConfig, Handshake, PROTOCOL, RunTask, StoreError, ToChild, ToWorker,
};
use crate::worker::isolated::{ChildError, exit_status};

/// How long a child may take from its start to its [`Handshake`].
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// A child process and the channel to it. Dropping it closes the channel, which
/// makes the child exit.
#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    channel: ChildChannel,
    /// How many tasks the child has run, including the current one.
    pub(super) tasks: u64,
}

/// The result of running a task in a child.
pub(super) enum ChildRun {
    /// The task ended; the child can run another one.
    Ended(RunResult),
    /// The child has exited or was killed.
    Lost(ProcessLost),
}

/// A child that was started and has not sent its [`Handshake`] yet.
#[derive(Debug)]
pub(super) struct StartingChild(Child);

impl StartingChild {
    /// Starts a child. `on_exit` is called when it has exited.
    pub(super) fn start(
        program: &Program,
        worker: &str,
        on_exit: impl FnOnce(u32) + Send + 'static,
    ) -> Result<Self, ChildError> {
        let failed = |error: io::Error| ChildError::new(program.name(), error.to_string());
        let (parent, child) = Pair::pair().map_err(failed)?;
        parent.set_nonblocking(true).map_err(failed)?;
        let mut command: Command = program.command(worker);
        command.stdin(Stdio::from(OwnedFd::from(child)));
        // Consumes the command, and with it this process's copy of the child's end.
        let process = Process::start(command, on_exit).map_err(failed)?;
        Ok(Self(Child {
            process,
            channel: ChildChannel {
                socket: UnixStream::from_std(parent).map_err(failed)?,
                buffer: BytesMut::new(),
            },
            tasks: 0,
        }))
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits for the child's handshake, checks it, and sends the configuration.
    /// Kills the child after an error.
    pub(super) async fn handshake(
        self,
        program: &Program,
        config: &ChildConfig,
    ) -> Result<Child, ChildError> {
        let Self(mut child) = self;
        let exchanged = Self::exchange_handshake(&mut child, program, config).await;
        if exchanged.is_err() {
            child.process.kill();
        }
        exchanged.map(|()| child)
    }

    async fn exchange_handshake(
        child: &mut Child,
        program: &Program,
        config: &ChildConfig,
    ) -> Result<(), ChildError> {
        let failed = |cause: String| ChildError::new(program.name(), cause);
        let received = tokio::time::timeout(HANDSHAKE_TIMEOUT, child.channel.next()).await;
        let handshake = match received {
            Ok(Ok(Frame {
                head: ToWorker::Handshake(handshake),
                ..
            })) => handshake,
            Ok(Ok(Frame { head, .. })) => {
                return Err(failed(format!(
                    "its first message was {head:?} instead of a handshake"
                )));
            }
            Ok(Err(ChannelError::Closed)) => {
                let status = exit_status::describe(child.process.wait_or_kill().await);
                return Err(failed(format!(
                    "it exited ({status}) before its main called Worker::run_until"
                )));
            }
            Ok(Err(ChannelError::InvalidFrame(error))) => {
                return Err(failed(format!("it sent an invalid handshake: {error}")));
            }
            Err(_) => {
                return Err(failed(format!(
                    "its main did not call Worker::run_until within {HANDSHAKE_TIMEOUT:?} for a \
                     worker with the same tasks and queues"
                )));
            }
        };
        check(&handshake, program.expected_build()).map_err(failed)?;
        let config = Frame::new(ToChild::Configure(config.clone()));
        let sent = child.channel.send(&config).await;
        sent.map_err(|_| failed("it closed the socket".to_owned()))
    }
}

/// Checks that the child is the same program and uses the same protocol.
fn check(handshake: &Handshake, expected: Option<String>) -> Result<(), String> {
    if handshake.protocol != PROTOCOL {
        return Err(format!(
            "it uses version {} of the protocol with children, this worker version {PROTOCOL}: \
             use the same version of celery in both",
            handshake.protocol
        ));
    }
    match expected {
        Some(expected) if expected != handshake.build => Err(format!(
            "it is another build ({}) than this worker ({expected}): restart the worker",
            handshake.build
        )),
        _ => Ok(()),
    }
}

impl Child {
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(super) fn has_exited(&self) -> bool {
        self.process.has_exited()
    }

    /// Ends the child during a task: with this signal, or else with SIGKILL.
    pub(super) fn terminate(mut self, signal: Option<i32>) {
        let Some(number) = signal else {
            return self.process.kill();
        };
        self.process.signal(number);
        // Without a runtime the channel is closed now, which makes the child exit.
        if let Ok(runtime) = Handle::try_current() {
            // Short-lived: a process that survives the signal is killed.
            env::spawn_on(&runtime, async move {
                self.process.wait().await;
                // Closing the channel earlier could make the child exit before it
                // handles the signal.
                drop(self.channel);
            });
        }
    }

    /// Runs a task. `number` is the number of the task among all isolated tasks
    /// of the worker; a state that the task reports has to be stored within
    /// `deadline`.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: after the future is dropped, the child still runs the task.
    pub(super) async fn run(&mut self, job: &Job, number: u64, deadline: Duration) -> ChildRun {
        self.tasks += 1;
        let task = match encode_task(job) {
            Ok(task) => task,
            Err(error) => return ChildRun::Ended(Err(error.into())),
        };
        let mut began = false;
        match self.exchange(job, task, deadline, &mut began).await {
            Ok(result) => ChildRun::Ended(result),
            Err(error) => self.lost(error, began, number).await,
        }
    }

    /// Sends the task, and handles the child's messages until the task has ended.
    /// Sets `began` when the child starts it.
    async fn exchange(
        &mut self,
        job: &Job,
        task: Vec<u8>,
        deadline: Duration,
        began: &mut bool,
    ) -> Result<RunResult, ChannelError> {
        self.channel.write(&task).await?;
        drop(task);
        let mut soft_limit = pin!(job.control.soft_limit());
        let mut is_limited = true;
        let mut stop = pin!(job.control.shutdown_requested());
        let mut may_stop = true;
        loop {
            let frame = tokio::select! {
                // Each of the first two is ready only once, so that they do not
                // starve the child's messages.
                biased;
                () = &mut soft_limit, if is_limited => {
                    is_limited = false;
                    // An error means a closed channel, which `next` reports.
                    let _ = self.channel.send(&Frame::new(ToChild::SoftLimit)).await;
                    continue;
                }
                () = &mut stop, if may_stop => {
                    may_stop = false;
                    let _ = self.channel.send(&Frame::new(ToChild::Stop)).await;
                    continue;
                }
                frame = self.channel.next() => frame?,
            };
            match frame.head {
                ToWorker::Started => *began = true,
                ToWorker::HandlesSoftLimit => job.control.subscribe_soft_limit(),
                ToWorker::Update { number, ref id } => {
                    let error = update(job, id, &frame, deadline).await;
                    let result = Frame::new(ToChild::Updated { number, error });
                    let _ = self.channel.send(&result).await;
                }
                _ => return task_result(job, frame).map_err(ChannelError::InvalidFrame),
            }
        }
    }

    async fn lost(&mut self, failure: ChannelError, began: bool, number: u64) -> ChildRun {
        let message = match failure {
            ChannelError::Closed => exit_status::message(self.process.wait_or_kill().await, number),
            ChannelError::InvalidFrame(error) => {
                self.process.kill();
                self.process.wait().await;
                format!("Worker process sent an invalid message: {error} Job: {number}.")
            }
        };
        ChildRun::Lost(ProcessLost { message, began })
    }
}

/// Encodes the frame that starts a task.
fn encode_task(job: &Job) -> Result<Vec<u8>, TaskError> {
    let failed = |error: &dyn std::fmt::Display| {
        TaskError::named("kombu.exceptions", "EncodeError", error.to_string())
    };
    let message = &job.message;
    let info = &message.properties.delivery_info;
    let route = kombu::EnvelopeRoute {
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
    let call = ToChild::Run(RunTask {
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
    frame.encode().map_err(|error| failed(&error))
}

/// Decodes the message that ends a task.
fn task_result(job: &Job, frame: Frame<ToWorker>) -> Result<RunResult, FrameError> {
    match frame.head {
        ToWorker::Value => value(job, &frame),
        ToWorker::Error(error) => error
            .decode()
            .map(|error| Err(error.into()))
            .map_err(|error| FrameError::Head(error.to_string())),
        ToWorker::Panic(message) => Ok(Err(RunError::Panic(message))),
        other => Err(FrameError::Head(format!("unexpected message {other:?}"))),
    }
}

fn value(job: &Job, frame: &Frame<ToWorker>) -> Result<RunResult, FrameError> {
    if !job.wants_value {
        return Ok(Ok(None));
    }
    let value = Raw::read(job.services.result_serializer, frame.blob(0)?)
        .map_err(|error| FrameError::Head(error.to_string()))?;
    Ok(Ok(Some(value.into_owned())))
}

/// Stores a state that the task reports; returns the error if that fails.
async fn update(
    job: &Job,
    id: &str,
    frame: &Frame<ToWorker>,
    deadline: Duration,
) -> Option<StoreError> {
    // Updates of an earlier task, as of a thread it has left running, are ignored.
    let backend = job.services.backend.as_deref().filter(|_| id == job.id)?;
    let store = async {
        let bytes = frame.blob(0).map_err(|error| invalid(id, &error))?;
        let document = ResultDocument::decode(Serializer::Json, bytes, usize::MAX)
            .map_err(|error| invalid(id, &error))?;
        let properties = &job.message.properties;
        let record = ResultRecord::new(&document).reply(
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
    stored.as_ref().err().map(StoreError::from)
}

fn invalid(id: &str, error: &dyn std::fmt::Display) -> ServiceError {
    ServiceError::new(
        crate::boundary::ServiceErrorKind::Invalid,
        "store",
        format!("the state of task {id}"),
        error.to_string(),
    )
}

/// The channel to a child process.
#[derive(Debug)]
struct ChildChannel {
    socket: UnixStream,
    buffer: BytesMut,
}

/// An error of the channel; it cannot be used any more.
#[derive(Debug)]
enum ChannelError {
    Closed,
    InvalidFrame(FrameError),
}

impl ChildChannel {
    /// Waits for the next frame.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: received bytes stay in the buffer.
    async fn next(&mut self) -> Result<Frame<ToWorker>, ChannelError> {
        loop {
            match Frame::decode(&mut self.buffer) {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(ChannelError::InvalidFrame(error)),
            }
            match self.socket.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return Err(ChannelError::Closed),
                Ok(_) => {}
            }
        }
    }

    async fn send(&mut self, frame: &Frame<ToChild>) -> Result<(), ChannelError> {
        let bytes = frame.encode().map_err(ChannelError::InvalidFrame)?;
        self.write(&bytes).await
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        let sent = self.socket.write_all(bytes).await;
        sent.map_err(|_| ChannelError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_of_another_build_is_rejected() {
        let handshake = |protocol, build: &str| Handshake {
            protocol,
            build: build.to_owned(),
        };
        assert_eq!(
            check(&handshake(PROTOCOL, "a"), Some("a".to_owned())),
            Ok(())
        );
        assert_eq!(check(&handshake(PROTOCOL, "a"), None), Ok(()));
        let other = check(&handshake(PROTOCOL, "b"), Some("a".to_owned())).unwrap_err();
        assert!(other.contains("another build (b)"), "{other}");
        let newer = check(&handshake(PROTOCOL + 1, "a"), None).unwrap_err();
        assert!(newer.contains("version 2"), "{newer}");
    }
}
