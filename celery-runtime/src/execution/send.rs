//! What a running task sends.

use std::sync::Arc;

use celery_protocol::Raw;

use crate::boundary::{ServiceError, ServiceErrorKind, no_chords};
use crate::canvas::options::CallOptions;
use crate::canvas::{Canvas, PlanContext, Position};
use crate::client::{SendError, Sendable};
use crate::env;
use crate::execution::context::Context;

impl<S> Context<S> {
    /// Sends a task or a whole canvas as a child of this task: it gets this one
    /// as its parent, and this one's result names it among its `children`.
    ///
    /// Waiting here for its result holds a slot of the worker; to go on with it,
    /// [replace](crate::TaskError::replace) the task or put a step after it. An
    /// isolated task sends from its child process; what it sends is not among its
    /// `children`.
    ///
    /// # Errors
    ///
    /// As [`Client::apply`](crate::Client::apply).
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have sent some of the tasks.
    pub async fn apply<C: Sendable>(&self, canvas: C) -> Result<C::Result, SendError> {
        self.apply_at::<C>(canvas.into_canvas(), Position::default())
            .await
    }

    /// Adds a task to the chord that this one is a part of: the body waits for
    /// it, too, and gets its result beside this one's. A chord or a chain can be
    /// added like a task.
    ///
    /// # Errors
    ///
    /// [`SendError::Chord`] when this task is not part of a chord, the result
    /// backend does not count, as it does not for an isolated task, or a group is
    /// to be added as one; otherwise as [`Client::apply`](crate::Client::apply).
    /// A broker that does not take the task leaves the chord waiting for it, as in
    /// Celery; any other error is found out before.
    ///
    /// # Cancel safety
    ///
    /// A dropped future may have made the chord wait for a task that was not
    /// sent.
    pub async fn add_to_chord<C: Sendable>(&self, canvas: C) -> Result<C::Result, SendError> {
        let canvas = canvas.into_canvas();
        let name = canvas.task().to_owned();
        let refused = |cause| SendError::Chord {
            task: name.clone(),
            cause,
        };
        let object = format!("the chord of task {}", self.id());
        let wrong = |cause: &str| {
            let kind = ServiceErrorKind::Invalid;
            refused(ServiceError::new(kind, "extend", object.clone(), cause))
        };
        let headers = self.headers().map_err(|error| wrong(&error.to_string()))?;
        let (Some(group_id), Some(body)) = (headers.group, self.chord()) else {
            return Err(wrong("it is not part of a chord"));
        };
        let Some(backend) = self.job().services.backend.as_deref() else {
            return Err(wrong("there is no result backend to count its parts"));
        };
        if name == "celery.group" {
            return Err(wrong(
                "a group is no part of a chord; add its tasks one by one",
            ));
        }
        let id = env::uuid();
        let chords = backend
            .chords()
            .ok_or_else(|| refused(no_chords("extend", &group_id)))?;
        let client = &self.job().services.client;
        client.can_send(canvas.clone())?;
        for part in 0..canvas.size() {
            let part = format!("{id}:{part}");
            chords.add_member(&group_id, &part).await.map_err(refused)?;
        }
        let place = Position {
            id: Some(id),
            group_id: Some(group_id.into_owned()),
            group_index: headers.group_index,
            chord: Some(Arc::new(body)),
            root_id: self.root_id(),
        };
        self.apply_at::<C>(canvas, place).await
    }

    async fn apply_at<C: Sendable>(
        &self,
        canvas: Canvas,
        place: Position,
    ) -> Result<C::Result, SendError> {
        let within = PlanContext {
            over: CallOptions {
                parent_id: Some(self.id().to_owned()),
                root_id: Some(self.root_id().unwrap_or_else(|| self.id().to_owned())),
                ..CallOptions::default()
            },
            place,
            rest: Vec::new(),
        };
        let client = &self.job().services.client;
        let (result, children) = client.apply_within::<C>(canvas, &within).await?;
        self.job().children().extend(children);
        Ok(result)
    }

    /// The body of the chord that this task is a part of.
    fn chord(&self) -> Option<Raw<'static>> {
        let payload = self.job().payload().ok()?;
        let chord = payload.body().ok()?.embed.chord?;
        (!chord.is_null()).then(|| chord.into_owned())
    }
}
