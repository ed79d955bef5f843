//! Cases about counting the members of chords.

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Exception, Raw, ResultTree, Serializer, State};

use super::BackendSetup;
use crate::boundary::{
    ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart, ChordStore, ResultBackend,
    StalledChord,
};
use crate::conformance::{unique_name, wait_for};

/// The time to live of a claim that does not expire within a test.
const LONG_TTL: Duration = Duration::from_secs(60);

/// The time to live of a claim that expires within a test.
const SHORT_TTL: Duration = Duration::from_secs(1);

const BODY: &str = r#"{"task": "tasks.sum", "args": [], "kwargs": {}, "options": {}}"#;

/// A chord of one test, and several workers that complete its members.
struct TestChord {
    id: String,
    workers: [Arc<dyn ResultBackend>; 2],
}

impl TestChord {
    /// Returns a chord that has not begun, or `None` if the backend does not
    /// count the members of chords.
    async fn new(setup: &dyn BackendSetup) -> Option<Self> {
        let workers = [setup.backend(), setup.backend()];
        workers[0].chords()?;
        Some(Self {
            id: unique_name("chord"),
            workers,
        })
    }

    fn chords(&self, worker: usize) -> &dyn ChordStore {
        self.workers[worker].chords().expect("counts chords")
    }

    /// Returns a chord of `size` members that has begun.
    async fn started(setup: &dyn BackendSetup, size: usize) -> Option<Self> {
        let chord = Self::new(setup).await?;
        chord.begin(size).await;
        Some(chord)
    }

    async fn begin(&self, size: usize) {
        let header = ResultTree::group(self.id.as_str(), vec![ResultTree::task("member"); size]);
        let start = ChordStart::new(self.id.as_str(), size, &header);
        wait_for("begin", self.chords(0).begin(&start))
            .await
            .expect("started");
    }

    async fn add(&self, task_id: &str) {
        wait_for("add_member", self.chords(0).add_member(&self.id, task_id))
            .await
            .expect("added");
    }

    /// Completes the task `<id>-<index>`, which returned its index. Returns the
    /// values of all members if that completes the chord.
    async fn complete(&self, index: i64, claim: &ChordClaim) -> Option<Vec<i64>> {
        let task_id = format!("{}-{index}", self.id);
        self.complete_as(&task_id, Some(index), index, claim).await
    }

    async fn complete_as(
        &self,
        task_id: &str,
        index: Option<i64>,
        value: i64,
        claim: &ChordClaim,
    ) -> Option<Vec<i64>> {
        let (result, body) = (value.to_string(), Raw::json(BODY));
        let result = Raw::json(&result);
        let member = ChordMember::new(&self.id, task_id, index, &result, &body);
        let worker = self.chords(value.unsigned_abs() as usize % 2);
        let counted = wait_for("complete_member", worker.complete_member(&member, claim)).await;
        counted.expect("counted").map(|results| values(&results))
    }

    async fn renew(&self, claim: &ChordClaim) -> bool {
        wait_for("renew_claim", self.chords(1).renew_claim(&self.id, claim))
            .await
            .expect("renewed or refused")
    }

    async fn finish(&self, claim: &ChordClaim, end: ChordEnd) -> bool {
        wait_for("finish", self.chords(1).finish(&self.id, claim, end))
            .await
            .expect("finished or refused")
    }

    /// Returns this chord if the worker claims it as stalled.
    async fn claim_stalled(&self, worker: usize, claim: &ChordClaim) -> Option<StalledChord> {
        let stalled = wait_for(
            "claim_stalled",
            self.chords(worker).claim_stalled(claim, 10),
        )
        .await;
        let mut stalled = stalled.expect("claimed").into_iter();
        stalled.find(|chord| chord.group_id == self.id)
    }
}

/// Returns the numbers that members returned.
fn values(results: &ChordResults) -> Vec<i64> {
    let members = results.members.iter();
    members
        .map(|member| match member.result.to_value() {
            Ok(value) => value.as_i64().expect("a number"),
            Err(error) => panic!("{error}"),
        })
        .collect()
}

/// Returns a claim that does not expire.
fn claim(token: &str) -> ChordClaim {
    ChordClaim::new(token, LONG_TTL)
}

/// Returns a claim that expires soon.
fn short_claim(token: &str) -> ChordClaim {
    ChordClaim::new(token, SHORT_TTL)
}

/// Repeats `attempt` until it returns a value.
async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let tried = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    wait_for(what, tried).await
}

/// A member counts once, by its task id and index, however often it is delivered.
pub async fn repeated_member_is_counted_once(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::started(setup, 3).await else {
        return;
    };
    for token in ["a", "b", "c"] {
        assert_eq!(chord.complete(0, &claim(token)).await, None);
        assert_eq!(chord.complete(1, &claim(token)).await, None);
    }
    // The index identifies a member, too: one task id may have several.
    let reused = format!("{}-0", chord.id);
    let all = chord.complete_as(&reused, Some(2), 2, &claim("d")).await;
    assert_eq!(all, Some(vec![0, 1, 2]));
}

