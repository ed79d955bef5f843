//! What fails with a task or with the header of a chord. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use celery_protocol::{Exception, Raw, ResultTree, Signature, State, Value};
use serde::Serialize;

use super::{Unsent, Workflow, read_all};
use crate::backend::{ChordEnd, PartResult};
use crate::canvas::Canvas;
use crate::client::options::CallOptions;
use crate::task::FailureNote;
use crate::worker::deed::{Callback, Chord, Deed, Dispatch, Doomed, Station};
use crate::worker::delivery::{Mishap, celery_exception};

/// Why a chord fails.
pub(super) struct Fault {
    /// What its body fails with.
    mishap: Mishap,
    /// What its header failed with.
    cause: Option<Exception>,
    /// The errbacks that a chord in its header has called for it.
    called: Vec<Value>,
    end: ChordEnd,
}

/// A task of which something else has the result, with all errbacks that hear of
/// its failure.
struct Target<'a> {
    signature: Signature<'a>,
    station: Station,
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
    pub(super) fn of_part(part: &PartResult, is_joined: bool) -> Self {
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
            mishap: chord_error(text, &told),
            cause,
            called: called.filter_map(|one| one.to_value().ok()).collect(),
            end: ChordEnd::Failed,
        }
    }

    /// The results of the header cannot be brought together.
    pub(super) fn of_join(cause: &str) -> Self {
        Self::alone(format!("Join error: {cause}"), ChordEnd::Failed)
    }

    /// The body could not be sent and never will be.
    pub(super) fn of_body(cause: &str) -> Self {
        Self::alone(format!("Callback error: {cause}"), ChordEnd::Continued)
    }

    fn alone(text: String, end: ChordEnd) -> Self {
        Self {
            mishap: chord_error(text, ""),
            cause: None,
            called: Vec::new(),
            end,
        }
    }
}

impl<'a> Target<'a> {
    /// The result of a chord is its body's.
    fn of(mut signature: Signature<'a>) -> Option<Self> {
        let mut errbacks = Vec::new();
        loop {
            let mut station = Station::of_signature(&signature)
                .inspect_err(|error| tracing::error!("what follows a chord: {error}"))
                .ok()?;
            errbacks.append(&mut station.errbacks);
            let body = match signature.subtask_type.as_deref() {
                Some("chord") => entry(&signature, "body"),
                _ => None,
            };
            match body.and_then(|body| Signature::read(&body).ok()) {
                Some(body) => signature = body,
                None => {
                    station.errbacks = errbacks;
                    return Some(Self { signature, station });
                }
            }
        }
    }

    fn read(raw: &Raw<'a>) -> Option<Self> {
        Signature::read(raw).ok().and_then(Self::of)
    }

    fn tasks(&self) -> Vec<Raw<'a>> {
        let tasks = entry(&self.signature, "tasks").and_then(|tasks| tasks.elements().ok());
        tasks.map(|tasks| tasks.into_vec()).unwrap_or_default()
    }

    fn is(&self, kind: &str) -> bool {
        self.signature.subtask_type.as_deref() == Some(kind)
    }
}

