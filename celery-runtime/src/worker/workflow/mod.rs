//! Workflows: what follows the end of a task. Pure.
//!
//! [`Workflow`] turns the completion of a task into [`WorkflowEffect`]s and composes
//! the messages of continuations; `worker::effects` carries them out.

pub(crate) mod effect;
mod failure;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use celery_protocol::{
    Accept, EncodeError, Exception, Message, Raw, ResultTree, Serializer, State, WireSignature,
};
use serde::Serialize;

use crate::boundary::{ChordClaim, ChordResults};
use crate::canvas::options::CallOptions;
use crate::canvas::{Canvas, CanvasError, IdSource, Plan, PlanContext, Position, plan};
use crate::client::compose::{ComposeError, RoutedTask, Sender};
use crate::env;
use crate::execution::Registry;
use crate::worker::workflow::effect::{
    ClaimedChord, Completion, FinishedMember, OutgoingBatch, TaskRequest, WorkflowEffect,
};
use crate::worker::workflow::failure::ChordFailure;

/// The rules of workflows, with the settings that they depend on.
#[derive(Debug)]
pub(crate) struct Workflow<'a> {
    pub(crate) sender: &'a Sender,
    pub(crate) registry: &'a Registry,
    /// The serializer of results.
    pub(crate) serializer: Serializer,
    /// The time to live of the claim of a chord while its results are joined.
    pub(crate) claim_ttl: Duration,
    /// Whether a task polls the header of a chord, because the result backend does not
    /// count members.
    pub(crate) polls_chords: bool,
    pub(crate) now: SystemTime,
}

/// Why the continuations of a task cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContinuationError {
    /// A signature cannot be read or is not supported.
    #[error("cannot build the continuation: {0}")]
    Canvas(#[from] CanvasError),
    /// A message cannot be composed.
    #[error(transparent)]
    Compose(#[from] ComposeError),
}

impl From<EncodeError> for ContinuationError {
    fn from(error: EncodeError) -> Self {
        Self::Compose(error.into())
    }
}

impl TaskRequest {
    /// Reads the request of a message. Headers and options that cannot be decoded are
    /// left out.
    pub(crate) fn of_message(message: &Message, accept: &Accept, body_limit: usize) -> Self {
        let Ok(Some(headers)) = message.headers.task() else {
            return Self::default();
        };
        let mut request = Self {
            id: headers.id.into_owned(),
            task: Some(headers.task.into_owned()),
            root_id: headers.root_id.map(|id| id.into_owned()),
            group_id: headers.group.map(|id| id.into_owned()),
            group_index: headers.group_index,
            replaced: headers.replaced_task_nesting,
            reply_to: message.properties.reply_to.clone(),
            ..Self::default()
        };
        let Ok(payload) = message.payload(accept, body_limit) else {
            return request;
        };
        let Ok(body) = payload.body() else {
            return request;
        };
        let list = |raw: Option<Raw<'_>>| {
            let elements = raw.and_then(|raw| raw.elements().ok());
            let elements = elements.into_iter().flatten();
            elements.map(Raw::into_owned).collect::<Vec<_>>()
        };
        let chord = body.embed.chord.filter(|chord| !chord.is_null());
        request.chord = chord.map(Raw::into_owned);
        request.chain = list(body.embed.chain);
        request.callbacks = list(body.embed.callbacks);
        request.errbacks = list(body.embed.errbacks);
        request
    }

    /// Reads the request that the task of a signature would have.
    fn of_signature(signature: &WireSignature<'_>) -> Result<Self, String> {
        let options = CallOptions::from_wire(&signature.options)?;
        let list = |raw: Option<Raw<'static>>| {
            let elements = raw.and_then(|raw| raw.elements().map(|list| list.into_vec()).ok());
            elements.unwrap_or_default()
        };
        Ok(Self {
            id: options.task_id.unwrap_or_default(),
            task: Some(signature.task.clone().into_owned()),
            root_id: options.root_id,
            group_id: options.group_id,
            group_index: options.group_index,
            chord: options.embed.chord,
            chain: list(options.embed.chain),
            errbacks: list(options.embed.errbacks),
            ..Self::default()
        })
    }

    /// Returns the id of the first task of the workflow.
    fn root(&self) -> &str {
        self.root_id.as_deref().unwrap_or(&self.id)
    }
}

