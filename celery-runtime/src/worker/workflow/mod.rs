//! What the end of a task means for its workflow. Pure: [`WorkflowEffect`]s come out, the
//! executor does them.

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
use crate::client::compose::{ComposeError, Sender, compose_letter};
use crate::env;
use crate::execution::Registry;
use crate::worker::workflow::effect::{
    ClaimedChord, Completion, FinishedMember, OutgoingBatch, TaskRequest, WorkflowEffect,
};
use crate::worker::workflow::failure::Fault;

/// What is worked out with.
#[derive(Debug)]
pub(crate) struct Workflow<'a> {
    pub(crate) sender: &'a Sender,
    pub(crate) registry: &'a Registry,
    /// What the results of others are written with.
    pub(crate) serializer: Serializer,
    /// How long a claim holds while the results of a chord are brought together.
    pub(crate) claim_ttl: Duration,
    /// Whether chords are looked after by a task, since nobody counts.
    pub(crate) polls_chords: bool,
    pub(crate) now: SystemTime,
}

/// Why what follows a task is not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContinuationError {
    /// A part of it is no signature, or cannot be one here.
    #[error("cannot go on {0}")]
    Canvas(#[from] CanvasError),
    /// It has no message.
    #[error(transparent)]
    ComposeError(#[from] ComposeError),
}

impl From<EncodeError> for ContinuationError {
    fn from(error: EncodeError) -> Self {
        Self::ComposeError(error.into())
    }
}

impl TaskRequest {
    /// The task of a message. What cannot be read is not there.
    pub(crate) fn of_message(message: &Message, accept: &Accept, body_limit: usize) -> Self {
        let Ok(Some(headers)) = message.headers.task() else {
            return Self::default();
        };
        let mut station = Self {
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
            return station;
        };
        let Ok(body) = payload.body() else {
            return station;
        };
        let list = |raw: Option<Raw<'_>>| {
            let elements = raw.and_then(|raw| raw.elements().ok());
            let elements = elements.into_iter().flatten();
            elements.map(Raw::into_owned).collect::<Vec<_>>()
        };
        let chord = body.embed.chord.filter(|chord| !chord.is_null());
        station.chord = chord.map(Raw::into_owned);
        station.chain = list(body.embed.chain);
        station.callbacks = list(body.embed.callbacks);
        station.errbacks = list(body.embed.errbacks);
        station
    }

    /// A task that was to be sent, by its signature.
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

    /// The id of the first task of its workflow.
    fn root(&self) -> &str {
        self.root_id.as_deref().unwrap_or(&self.id)
    }
}

