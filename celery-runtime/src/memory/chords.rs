//! The chords of the in-memory backend, counted as Celery counts them on Redis.
//! Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use celery_protocol::Raw;

use crate::boundary::{ChordClaim, ChordEnd, ChordMember, ChordStart, MemberResult};
use crate::memory::backend::RESULT_TTL;

/// The shortest time for which members of a finished chord are ignored, as in the
/// Redis backend.
const LATE_MEMBER_PERIOD: Duration = Duration::from_secs(300);

/// Chords by the ids of their headers. A chord expires a day after it was last
/// changed.
#[derive(Default)]
pub(super) struct ChordTable {
    by_id: HashMap<String, ChordEntry>,
    /// The chords with completed members that are not finished.
    unfinished: BTreeSet<String>,
    /// The times at which to check whether a chord has expired.
    expiry: BTreeSet<(SystemTime, String)>,
}

#[derive(Default)]
struct ChordEntry {
    /// The chord as it began, also after it is finished.
    started: Option<ChordStart>,
    /// The number of members without the added ones; `None` before the chord begins
    /// and after it is finished.
    size: Option<usize>,
    members: BTreeMap<MemberPosition, MemberResult>,
    /// The ids of the added tasks.
    added: HashSet<String>,
    body: Option<Raw<'static>>,
    state: ChordState,
    expires: Option<SystemTime>,
}

/// The order of members: by index, then those without an index by task id.
type MemberPosition = (bool, i64, String);

#[derive(Default)]
enum ChordState {
    /// Members are missing, or the chord is not claimed.
    #[default]
    Counting,
    /// The owner of this token holds the claim until this time.
    Claimed(String, SystemTime),
    /// The chord was continued; until this time, completed members are ignored.
    Done(SystemTime),
    /// The chord has failed; the owner of this token held the claim until this
    /// time. The results of the members remain.
    Failed(String, SystemTime),
}

impl ChordTable {
    /// Returns the chord that began with this id.
    pub(super) fn started(&self, id: &str) -> Option<&ChordStart> {
        self.by_id.get(id)?.started.as_ref()
    }

    pub(super) fn begin(&mut self, start: &ChordStart, now: SystemTime) {
        let id = &start.group_id;
        let chord = self.touch(id, now);
        if chord.is_finished(now) {
            *chord = ChordEntry {
                expires: chord.expires,
                ..ChordEntry::default()
            };
        }
        chord.state = ChordState::Counting;
        chord.size = Some(start.size);
        chord.started = Some(start.clone());
    }

    pub(super) fn add_member(&mut self, id: &str, task_id: &str, now: SystemTime) {
        let chord = self.touch(id, now);
        if !chord.is_finished(now) {
            chord.added.insert(task_id.to_owned());
        }
    }

    pub(super) fn complete_member(
        &mut self,
        member: &ChordMember<'_>,
        claim: &ChordClaim,
        now: SystemTime,
    ) -> Option<Vec<MemberResult>> {
        let chord = self.touch(member.group_id, now);
        if chord.is_finished(now) {
            return None;
        }
        chord.add_result(member);
        let claimed = chord.is_complete() && chord.claim(claim, now);
        let members = claimed.then(|| chord.results());
        self.unfinished.insert(member.group_id.to_owned());
        members
    }

    pub(super) fn renew_claim(&mut self, id: &str, claim: &ChordClaim, now: SystemTime) -> bool {
        let chord = self.get_mut(id, now);
        chord.is_some_and(|chord| {
            !chord.is_finished(now) && chord.size.is_some() && chord.claim(claim, now)
        })
    }

    pub(super) fn finish(
        &mut self,
        id: &str,
        claim: &ChordClaim,
        end: ChordEnd,
        now: SystemTime,
    ) -> bool {
        let Some(chord) = self.get_mut(id, now) else {
            return false;
        };
        if !chord.is_held_by(&claim.token, now) {
            return false;
        }
        match end {
            ChordEnd::Failed => chord.fail(),
            ChordEnd::Continued => chord.complete(now + LATE_MEMBER_PERIOD.max(2 * ttl(claim))),
        }
        self.unfinished.remove(id);
        true
    }

    /// Claims complete chords without a valid claim, and returns their ids, bodies
    /// and members.
    pub(super) fn claim_stalled(
        &mut self,
        claim: &ChordClaim,
        limit: usize,
        now: SystemTime,
    ) -> Vec<(String, Raw<'static>, Vec<MemberResult>)> {
        self.expire(now);
        let mut stalled = Vec::new();
        for id in &self.unfinished {
            if stalled.len() == limit {
                break;
            }
            let Some(chord) = self.by_id.get_mut(id) else {
                continue;
            };
            if let Some(body) = &chord.body
                && chord.is_complete()
                && !chord.is_held(now)
            {
                let body = body.clone();
                chord.claim(claim, now);
                stalled.push((id.clone(), body, chord.results()));
            }
        }
        stalled
    }

