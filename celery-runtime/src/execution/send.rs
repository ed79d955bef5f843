//! Sending other tasks from a running task.

use std::sync::Arc;

use celery_protocol::Raw;

use crate::boundary::{ServiceError, ServiceErrorKind, no_chords};
use crate::canvas::options::CallOptions;
use crate::canvas::{Canvas, PlanContext, Position};
use crate::client::{SendError, Sendable};
use crate::env;
use crate::execution::context::Context;

impl<S> Context<S> {
    /// Sends a task or a canvas as a child of this task: this task is its parent, and the stored
    /// result of this task lists it among its `children`.
    ///
    /// Waiting for the result inside the task occupies a slot of the worker. To continue with the
    /// result, [replace](crate::TaskError::replace) this task or add a step after it. An isolated
    /// task sends from its child process, and its result does not list these `children`.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Client::apply`](crate::Client::apply).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent some of the tasks.
    pub async fn apply<C: Sendable>(&self, canvas: C) -> Result<C::Result, SendError> {
        self.apply_at::<C>(canvas.into_canvas(), Position::default())
            .await
    }

    /// Adds a task, a chain or a chord to the header of the chord that this task is a member of:
    /// the body also waits for the new member and receives its result.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::Chord`] if this task is not a member of a chord, if the result backend
    /// does not count members (it does not for an isolated task), or if `canvas` is a group.
    /// Otherwise returns the errors of [`Client::apply`](crate::Client::apply). If the broker does
    /// not accept the message, the chord waits for the member nevertheless, as in Celery; all other
    /// errors are detected before the chord is changed.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have added a member that was not sent, for which the chord then waits.
    pub async fn add_to_chord<C: Sendable>(&self, canvas: C) -> Result<C::Result, SendError> {
        let canvas = canvas.into_canvas();
        let name = canvas.task().to_owned();
        let chord_error = |cause| SendError::Chord {
            task: name.clone(),
            cause,
        };
        let object = format!("the chord of task {}", self.id());
        let invalid = |cause: &str| {
            let kind = ServiceErrorKind::Invalid;
            chord_error(ServiceError::new(kind, "extend", object.clone(), cause))
        };
        let headers = self
            .headers()
            .map_err(|error| invalid(&error.to_string()))?;
        let (Some(group_id), Some(body)) = (headers.group, self.chord()) else {
            return Err(invalid("the task is not a member of a chord"));
        };
        let Some(backend) = self.job().services.backend.as_deref() else {
            return Err(invalid(
                "there is no result backend that counts its members",
            ));
        };
        if name == "celery.group" {
            return Err(invalid(
                "a group cannot be a member of a chord; add its tasks one by one",
            ));
        }
        let id = env::uuid();
        let chords = backend
            .chords()
            .ok_or_else(|| chord_error(no_chords("extend", &group_id)))?;
        let client = &self.job().services.client;
        client.check_sendable(canvas.clone())?;
        for number in 0..canvas.size() {
            let member = format!("{id}:{number}");
            chords
                .add_member(&group_id, &member)
                .await
                .map_err(chord_error)?;
        }
        let position = Position {
            id: Some(id),
            group_id: Some(group_id.into_owned()),
            group_index: headers.group_index,
            chord: Some(Arc::new(body)),
            root_id: self.root_id(),
        };
        self.apply_at::<C>(canvas, position).await
    }

    async fn apply_at<C: Sendable>(
        &self,
        canvas: Canvas,
        position: Position,
    ) -> Result<C::Result, SendError> {
        let context = PlanContext {
            options: CallOptions {
                parent_id: Some(self.id().to_owned()),
                root_id: Some(self.root_id().unwrap_or_else(|| self.id().to_owned())),
                ..CallOptions::default()
            },
            position,
            chain: Vec::new(),
        };
        let client = &self.job().services.client;
        let (result, children) = client.apply_in_context::<C>(canvas, &context).await?;
        self.job().children().extend(children);
        Ok(result)
    }

    /// Returns the body of the chord that this task is a member of.
    fn chord(&self) -> Option<Raw<'static>> {
        let payload = self.job().payload().ok()?;
        let chord = payload.body().ok()?.embed.chord?;
        (!chord.is_null()).then(|| chord.into_owned())
    }
}
