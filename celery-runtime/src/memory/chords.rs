//! The chords that are under way, as Celery counts them on Redis.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime};

use celery_protocol::Raw;

use crate::boundary::{ChordClaim, ChordEnd, ChordMember, ChordStart, MemberResult};
use crate::memory::backend::EXPIRES;

/// Celery's shortest time in which parts of a chord that has ended are late.
const LATE: Duration = Duration::from_secs(300);

/// Chords by the ids of their headers, kept for a day after the last part.
#[derive(Default)]
pub(super) struct Chords {
    by_id: HashMap<String, Chord>,
    /// Those that have parts and have not ended.
    under_way: BTreeSet<String>,
    /// When each is to be looked at, whether it has expired.
    expiry: BTreeSet<(SystemTime, String)>,
}

#[derive(Default)]
struct Chord {
    /// What was begun, also after its end.
    begun: Option<ChordStart>,
    /// How many parts there were at first, until it ends.
    size: Option<usize>,
    parts: BTreeMap<Place, MemberResult>,
    /// The tasks that were added.
    added: HashSet<String>,
    body: Option<Raw<'static>>,
    phase: Phase,
    expires: Option<SystemTime>,
}

/// Where a part is among the others: those without an index are the last.
type Place = (bool, i64, String);

#[derive(Default)]
enum Phase {
    /// Parts are told.
    #[default]
    Counting,
    /// Somebody goes on with it, until then.
    Claimed(String, SystemTime),
    /// It has ended; until then, parts are late.
    Done(SystemTime),
    /// A part has failed, and its parts are there to be looked at.
    Failed(String, SystemTime),
}

impl Chords {
    /// What was begun with this id.
    pub(super) fn begun(&self, id: &str) -> Option<&ChordStart> {
        self.by_id.get(id)?.begun.as_ref()
    }

    pub(super) fn begin(&mut self, start: &ChordStart, now: SystemTime) {
        let id = &start.group_id;
        let chord = self.touch(id, now);
        if chord.is_over(now) {
            *chord = Chord {
                expires: chord.expires,
                ..Chord::default()
            };
        }
        chord.phase = Phase::Counting;
        chord.size = Some(start.size);
        chord.begun = Some(start.clone());
    }

    pub(super) fn extend(&mut self, id: &str, task_id: &str, now: SystemTime) {
        let chord = self.touch(id, now);
        if !chord.is_over(now) {
            chord.added.insert(task_id.to_owned());
        }
    }

    pub(super) fn count(
        &mut self,
        part: &ChordMember<'_>,
        claim: &ChordClaim,
        now: SystemTime,
    ) -> Option<Vec<MemberResult>> {
        let chord = self.touch(part.group_id, now);
        if chord.is_over(now) {
            return None;
        }
        chord.tell(part);
        let claimed = chord.is_complete() && chord.claim(claim, now);
        let parts = claimed.then(|| chord.told());
        self.under_way.insert(part.group_id.to_owned());
        parts
    }

    pub(super) fn hold(&mut self, id: &str, claim: &ChordClaim, now: SystemTime) -> bool {
        let chord = self.living(id, now);
        chord.is_some_and(|chord| {
            !chord.is_over(now) && chord.size.is_some() && chord.claim(claim, now)
        })
    }

    pub(super) fn end(
        &mut self,
        id: &str,
        claim: &ChordClaim,
        end: ChordEnd,
        now: SystemTime,
    ) -> bool {
        let Some(chord) = self.living(id, now) else {
            return false;
        };
        if !chord.is_held_by(&claim.token, now) {
            return false;
        }
        match end {
            ChordEnd::Failed => chord.fail(),
            ChordEnd::Continued => chord.finish(now + LATE.max(2 * ttl(claim))),
        }
        self.under_way.remove(id);
        true
    }

    /// Claims chords that nobody goes on with: their ids, bodies and parts.
    pub(super) fn overdue(
        &mut self,
        claim: &ChordClaim,
        limit: usize,
        now: SystemTime,
    ) -> Vec<(String, Raw<'static>, Vec<MemberResult>)> {
        self.expire(now);
        let mut overdue = Vec::new();
        for id in &self.under_way {
            if overdue.len() == limit {
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
                overdue.push((id.clone(), body, chord.told()));
            }
        }
        overdue
    }

