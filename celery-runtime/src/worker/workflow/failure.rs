//! What fails with a task or with the header of a chord. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use celery_protocol::{Exception, Raw, ResultTree, State, Value, WireSignature};
use serde::Serialize;

use crate::boundary::{ChordEnd, MemberResult};
use crate::canvas::Canvas;
use crate::canvas::options::CallOptions;
use crate::execution::FailureContext;
use crate::worker::core::failure::{FailureInfo, celery_exception};
use crate::worker::workflow::effect::{
    ClaimedChord, InPlaceErrback, OutgoingBatch, SkippedTask, TaskRequest, WorkflowEffect,
};
use crate::worker::workflow::{ContinuationError, Workflow, read_all};

/// Why a chord fails.
pub(crate) struct Fault {
    /// What its body fails with.
    failure_info: FailureInfo,
    /// What its header failed with.
    cause: Option<Exception>,
    /// The errbacks that a chord in its header has called for it.
    called: Vec<Value>,
    /// All errbacks were called, by the worker that has left the chord behind.
    told: bool,
    end: ChordEnd,
}

/// A task of which something else has the result, with all errbacks that hear of
/// its failure.
struct Target<'a> {
    signature: WireSignature<'a>,
    station: TaskRequest,
}

/// The exception of a part that is the body of a chord itself. Other readers
/// leave the errbacks out.
#[derive(Serialize)]
struct PartOfBody<'a> {
    #[serde(flatten)]
    exception: &'a Exception,
    errbacks: &'a [Raw<'static>],
}

impl Fault {
    /// A part of the header has failed.
    pub(crate) fn of_part(part: &MemberResult, is_joined: bool) -> Self {
        let cause = Exception::read(&part.result).ok();
        let told = cause.as_ref().map(Exception::to_string).unwrap_or_default();
        let text = match is_joined {
            true => format!("Join error: {told}"),
            false => format!("Dependency {} raised {told}", part.task_id),
        };
        let called = part.result.entries().unwrap_or_default();
        let called = called.into_iter().find(|(name, _)| name == "errbacks");
        let called = called.and_then(|(_, errbacks)| errbacks.elements().ok());
        let called = called.into_iter().flatten();
        Self {
            failure_info: chord_error(text, &told),
            cause,
            called: called.filter_map(|one| one.to_value().ok()).collect(),
            told: false,
            end: ChordEnd::Failed,
        }
    }

    /// The results of the header cannot be brought together.
    pub(crate) fn of_join(cause: &str) -> Self {
        Self::alone(format!("Join error: {cause}"), ChordEnd::Failed)
    }

    /// Nobody looks any more whether the header is through.
    pub(crate) fn of_unlock(cause: &str) -> Self {
        let text = format!("chord_unlock could not be retried: {cause}");
        Self::alone(text, ChordEnd::Failed)
    }

    /// The body could not be sent and never will be.
    pub(crate) fn of_body(cause: &str) -> Self {
        Self::alone(
            format!("InPlaceErrback error: {cause}"),
            ChordEnd::Continued,
        )
    }

    fn alone(text: String, end: ChordEnd) -> Self {
        Self {
            failure_info: chord_error(text, ""),
            cause: None,
            called: Vec::new(),
            told: false,
            end,
        }
    }
}

impl<'a> Target<'a> {
    /// The result of a chord is its body's.
    fn of(mut signature: WireSignature<'a>) -> Option<Self> {
        let mut errbacks = Vec::new();
        loop {
            let mut station = TaskRequest::of_signature(&signature)
                .inspect_err(|error| tracing::error!("what follows a chord: {error}"))
                .ok()?;
            errbacks.append(&mut station.errbacks);
            let body = match signature.subtask_type.as_deref() {
                Some("chord") => entry(&signature, "body"),
                _ => None,
            };
            match body.and_then(|body| WireSignature::read(&body).ok()) {
                Some(body) => signature = body,
                None => {
                    station.errbacks = errbacks;
                    let mut target = Self { signature, station };
                    target.add_first_errbacks();
                    return Some(target);
                }
            }
        }
    }

    fn read(raw: &Raw<'a>) -> Option<Self> {
        WireSignature::read(raw).ok().and_then(Self::of)
    }

    /// Of a chain the first step is what does not run: what is linked to it alone
    /// hears of that, too. Celery passes it over.
    fn add_first_errbacks(&mut self) {
        if !self.is("chain") {
            return;
        }
        let first = self.tasks().first().and_then(Self::read);
        for errback in first.into_iter().flat_map(|first| first.station.errbacks) {
            if !self.station.errbacks.contains(&errback) {
                self.station.errbacks.push(errback);
            }
        }
    }

