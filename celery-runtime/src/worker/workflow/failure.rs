//! Propagation of failures: what fails together with a task or with the header of a
//! chord. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use celery_protocol::{Exception, Raw, ResultTree, State, Value, WireSignature};
use serde::Serialize;

use crate::boundary::{ChordEnd, MemberResult};
use crate::canvas::Canvas;
use crate::canvas::options::CallOptions;
use crate::execution::{FailureContext, FailureInfo};
use crate::worker::core::failure::celery_exception;
use crate::worker::workflow::effect::{
    ClaimedChord, InPlaceErrback, OutgoingBatch, SkippedTask, TaskRequest, WorkflowEffect,
};
use crate::worker::workflow::{ContinuationError, Workflow, read_all};

/// Why a chord fails.
pub(crate) struct ChordFailure {
    /// The exception of the body.
    failure_info: FailureInfo,
    /// The exception of the header's member.
    cause: Option<Exception>,
    /// The errbacks that an inner chord of the header has called already.
    called_errbacks: Vec<Value>,
    /// Whether the worker that held the claim before has called all errbacks.
    errbacks_called: bool,
    end: ChordEnd,
}

/// The task whose result stands for that of a signature, with all errbacks of the
/// signature.
struct FailureTarget<'a> {
    signature: WireSignature<'a>,
    request: TaskRequest,
}

/// The failure of a member that is itself the body of a chord, with the errbacks that
/// were called for it. Other readers ignore the errbacks.
#[derive(Serialize)]
struct ChordBodyException<'a> {
    #[serde(flatten)]
    exception: &'a Exception,
    errbacks: &'a [Raw<'static>],
}

impl ChordFailure {
    /// A member of the header has failed. `is_joined` says whether the results were
    /// joined by their tree.
    pub(crate) fn of_member(member: &MemberResult, is_joined: bool) -> Self {
        let cause = Exception::read(&member.result).ok();
        let shown = cause.as_ref().map(Exception::to_string).unwrap_or_default();
        let text = if is_joined {
            format!("Join error: {shown}")
        } else {
            format!("Dependency {} raised {shown}", member.task_id)
        };
        let called = member.result.entries().unwrap_or_default();
        let called = called.into_iter().find(|(name, _)| name == "errbacks");
        let called = called.and_then(|(_, errbacks)| errbacks.elements().ok());
        let called = called.into_iter().flatten();
        Self {
            failure_info: chord_error(text, &shown),
            cause,
            called_errbacks: called.filter_map(|one| one.to_value().ok()).collect(),
            errbacks_called: false,
            end: ChordEnd::Failed,
        }
    }

    /// The results of the header cannot be joined.
    pub(crate) fn of_join(cause: &str) -> Self {
        Self::new(format!("Join error: {cause}"), ChordEnd::Failed)
    }

    /// The polling of the header was given up.
    pub(crate) fn of_unlock(cause: &str) -> Self {
        let text = format!("chord_unlock could not be retried: {cause}");
        Self::new(text, ChordEnd::Failed)
    }

    /// The body can never be sent.
    pub(crate) fn of_body(cause: &str) -> Self {
        Self::new(format!("Callback error: {cause}"), ChordEnd::Continued)
    }

    fn new(text: String, end: ChordEnd) -> Self {
        Self {
            failure_info: chord_error(text, ""),
            cause: None,
            called_errbacks: Vec::new(),
            errbacks_called: false,
            end,
        }
    }
}

impl<'a> FailureTarget<'a> {
    /// Resolves a signature: the result of a chord is that of its body.
    fn of(mut signature: WireSignature<'a>) -> Option<Self> {
        let mut errbacks = Vec::new();
        loop {
            let mut request = TaskRequest::of_signature(&signature)
                .inspect_err(|error| {
                    tracing::error!("cannot read the signature after a chord: {error}")
                })
                .ok()?;
            errbacks.append(&mut request.errbacks);
            let body = match signature.subtask_type.as_deref() {
                Some("chord") => entry(&signature, "body"),
                _ => None,
            };
            match body.and_then(|body| WireSignature::read(&body).ok()) {
                Some(body) => signature = body,
                None => {
                    request.errbacks = errbacks;
                    let mut target = Self { signature, request };
                    target.add_errbacks_of_first_step();
                    return Some(target);
                }
            }
        }
    }

