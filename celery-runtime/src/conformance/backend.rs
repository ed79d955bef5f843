//! The contract of [`ResultBackend`].

use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{Exception, Raw, ResultDocument, ResultTree, Serializer, State};

use crate::boundary::{
    ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart, ChordStore, Record, ResultBackend,
    StalledChord,
};
use crate::conformance::{fresh, soon};

/// A backend to test.
pub trait BackendSetup: Send + Sync {
    /// A new client of the same server.
    fn backend(&self) -> Arc<dyn ResultBackend>;
}

/// One test for each case of the suite; those of capabilities that the backend
/// does not declare pass without doing anything.
#[macro_export]
macro_rules! backend_conformance {
    (@cases $attributes:tt $setup:expr) => {
        $crate::__conformance_tests!(backend $attributes $setup,
            nothing_is_known_of_a_task_at_first
            a_document_is_read_back_whole
            every_process_reads_what_is_shared
            a_success_is_never_replaced
            everything_else_is_replaced
            waiting_before_and_after_the_result
            a_thousand_wait_at_once
            values_of_every_kind_survive
            forgotten_results_are_gone
            groups_are_read_back
            chord_begun_twice_has_its_header
            a_part_is_counted_once
            parts_come_in_their_order
            parts_are_told_whole
            one_claim_holds_at_a_time
            a_claim_ends_by_itself
            a_claim_that_has_ended_is_taken_again
            parts_count_before_the_chord_is_begun
            a_chord_is_extended_once_for_each_task
            an_ended_chord_stays_ended
            the_tree_of_a_header_comes_with_its_parts
            one_takes_over_what_a_dead_worker_left
            a_chord_may_have_many_parts
        );
    };
    (ignore = $reason:literal, $setup:expr) => {
        $crate::backend_conformance!(@cases [#[ignore = $reason]] $setup);
    };
    ($setup:expr) => {
        $crate::backend_conformance!(@cases [] $setup);
    };
}

fn document(id: &str, state: State, json: &'static str) -> ResultDocument<'static> {
    let mut document = ResultDocument::new(id.to_owned(), state, Raw::json(json));
    document.children = Some(Raw::json("[]"));
    document
}

/// A client that waits for results, and a worker that stores them: two
/// processes, in which a result may take a while from one to the other.
struct Pair {
    reader: Arc<dyn ResultBackend>,
    writer: Arc<dyn ResultBackend>,
}

impl Pair {
    /// Both, ready for the results of `ids`.
    async fn expecting(setup: &dyn BackendSetup, ids: &[String]) -> Self {
        let pair = Self {
            reader: setup.backend(),
            writer: setup.backend(),
        };
        pair.prepare(ids).await;
        pair
    }

    async fn prepare(&self, ids: &[String]) {
        soon("prepare", self.reader.prepare(ids))
            .await
            .expect("ready for results");
    }

    async fn store(&self, document: &ResultDocument<'_>) {
        let reply_to = self.reader.reply_to();
        let record = Record::new(document).reply(reply_to.as_deref(), Some(&document.task_id));
        soon("store", self.writer.store(record))
            .await
            .expect("stored");
    }

    async fn fetch(&self, id: &str) -> Option<ResultDocument<'static>> {
        fetch(&*self.reader, id).await
    }

    /// The document once it is in this state.
    async fn until(&self, id: &str, state: &State) -> ResultDocument<'static> {
        let arrived = async {
            loop {
                match self.fetch(id).await {
                    Some(document) if document.status == *state => return document,
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        soon("the document", arrived).await
    }

    /// Waits until everything that was stored has arrived.
    async fn catch_up(&self) {
        let last = fresh("last");
        self.prepare(std::slice::from_ref(&last)).await;
        self.store(&document(&last, State::Success, "null")).await;
        self.until(&last, &State::Success).await;
    }
}

async fn fetch(backend: &dyn ResultBackend, id: &str) -> Option<ResultDocument<'static>> {
    let ids = [id.to_owned()];
    let mut found = soon("fetch", backend.fetch(&ids)).await.expect("fetched");
    assert_eq!(found.len(), 1);
    found.pop().flatten()
}

/// A task that nothing was stored for.
pub async fn nothing_is_known_of_a_task_at_first(setup: &dyn BackendSetup) {
    let id = fresh("unknown");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    assert!(pair.fetch(&id).await.is_none());
    assert!(pair.fetch(&fresh("unexpected")).await.is_none());
}

/// All fields come back, for several ids in their order.
pub async fn a_document_is_read_back_whole(setup: &dyn BackendSetup) {
    let ids = [fresh("missing"), fresh("whole")];
    let pair = Pair::expecting(setup, &ids).await;
    let exception = Exception::new("builtins", "ValueError", "boom");
    let raw = Raw::encode(Serializer::Json, &exception).expect("encoded");
    let mut failed = ResultDocument::new(ids[1].clone(), State::Failure, raw);
    failed.traceback = Some("ValueError: boom\n".into());
    failed.date_done = Some("2026-11-21T08:32:22.557074+00:00".into());
    failed.parent_id = Some("parent".into());
    failed.group_id = Some("group".into());
    failed.name = Some("tasks.fail".into());
    failed.retries = Some(2);
    pair.store(&failed).await;
    pair.until(&ids[1], &State::Failure).await;
    let mut found = soon("fetch", pair.reader.fetch(&ids))
        .await
        .expect("fetched");
    let read = found.pop().flatten().expect("stored");
    assert!(found.pop().flatten().is_none());
    assert_eq!(read.status, State::Failure);
    assert_eq!(
        read.exception().expect("readable").expect("there"),
        exception
    );
    assert_eq!(read.traceback, failed.traceback);
    assert_eq!(read.date_done, failed.date_done);
    assert_eq!(read.parent_id, failed.parent_id);
    assert_eq!(read.group_id, failed.group_id);
    assert_eq!(read.name, failed.name);
    assert_eq!(read.retries, Some(2));
    assert_eq!(read.task_id, failed.task_id);
}

/// Who did not wait for it finds it, too, where results are for everybody.
pub async fn every_process_reads_what_is_shared(setup: &dyn BackendSetup) {
    let id = fresh("shared");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    if !pair.reader.capabilities().shared {
        return;
    }
    pair.store(&document(&id, State::Success, "42")).await;
    let another = setup.backend();
    let found = fetch(&*another, &id).await.expect("stored");
    assert_eq!(found.result.decode::<i64>(), Ok(42));
    let waited = soon("wait", another.wait(&id)).await.expect("a document");
    assert_eq!(waited.result.decode::<i64>(), Ok(42));
}

/// SUCCESS stays, whatever comes.
pub async fn a_success_is_never_replaced(setup: &dyn BackendSetup) {
    let id = fresh("success");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    pair.store(&document(&id, State::Success, "42")).await;
    for state in [State::Failure, State::Started, State::Retry, State::Success] {
        pair.store(&document(&id, state, "null")).await;
    }
    pair.catch_up().await;
    let kept = pair.fetch(&id).await.expect("stored");
    assert_eq!(
        (kept.status, kept.result.decode::<i64>()),
        (State::Success, Ok(42))
    );
}

/// Every other state gives way, and a value that looks like one does not fool.
pub async fn everything_else_is_replaced(setup: &dyn BackendSetup) {
    let id = fresh("replaced");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    let decoy = r#"{"status": "SUCCESS", "text": "\"status\": \"SUCCESS\""}"#;
    let states = [
        State::Started,
        State::Failure,
        State::Custom("PROGRESS".into()),
    ];
    for state in states {
        pair.store(&document(&id, state.clone(), decoy)).await;
        pair.until(&id, &state).await;
    }
    pair.store(&document(&id, State::Success, "1")).await;
    let found = pair.until(&id, &State::Success).await;
    assert_eq!(found.result.decode::<i64>(), Ok(1));
}

/// Those who wait before and those who ask after get it alike.
pub async fn waiting_before_and_after_the_result(setup: &dyn BackendSetup) {
    let id = fresh("wait");
    let pair = Pair::expecting(setup, std::slice::from_ref(&id)).await;
    let waiter = {
        let (backend, id) = (Arc::clone(&pair.reader), id.clone());
        tokio::spawn(async move { backend.wait(&id).await })
    };
    tokio::task::yield_now().await;
    pair.store(&document(&id, State::Started, "{}")).await;
    pair.store(&document(&id, State::Success, "7")).await;
    let before = soon("waiter", waiter)
        .await
        .expect("no panic")
        .expect("a document");
    assert_eq!(before.result.decode::<i64>(), Ok(7));
    let after = soon("wait", pair.reader.wait(&id))
        .await
        .expect("a document");
    assert_eq!(after.result.decode::<i64>(), Ok(7));
}

/// Many waiters, two for each task, and none is forgotten.
pub async fn a_thousand_wait_at_once(setup: &dyn BackendSetup) {
    let prefix = fresh("many");
    let ids: Vec<_> = (0..500).map(|n| format!("{prefix}-{n}")).collect();
    let pair = Pair::expecting(setup, &ids).await;
    let waiters: Vec<_> = (0..1000)
        .map(|n| {
            let (backend, id) = (Arc::clone(&pair.reader), ids[n / 2].clone());
            tokio::spawn(async move { backend.wait(&id).await })
        })
        .collect();
    for id in &ids {
        pair.store(&document(id, State::Success, "true")).await;
    }
    for waiter in waiters {
        let found = soon("waiter", waiter)
            .await
            .expect("no panic")
            .expect("a document");
        assert_eq!(found.result.decode::<bool>(), Ok(true));
    }
}

/// Values that are hard to carry come back as they were.
pub async fn values_of_every_kind_survive(setup: &dyn BackendSetup) {
    let values = [
        "null",
        "NaN",
        "-Infinity",
        "123456789012345678901234567890",
        r#""\u00e9\ud83d\ude00""#,
        r#"{"__type__": "datetime", "__value__": "2030-01-02T03:04:05"}"#,
        "[[], {}]",
    ];
    let ids = values.map(|_| fresh("value"));
    let pair = Pair::expecting(setup, &ids).await;
    for (id, json) in ids.iter().zip(values) {
        pair.store(&document(id, State::Success, json)).await;
        let found = pair.until(id, &State::Success).await;
        assert_eq!(
            found.result.to_value(),
            Raw::json(json).to_value(),
            "{json}"
        );
    }
}

/// `forget` deletes: for everybody where results are shared, else for who calls it.
pub async fn forgotten_results_are_gone(setup: &dyn BackendSetup) {
    let ids = [fresh("one"), fresh("two")];
    let pair = Pair::expecting(setup, &ids).await;
    for id in &ids {
        pair.store(&document(id, State::Success, "1")).await;
        pair.until(id, &State::Success).await;
    }
    soon("forget", pair.reader.forget(&ids))
        .await
        .expect("forgotten");
    for id in &ids {
        assert!(pair.fetch(id).await.is_none());
    }
    if pair.reader.capabilities().shared {
        assert!(fetch(&*setup.backend(), &ids[0]).await.is_none());
    }
}

/// The members of a group come back in their order.
pub async fn groups_are_read_back(setup: &dyn BackendSetup) {
    let backend = setup.backend();
    if !backend.capabilities().groups {
        return;
    }
    let group = fresh("group");
    assert_eq!(
        soon("fetch", backend.fetch_group(&group))
            .await
            .expect("fetched"),
        None
    );
    let members = (0..10).map(|n| ResultTree::task(format!("{group}-{n}")));
    let inner = ResultTree::group(format!("{group}-inner"), members.clone().collect());
    let members = members.chain([inner]).collect();
    let tree = ResultTree::group(group.as_str(), members).after(ResultTree::task("before"));
    soon("store", backend.store_group(&tree))
        .await
        .expect("stored");
    let found = soon("fetch", setup.backend().fetch_group(&group))
        .await
        .expect("fetched");
    assert_eq!(found, Some(tree));
    soon("forget", backend.forget_group(&group))
        .await
        .expect("forgotten");
    let found = soon("fetch", backend.fetch_group(&group)).await;
    assert_eq!(found.expect("fetched"), None);
}

/// A chord can be begun twice, and its header is stored as a group.
pub async fn chord_begun_twice_has_its_header(setup: &dyn BackendSetup) {
    let backend = setup.backend();
    let Some(chords) = backend.chords() else {
        return;
    };
    let group = fresh("chord");
    let parts = vec![ResultTree::task("a"), ResultTree::group("b", Vec::new())];
    let header = ResultTree::group(group.as_str(), parts);
    let chord = ChordStart::new(group.as_str(), 2, &header);
    let begun = soon("begin", chords.begin(&chord)).await;
    begun.expect("begun");
    let again = soon("begin", chords.begin(&chord)).await;
    again.expect("begun again");
    let found = soon("fetch", setup.backend().fetch_group(&group)).await;
    assert_eq!(found.expect("fetched"), Some(header));
}

/// A chord of one test, and several workers that tell its parts.
struct Chord {
    id: String,
    workers: [Arc<dyn ResultBackend>; 2],
}

/// What a worker of these tests has heard: the values of all parts.
type Heard = Option<Vec<i64>>;

const LONG: Duration = Duration::from_secs(60);

/// Short enough to wait for its end.
const SHORT: Duration = Duration::from_secs(1);

const BODY: &str = r#"{"task": "tasks.sum", "args": [], "kwargs": {}, "options": {}}"#;

impl Chord {
    /// `None` where the backend does not count the members of chords.
    async fn new(setup: &dyn BackendSetup) -> Option<Self> {
        let workers = [setup.backend(), setup.backend()];
        workers[0].chords()?;
        Some(Self {
            id: fresh("chord"),
            workers,
        })
    }

    fn chords(&self, worker: usize) -> &dyn ChordStore {
        self.workers[worker].chords().expect("counts chords")
    }

    /// A chord of `size` parts that has begun.
    async fn begun(setup: &dyn BackendSetup, size: usize) -> Option<Self> {
        let chord = Self::new(setup).await?;
        chord.begin(size).await;
        Some(chord)
    }

    async fn begin(&self, size: usize) {
        let header = ResultTree::group(self.id.as_str(), vec![ResultTree::task("part"); size]);
        let start = ChordStart::new(self.id.as_str(), size, &header);
        soon("begin", self.chords(0).begin(&start))
            .await
            .expect("begun");
    }

    async fn extend(&self, task_id: &str) {
        soon("extend", self.chords(0).add_member(&self.id, task_id))
            .await
            .expect("extended");
    }

    /// Tells that the task `<id>-<index>` has returned its index.
    async fn tell(&self, index: i64, claim: &ChordClaim) -> Heard {
        let task_id = format!("{}-{index}", self.id);
        self.tell_as(&task_id, Some(index), index, claim).await
    }

    async fn tell_as(
        &self,
        task_id: &str,
        index: Option<i64>,
        value: i64,
        claim: &ChordClaim,
    ) -> Heard {
        let (result, body) = (value.to_string(), Raw::json(BODY));
        let result = Raw::json(&result);
        let part = ChordMember::new(&self.id, task_id, index, &result, &body);
        let worker = self.chords(value.unsigned_abs() as usize % 2);
        let counted = soon("count", worker.complete_member(&part, claim)).await;
        counted.expect("counted").map(|results| values(&results))
    }

    async fn hold(&self, claim: &ChordClaim) -> bool {
        soon("hold", self.chords(1).renew_claim(&self.id, claim))
            .await
            .expect("answered")
    }

    async fn end(&self, claim: &ChordClaim, end: ChordEnd) -> bool {
        soon("end", self.chords(1).finish(&self.id, claim, end))
            .await
            .expect("ended")
    }

    /// Whether a worker takes it over.
    async fn is_taken_over(&self, worker: usize, claim: &ChordClaim) -> Option<StalledChord> {
        let overdue = soon("sweep", self.chords(worker).claim_stalled(claim, 10)).await;
        let mut overdue = overdue.expect("swept").into_iter();
        overdue.find(|chord| chord.group_id == self.id)
    }
}

fn values(results: &ChordResults) -> Vec<i64> {
    let parts = results.parts.iter();
    parts
        .map(|part| match part.result.to_value() {
            Ok(value) => value.as_i64().expect("a number"),
            Err(error) => panic!("{error}"),
        })
        .collect()
}

fn claim(token: &str) -> ChordClaim {
    ChordClaim::new(token, LONG)
}

fn short_claim(token: &str) -> ChordClaim {
    ChordClaim::new(token, SHORT)
}

/// What `attempt` comes to in the end.
async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let tried = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon(what, tried).await
}

/// The last part gets all of them, however often each was told.
pub async fn a_part_is_counted_once(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::begun(setup, 3).await else {
        return;
    };
    for token in ["a", "b", "c"] {
        assert_eq!(chord.tell(0, &claim(token)).await, None);
        assert_eq!(chord.tell(1, &claim(token)).await, None);
    }
    // It is the place in the header that counts, too.
    let reused = format!("{}-0", chord.id);
    let all = chord.tell_as(&reused, Some(2), 2, &claim("d")).await;
    assert_eq!(all, Some(vec![0, 1, 2]));
}

/// The order is that of the header, and who has no place in it is the last.
pub async fn parts_come_in_their_order(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::begun(setup, 13).await else {
        return;
    };
    let last = format!("{}-last", chord.id);
    assert_eq!(chord.tell_as(&last, None, 99, &claim("x")).await, None);
    for index in [3, 1, 10, 0, 11, 2, 9, 4, 5, 8, 7] {
        assert_eq!(chord.tell(index, &claim("x")).await, None);
    }
    let all = chord.tell(6, &claim("x")).await.expect("all parts");
    assert_eq!(all, (0..12).chain([99]).collect::<Vec<_>>());
}

/// What a part tells comes to who goes on with the chord.
pub async fn parts_are_told_whole(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::begun(setup, 2).await else {
        return;
    };
    let body = Raw::json(BODY);
    let value = Raw::json(r#"{"text": "\u00e9", "list": [1, null, NaN]}"#);
    let part = ChordMember::new(&chord.id, "one", Some(0), &value, &body);
    let worker = chord.chords(0);
    let counted = soon("count", worker.complete_member(&part, &claim("x"))).await;
    assert_eq!(counted.expect("counted"), None);
    let exception = Exception::new("builtins", "ValueError", "boom");
    let failed = Raw::encode(Serializer::Json, &exception).expect("encoded");
    let part = ChordMember::new(&chord.id, "two", Some(1), &failed, &body).state(State::Failure);
    let counted = soon("count", worker.complete_member(&part, &claim("x"))).await;
    let results = counted.expect("counted").expect("all parts");
    let [one, two] = &results.parts[..] else {
        panic!("{results:?}");
    };
    assert_eq!((one.task_id.as_str(), &one.state), ("one", &State::Success));
    assert_eq!(one.result.to_value(), value.to_value());
    assert_eq!((two.task_id.as_str(), &two.state), ("two", &State::Failure));
    assert_eq!(Exception::read(&two.result), Ok(exception));
    assert_eq!(results.tree, None);
}

/// One goes on with it, and hears it again when asking again.
pub async fn one_claim_holds_at_a_time(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::begun(setup, 2).await else {
        return;
    };
    let (mine, other) = (claim("mine"), claim("other"));
    assert!(!chord.end(&mine, ChordEnd::Continued).await);
    chord.tell(0, &mine).await;
    let all = Some(vec![0, 1]);
    assert_eq!(chord.tell(1, &mine).await, all);
    assert_eq!(chord.tell(1, &other).await, None);
    assert_eq!(chord.tell(0, &other).await, None);
    assert_eq!(chord.tell(1, &mine).await, all);
    assert!(!chord.hold(&other).await);
    assert!(chord.hold(&mine).await);
    assert!(!chord.end(&other, ChordEnd::Continued).await);
    assert!(!chord.end(&other, ChordEnd::Failed).await);
    assert!(chord.end(&mine, ChordEnd::Continued).await);
}

/// A claim that is not held ends, and the next one is another's.
pub async fn a_claim_ends_by_itself(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::begun(setup, 1).await else {
        return;
    };
    let (dead, next) = (short_claim("dead"), claim("next"));
    assert_eq!(chord.tell(0, &dead).await, Some(vec![0]));
    let told = async || chord.tell(0, &next).await;
    assert_eq!(eventually("the next claim", told).await, [0]);
    assert!(!chord.hold(&dead).await);
    assert!(!chord.end(&dead, ChordEnd::Continued).await);
    assert!(chord.end(&next, ChordEnd::Continued).await);
}

/// Who comes late holds the chord again as long as nobody else has claimed it.
pub async fn a_claim_that_has_ended_is_taken_again(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::begun(setup, 1).await else {
        return;
    };
    let slow = short_claim("slow");
    assert_eq!(chord.tell(0, &slow).await, Some(vec![0]));
    // That of another chord, begun later, tells when this one has ended.
    let other = Chord::begun(setup, 1).await.expect("a chord");
    assert_eq!(other.tell(0, &slow).await, Some(vec![0]));
    let taken = async || other.tell(0, &claim("quick")).await;
    eventually("the end of the claim", taken).await;
    assert!(chord.hold(&claim("slow")).await);
    assert_eq!(chord.tell(0, &claim("other")).await, None);
    assert!(chord.end(&slow, ChordEnd::Continued).await);
}

/// Python says how many parts there are when most of them were sent.
pub async fn parts_count_before_the_chord_is_begun(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::new(setup).await else {
        return;
    };
    assert_eq!(chord.tell(1, &claim("x")).await, None);
    assert_eq!(chord.tell(0, &claim("x")).await, None);
    chord.begin(3).await;
    assert_eq!(chord.tell(2, &claim("x")).await, Some(vec![0, 1, 2]));
}

/// A part that is added is waited for, once.
pub async fn a_chord_is_extended_once_for_each_task(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::begun(setup, 1).await else {
        return;
    };
    let added = format!("{}-1", chord.id);
    chord.extend(&added).await;
    chord.extend(&added).await;
    chord.extend(&format!("{}-2", chord.id)).await;
    assert_eq!(chord.tell(0, &claim("x")).await, None);
    assert_eq!(chord.tell(2, &claim("x")).await, None);
    assert_eq!(chord.tell(1, &claim("x")).await, Some(vec![0, 1, 2]));
}

/// Late parts of a chord that has ended are nothing, until it begins again.
pub async fn an_ended_chord_stays_ended(setup: &dyn BackendSetup) {
    for end in [ChordEnd::Continued, ChordEnd::Failed] {
        let Some(chord) = Chord::begun(setup, 2).await else {
            return;
        };
        let mine = claim("mine");
        chord.tell(0, &mine).await;
        assert_eq!(chord.tell(1, &mine).await, Some(vec![0, 1]));
        assert!(chord.end(&mine, end).await);
        chord.extend("late").await;
        for index in [0, 1, 2] {
            assert_eq!(chord.tell(index, &mine).await, None, "{end:?}");
            assert_eq!(chord.tell(index, &claim("other")).await, None, "{end:?}");
        }
        assert!(!chord.hold(&mine).await);
        assert!(chord.is_taken_over(0, &claim("sweeper")).await.is_none());
        chord.begin(2).await;
        assert_eq!(chord.tell(1, &claim("again")).await, None, "{end:?}");
        assert_eq!(chord.tell(0, &claim("again")).await, Some(vec![0, 1]));
    }
}

/// The results of a header with groups inside come with the parts.
pub async fn the_tree_of_a_header_comes_with_its_parts(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::new(setup).await else {
        return;
    };
    let inner = ResultTree::group("inner", vec![ResultTree::task("part")]);
    let header = ResultTree::group(chord.id.as_str(), vec![inner]);
    let start = ChordStart::new(chord.id.as_str(), 1, &header);
    soon("begin", chord.chords(0).begin(&start))
        .await
        .expect("begun");
    let raw = Raw::json("1");
    let part = ChordMember::new(&chord.id, "part", None, &raw, &raw);
    let dead = short_claim("dead");
    let counted = soon("count", chord.chords(1).complete_member(&part, &dead));
    let results = counted.await.expect("counted").expect("all parts");
    assert_eq!(results.tree, Some(header.clone()));
    let taken = async || chord.is_taken_over(0, &claim("sweeper")).await;
    let overdue = eventually("the chord", taken).await;
    assert_eq!(overdue.results.tree, Some(header));
}

/// One of two who look gets a chord whose worker has died, with its body.
pub async fn one_takes_over_what_a_dead_worker_left(setup: &dyn BackendSetup) {
    let Some(chord) = Chord::begun(setup, 2).await else {
        return;
    };
    let unfinished = Chord::begun(setup, 2).await.expect("a chord");
    unfinished.tell(0, &claim("x")).await;
    chord.tell(0, &short_claim("dead")).await;
    let all = chord.tell(1, &short_claim("dead")).await;
    assert_eq!(all, Some(vec![0, 1]));
    let (one, two) = (claim("one"), claim("two"));
    let taken = async || {
        let (first, second) =
            tokio::join!(chord.is_taken_over(0, &one), chord.is_taken_over(1, &two));
        match (first, second) {
            (None, None) => None,
            (Some(first), None) => Some((first, &one)),
            (None, Some(second)) => Some((second, &two)),
            both => panic!("taken over twice: {both:?}"),
        }
    };
    let (overdue, winner) = eventually("the chord", taken).await;
    assert_eq!(overdue.body.to_value(), Raw::json(BODY).to_value());
    assert_eq!(values(&overdue.results), [0, 1]);
    for worker in [0, 1] {
        assert!(chord.is_taken_over(worker, &one).await.is_none());
        assert!(unfinished.is_taken_over(worker, &one).await.is_none());
    }
    assert!(!chord.end(&short_claim("dead"), ChordEnd::Continued).await);
    assert!(chord.end(winner, ChordEnd::Continued).await);
    assert!(chord.is_taken_over(0, &claim("three")).await.is_none());
}

/// So many parts are counted, and come back at once.
pub async fn a_chord_may_have_many_parts(setup: &dyn BackendSetup) {
    const MANY: i64 = 10_000;
    let Some(chord) = Chord::begun(setup, MANY as usize).await else {
        return;
    };
    let mine = claim("mine");
    let mut heard = None;
    for index in (0..MANY).rev() {
        assert_eq!(heard, None);
        heard = chord.tell(index, &mine).await;
    }
    assert_eq!(heard, Some((0..MANY).collect()));
}