impl Workflow<'_> {
    /// What comes of it that a task has ended, besides what its own result and
    /// message need.
    pub(crate) fn turn(
        &self,
        station: &Arc<TaskRequest>,
        turn: &Completion,
    ) -> Vec<WorkflowEffect> {
        match turn {
            Completion::Succeeded(value) => self
                .count(station, station, State::Success, value.clone())
                .into_iter()
                .collect(),
            Completion::Failed(failure_info) => self.failed(station, failure_info),
            Completion::Revoked(reason) => {
                let exception = Exception::new("celery.exceptions", "TaskRevokedError", *reason);
                let result = self.written(&exception);
                self.count(station, station, State::Revoked, result)
                    .into_iter()
                    .collect()
            }
            Completion::Joined {
                group_id,
                body,
                results,
            } => {
                let chord = Arc::new(self.chord(station, group_id, body, false));
                match results {
                    Ok(results) => vec![WorkflowEffect::JoinResults(
                        chord,
                        Arc::new(results.clone()),
                    )],
                    Err(cause) => self.chord_failed(&chord, Fault::of_unlock(cause)),
                }
            }
        }
    }

    /// The callbacks and the next step of the chain, with the task's value.
    pub(crate) fn success(
        &self,
        station: &TaskRequest,
        value: &Raw<'_>,
    ) -> Result<OutgoingBatch, ContinuationError> {
        let mut dispatch = OutgoingBatch::default();
        let callbacks = read_all("callbacks", &station.callbacks)?;
        let (groups, mut others): (Vec<_>, Vec<_>) = callbacks
            .into_iter()
            .partition(|callback| callback.task() == "celery.group");
        match (others.len(), groups.is_empty()) {
            (0, _) => {}
            (1, true) => {
                let only = others.remove(0);
                self.start(station, only, value, Vec::new(), &mut dispatch)?;
            }
            _ => {
                let all = Canvas::group(others);
                self.start(station, all, value, Vec::new(), &mut dispatch)?;
            }
        }
        for group in groups {
            self.start(station, group, value, Vec::new(), &mut dispatch)?;
        }
        if let Some((next, rest)) = station.chain.split_last() {
            let step = Canvas::read(next);
            let place = format!("chain[{}]", rest.len());
            let step = step.map_err(|error| error.inside(place))?;
            self.start(station, step, value, rest.to_vec(), &mut dispatch)?;
        }
        Ok(dispatch)
    }

    /// What takes the task's place.
    pub(crate) fn replacement(
        &self,
        station: &TaskRequest,
        canvas: &Canvas,
    ) -> Result<OutgoingBatch, ContinuationError> {
        let nesting = station.replaced + 1;
        let canvas = canvas
            .clone()
            .standing_in(&station.callbacks, &station.errbacks, nesting)?;
        let rest = station.chain.iter();
        let rest = rest.map(|step| Canvas::marked_as_replaced(step, nesting));
        let within = PlanContext {
            over: CallOptions {
                replaced_task_nesting: nesting,
                ..CallOptions::default()
            },
            place: Position {
                id: Some(station.id.clone()),
                group_id: station.group_id.clone(),
                group_index: station.group_index,
                chord: station.chord.clone().map(Arc::new),
                root_id: station.root_id.clone(),
            },
            rest: rest.collect::<Result<_, _>>()?,
        };
        let reply_to = station.reply_to.as_deref();
        let reply_to = reply_to.unwrap_or(&self.sender.reply_to);
        let mut dispatch = OutgoingBatch::default();
        self.compose(station, canvas, &within, reply_to, &mut dispatch)?;
        Ok(dispatch)
    }

    /// The body of a chord with the results of its header.
    pub(crate) fn body(
        &self,
        chord: &ClaimedChord,
        values: &Raw<'_>,
    ) -> Result<OutgoingBatch, ContinuationError> {
        let body = Canvas::read(&chord.body).map_err(|error| error.inside("chord"))?;
        let body = body.given_raw(values);
        let reply_to = &self.sender.reply_to;
        let mut dispatch = OutgoingBatch::default();
        self.compose(
            &chord.sender,
            body,
            &PlanContext::default(),
            reply_to,
            &mut dispatch,
        )?;
        Ok(dispatch)
    }

    /// A canvas with `first` before its arguments.
    fn start(
        &self,
        station: &TaskRequest,
        canvas: Canvas,
        first: &Raw<'_>,
        rest: Vec<Raw<'static>>,
        dispatch: &mut OutgoingBatch,
    ) -> Result<(), ContinuationError> {
        let within = PlanContext {
            over: sent_by(station),
            place: Position::default(),
            rest,
        };
        let reply_to = &self.sender.reply_to;
        self.compose(
            station,
            canvas.given_raw(first),
            &within,
            reply_to,
            dispatch,
        )
    }

    fn compose(
        &self,
        station: &TaskRequest,
        canvas: Canvas,
        within: &PlanContext,
        reply_to: &str,
        dispatch: &mut OutgoingBatch,
    ) -> Result<(), ContinuationError> {
        let ids = IdSource {
            fresh: &mut || env::uuid(),
            reply_to,
            chords: Vec::new(),
            wire_style: self.sender.config.wire_style(),
        };
        let mut planned = plan(canvas, within, ids)?;
        if self.polls_chords {
            planned = planned.unlocked_by_tasks()?;
        }
        let Plan {
            letters,
            chords,
            mut children,
            ..
        } = planned;
        let starts = chords.into_iter().map(|chord| chord.start);
        dispatch.chords.extend(starts);
        for mut letter in letters {
            let options = &mut letter.options;
            // Sent from inside a task, so Celery makes that one the parent.
            options.parent_id.get_or_insert_with(|| station.id.clone());
            options
                .root_id
                .get_or_insert_with(|| station.root().to_owned());
            let (_, message) = compose_letter(self.sender, &letter.call, letter.options, self.now)?;
            dispatch.letters.push(message);
        }
        dispatch.children.append(&mut children);
        Ok(())
    }

    /// The results of a chord's header as the argument of its body; with a tree,
    /// those of its tasks in their order.
    fn joined(&self, results: &ChordResults) -> Result<Raw<'static>, EncodeError> {
        let mut values = results.members.iter().map(|part| &part.result);
        match &results.tree {
            None => Raw::encode(self.serializer, &values.collect::<Vec<_>>()),
            Some(tree) => self.nested(tree, &mut values),
        }
    }

    fn nested<'r>(
        &self,
        tree: &ResultTree,
        values: &mut impl Iterator<Item = &'r Raw<'static>>,
    ) -> Result<Raw<'static>, EncodeError> {
        let Some(members) = &tree.members else {
            return Ok(values.next().cloned().unwrap_or(Raw::NULL));
        };
        let mut all = Vec::with_capacity(members.len());
        for member in members {
            all.push(self.nested(member, values)?);
        }
        Raw::encode(self.serializer, &all)
    }

    /// What comes next when the header of a chord is through.
    pub(crate) fn go_on(
        &self,
        chord: &Arc<ClaimedChord>,
        results: &ChordResults,
    ) -> Vec<WorkflowEffect> {
        let mut parts = results.members.iter();
        if let Some(failed) = parts.find(|part| part.state != State::Success) {
            let is_joined = results.tree.is_some() && chord.counted;
            return self.chord_failed(chord, Fault::of_part(failed, is_joined));
        }
        let values = match self.joined(results) {
            Ok(values) => values,
            Err(error) => return self.unjoined(chord, &error.to_string()),
        };
        match self.body(chord, &values) {
            Ok(dispatch) => vec![WorkflowEffect::SendBody(
                Arc::clone(chord),
                Arc::new(dispatch),
            )],
            Err(error) => self.body_unsent(chord, &error.to_string()),
        }
    }

    /// The results of the header cannot be brought together.
    pub(crate) fn unjoined(&self, chord: &Arc<ClaimedChord>, cause: &str) -> Vec<WorkflowEffect> {
        self.chord_failed(chord, Fault::of_join(cause))
    }

    /// The body could not be sent and never will be.
    pub(crate) fn body_unsent(
        &self,
        chord: &Arc<ClaimedChord>,
        cause: &str,
    ) -> Vec<WorkflowEffect> {
        self.chord_failed(chord, Fault::of_body(cause))
    }

    /// The part that `member` is of a chord, told by `sender`.
    fn count(
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
            chord: Arc::new(self.chord(sender, group_id, body, true)),
            task_id: member.id.clone(),
            index: member.group_index,
            state,
            result,
        })))
    }

    fn chord(
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
            told: false,
        }
    }

    /// Text, numbers and maps of them have a form in every serializer.
    fn written<T: Serialize>(&self, exception: &T) -> Raw<'static> {
        Raw::encode(self.serializer, exception).unwrap_or(Raw::NULL)
    }
}

/// Celery's `parent_id` and `root_id` for what a task sends.
fn sent_by(station: &TaskRequest) -> CallOptions {
    CallOptions {
        parent_id: Some(station.id.clone()),
        root_id: Some(station.root().to_owned()),
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