    fn read(raw: &Raw<'a>) -> Option<Self> {
        WireSignature::read(raw).ok().and_then(Self::of)
    }

    /// Adds the errbacks that are linked to the first step of a chain only, since that
    /// step does not run either. Celery omits them.
    fn add_errbacks_of_first_step(&mut self) {
        if !self.is("chain") {
            return;
        }
        let first = self.tasks().first().and_then(Self::read);
        for errback in first.into_iter().flat_map(|first| first.request.errbacks) {
            if !self.request.errbacks.contains(&errback) {
                self.request.errbacks.push(errback);
            }
        }
    }

    fn tasks(&self) -> Vec<Raw<'a>> {
        let tasks = entry(&self.signature, "tasks").and_then(|tasks| tasks.elements().ok());
        tasks.map(|tasks| tasks.into_vec()).unwrap_or_default()
    }

    /// Returns the members that the target is of the enclosing chord: those of the last
    /// step of a chain, all tasks of a group. `chord` is the body of that chord for
    /// tasks that name none.
    fn members(&self, chord: Option<&Raw<'static>>) -> Vec<TaskRequest> {
        let own = self.request.chord.as_ref().or(chord);
        let mut tasks = self.tasks();
        let tasks = match self.signature.subtask_type.as_deref() {
            Some("chain") => tasks.split_off(tasks.len().saturating_sub(1)),
            Some("group") => tasks,
            _ => {
                return vec![TaskRequest {
                    chord: own.cloned(),
                    ..self.request.clone()
                }];
            }
        };
        let tasks = tasks.iter().filter_map(FailureTarget::read);
        tasks.flat_map(|task| task.members(own)).collect()
    }

    fn is(&self, kind: &str) -> bool {
        self.signature.subtask_type.as_deref() == Some(kind)
    }
}