    fn tasks(&self) -> Vec<Raw<'a>> {
        let tasks = entry(&self.signature, "tasks").and_then(|tasks| tasks.elements().ok());
        tasks.map(|tasks| tasks.into_vec()).unwrap_or_default()
    }

    /// The parts that it is of the chord around it: of a chain those of its last
    /// step, of a group all tasks, which have `chord` where they say nothing.
    fn parts(&self, chord: Option<&Raw<'static>>) -> Vec<TaskRequest> {
        let own = self.station.chord.as_ref().or(chord);
        let mut tasks = self.tasks();
        let tasks = match self.signature.subtask_type.as_deref() {
            Some("chain") => tasks.split_off(tasks.len().saturating_sub(1)),
            Some("group") => tasks,
            _ => {
                return vec![TaskRequest {
                    chord: own.cloned(),
                    ..self.station.clone()
                }];
            }
        };
        let tasks = tasks.iter().filter_map(Target::read);
        tasks.flat_map(|task| task.parts(own)).collect()
    }

    fn is(&self, kind: &str) -> bool {
        self.signature.subtask_type.as_deref() == Some(kind)
    }
}

impl Workflow<'_> {
    /// Fails the body of a chord: its errbacks first, then its result, then what
    /// was to follow it. Of a group each member fails with what the header failed
    /// with.
    pub(crate) fn chord_failed(
        &self,
        chord: &Arc<ClaimedChord>,
        mut fault: Fault,
    ) -> Vec<WorkflowEffect> {
        fault.told = chord.told;
        tracing::error!(
            "chord {} failed: {}",
            chord.group_id,
            fault.failure_info.exception
        );
        // Whatever the last part does with its own result.
        let sender = Arc::new(TaskRequest {
            stores: true,
            ..(*chord.sender).clone()
        });
        let mut deeds = Vec::new();
        match Target::read(&chord.body) {
            Some(body) if body.is("group") => self.doom_group(&sender, &body, &fault, &mut deeds),
            Some(body) => self.doom(&sender, &body, &fault.failure_info, &fault, &mut deeds),
            None => tracing::error!("the body of chord {} is no signature", chord.group_id),
        }
        if !chord.counted {
            return deeds;
        }
        deeds.push(WorkflowEffect::FinishChord(Arc::clone(chord), fault.end));
        vec![WorkflowEffect::RenewClaim(Arc::clone(chord), deeds.into())]
    }

    fn doom_group(
        &self,
        sender: &Arc<TaskRequest>,
        group: &Target<'_>,
        fault: &Fault,
        deeds: &mut Vec<WorkflowEffect>,
    ) {
        let cause = fault.cause.clone().map(FailureInfo::new);
        let failure_info = cause.as_ref().unwrap_or(&fault.failure_info);
        for task in group.tasks() {
            let Some(mut member) = Target::read(&task) else {
                continue;
            };
            // Our own leave it to the group.
            let station = &mut member.station;
            station.chord = station.chord.take().or_else(|| group.station.chord.clone());
            if member.is("group") {
                let inner = member.tasks();
                let inner = inner.iter().filter_map(Target::read);
                let inner: Vec<_> = inner.flat_map(|task| task.station.errbacks).collect();
                member.station.errbacks.extend(inner);
            }
            for errback in &group.station.errbacks {
                if !member.station.errbacks.contains(errback) {
                    member.station.errbacks.push(errback.clone());
                }
            }
            self.doom(sender, &member, failure_info, fault, deeds);
        }
        self.doom_chain(sender, &group.station.chain, failure_info, deeds);
        if !group.station.id.is_empty() {
            deeds.push(doomed(
                &group.station,
                &group.signature,
                failure_info,
                Vec::new(),
            ));
        }
    }

    /// Errbacks first, so that whoever finds its failure knows that they were called;
    /// then that, since who joins an outer chord reads it.
    fn doom(
        &self,
        sender: &Arc<TaskRequest>,
        target: &Target<'_>,
        failure_info: &FailureInfo,
        fault: &Fault,
        deeds: &mut Vec<WorkflowEffect>,
    ) {
        let mut station = target.station.clone();
        let all = station.errbacks.clone();
        let is_new = |errback: &Raw<'_>| {
            let value = errback.to_value();
            value.map_or(true, |value| !fault.called.contains(&value))
        };
        station.errbacks.retain(|errback| is_new(errback));
        let mut children = sender.children.clone();
        if !fault.told {
            children.extend(self.call_errbacks(&station, failure_info, deeds));
        }
        if !station.id.is_empty() {
            deeds.push(doomed(&station, &target.signature, failure_info, children));
        }
        // Celery lets an outer chord wait here for ever. Its errbacks were linked
        // to this one, too, and are not to be called twice.
        let result = self.written(&PartOfBody {
            exception: &failure_info.exception,
            errbacks: &all,
        });
        for part in target.parts(station.chord.as_ref()) {
            let part = Arc::new(part);
            deeds.extend(self.count(sender, &part, State::Failure, result.clone()));
        }
        self.doom_chain(sender, &station.chain, failure_info, deeds);
    }

    /// A task has failed: so has what was to follow it.
    pub(crate) fn failed(
        &self,
        station: &Arc<TaskRequest>,
        failure_info: &FailureInfo,
    ) -> Vec<WorkflowEffect> {
        let result = self.written(&failure_info.exception);
        let part = self.count(station, station, State::Failure, result);
        let mut deeds: Vec<_> = part.into_iter().collect();
        self.doom_chain(station, &station.chain, failure_info, &mut deeds);
        self.call_errbacks(station, failure_info, &mut deeds);
        deeds
    }

    /// All steps of a chain after one that failed. That of a chord ends with its
    /// body, that of a group with its tasks.
    fn doom_chain(
        &self,
        sender: &Arc<TaskRequest>,
        chain: &[Raw<'static>],
        failure_info: &FailureInfo,
        deeds: &mut Vec<WorkflowEffect>,
    ) {
        let result = self.written(&failure_info.exception);
        // Each with the chord of the group that it is in.
        let mut steps: VecDeque<_> = chain.iter().map(|step| (step.clone(), None)).collect();
        while let Some((step, around)) = steps.pop_front() {
            let Ok(signature) = WireSignature::read(&step) else {
                continue;
            };
            let Ok(mut station) = TaskRequest::of_signature(&signature) else {
                continue;
            };
            station.chord = station.chord.or(around);
            if sender.stores && !station.id.is_empty() {
                deeds.push(doomed(&station, &signature, failure_info, Vec::new()));
            }
            match signature.subtask_type.as_deref() {
                Some("group") => {
                    let tasks = entry(&signature, "tasks").and_then(|tasks| tasks.elements().ok());
                    let tasks = tasks.into_iter().flatten().map(Raw::into_owned);
                    steps.extend(tasks.map(|task| (task, station.chord.clone())));
                    continue;
                }
                Some("chord") => {
                    let body = entry(&signature, "body").map(Raw::into_owned);
                    steps.extend(body.map(|body| (body, None)));
                }
                _ => {}
            }
            deeds.extend(self.count(sender, &Arc::new(station), State::Failure, result.clone()));
        }
    }

    /// Those that take the failure are called here, the others are sent together
    /// with the id of what failed. Answers what is sent.
    fn call_errbacks(
        &self,
        station: &TaskRequest,
        failure_info: &FailureInfo,
        deeds: &mut Vec<WorkflowEffect>,
    ) -> Vec<ResultTree> {
        if station.errbacks.is_empty() {
            return Vec::new();
        }
        let failure = Arc::new(FailureContext {
            id: station.id.clone(),
            task: station.task.clone(),
            root_id: station.root_id.clone(),
            info: Some(failure_info.clone()),
        });
        let mut sent = Vec::new();
        for errback in &station.errbacks {
            let signature = match WireSignature::read(errback) {
                Ok(signature) => signature,
                Err(error) => {
                    tracing::error!("an errback of task {} is no signature: {error}", station.id);
                    continue;
                }
            };
            let registered = self.registry.find(&signature.task);
            if registered.is_some_and(|task| task.is_called_in_place(&signature)) {
                deeds.push(WorkflowEffect::CallErrback(Arc::new(InPlaceErrback {
                    signature: signature.into_owned(),
                    failure: Arc::clone(&failure),
                })));
            } else {
                sent.push(errback.clone());
            }
        }
        if sent.is_empty() {
            return Vec::new();
        }
        let dispatch = self.errback_group(station, &sent);
        match dispatch {
            Ok(dispatch) => {
                let children = dispatch.children.clone();
                deeds.push(WorkflowEffect::Send(Arc::new(dispatch)));
                children
            }
            Err(error) => {
                tracing::error!("the errbacks of task {} are not sent: {error}", station.id);
                Vec::new()
            }
        }
    }

    fn errback_group(
        &self,
        station: &TaskRequest,
        errbacks: &[Raw<'static>],
    ) -> Result<OutgoingBatch, ContinuationError> {
        let group = Canvas::group(read_all("errbacks", errbacks)?);
        let id = Raw::encode(self.serializer, &station.id)?;
        let mut dispatch = OutgoingBatch::default();
        self.start(station, group, &id, Vec::new(), &mut dispatch)?;
        Ok(dispatch)
    }
}

/// An argument of a chain, group or chord.
fn entry<'a>(signature: &WireSignature<'a>, name: &str) -> Option<Raw<'a>> {
    let entries = signature.kwargs.entries().ok()?;
    let found = entries.into_iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value)
}

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

fn doomed(
    station: &TaskRequest,
    signature: &WireSignature<'_>,
    failure_info: &FailureInfo,
    children: Vec<ResultTree>,
) -> WorkflowEffect {
    let options = CallOptions::from_wire(&signature.options).unwrap_or_default();
    WorkflowEffect::StoreFailure(Arc::new(SkippedTask {
        id: station.id.clone(),
        failure_info: failure_info.clone(),
        children,
        signature: signature.clone().into_owned().into(),
        group_id: station.group_id.clone(),
        parent_id: options.parent_id,
        reply_to: options.reply_to,
    }))
}