impl Workflow<'_> {
    /// Returns the workflow effects of a completed task, other than its own result and
    /// acknowledgement.
    pub(crate) fn complete(
        &self,
        request: &Arc<TaskRequest>,
        completion: &Completion,
    ) -> Vec<WorkflowEffect> {
        match completion {
            Completion::Succeeded(value) => self
                .complete_member(request, request, State::Success, value.clone())
                .into_iter()
                .collect(),
            Completion::Failed(failure_info) => self.fail_task(request, failure_info),
            Completion::Revoked(reason) => {
                let exception = Exception::new("celery.exceptions", "TaskRevokedError", *reason);
                let result = self.encode(&exception);
                self.complete_member(request, request, State::Revoked, result)
                    .into_iter()
                    .collect()
            }
            Completion::Joined {
                group_id,
                body,
                results,
            } => {
                let chord = Arc::new(self.claim_chord(request, group_id, body, false));
                match results {
                    Ok(results) => vec![WorkflowEffect::JoinResults(
                        chord,
                        Arc::new(results.clone()),
                    )],
                    Err(cause) => self.fail_chord(&chord, ChordFailure::of_unlock(cause)),
                }
            }
        }
    }

    /// Composes the callbacks and the next step of the chain, with the task's value.
    pub(crate) fn compose_continuations(
        &self,
        request: &TaskRequest,
        value: &Raw<'_>,
    ) -> Result<OutgoingBatch, ContinuationError> {
        let mut batch = OutgoingBatch::default();
        let callbacks = read_all("callbacks", &request.callbacks)?;
        let (groups, mut others): (Vec<_>, Vec<_>) = callbacks
            .into_iter()
            .partition(|callback| callback.task() == "celery.group");
        match (others.len(), groups.is_empty()) {
            (0, _) => {}
            (1, true) => {
                let only = others.remove(0);
                self.compose_with_argument(request, only, value, Vec::new(), &mut batch)?;
            }
            _ => {
                let all = Canvas::group(others);
                self.compose_with_argument(request, all, value, Vec::new(), &mut batch)?;
            }
        }
        for group in groups {
            self.compose_with_argument(request, group, value, Vec::new(), &mut batch)?;
        }
        if let Some((next, rest)) = request.chain.split_last() {
            let step = Canvas::read(next);
            let place = format!("chain[{}]", rest.len());
            let step = step.map_err(|error| error.inside(place))?;
            self.compose_with_argument(request, step, value, rest.to_vec(), &mut batch)?;
        }
        Ok(batch)
    }

    /// Composes the canvas that replaces the task.
    pub(crate) fn compose_replacement(
        &self,
        request: &TaskRequest,
        canvas: &Canvas,
    ) -> Result<OutgoingBatch, ContinuationError> {
        let nesting = request.replaced + 1;
        let canvas =
            canvas
                .clone()
                .into_replacement(&request.callbacks, &request.errbacks, nesting)?;
        let rest = request.chain.iter();
        let rest = rest.map(|step| Canvas::mark_replaced(step, nesting));
        let context = PlanContext {
            options: CallOptions {
                replaced_task_nesting: nesting,
                ..CallOptions::default()
            },
            position: Position {
                id: Some(request.id.clone()),
                group_id: request.group_id.clone(),
                group_index: request.group_index,
                chord: request.chord.clone().map(Arc::new),
                root_id: request.root_id.clone(),
            },
            chain: rest.collect::<Result<_, _>>()?,
        };
        let reply_to = request.reply_to.as_deref();
        let reply_to = reply_to.unwrap_or(&self.sender.reply_to);
        let mut batch = OutgoingBatch::default();
        self.compose(request, canvas, &context, reply_to, &mut batch)?;
        Ok(batch)
    }

    /// Composes the body of a chord with the results of its header.
    pub(crate) fn compose_body(
        &self,
        chord: &ClaimedChord,
        values: &Raw<'_>,
    ) -> Result<OutgoingBatch, ContinuationError> {
        let body = Canvas::read(&chord.body).map_err(|error| error.inside("chord"))?;
        let body = body.prepend_arg(values);
        let reply_to = &self.sender.reply_to;
        let mut batch = OutgoingBatch::default();
        self.compose(
            &chord.sender,
            body,
            &PlanContext::default(),
            reply_to,
            &mut batch,
        )?;
        Ok(batch)
    }

    /// Composes a canvas with `first` before its arguments.
    fn compose_with_argument(
        &self,
        request: &TaskRequest,
        canvas: Canvas,
        first: &Raw<'_>,
        rest: Vec<Raw<'static>>,
        batch: &mut OutgoingBatch,
    ) -> Result<(), ContinuationError> {
        let context = PlanContext {
            options: sent_from(request),
            position: Position::default(),
            chain: rest,
        };
        let reply_to = &self.sender.reply_to;
        self.compose(
            request,
            canvas.prepend_arg(first),
            &context,
            reply_to,
            batch,
        )
    }

    fn compose(
        &self,
        request: &TaskRequest,
        canvas: Canvas,
        context: &PlanContext,
        reply_to: &str,
        batch: &mut OutgoingBatch,
    ) -> Result<(), ContinuationError> {
        let ids = IdSource {
            fresh: &mut || env::uuid(),
            reply_to,
            chords: Vec::new(),
            wire_style: self.sender.config.wire_style(),
        };
        let mut planned = plan(canvas, context, ids)?;
        if self.polls_chords {
            planned = planned.with_unlock_tasks()?;
        }
        let Plan {
            tasks,
            chords,
            mut children,
            ..
        } = planned;
        let starts = chords.into_iter().map(|chord| chord.start);
        batch.chords.extend(starts);
        for mut task in tasks {
            let options = &mut task.options;
            // As in Celery, the task that sends a message is its parent.
            options.parent_id.get_or_insert_with(|| request.id.clone());
            options
                .root_id
                .get_or_insert_with(|| request.root().to_owned());
            let task = RoutedTask::new(self.sender, task).map_err(ComposeError::from)?;
            let (_, message) = task.compose(self.sender, self.now)?;
            batch.messages.push(message);
        }
        batch.children.append(&mut children);
        Ok(())
    }

    /// Encodes the results of a chord's header as the argument of its body, nested like
    /// their tree if there is one.
    fn join_values(&self, results: &ChordResults) -> Result<Raw<'static>, EncodeError> {
        let mut values = results.members.iter().map(|member| &member.result);
        match &results.tree {
            None => Raw::encode(self.serializer, &values.collect::<Vec<_>>()),
            Some(tree) => self.encode_nested(tree, &mut values),
        }
    }

    fn encode_nested<'r>(
        &self,
        tree: &ResultTree,
        values: &mut impl Iterator<Item = &'r Raw<'static>>,
    ) -> Result<Raw<'static>, EncodeError> {
        let Some(members) = &tree.members else {
            return Ok(values.next().cloned().unwrap_or(Raw::NULL));
        };
        let mut all = Vec::with_capacity(members.len());
        for member in members {
            all.push(self.encode_nested(member, values)?);
        }
        Raw::encode(self.serializer, &all)
    }

    /// Continues a chord whose header is complete: with its body, or with the failure of
    /// a member.
    pub(crate) fn continue_chord(
        &self,
        chord: &Arc<ClaimedChord>,
        results: &ChordResults,
    ) -> Vec<WorkflowEffect> {
        let mut members = results.members.iter();
        if let Some(failed) = members.find(|member| member.state != State::Success) {
            let is_joined = results.tree.is_some() && chord.counted;
            return self.fail_chord(chord, ChordFailure::of_member(failed, is_joined));
        }
        let values = match self.join_values(results) {
            Ok(values) => values,
            Err(error) => return self.fail_join(chord, &error.to_string()),
        };
        match self.compose_body(chord, &values) {
            Ok(batch) => vec![WorkflowEffect::SendBody(Arc::clone(chord), Arc::new(batch))],
            Err(error) => self.fail_body(chord, &error.to_string()),
        }
    }

    /// Fails a chord whose results cannot be joined.
    pub(crate) fn fail_join(&self, chord: &Arc<ClaimedChord>, cause: &str) -> Vec<WorkflowEffect> {
        self.fail_chord(chord, ChordFailure::of_join(cause))
    }

    /// Fails a chord whose body can never be sent.
    pub(crate) fn fail_body(&self, chord: &Arc<ClaimedChord>, cause: &str) -> Vec<WorkflowEffect> {
        self.fail_chord(chord, ChordFailure::of_body(cause))
    }

    /// Returns the effect that counts `member` in its chord on behalf of `sender`, if it
    /// is a member of one and the result backend counts.
    fn complete_member(
        &self,
        sender: &Arc<TaskRequest>,
        member: &Arc<TaskRequest>,
        state: State,
        result: Raw<'static>,
    ) -> Option<WorkflowEffect> {
        let (Some(group_id), Some(body)) = (&member.group_id, &member.chord) else {
            return None;
        };
        if member.id.is_empty() || self.polls_chords {
            return None;
        }
        Some(WorkflowEffect::CompleteMember(Arc::new(FinishedMember {
            chord: Arc::new(self.claim_chord(sender, group_id, body, true)),
            task_id: member.id.clone(),
            index: member.group_index,
            state,
            result,
        })))
    }

    /// Creates a chord with a new claim, which the result backend grants later.
    fn claim_chord(
        &self,
        sender: &Arc<TaskRequest>,
        group_id: &str,
        body: &Raw<'static>,
        counted: bool,
    ) -> ClaimedChord {
        let token = env::uuid_simple();
        ClaimedChord {
            group_id: group_id.to_owned(),
            body: body.clone(),
            claim: ChordClaim::new(token, self.claim_ttl),
            sender: Arc::clone(sender),
            counted,
            errbacks_called: false,
        }
    }

    /// Encodes an exception. Every serializer has text, numbers and maps of them.
    fn encode<T: Serialize>(&self, exception: &T) -> Raw<'static> {
        Raw::encode(self.serializer, exception).unwrap_or(Raw::NULL)
    }
}

/// Returns Celery's `parent_id` and `root_id` for tasks that a task sends.
fn sent_from(request: &TaskRequest) -> CallOptions {
    CallOptions {
        parent_id: Some(request.id.clone()),
        root_id: Some(request.root().to_owned()),
        ..CallOptions::default()
    }
}

fn read_all(name: &str, list: &[Raw<'static>]) -> Result<Vec<Canvas>, CanvasError> {
    let read = |(place, raw): (usize, &Raw<'static>)| {
        let canvas = Canvas::read(raw);
        canvas.map_err(|error| error.inside(format_args!("{name}[{place}]")))
    };
    list.iter().enumerate().map(read).collect()
}