    /// Returns the chord with this id, and sets its time to live to a day.
    fn touch(&mut self, id: &str, now: SystemTime) -> &mut ChordEntry {
        self.expire(now);
        let chord = self.by_id.entry(id.to_owned()).or_default();
        let expires = now + RESULT_TTL;
        if chord.expires.replace(expires).is_none() {
            self.expiry.insert((expires, id.to_owned()));
        }
        chord
    }

    /// Returns the chord with this id, unless it has expired.
    fn get_mut(&mut self, id: &str, now: SystemTime) -> Option<&mut ChordEntry> {
        self.expire(now);
        self.by_id.get_mut(id)
    }

    fn expire(&mut self, now: SystemTime) {
        while self.expiry.first().is_some_and(|(due, _)| *due <= now)
            && let Some((_, id)) = self.expiry.pop_first()
        {
            match self.by_id.get(&id).and_then(|chord| chord.expires) {
                Some(later) if later > now => {
                    self.expiry.insert((later, id));
                }
                _ => {
                    self.by_id.remove(&id);
                    self.unfinished.remove(&id);
                }
            }
        }
    }
}

impl ChordEntry {
    fn add_result(&mut self, member: &ChordMember<'_>) {
        // The period for late members is over: this is a new chord.
        if matches!(self.state, ChordState::Done(_)) {
            self.state = ChordState::Counting;
        }
        let index = member.index;
        let position = (
            index.is_none(),
            index.unwrap_or_default(),
            member.task_id.to_owned(),
        );
        self.members.entry(position).or_insert_with(|| {
            let result = member.result.clone().into_owned();
            MemberResult::new(member.task_id, member.state.clone(), result)
        });
        self.body
            .get_or_insert_with(|| member.body.clone().into_owned());
    }

    fn results(&self) -> Vec<MemberResult> {
        self.members.values().cloned().collect()
    }

    fn is_complete(&self) -> bool {
        self.size
            .is_some_and(|size| self.members.len() == size + self.added.len())
    }

    fn is_finished(&self, now: SystemTime) -> bool {
        match self.state {
            ChordState::Counting | ChordState::Claimed(..) => false,
            ChordState::Done(late_until) => late_until > now,
            ChordState::Failed(..) => true,
        }
    }

    fn is_held(&self, now: SystemTime) -> bool {
        matches!(&self.state, ChordState::Claimed(_, until) if *until > now)
    }

    /// Returns whether this token holds the claim. A failed chord counts too, so
    /// that a repeated `finish` gets the same answer.
    fn is_held_by(&self, token: &str, now: SystemTime) -> bool {
        match &self.state {
            ChordState::Claimed(holder, until) | ChordState::Failed(holder, until) => {
                holder == token && *until > now
            }
            ChordState::Counting | ChordState::Done(_) => false,
        }
    }

    /// Takes or renews the claim unless another one holds, and returns whether it
    /// holds now.
    fn claim(&mut self, claim: &ChordClaim, now: SystemTime) -> bool {
        let is_free = !self.is_held(now) || self.is_held_by(&claim.token, now);
        if is_free {
            self.state = ChordState::Claimed(claim.token.clone(), now + ttl(claim));
        }
        is_free
    }

    fn fail(&mut self) {
        if let ChordState::Claimed(holder, until) = std::mem::take(&mut self.state) {
            self.state = ChordState::Failed(holder, until);
        }
        self.size = None;
        self.body = None;
    }

    fn complete(&mut self, late_until: SystemTime) {
        self.members.clear();
        self.added.clear();
        self.size = None;
        self.body = None;
        self.state = ChordState::Done(late_until);
    }
}

