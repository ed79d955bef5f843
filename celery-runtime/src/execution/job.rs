//! One execution of a task: [`Job`].

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use celery_protocol::{
    DecodeError, Embed, EncodeError, Message, Payload, Raw, ResultDocument, ResultTree, State,
    TaskHeaders, encode_body,
};

use crate::boundary::ResultRecord;
use crate::execution::control::TaskControl;
use crate::execution::failed::FailureContext;
use crate::execution::worker_context::WorkerContext;

/// One execution of one task. The handler, the driver and the result document share it.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) task: Arc<str>,
    pub(crate) retries: u32,
    pub(crate) redelivered: bool,
    pub(crate) stores_result: bool,
    /// Whether the backend or a continuation of the task uses the returned value.
    pub(crate) wants_value: bool,
    pub(crate) soft_limit: Option<Duration>,
    pub(crate) hard_limit: Option<Duration>,
    /// The message in the form of protocol 2; one of protocol 1 has been converted.
    pub(crate) message: Message,
    /// The message without its compression, once [`payload`](Self::payload) has decompressed it.
    pub(crate) uncompressed: OnceLock<Message>,
    pub(crate) services: Arc<WorkerContext>,
    pub(crate) control: TaskControl,
    /// The results of the tasks that this execution has sent.
    pub(crate) children: Mutex<Vec<ResultTree>>,
    /// The failed task, if this is an errback that is called in place.
    pub(crate) failure: Option<Arc<FailureContext>>,
}

impl Job {
    /// Creates the job of a call without a message. Its result is not stored.
    pub(crate) fn in_place(
        services: Arc<WorkerContext>,
        id: &str,
        task: Arc<str>,
        args: &Raw<'_>,
        kwargs: &Raw<'_>,
        failure: Option<Arc<FailureContext>>,
    ) -> Result<Self, EncodeError> {
        let serializer = args.serializer();
        let body = encode_body(serializer, args, kwargs, &Embed::default())?;
        let headers = TaskHeaders::new(task.to_string(), id.to_owned());
        Ok(Self {
            id: id.to_owned(),
            task,
            retries: 0,
            redelivered: false,
            stores_result: false,
            wants_value: true,
            soft_limit: None,
            hard_limit: None,
            message: Message::task(headers, serializer, body),
            uncompressed: OnceLock::new(),
            services,
            control: TaskControl::default(),
            children: Mutex::default(),
            failure,
        })
    }

    /// Returns the results of the tasks that this execution has sent so far.
    pub(crate) fn children(&self) -> MutexGuard<'_, Vec<ResultTree>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decodes the headers of the message.
    ///
    /// # Errors
    ///
    /// Fails if a header has a type that Celery does not give it.
    pub(crate) fn headers(&self) -> Result<TaskHeaders<'_>, DecodeError> {
        let headers = self.message.headers.task()?;
        // The decoder has read the header `task` of every message that becomes a job.
        Ok(headers.unwrap_or_else(|| TaskHeaders::new(&*self.task, self.id.as_str())))
    }

    /// Returns the decoded body of the message. A compressed body is decompressed once and then
    /// kept, at most [`WorkerContext::body_limit`] bytes, until the job is dropped.
    ///
    /// # Errors
    ///
    /// Fails if the worker does not accept the content type, or if the body is too large or cannot
    /// be decompressed.
    pub(crate) fn payload(&self) -> Result<Payload<'_>, DecodeError> {
        let WorkerContext {
            accept, body_limit, ..
        } = &*self.services;
        if let Some(message) = self.uncompressed.get() {
            return message.payload(accept, *body_limit);
        }
        let payload = self.message.payload(accept, *body_limit)?;
        // `Message::payload` borrows the bytes of a body that is not compressed.
        if payload.bytes().as_ptr() == self.message.body.as_ptr() {
            return Ok(payload);
        }
        let mut headers = self.message.headers.clone();
        headers.remove("compression")?;
        let body = payload.bytes().to_vec();
        let message = Message::new(headers, self.message.properties.clone(), body);
        self.uncompressed
            .get_or_init(|| message)
            .payload(accept, *body_limit)
    }

    /// Returns the decoded body of the message for monitoring. Unlike
    /// [`payload`](Self::payload) it keeps no decompressed body, so that inspecting
    /// prefetched messages takes no memory.
    ///
    /// # Errors
    ///
    /// See [`payload`](Self::payload).
    pub(crate) fn payload_for_monitoring(&self) -> Result<Payload<'_>, DecodeError> {
        let message = self.uncompressed.get().unwrap_or(&self.message);
        message.payload(&self.services.accept, self.services.body_limit)
    }

    /// Creates a result document of this task without the fields that depend on its headers.
    pub(crate) fn document<'a>(&'a self, state: State, result: Raw<'a>) -> ResultDocument<'a> {
        ResultDocument::new(Cow::Borrowed(self.id.as_str()), state, result)
    }

    /// Returns what the backend stores: `document`, and the reply queue of the message.
    pub(crate) fn record<'a>(&'a self, document: &'a ResultDocument<'a>) -> ResultRecord<'a> {
        let properties = &self.message.properties;
        ResultRecord::new(document).reply(
            properties.reply_to.as_deref(),
            properties.correlation_id.as_deref(),
        )
    }
}

#[cfg(feature = "zlib")]
#[cfg(test)]
mod tests {
    use celery_protocol::{Accept, Compression, Serializer};

    use super::*;
    use crate::app::App;
    use crate::execution::blocking::BlockingPool;

    fn job() -> Job {
        let services = WorkerContext {
            store: None,
            backend: None,
            hostname: "celery@test".to_owned(),
            accept: Accept::json(),
            body_limit: 1 << 20,
            result_serializer: Serializer::Json,
            result_extended: false,
            blocking: BlockingPool::new(1),
            client: App::memory().client(),
            registry: Arc::default(),
            chord_retry_interval: Duration::ZERO,
        };
        let (args, kwargs) = (Raw::json("[1]"), Raw::json("{}"));
        let services = Arc::new(services);
        Job::in_place(services, "id-1", "t".into(), &args, &kwargs, None).unwrap()
    }

    #[tokio::test]
    async fn compressed_body_is_decompressed_once() {
        let mut job = job();
        let plain = job.payload().unwrap().bytes().to_vec();
        assert!(job.uncompressed.get().is_none());
        job.message.compress(Compression::Zlib).unwrap();
        let first = job.payload().unwrap();
        assert_eq!(first.bytes(), plain);
        assert_eq!(first.body().unwrap().args.as_json(), Some("[1]"));
        let second = job.payload().unwrap();
        assert_eq!(first.bytes().as_ptr(), second.bytes().as_ptr());
    }
}