    /// The chord of this id, which lives on for a day.
    fn touch(&mut self, id: &str, now: SystemTime) -> &mut Chord {
        self.expire(now);
        let chord = self.by_id.entry(id.to_owned()).or_default();
        let expires = now + EXPIRES;
        if chord.expires.replace(expires).is_none() {
            self.expiry.insert((expires, id.to_owned()));
        }
        chord
    }

    fn living(&mut self, id: &str, now: SystemTime) -> Option<&mut Chord> {
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
                    self.under_way.remove(&id);
                }
            }
        }
    }
}

impl Chord {
    fn tell(&mut self, part: &ChordMember<'_>) {
        // Nothing is known any more of an earlier chord that has ended.
        if matches!(self.phase, Phase::Done(_)) {
            self.phase = Phase::Counting;
        }
        let index = part.index;
        let place = (
            index.is_none(),
            index.unwrap_or_default(),
            part.task_id.to_owned(),
        );
        self.parts.entry(place).or_insert_with(|| {
            let result = part.result.clone().into_owned();
            MemberResult::new(part.task_id, part.state.clone(), result)
        });
        self.body
            .get_or_insert_with(|| part.body.clone().into_owned());
    }

    fn told(&self) -> Vec<MemberResult> {
        self.parts.values().cloned().collect()
    }

    fn is_complete(&self) -> bool {
        self.size
            .is_some_and(|size| self.parts.len() == size + self.added.len())
    }

    fn is_over(&self, now: SystemTime) -> bool {
        match self.phase {
            Phase::Counting | Phase::Claimed(..) => false,
            Phase::Done(late) => late > now,
            Phase::Failed(..) => true,
        }
    }

    fn is_held(&self, now: SystemTime) -> bool {
        matches!(&self.phase, Phase::Claimed(_, until) if *until > now)
    }

    /// Also after it has failed: who tries to end it once more has ended it.
    fn is_held_by(&self, token: &str, now: SystemTime) -> bool {
        match &self.phase {
            Phase::Claimed(holder, until) | Phase::Failed(holder, until) => {
                holder == token && *until > now
            }
            Phase::Counting | Phase::Done(_) => false,
        }
    }

    /// Whether the claim holds from now on.
    fn claim(&mut self, claim: &ChordClaim, now: SystemTime) -> bool {
        let free = !self.is_held(now) || self.is_held_by(&claim.token, now);
        if free {
            self.phase = Phase::Claimed(claim.token.clone(), now + ttl(claim));
        }
        free
    }

    fn fail(&mut self) {
        if let Phase::Claimed(holder, until) = std::mem::take(&mut self.phase) {
            self.phase = Phase::Failed(holder, until);
        }
        self.size = None;
        self.body = None;
    }

    fn finish(&mut self, late: SystemTime) {
        self.parts.clear();
        self.added.clear();
        self.size = None;
        self.body = None;
        self.phase = Phase::Done(late);
    }
}