fn ttl(claim: &ChordClaim) -> Duration {
    claim.ttl.max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use celery_protocol::ResultTree;

    use super::*;

    const CLAIM_TTL: Duration = Duration::from_secs(6);

    /// An event of a chord; any order is possible.
    #[derive(Clone, Copy, Debug)]
    enum ChordEvent {
        Begin,
        /// The worker with this name completes the member with this index.
        Complete(i64, &'static str),
        /// So much time passes that every claim expires.
        Wait,
    }

    /// A chord with the worker that holds its claim.
    struct Scenario {
        chords: ChordTable,
        size: usize,
        now: SystemTime,
        holder: Option<(&'static str, SystemTime)>,
        has_crashed: bool,
        is_finished: bool,
    }

    impl Scenario {
        fn new(size: usize) -> Self {
            Self {
                chords: ChordTable::default(),
                size,
                now: SystemTime::UNIX_EPOCH,
                holder: None,
                has_crashed: false,
                is_finished: false,
            }
        }

        fn apply(&mut self, event: ChordEvent) {
            match event {
                ChordEvent::Begin => self.chords.begin(&start(self.size), self.now),
                ChordEvent::Wait => self.now += CLAIM_TTL,
                ChordEvent::Complete(index, token) => {
                    let answer = complete(&mut self.chords, index, token, self.now);
                    self.handle_answer(answer, token);
                }
            }
        }

        /// Checks the answer to the worker with this token. The first worker with a
        /// claim crashes; the next one finishes the chord.
        fn handle_answer(&mut self, answer: Option<Vec<MemberResult>>, token: &'static str) {
            let Some(members) = answer else { return };
            assert_eq!(members.len(), self.size);
            assert!(!self.is_finished, "{token} claims a finished chord");
            if let Some((holder, until)) = self.holder {
                assert!(until <= self.now, "{token} and {holder} both hold");
            }
            let until = self.now + CLAIM_TTL;
            if let Some((dead, _)) = self.holder.replace((token, until)) {
                let expired = claim(dead);
                let ended = self
                    .chords
                    .finish("chord", &expired, ChordEnd::Continued, self.now);
                assert!(!ended, "{dead} finishes a chord that {token} holds");
            }
            if std::mem::replace(&mut self.has_crashed, true) {
                let claim = claim(token);
                self.is_finished =
                    self.chords
                        .finish("chord", &claim, ChordEnd::Continued, self.now);
                assert!(self.is_finished);
            }
        }

        /// Claims the stalled chord until it is finished, and checks that late members
        /// are ignored.
        fn sweep(&mut self) {
            for sweeper in ["first", "second"] {
                self.now += CLAIM_TTL;
                let mut stalled = self.chords.claim_stalled(&claim(sweeper), 10, self.now);
                let twice = self.chords.claim_stalled(&claim("twice"), 10, self.now);
                assert!(twice.is_empty(), "{sweeper}");
                let answer = stalled.pop().map(|(_, _, members)| members);
                self.handle_answer(answer, sweeper);
            }
            assert!(self.is_finished);
            for index in 0..self.size as i64 {
                assert!(complete(&mut self.chords, index, "late", self.now).is_none());
            }
            assert!(
                self.chords
                    .claim_stalled(&claim("late"), 10, self.now)
                    .is_empty()
            );
        }
    }

    fn start(size: usize) -> ChordStart {
        ChordStart::new("chord", size, &ResultTree::group("chord", Vec::new()))
    }

    fn claim(token: &str) -> ChordClaim {
        ChordClaim::new(token, CLAIM_TTL)
    }

    fn complete(
        chords: &mut ChordTable,
        index: i64,
        token: &str,
        now: SystemTime,
    ) -> Option<Vec<MemberResult>> {
        let (raw, task_id) = (Raw::json("1"), index.to_string());
        let member = ChordMember::new("chord", &task_id, Some(index), &raw, &raw);
        chords.complete_member(&member, &claim(token), now)
    }

    /// Calls `visit` with every order of `events`.
    fn orders(events: &mut [ChordEvent], fixed: usize, visit: &mut impl FnMut(&[ChordEvent])) {
        if fixed == events.len() {
            return visit(events);
        }
        for next in fixed..events.len() {
            events.swap(fixed, next);
            orders(events, fixed + 1, visit);
            events.swap(fixed, next);
        }
    }

    #[test]
    fn chord_events_in_any_order_leave_one_claim_and_finish_it() {
        const WORKERS: [&str; 4] = ["one", "two", "three", "four"];
        let mut orders_checked = 0;
        for size in 1..=WORKERS.len() {
            for repeated in 0..size {
                let members = (0..).zip(&WORKERS[..size]);
                let mut events: Vec<_> = members
                    .map(|(index, worker)| ChordEvent::Complete(index, worker))
                    .collect();
                events.extend([
                    ChordEvent::Complete(repeated as i64, "again"),
                    ChordEvent::Begin,
                    ChordEvent::Wait,
                ]);
                orders(&mut events, 0, &mut |events| {
                    let mut scenario = Scenario::new(size);
                    for event in events {
                        scenario.apply(*event);
                    }
                    scenario.sweep();
                    orders_checked += 1;
                });
            }
        }
        assert_eq!(orders_checked, 24 + 2 * 120 + 3 * 720 + 4 * 5040);
    }

    #[test]
    fn untouched_chord_expires_after_a_day() {
        let mut chords = ChordTable::default();
        let start_time = SystemTime::UNIX_EPOCH;
        chords.begin(&start(2), start_time);
        let later = start_time + RESULT_TTL / 2;
        assert!(complete(&mut chords, 0, "x", later).is_none());
        chords.expire(start_time + RESULT_TTL);
        assert!(chords.started("chord").is_some());
        chords.expire(later + RESULT_TTL);
        assert!(chords.started("chord").is_none());
        assert!(chords.unfinished.is_empty() && chords.expiry.is_empty());
    }

    #[test]
    fn late_member_of_finished_chord_is_ignored() {
        let mut chords = ChordTable::default();
        let now = SystemTime::UNIX_EPOCH;
        chords.begin(&start(1), now);
        assert!(complete(&mut chords, 0, "x", now).is_some());
        assert!(chords.finish("chord", &claim("x"), ChordEnd::Continued, now));
        assert!(complete(&mut chords, 0, "y", now + LATE_MEMBER_PERIOD).is_none());
        // Later it begins a new chord, which has no size.
        assert!(
            chords
                .claim_stalled(&claim("z"), 1, now + 2 * LATE_MEMBER_PERIOD)
                .is_empty()
        );
    }
}