/// Members are returned by index; those without an index are the last.
pub async fn members_are_returned_in_header_order(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::started(setup, 13).await else {
        return;
    };
    let last = format!("{}-last", chord.id);
    assert_eq!(chord.complete_as(&last, None, 99, &claim("x")).await, None);
    for index in [3, 1, 10, 0, 11, 2, 9, 4, 5, 8, 7] {
        assert_eq!(chord.complete(index, &claim("x")).await, None);
    }
    let all = chord.complete(6, &claim("x")).await.expect("all members");
    assert_eq!(all, (0..12).chain([99]).collect::<Vec<_>>());
}

/// Members are returned with their task id, state and result.
pub async fn members_are_returned_complete(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::started(setup, 2).await else {
        return;
    };
    let body = Raw::json(BODY);
    let value = Raw::json(r#"{"text": "\u00e9", "list": [1, null, NaN]}"#);
    let member = ChordMember::new(&chord.id, "one", Some(0), &value, &body);
    let worker = chord.chords(0);
    let counted = wait_for(
        "complete_member",
        worker.complete_member(&member, &claim("x")),
    )
    .await;
    assert_eq!(counted.expect("counted"), None);
    let exception = Exception::new("builtins", "ValueError", "boom");
    let failed = Raw::encode(Serializer::Json, &exception).expect("encoded");
    let member = ChordMember::new(&chord.id, "two", Some(1), &failed, &body).state(State::Failure);
    let counted = wait_for(
        "complete_member",
        worker.complete_member(&member, &claim("x")),
    )
    .await;
    let results = counted.expect("counted").expect("all members");
    let [one, two] = &results.members[..] else {
        panic!("{results:?}");
    };
    assert_eq!((one.task_id.as_str(), &one.state), ("one", &State::Success));
    assert_eq!(one.result.to_value(), value.to_value());
    assert_eq!((two.task_id.as_str(), &two.state), ("two", &State::Failure));
    assert_eq!(Exception::read(&two.result), Ok(exception));
    assert_eq!(results.tree, None);
}

/// The holder of the claim gets the members again; another claim is refused.
pub async fn only_one_claim_holds_at_a_time(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::started(setup, 2).await else {
        return;
    };
    let (mine, other) = (claim("mine"), claim("other"));
    assert!(!chord.finish(&mine, ChordEnd::Continued).await);
    chord.complete(0, &mine).await;
    let all = Some(vec![0, 1]);
    assert_eq!(chord.complete(1, &mine).await, all);
    assert_eq!(chord.complete(1, &other).await, None);
    assert_eq!(chord.complete(0, &other).await, None);
    assert_eq!(chord.complete(1, &mine).await, all);
    assert!(!chord.renew(&other).await);
    assert!(chord.renew(&mine).await);
    assert!(!chord.finish(&other, ChordEnd::Continued).await);
    assert!(!chord.finish(&other, ChordEnd::Failed).await);
    assert!(chord.finish(&mine, ChordEnd::Continued).await);
}

/// A claim that is not renewed expires, and the next claim is granted.
pub async fn expired_claim_is_taken_by_next(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::started(setup, 1).await else {
        return;
    };
    let (dead, next) = (short_claim("dead"), claim("next"));
    assert_eq!(chord.complete(0, &dead).await, Some(vec![0]));
    let attempt = async || chord.complete(0, &next).await;
    assert_eq!(eventually("the next claim", attempt).await, [0]);
    assert!(!chord.renew(&dead).await);
    assert!(!chord.finish(&dead, ChordEnd::Continued).await);
    assert!(chord.finish(&next, ChordEnd::Continued).await);
}

/// An expired claim can be renewed while no other claim was granted.
pub async fn expired_claim_without_successor_is_renewed(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::started(setup, 1).await else {
        return;
    };
    let slow = short_claim("slow");
    assert_eq!(chord.complete(0, &slow).await, Some(vec![0]));
    // The claim of another chord, granted later, expires after this one.
    let other = TestChord::started(setup, 1).await.expect("a chord");
    assert_eq!(other.complete(0, &slow).await, Some(vec![0]));
    let attempt = async || other.complete(0, &claim("quick")).await;
    eventually("the end of the claim", attempt).await;
    assert!(chord.renew(&claim("slow")).await);
    assert_eq!(chord.complete(0, &claim("other")).await, None);
    assert!(chord.finish(&slow, ChordEnd::Continued).await);
}

/// Members may complete before the chord begins: Python Celery stores the size
/// after most tasks of the header were sent.
pub async fn members_count_before_chord_begins(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::new(setup).await else {
        return;
    };
    assert_eq!(chord.complete(1, &claim("x")).await, None);
    assert_eq!(chord.complete(0, &claim("x")).await, None);
    chord.begin(3).await;
    assert_eq!(chord.complete(2, &claim("x")).await, Some(vec![0, 1, 2]));
}

/// A chord waits for an added member; adding the same task again changes nothing.
pub async fn added_member_is_awaited_once(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::started(setup, 1).await else {
        return;
    };
    let added = format!("{}-1", chord.id);
    chord.add(&added).await;
    chord.add(&added).await;
    chord.add(&format!("{}-2", chord.id)).await;
    assert_eq!(chord.complete(0, &claim("x")).await, None);
    assert_eq!(chord.complete(2, &claim("x")).await, None);
    assert_eq!(chord.complete(1, &claim("x")).await, Some(vec![0, 1, 2]));
}

/// A finished chord ignores late members and claims, until it begins again.
pub async fn finished_chord_ignores_late_members(setup: &dyn BackendSetup) {
    for end in [ChordEnd::Continued, ChordEnd::Failed] {
        let Some(chord) = TestChord::started(setup, 2).await else {
            return;
        };
        let mine = claim("mine");
        chord.complete(0, &mine).await;
        assert_eq!(chord.complete(1, &mine).await, Some(vec![0, 1]));
        assert!(chord.finish(&mine, end).await);
        chord.add("late").await;
        for index in [0, 1, 2] {
            assert_eq!(chord.complete(index, &mine).await, None, "{end:?}");
            assert_eq!(
                chord.complete(index, &claim("other")).await,
                None,
                "{end:?}"
            );
        }
        assert!(!chord.renew(&mine).await);
        assert!(chord.claim_stalled(0, &claim("sweeper")).await.is_none());
        chord.begin(2).await;
        assert_eq!(chord.complete(1, &claim("again")).await, None, "{end:?}");
        assert_eq!(chord.complete(0, &claim("again")).await, Some(vec![0, 1]));
    }
}

/// The results of a header that contains groups are returned with the members.
pub async fn nested_header_is_returned_with_members(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::new(setup).await else {
        return;
    };
    let inner = ResultTree::group("inner", vec![ResultTree::task("member")]);
    let header = ResultTree::group(chord.id.as_str(), vec![inner]);
    let start = ChordStart::new(chord.id.as_str(), 1, &header);
    wait_for("begin", chord.chords(0).begin(&start))
        .await
        .expect("started");
    let raw = Raw::json("1");
    let member = ChordMember::new(&chord.id, "member", None, &raw, &raw);
    let dead = short_claim("dead");
    let counted = wait_for(
        "complete_member",
        chord.chords(1).complete_member(&member, &dead),
    );
    let results = counted.await.expect("counted").expect("all members");
    assert_eq!(results.tree, Some(header.clone()));
    let attempt = async || chord.claim_stalled(0, &claim("sweeper")).await;
    let stalled = eventually("the chord", attempt).await;
    assert_eq!(stalled.results.tree, Some(header));
}

/// One of two workers claims a complete chord whose claim has expired, with its
/// body.
pub async fn stalled_chord_is_claimed_by_one_worker(setup: &dyn BackendSetup) {
    let Some(chord) = TestChord::started(setup, 2).await else {
        return;
    };
    let incomplete = TestChord::started(setup, 2).await.expect("a chord");
    incomplete.complete(0, &claim("x")).await;
    chord.complete(0, &short_claim("dead")).await;
    let all = chord.complete(1, &short_claim("dead")).await;
    assert_eq!(all, Some(vec![0, 1]));
    let (one, two) = (claim("one"), claim("two"));
    let attempt = async || {
        let (first, second) =
            tokio::join!(chord.claim_stalled(0, &one), chord.claim_stalled(1, &two));
        match (first, second) {
            (None, None) => None,
            (Some(first), None) => Some((first, &one)),
            (None, Some(second)) => Some((second, &two)),
            both => panic!("claimed twice: {both:?}"),
        }
    };
    let (stalled, winner) = eventually("the chord", attempt).await;
    assert_eq!(stalled.body.to_value(), Raw::json(BODY).to_value());
    assert_eq!(values(&stalled.results), [0, 1]);
    for worker in [0, 1] {
        assert!(chord.claim_stalled(worker, &one).await.is_none());
        assert!(incomplete.claim_stalled(worker, &one).await.is_none());
    }
    assert!(
        !chord
            .finish(&short_claim("dead"), ChordEnd::Continued)
            .await
    );
    assert!(chord.finish(winner, ChordEnd::Continued).await);
    assert!(chord.claim_stalled(0, &claim("three")).await.is_none());
}

/// A chord with 10 000 members counts them and returns all results.
pub async fn chord_with_many_members_completes(setup: &dyn BackendSetup) {
    const SIZE: i64 = 10_000;
    let Some(chord) = TestChord::started(setup, SIZE as usize).await else {
        return;
    };
    let mine = claim("mine");
    let mut completed = None;
    for index in (0..SIZE).rev() {
        assert_eq!(completed, None);
        completed = chord.complete(index, &mine).await;
    }
    assert_eq!(completed, Some((0..SIZE).collect()));
}