fn ttl(claim: &ChordClaim) -> Duration {
    claim.ttl.max(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::ChordStart;
    use celery_protocol::ResultTree;

    const LASTS: Duration = Duration::from_secs(6);

    /// What may happen to a chord, in any order.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Begin,
        /// A part is told, by a worker of this name.
        Tell(i64, &'static str),
        /// So long that every claim ends.
        Wait,
    }

    /// A chord, and what those who have claimed it should be doing.
    struct Story {
        chords: Chords,
        size: usize,
        now: SystemTime,
        holder: Option<(&'static str, SystemTime)>,
        has_died: bool,
        has_ended: bool,
    }

    impl Story {
        fn new(size: usize) -> Self {
            Self {
                chords: Chords::default(),
                size,
                now: SystemTime::UNIX_EPOCH,
                holder: None,
                has_died: false,
                has_ended: false,
            }
        }

        fn happens(&mut self, event: Event) {
            match event {
                Event::Begin => self.chords.begin(&start(self.size), self.now),
                Event::Wait => self.now += LASTS,
                Event::Tell(index, token) => {
                    let heard = tell(&mut self.chords, index, token, self.now);
                    self.heard(heard, token);
                }
            }
        }

        /// Who claims first dies, the next one ends the chord.
        fn heard(&mut self, heard: Option<Vec<MemberResult>>, token: &'static str) {
            let Some(parts) = heard else { return };
            assert_eq!(parts.len(), self.size);
            assert!(!self.has_ended, "{token} goes on with what has ended");
            if let Some((holder, until)) = self.holder {
                assert!(until <= self.now, "{token} and {holder} both hold");
            }
            let until = self.now + LASTS;
            if let Some((dead, _)) = self.holder.replace((token, until)) {
                let late = claim(dead);
                let ended = self
                    .chords
                    .end("chord", &late, ChordEnd::Continued, self.now);
                assert!(!ended, "{dead} ends what {token} holds");
            }
            if std::mem::replace(&mut self.has_died, true) {
                let claim = claim(token);
                self.has_ended = self
                    .chords
                    .end("chord", &claim, ChordEnd::Continued, self.now);
                assert!(self.has_ended);
            }
        }

        /// Sweepers come until it has ended.
        fn is_swept(&mut self) {
            for sweeper in ["first", "second"] {
                self.now += LASTS;
                let mut overdue = self.chords.overdue(&claim(sweeper), 10, self.now);
                let twice = self.chords.overdue(&claim("twice"), 10, self.now);
                assert!(twice.is_empty(), "{sweeper}");
                let heard = overdue.pop().map(|(_, _, parts)| parts);
                self.heard(heard, sweeper);
            }
            assert!(self.has_ended);
            for index in 0..self.size as i64 {
                assert!(tell(&mut self.chords, index, "late", self.now).is_none());
            }
            assert!(self.chords.overdue(&claim("late"), 10, self.now).is_empty());
        }
    }

    fn start(size: usize) -> ChordStart {
        ChordStart::new("chord", size, &ResultTree::group("chord", Vec::new()))
    }

    fn claim(token: &str) -> ChordClaim {
        ChordClaim::new(token, LASTS)
    }

    fn tell(
        chords: &mut Chords,
        index: i64,
        token: &str,
        now: SystemTime,
    ) -> Option<Vec<MemberResult>> {
        let (raw, task_id) = (Raw::json("1"), index.to_string());
        let part = ChordMember::new("chord", &task_id, Some(index), &raw, &raw);
        chords.count(&part, &claim(token), now)
    }

    /// Calls `visit` with every order of `events`.
    fn orders(events: &mut [Event], fixed: usize, visit: &mut impl FnMut(&[Event])) {
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
    fn in_every_order_one_goes_on_at_a_time_and_the_chord_ends() {
        const WORKERS: [&str; 4] = ["one", "two", "three", "four"];
        let mut told = 0;
        for size in 1..=WORKERS.len() {
            for repeated in 0..size {
                let tells = (0..).zip(&WORKERS[..size]);
                let mut events: Vec<_> = tells
                    .map(|(index, worker)| Event::Tell(index, worker))
                    .collect();
                events.extend([
                    Event::Tell(repeated as i64, "again"),
                    Event::Begin,
                    Event::Wait,
                ]);
                orders(&mut events, 0, &mut |events| {
                    let mut story = Story::new(size);
                    for event in events {
                        story.happens(*event);
                    }
                    story.is_swept();
                    told += 1;
                });
            }
        }
        assert_eq!(told, 24 + 2 * 120 + 3 * 720 + 4 * 5040);
    }

    #[test]
    fn chords_are_forgotten_after_a_day() {
        let mut chords = Chords::default();
        let start_time = SystemTime::UNIX_EPOCH;
        chords.begin(&start(2), start_time);
        let later = start_time + EXPIRES / 2;
        assert!(tell(&mut chords, 0, "x", later).is_none());
        chords.expire(start_time + EXPIRES);
        assert!(chords.begun("chord").is_some());
        chords.expire(later + EXPIRES);
        assert!(chords.begun("chord").is_none());
        assert!(chords.under_way.is_empty() && chords.expiry.is_empty());
    }

    #[test]
    fn late_parts_are_known_for_some_minutes() {
        let mut chords = Chords::default();
        let now = SystemTime::UNIX_EPOCH;
        chords.begin(&start(1), now);
        assert!(tell(&mut chords, 0, "x", now).is_some());
        assert!(chords.end("chord", &claim("x"), ChordEnd::Continued, now));
        assert!(tell(&mut chords, 0, "y", now + LATE).is_none());
        // Without a size nothing comes of it.
        assert!(chords.overdue(&claim("z"), 1, now + 2 * LATE).is_empty());
    }
}