impl Workflow<'_> {
    /// Fails the body of a chord: its errbacks first, then its result, then what
    /// was to follow it. Of a group each member fails with what the header failed
    /// with.
    pub(super) fn chord_failed(&self, chord: &Arc<Chord>, fault: &Fault) -> Vec<Deed> {
        tracing::error!(
            "chord {} failed: {}",
            chord.group_id,
            fault.mishap.exception
        );
        let mut deeds = Vec::new();
        match Target::read(&chord.body) {
            Some(body) if body.is("group") => self.doom_group(chord, &body, fault, &mut deeds),
            Some(body) => self.doom(chord, &body, &fault.mishap, fault, &mut deeds),
            None => tracing::error!("the body of chord {} is no signature", chord.group_id),
        }
        if chord.counted {
            deeds.push(Deed::End(Arc::clone(chord), fault.end));
        }
        deeds
    }

    fn doom_group(&self, chord: &Chord, group: &Target<'_>, fault: &Fault, deeds: &mut Vec<Deed>) {
        let cause = fault.cause.clone().map(Mishap::new);
        let mishap = cause.as_ref().unwrap_or(&fault.mishap);
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
            self.doom(chord, &member, mishap, fault, deeds);
        }
        if !group.station.id.is_empty() {
            deeds.push(doomed(&group.station, &group.signature, mishap, Vec::new()));
        }
        self.doom_chain(&chord.sender, &group.station.chain, mishap, deeds);
    }

    fn doom(
        &self,
        chord: &Chord,
        target: &Target<'_>,
        mishap: &Mishap,
        fault: &Fault,
        deeds: &mut Vec<Deed>,
    ) {
        let mut station = target.station.clone();
        let all = station.errbacks.clone();
        let is_new = |errback: &Raw<'_>| {
            let value = errback.to_value();
            value.map_or(true, |value| !fault.called.contains(&value))
        };
        station.errbacks.retain(|errback| is_new(errback));
        let mut children = chord.sender.children.clone();
        children.extend(self.call_errbacks(&station, mishap, deeds));
        if !station.id.is_empty() {
            deeds.push(doomed(&station, &target.signature, mishap, children));
        }
        // Celery lets an outer chord wait here for ever. Its errbacks were linked
        // to this one, too, and are not to be called twice.
        let part = match target.is("chain") {
            true => target.tasks().last().and_then(Target::read),
            false => None,
        };
        let part = Arc::new(match part {
            Some(Target { station: last, .. }) => Station {
                chord: last.chord.or(station.chord),
                ..last
            },
            None => station,
        });
        let result = self.written(&PartOfBody {
            exception: &mishap.exception,
            errbacks: &all,
        });
        deeds.extend(self.count(&chord.sender, &part, State::Failure, result));
        self.doom_chain(&chord.sender, &target.station.chain, mishap, deeds);
    }

    /// A task has failed: so has what was to follow it.
    pub(super) fn failed(&self, station: &Arc<Station>, mishap: &Mishap) -> Vec<Deed> {
        let result = self.written(&mishap.exception);
        let part = self.count(station, station, State::Failure, result);
        let mut deeds: Vec<_> = part.into_iter().collect();
        self.doom_chain(station, &station.chain, mishap, &mut deeds);
        self.call_errbacks(station, mishap, &mut deeds);
        deeds
    }

    /// All steps of a chain after one that failed. That of a chord ends with its
    /// body.
    fn doom_chain(
        &self,
        sender: &Arc<Station>,
        chain: &[Raw<'static>],
        mishap: &Mishap,
        deeds: &mut Vec<Deed>,
    ) {
        let mut steps: VecDeque<_> = chain.iter().cloned().collect();
        while let Some(step) = steps.pop_front() {
            let Ok(signature) = Signature::read(&step) else {
                continue;
            };
            let Ok(station) = Station::of_signature(&signature) else {
                continue;
            };
            if sender.stores && !station.id.is_empty() {
                deeds.push(doomed(&station, &signature, mishap, Vec::new()));
            }
            let result = self.written(&mishap.exception);
            deeds.extend(self.count(sender, &Arc::new(station), State::Failure, result));
            if signature.subtask_type.as_deref() == Some("chord") {
                steps.extend(entry(&signature, "body").map(Raw::into_owned));
            }
        }
    }

    /// Those that take the failure are called here, the others are sent together
    /// with the id of what failed. Answers what is sent.
    fn call_errbacks(
        &self,
        station: &Station,
        mishap: &Mishap,
        deeds: &mut Vec<Deed>,
    ) -> Vec<ResultTree> {
        if station.errbacks.is_empty() {
            return Vec::new();
        }
        let failure = Arc::new(FailureNote {
            id: station.id.clone(),
            task: station.task.clone(),
            root_id: station.root_id.clone(),
            exception: Some(mishap.exception.clone()),
            traceback: mishap.traceback.clone(),
        });
        let mut sent = Vec::new();
        for errback in &station.errbacks {
            let signature = match Signature::read(errback) {
                Ok(signature) => signature,
                Err(error) => {
                    tracing::error!("an errback of task {} is no signature: {error}", station.id);
                    continue;
                }
            };
            let registered = self.registry.find(&signature.task);
            if registered.is_some_and(|task| task.is_called_in_place(&signature)) {
                deeds.push(Deed::Call(Arc::new(Callback {
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
                deeds.push(Deed::Send(Arc::new(dispatch)));
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
        station: &Station,
        errbacks: &[Raw<'static>],
    ) -> Result<Dispatch, Unsent> {
        let group = Canvas::group(read_all("errbacks", errbacks)?);
        let id = Raw::encode(self.serializer, &station.id)?;
        let mut dispatch = Dispatch::default();
        self.start(station, group, &id, Vec::new(), &mut dispatch)?;
        Ok(dispatch)
    }
}

/// An argument of a chain, group or chord.
fn entry<'a>(signature: &Signature<'a>, name: &str) -> Option<Raw<'a>> {
    let entries = signature.kwargs.entries().ok()?;
    let found = entries.into_iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value)
}

fn chord_error(text: String, cause: &str) -> Mishap {
    let mut mishap = celery_exception("ChordError", text);
    let mut traceback = String::new();
    if !cause.is_empty() {
        traceback.push_str(cause);
        traceback.push_str(
            "\n\nThe above exception was the direct cause of the following exception:\n\n",
        );
    }
    traceback.push_str(&mishap.exception.to_string());
    traceback.push('\n');
    mishap.traceback = Some(traceback);
    mishap
}

fn doomed(
    station: &Station,
    signature: &Signature<'_>,
    mishap: &Mishap,
    children: Vec<ResultTree>,
) -> Deed {
    let options = CallOptions::from_wire(&signature.options).unwrap_or_default();
    Deed::Fail(Arc::new(Doomed {
        id: station.id.clone(),
        mishap: mishap.clone(),
        children,
        signature: signature.clone().into_owned().into(),
        group_id: station.group_id.clone(),
        parent_id: options.parent_id,
        reply_to: options.reply_to,
    }))
}