impl Workflow<'_> {
    /// Fails the body of a chord: calls its errbacks, then stores its failure, then
    /// fails its continuations. Each member of a body that is a group fails with the
    /// exception of the header.
    pub(crate) fn fail_chord(
        &self,
        chord: &Arc<ClaimedChord>,
        mut failure: ChordFailure,
    ) -> Vec<WorkflowEffect> {
        failure.errbacks_called = chord.errbacks_called;
        tracing::error!(
            "chord {} failed: {}",
            chord.group_id,
            failure.failure_info.exception
        );
        // Independent of whether the last member stores its own result.
        let sender = Arc::new(TaskRequest {
            stores_failures: true,
            ..(*chord.sender).clone()
        });
        let mut effects = Vec::new();
        match FailureTarget::read(&chord.body) {
            Some(body) if body.is("group") => {
                self.fail_group(&sender, &body, &failure, &mut effects)
            }
            Some(body) => self.fail_target(
                &sender,
                &body,
                &failure.failure_info,
                &failure,
                &mut effects,
            ),
            None => tracing::error!("the body of chord {} is not a signature", chord.group_id),
        }
        if !chord.counted {
            return effects;
        }
        effects.push(WorkflowEffect::FinishChord(Arc::clone(chord), failure.end));
        vec![WorkflowEffect::RenewClaim(
            Arc::clone(chord),
            effects.into(),
        )]
    }

    fn fail_group(
        &self,
        sender: &Arc<TaskRequest>,
        group: &FailureTarget<'_>,
        failure: &ChordFailure,
        effects: &mut Vec<WorkflowEffect>,
    ) {
        let cause = failure.cause.clone().map(FailureInfo::new);
        let failure_info = cause.as_ref().unwrap_or(&failure.failure_info);
        for task in group.tasks() {
            let Some(mut member) = FailureTarget::read(&task) else {
                continue;
            };
            // Groups of this implementation set the chord on the group only.
            let request = &mut member.request;
            request.chord = request.chord.take().or_else(|| group.request.chord.clone());
            if member.is("group") {
                let inner = member.tasks();
                let inner = inner.iter().filter_map(FailureTarget::read);
                let inner: Vec<_> = inner.flat_map(|task| task.request.errbacks).collect();
                member.request.errbacks.extend(inner);
            }
            for errback in &group.request.errbacks {
                if !member.request.errbacks.contains(errback) {
                    member.request.errbacks.push(errback.clone());
                }
            }
            self.fail_target(sender, &member, failure_info, failure, effects);
        }
        self.fail_chain(sender, &group.request.chain, failure_info, effects);
        if !group.request.id.is_empty() {
            effects.push(store_skipped(
                &group.request,
                &group.signature,
                failure_info,
                Vec::new(),
            ));
        }
    }

    /// Fails one task: calls its errbacks before it stores the failure, so that the
    /// stored failure shows that they were called; counts it in an enclosing chord after
    /// that, since joining that chord reads the failure.
    fn fail_target(
        &self,
        sender: &Arc<TaskRequest>,
        target: &FailureTarget<'_>,
        failure_info: &FailureInfo,
        failure: &ChordFailure,
        effects: &mut Vec<WorkflowEffect>,
    ) {
        let mut request = target.request.clone();
        let all = request.errbacks.clone();
        let is_new = |errback: &Raw<'_>| {
            let value = errback.to_value();
            value.map_or(true, |value| !failure.called_errbacks.contains(&value))
        };
        request.errbacks.retain(|errback| is_new(errback));
        let mut children = sender.children.clone();
        if !failure.errbacks_called {
            children.extend(self.call_errbacks(&request, failure_info, effects));
        }
        if !request.id.is_empty() {
            effects.push(store_skipped(
                &request,
                &target.signature,
                failure_info,
                children,
            ));
        }
        // In Celery, the enclosing chord never completes in this case. Its errbacks are
        // linked to this target, too, and must not be called twice.
        let result = self.encode(&ChordBodyException {
            exception: &failure_info.exception,
            errbacks: &all,
        });
        for member in target.members(request.chord.as_ref()) {
            let member = Arc::new(member);
            effects.extend(self.complete_member(sender, &member, State::Failure, result.clone()));
        }
        self.fail_chain(sender, &request.chain, failure_info, effects);
    }

    /// Propagates the failure of a task: counts it in its chord, fails the rest of its
    /// chain and calls its errbacks.
    pub(crate) fn fail_task(
        &self,
        request: &Arc<TaskRequest>,
        failure_info: &FailureInfo,
    ) -> Vec<WorkflowEffect> {
        let result = self.encode(&failure_info.exception);
        let member = self.complete_member(request, request, State::Failure, result);
        let mut effects: Vec<_> = member.into_iter().collect();
        self.fail_chain(request, &request.chain, failure_info, &mut effects);
        self.call_errbacks(request, failure_info, &mut effects);
        effects
    }

    /// Fails all remaining steps of a chain, including the bodies of chords and the
    /// tasks of groups.
    fn fail_chain(
        &self,
        sender: &Arc<TaskRequest>,
        chain: &[Raw<'static>],
        failure_info: &FailureInfo,
        effects: &mut Vec<WorkflowEffect>,
    ) {
        let result = self.encode(&failure_info.exception);
        // Each step with the chord of its group.
        let mut steps: VecDeque<_> = chain.iter().map(|step| (step.clone(), None)).collect();
        while let Some((step, group_chord)) = steps.pop_front() {
            let Ok(signature) = WireSignature::read(&step) else {
                continue;
            };
            let Ok(mut request) = TaskRequest::of_signature(&signature) else {
                continue;
            };
            request.chord = request.chord.or(group_chord);
            if sender.stores_failures && !request.id.is_empty() {
                effects.push(store_skipped(
                    &request,
                    &signature,
                    failure_info,
                    Vec::new(),
                ));
            }
            match signature.subtask_type.as_deref() {
                Some("group") => {
                    let tasks = entry(&signature, "tasks").and_then(|tasks| tasks.elements().ok());
                    let tasks = tasks.into_iter().flatten().map(Raw::into_owned);
                    steps.extend(tasks.map(|task| (task, request.chord.clone())));
                    continue;
                }
                Some("chord") => {
                    let body = entry(&signature, "body").map(Raw::into_owned);
                    steps.extend(body.map(|body| (body, None)));
                }
                _ => {}
            }
            effects.extend(self.complete_member(
                sender,
                &Arc::new(request),
                State::Failure,
                result.clone(),
            ));
        }
    }

    /// Calls the errbacks that accept the failure in this worker, and sends the others
    /// as a group with the id of the failed task. Returns the results of that group.
    fn call_errbacks(
        &self,
        request: &TaskRequest,
        failure_info: &FailureInfo,
        effects: &mut Vec<WorkflowEffect>,
    ) -> Vec<ResultTree> {
        if request.errbacks.is_empty() {
            return Vec::new();
        }
        let failure = Arc::new(FailureContext {
            id: request.id.clone(),
            task: request.task.clone(),
            root_id: request.root_id.clone(),
            info: Some(failure_info.clone()),
        });
        let mut others = Vec::new();
        for errback in &request.errbacks {
            let signature = match WireSignature::read(errback) {
                Ok(signature) => signature,
                Err(error) => {
                    tracing::error!(
                        "an errback of task {} is not a signature: {error}",
                        request.id
                    );
                    continue;
                }
            };
            let registered = self.registry.find(&signature.task);
            if registered.is_some_and(|task| task.is_called_in_place(&signature)) {
                effects.push(WorkflowEffect::CallErrback(Arc::new(InPlaceErrback {
                    signature: signature.into_owned(),
                    failure: Arc::clone(&failure),
                })));
            } else {
                others.push(errback.clone());
            }
        }
        self.send_errbacks(request, &others, effects)
    }

    fn send_errbacks(
        &self,
        request: &TaskRequest,
        errbacks: &[Raw<'static>],
        effects: &mut Vec<WorkflowEffect>,
    ) -> Vec<ResultTree> {
        if errbacks.is_empty() {
            return Vec::new();
        }
        match self.errback_group(request, errbacks) {
            Ok(batch) => {
                let children = batch.children.clone();
                effects.push(WorkflowEffect::Send(Arc::new(batch)));
                children
            }
            Err(error) => {
                tracing::error!("cannot send the errbacks of task {}: {error}", request.id);
                Vec::new()
            }
        }
    }

    fn errback_group(
        &self,
        request: &TaskRequest,
        errbacks: &[Raw<'static>],
    ) -> Result<OutgoingBatch, ContinuationError> {
        let group = Canvas::group(read_all("errbacks", errbacks)?);
        let id = Raw::encode(self.serializer, &request.id)?;
        let mut batch = OutgoingBatch::default();
        self.compose_with_argument(request, group, &id, Vec::new(), &mut batch)?;
        Ok(batch)
    }
}

/// Returns a keyword argument of a chain, group or chord.
fn entry<'a>(signature: &WireSignature<'a>, name: &str) -> Option<Raw<'a>> {
    let entries = signature.kwargs.entries().ok()?;
    let found = entries.into_iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value)
}

/// Returns a `ChordError`, with the traceback that Python shows for its cause.
fn chord_error(text: String, cause: &str) -> FailureInfo {
    let mut failure_info = celery_exception("ChordError", text);
    let mut traceback = String::new();
    if !cause.is_empty() {
        traceback.push_str(cause);
        traceback.push_str(
            "\n\nThe above exception was the direct cause of the following exception:\n\n",
        );
    }
    traceback.push_str(&failure_info.exception.to_string());
    traceback.push('\n');
    failure_info.traceback = Some(traceback);
    failure_info
}

/// Returns the effect that stores the failure of a task that never runs.
fn store_skipped(
    request: &TaskRequest,
    signature: &WireSignature<'_>,
    failure_info: &FailureInfo,
    children: Vec<ResultTree>,
) -> WorkflowEffect {
    let options = CallOptions::from_wire(&signature.options).unwrap_or_default();
    WorkflowEffect::StoreFailure(Arc::new(SkippedTask {
        id: request.id.clone(),
        failure_info: failure_info.clone(),
        children,
        signature: signature.clone().into_owned().into(),
        group_id: request.group_id.clone(),
        parent_id: options.parent_id,
        reply_to: options.reply_to,
    }))
}
