//! Workflows on the in-memory broker: what a client begins, workers go on with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use celery_protocol::{Raw, ResultDocument, ResultTree, State, Value};
use celery_runtime::memory::MemoryBackend;
use celery_runtime::{
    BackendCapabilities, BoxFuture, Canvas, ChordClaim, ChordMember, ChordStart, ChordStore,
    Config, Context, FailedTask, Record, ResultBackend, ResultError, ServiceError, Task, TaskError,
    Tasks, group,
};

use crate::support::{Setup, within};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
const SUM: Task<(Vec<i64>,), i64> = Task::new("tasks.sum").params(&["numbers"]);
const TOTAL: Task<(Vec<Vec<i64>>,), i64> = Task::new("tasks.total").params(&["numbers"]);
const FAIL: Task<(i64,), i64> = Task::new("tasks.fail").params(&["code"]);
const FAIL_ON: Task<(Vec<i64>,), i64> = Task::new("tasks.fail_on").params(&["numbers"]);
const SUM_ALL: Task<(Vec<i64>,), i64> = Task::new("tasks.sum_all").params(&["numbers"]);
const SPREAD: Task<(i64,), Vec<i64>> = Task::new("tasks.spread").params(&["n"]);
const GROW: Task<(i64,), i64> = Task::new("tasks.grow").params(&["n"]);
const NOTE: Task<(String,), ()> = Task::new("tasks.note").params(&["label"]);
const OLD_NOTE: Task<(String,), ()> = Task::new("tasks.old_note").params(&["failed"]);
const HANG: Task<(), ()> = Task::new("tasks.hang").params(&[]);
const SAY: Task<(String, i64), ()> = Task::new("tasks.say").params(&["label", "n"]);

/// What the tasks have noted, sorted.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, note: String) {
        self.0.lock().unwrap().push(note);
    }

    fn taken(&self) -> Vec<String> {
        let mut notes = std::mem::take(&mut *self.0.lock().unwrap());
        notes.sort();
        notes
    }
}

fn tasks(notes: &Notes) -> Tasks {
    Tasks::new()
        .with(ADD, async |x: i64, y: i64| Ok::<_, TaskError>(x + y))
        .with(SUM, async |numbers: Vec<i64>| {
            Ok::<_, TaskError>(numbers.iter().sum::<i64>())
        })
        .with(TOTAL, async |numbers: Vec<Vec<i64>>| {
            Ok::<_, TaskError>(numbers.iter().flatten().sum::<i64>())
        })
        .with(FAIL, async |code: i64| {
            Err::<i64, _>(TaskError::exception("ValueError", format!("code {code}")))
        })
        .with(FAIL_ON, async |_: Vec<i64>| {
            Err::<i64, _>(TaskError::exception("KeyError", "body"))
        })
        .with(SUM_ALL, async |numbers: Vec<i64>| {
            match numbers.as_slice() {
                [] => Ok(0),
                [one] => Ok(*one),
                [first, rest @ ..] => {
                    let start = ADD.s((*first, 0));
                    let all = rest.iter().fold(start, |sum, n| sum.then(ADD.p((*n,))));
                    Err(SUM_ALL.replaced_by(all))
                }
            }
        })
        .with(SPREAD, async |n: i64| {
            let all = group((0..n).map(|n| ADD.s((n, n))));
            Err::<Vec<i64>, _>(TaskError::replace(all))
        })
        .with(GROW, async |ctx: Context<Notes>, n: i64| {
            for more in 0..n {
                ctx.add_to_chord(ADD.s((more, 0))).await?;
            }
            Ok::<_, TaskError>(n)
        })
        .errback(NOTE, note)
        .with(OLD_NOTE, async |ctx: Context<Notes>, failed: String| {
            let known = ctx.parent_id().as_deref() == Some(&failed);
            ctx.state().add(format!("old: {known}"));
            Ok::<_, TaskError>(())
        })
        .with(SAY, async |ctx: Context<Notes>, label: String, n: i64| {
            ctx.state().add(format!("{label} {n}"));
            Ok::<_, TaskError>(())
        })
        .with_state(notes.clone())
}

async fn note(failed: FailedTask<Notes>, label: String) -> Result<(), TaskError> {
    let exception = failed.exception().map(ToString::to_string);
    let (task, exception) = (failed.task().unwrap_or("?"), exception.unwrap_or_default());
    failed.state().add(format!("{label}: {task} {exception}"));
    Ok(())
}

fn start() -> (Setup, Notes, crate::support::Running) {
    let (setup, notes) = (Setup::new(), Notes::default());
    let worker = setup.start(tasks(&notes));
    (setup, notes, worker)
}

#[tokio::test(start_paused = true)]
async fn chains_groups_and_chords_of_any_shape() {
    let (setup, _, _worker) = start();
    let client = setup.client();
    let chain = ADD.s((4, 4)).then(ADD.p((8,))).then(ADD.p((16,)));
    let result = client.apply(chain).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 32);

    let ten = || group((0..10).map(|i| ADD.s((i, i))));
    let result = client.apply(ten()).await.unwrap();
    let doubles: Vec<i64> = (0..10).map(|i| 2 * i).collect();
    assert_eq!(within(5, result.get()).await.unwrap(), doubles);

    let result = client.apply(ten().then(SUM.p(()))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 90);

    // A chord of chords, whose bodies are chains, in a chain.
    let inner = || ten().then(SUM.p(())).then(ADD.p((1,)));
    let outer = group([inner(), inner(), inner()]).then(SUM.p(()));
    let result = client.apply(outer.then(ADD.p((1000,)))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 1273);

    // A group in the middle, and at the end.
    let fan = ADD.s((1, 1)).then(group([ADD.p((1,)), ADD.p((2,))]));
    let result = client.apply(fan.clone()).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), [3, 4]);
    let result = client.apply(fan.then(SUM.p(()))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 7);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn groups_in_the_header_keep_their_shape() {
    let (setup, _, _worker) = start();
    let pair = |n: i64| {
        let pair = group([ADD.p((n,)), ADD.p((n,))]);
        ADD.s((n, 0)).then(pair)
    };
    let header = Canvas::group([Canvas::from(pair(1)), Canvas::from(pair(2))]);
    let total = header.then(TOTAL.p(()).into());
    let result = setup.client().apply(total).await.unwrap();
    let result = within(5, result.get()).await.unwrap();
    assert_eq!(result.as_i64(), Some(12));
}

#[tokio::test(start_paused = true)]
async fn maps_and_chunks_are_served_by_every_worker() {
    let (setup, _, _worker) = start();
    let client = setup.client();
    let result = client.apply(ADD.starmap([(1, 2), (3, 4)])).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), [3, 7]);
    let result = client.apply(SUM.map([vec![1, 2], vec![3]])).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), [3, 3]);
    let items = (0..5).map(|n| (n, n));
    let result = client.apply(ADD.chunks(items, 2)).await.unwrap();
    let parts = within(5, result.get()).await.unwrap();
    assert_eq!(parts, [vec![0, 2], vec![4, 6], vec![8]]);
    let bad = client.apply(FAIL.map([1, 2])).await.unwrap();
    let error = within(5, bad.get()).await.unwrap_err();
    assert!(error.to_string().contains("code 1"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn callbacks_follow_each_once() {
    let (setup, notes, _worker) = start();
    let say = |label: &str| SAY.si((label.to_owned(), 0));
    let call = ADD.s((2, 2)).link(&say("one")).link(&say("two"));
    let result = setup.client().apply(call).await.unwrap();
    within(5, result.get()).await.unwrap();
    let chord = group([ADD.s((1, 1)), ADD.s((2, 2))]).then(SUM.p(()));
    let result = setup
        .client()
        .apply(chord.link(&say("body")))
        .await
        .unwrap();
    within(5, result.get()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(notes.taken(), ["body 0", "one 0", "two 0"]);
}

#[tokio::test(start_paused = true)]
async fn errbacks_of_both_styles_hear_of_a_failure_once() {
    let (setup, notes, _worker) = start();
    let note = |label: &str| NOTE.s((label.to_owned(),));
    let call = FAIL
        .s((7,))
        .link_error(&note("new"))
        .link_error(&OLD_NOTE.p(()));
    let result = setup.client().apply(call).await.unwrap();
    within(5, result.get()).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        notes.taken(),
        ["new: tasks.fail ValueError('code 7')", "old: true"]
    );

    // The steps after the one that failed fail with it.
    let chain = FAIL.s((1,)).then(ADD.p((2,))).then(ADD.p((3,)));
    let result = setup
        .client()
        .apply(chain.link_error(&note("chain")))
        .await
        .unwrap();
    let error = within(5, result.get()).await.unwrap_err();
    assert!(error.to_string().contains("code 1"), "{error}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(notes.taken(), ["chain: tasks.fail ValueError('code 1')"]);
}

#[tokio::test(start_paused = true)]
async fn a_chord_whose_header_fails_fails_once() {
    let (setup, notes, _worker) = start();
    let note = || NOTE.s(("chord".to_owned(),));
    let header = || group([ADD.s((1, 1)), FAIL.s((3,)), ADD.s((2, 2)), FAIL.s((4,))]);
    let chord = header().then(SUM.p(())).link_error(&note());
    let result = setup.client().apply(chord).await.unwrap();
    let ResultError::Task(failure) = within(5, result.get()).await.unwrap_err() else {
        panic!("no failure of a task");
    };
    assert_eq!(failure.state, State::Failure);
    let text = failure.exception.to_string();
    let expected = "raised ValueError('code 3')";
    assert!(
        text.starts_with("ChordError") && text.contains(expected),
        "{text}"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    let noted = notes.taken();
    assert_eq!(noted.len(), 1, "{noted:?}");
    assert!(
        noted[0].starts_with("chord: tasks.sum ChordError("),
        "{noted:?}"
    );

    // What comes after its body fails, too, and so does a chord around it.
    let after = header().then(SUM.p(())).then(ADD.p((1,))).then(ADD.p((2,)));
    let around = group([after, ADD.s((1, 1))]).then(SUM.p(()));
    let result = setup.client().apply(around).await.unwrap();
    within(5, result.get()).await.unwrap_err();

    let body = group([ADD.s((1, 1)), ADD.s((2, 2))]).then(FAIL_ON.p(()));
    let result = setup.client().apply(body).await.unwrap();
    let error = within(5, result.get()).await.unwrap_err();
    assert!(error.to_string().contains("KeyError"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_chord_in_a_chord_fails_both_and_is_heard_of_once() {
    let (setup, notes, _worker) = start();
    let inner = || group([ADD.s((1, 1)), FAIL.s((3,))]).then(SUM.p(()));
    let outer = group([ADD.s((2, 2)), inner()]).then(SUM.p(()));
    let outer = outer.link_error(&NOTE.s(("both".to_owned(),)));
    let result = setup.client().apply(outer.clone()).await.unwrap();
    let error = within(60, result.get()).await.unwrap_err().to_string();
    assert!(error.contains("ChordError"), "{error}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(notes.taken().len(), 1);

    // What is linked to the outer body alone has not been called before.
    let alone = SUM.p(()).link_error(&NOTE.s(("outer".to_owned(),)));
    let outer = group([inner(), inner()]).then(alone);
    let result = setup.client().apply(outer).await.unwrap();
    within(60, result.get()).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(notes.taken().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_lets_a_workflow_take_its_place() {
    let (setup, _, _worker) = start();
    let client = setup.client();
    let result = client.apply(SUM_ALL.s((vec![1, 2, 3, 4],))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 10);
    let result = client.apply(SPREAD.s((3,))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), [0, 2, 4]);
    // In a chain, and in a chord.
    let chain = SPREAD.s((3,)).then(SUM_ALL.p(())).then(ADD.p((1,)));
    let result = client.apply(chain).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 7);
    let chord = group([SPREAD.s((2,)), SPREAD.s((3,))]).then(TOTAL.p(()));
    let result = client.apply(chord).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 8);

    let tasks = Tasks::new().with(FAIL, async |_: i64| {
        Err::<i64, _>(TaskError::replace(Canvas::chain([])))
    });
    let other = Setup::new();
    let _worker = other.start(tasks);
    let result = other.client().apply(FAIL.s((1,))).await.unwrap();
    let error = within(5, result.get()).await.unwrap_err();
    assert!(error.to_string().contains("empty chain"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_chord_grows_while_it_runs() {
    let (setup, _, _worker) = start();
    let chord = group([GROW.s((3,)), GROW.s((4,))]).then(SUM.p(()));
    let result = setup.client().apply(chord).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 7 + 3 + 6);
    let alone = setup.client().apply(GROW.s((1,))).await.unwrap();
    let error = within(5, alone.get()).await.unwrap_err();
    assert!(error.to_string().contains("not part of a chord"), "{error}");
}

/// As if a worker had counted the last part and died.
#[tokio::test(start_paused = true)]
async fn a_chord_that_was_left_behind_goes_on() {
    let (setup, _, _worker) = start();
    let body = Canvas::from(SUM.p(()))
        .set("task_id", "body")
        .to_wire()
        .unwrap();
    let header = ResultTree::group("gid", ["a", "b"].map(ResultTree::task).to_vec());
    let begun = ChordStart::new("gid", 2, &header);
    setup.backend.begin(&begun).await.unwrap();
    let claim = ChordClaim::new("dead", Duration::from_secs(6));
    for (index, id) in ["a", "b"].into_iter().enumerate() {
        let value = Raw::from_value(Value::Int(10));
        let part = ChordMember::new("gid", id, i64::try_from(index).ok(), &value, &body);
        setup.backend.complete_member(&part, &claim).await.unwrap();
    }
    let result = setup.client().result::<i64>("body");
    assert!(!result.ready().await.unwrap());
    assert_eq!(within(60, result.get()).await.unwrap(), 20);
    assert!(setup.elapsed() > 6.0, "{}", setup.elapsed());
    // And once only.
    tokio::time::sleep(Duration::from_secs(120)).await;
    let value = Raw::NULL;
    let part = ChordMember::new("gid", "a", Some(0), &value, &body);
    let late = ChordClaim::new("late", Duration::from_secs(6));
    let again = setup.backend.complete_member(&part, &late).await.unwrap();
    assert_eq!(again, None);
}

const JSON: &str = "application/json";

/// Puts a task into the queue whose body is this.
async fn push(setup: &Setup, id: &str, body: String) {
    let headers = format!(r#"{{"task": "tasks.add", "id": "{id}", "root_id": "{id}"}}"#);
    setup.push(&headers, JSON, body).await;
}

fn nested(levels: usize) -> String {
    let open = r#"{"task": "celery.chain", "subtask_type": "chain", "args": [], "options": {}, "kwargs": {"tasks": ["#;
    let end =
        r#"{"task": "tasks.add", "args": [], "kwargs": {}, "options": {}, "subtask_type": null}"#;
    format!("{}{end}{}", open.repeat(levels), "]}}".repeat(levels))
}

#[tokio::test(start_paused = true)]
async fn what_is_no_workflow_fails_its_task_and_nothing_else() {
    let (setup, _, _worker) = start();
    let chord = |body: &str| {
        format!(
            r#"{{"task": "celery.chord", "subtask_type": "chord", "args": [], "options": {{}},
                "kwargs": {{"header": [{}], "body": {body}}}}}"#,
            nested(0)
        )
    };
    let deep = nested(10_000);
    let cases = [
        (
            "no-map",
            r#"{"callbacks": ["tasks.add"]}"#.to_owned(),
            "callbacks",
        ),
        ("no-list", r#"{"errbacks": 7}"#.to_owned(), "errbacks"),
        (
            "no-task",
            r#"{"callbacks": [{"args": []}]}"#.to_owned(),
            "callbacks",
        ),
        ("null-in-chain", r#"{"chain": [null]}"#.to_owned(), "chain"),
        (
            "no-body",
            format!(r#"{{"chain": [{}]}}"#, chord("null")),
            "body",
        ),
        (
            "bad-kind",
            r#"{"callbacks": [{"task": "x", "subtask_type": "tree"}]}"#.to_owned(),
            "tree",
        ),
        ("deep", format!(r#"{{"callbacks": [{deep}]}}"#), "levels"),
        ("deep-chain", format!(r#"{{"chain": [{deep}]}}"#), "levels"),
    ];
    for (id, embed, _) in &cases {
        push(&setup, id, format!("[[1, 2], {{}}, {embed}]")).await;
    }
    for (id, _, told) in &cases {
        let result = setup.client().result::<i64>(*id);
        let error = within(60, result.get()).await.unwrap_err().to_string();
        assert!(error.contains(told), "{id}: {error}");
    }
    // A body that is an empty group, and one that has no id, are run.
    let empty = r#"{"task": "celery.group", "subtask_type": "group", "kwargs": {"tasks": []}}"#;
    let embed = format!(r#"{{"chain": [{}]}}"#, chord(empty));
    push(&setup, "empty", format!("[[1, 2], {{}}, {embed}]")).await;
    let result = setup.client().result::<i64>("empty");
    assert_eq!(within(60, result.get()).await.unwrap(), 3);
    // The worker lives.
    let result = setup.client().apply(ADD.s((1, 2))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 3);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_its_own_parent_is_read_to_an_end() {
    let (setup, _, _worker) = start();
    let cyclic = ResultTree::group("loop", vec![ResultTree::task("loop")]);
    setup.backend.store_group(&cyclic).await.unwrap();
    let begun = ChordStart::new("loop", 1, &ResultTree::group("loop", vec![cyclic]));
    setup.backend.begin(&begun).await.unwrap();
    let body = Canvas::from(SUM.p(()))
        .set("task_id", "body")
        .to_wire()
        .unwrap();
    let embed = format!(r#"{{"chord": {}}}"#, body.as_json().unwrap());
    let headers = r#"{"task": "tasks.add", "id": "loop", "group": "loop", "group_index": 0}"#;
    let body = format!("[[1, 2], {{}}, {embed}]");
    setup.push(headers, JSON, body).await;
    let result = setup.client().result::<i64>("body");
    let error = within(60, result.get()).await.unwrap_err();
    assert!(error.to_string().contains("TypeError"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn chains_run_under_protocol_1_too() {
    let config = Config::new().set("task_protocol", 1).unwrap();
    let (setup, notes) = (Setup::with_config(config), Notes::default());
    let _worker = setup.start(tasks(&notes));
    let ten = || group((0..10).map(|i| ADD.s((i, i))));
    let chain = ADD.s((1, 1)).then(ADD.p((2,))).then(ADD.p((3,)));
    let result = setup.client().apply(chain.clone()).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 7);
    let chords = ten()
        .then(SUM.p(()))
        .then(group([ADD.p((1,)), ADD.p((2,))]));
    let all = chords.then(SUM.p(())).then(ADD.p((5,)));
    let result = setup.client().apply(all).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 188);
    let failing = FAIL.s((1,)).then(ADD.p((2,)));
    let result = setup.client().apply(failing).await.unwrap();
    // Celery's clients learn of it from the first step: nobody knows the others.
    let first = result.parent().unwrap();
    within(5, first.get()).await.unwrap_err();
}

/// A backend that every worker can read, and that does not count.
#[derive(Clone, Debug)]
struct Uncounted(MemoryBackend);

impl ResultBackend for Uncounted {
    fn store<'a>(&'a self, record: Record<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
        self.0.store(record)
    }

    fn fetch<'a>(
        &'a self,
        ids: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<ResultDocument<'static>>>, ServiceError>> {
        self.0.fetch(ids)
    }

    fn wait<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<ResultDocument<'static>, ServiceError>> {
        self.0.wait(id)
    }

    fn forget<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<(), ServiceError>> {
        self.0.forget(ids)
    }

    fn store_group<'a>(&'a self, group: &'a ResultTree) -> BoxFuture<'a, Result<(), ServiceError>> {
        self.0.store_group(group)
    }

    fn fetch_group<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ResultTree>, ServiceError>> {
        self.0.fetch_group(id)
    }

    fn capabilities(&self) -> BackendCapabilities {
        BackendCapabilities::new().shared(true).groups(true)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}

#[tokio::test(start_paused = true)]
async fn chords_on_a_backend_that_does_not_count_are_looked_after_by_a_task() {
    let (setup, notes) = (Setup::new(), Notes::default());
    let backend = Uncounted(setup.backend.clone());
    let app = setup.app.clone().with_backend(Arc::new(backend));
    let _worker = crate::support::Running::start(app.worker(tasks(&notes)).concurrency(4));
    let ten = || group((0..10).map(|i| ADD.s((i, i))));
    let result = app.client().apply(ten().then(SUM.p(()))).await.unwrap();
    assert_eq!(within(60, result.get()).await.unwrap(), 90);
    // One that a worker begins, and one in the header of another.
    let inner = ADD
        .s((0, 1))
        .then(group([ADD.p((1,)), ADD.p((2,))]))
        .then(SUM.p(()));
    let outer = group([inner, ADD.s((1, 1))]).then(SUM.p(()));
    let result = app.client().apply(outer).await.unwrap();
    assert_eq!(within(60, result.get()).await.unwrap(), 7);
    let failing = group([ADD.s((1, 1)), FAIL.s((3,))]).then(SUM.p(()));
    let failing = failing.link_error(&NOTE.s(("late".to_owned(),)));
    let result = app.client().apply(failing).await.unwrap();
    let error = within(60, result.get()).await.unwrap_err().to_string();
    assert!(error.contains("raised ValueError('code 3')"), "{error}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(notes.taken().len(), 1);
    assert_eq!(setup.depth("celery").await, 0);
}

/// As old clients send workflows, and as Celery's own worker serves them.
#[tokio::test(start_paused = true)]
async fn the_tasks_of_celerys_own_worker_are_served() {
    let (setup, _, _worker) = start();
    let client = setup.client();
    let wire = |canvas: Canvas| canvas.to_wire().unwrap().to_value().unwrap();
    let add = |x: i64| wire(ADD.s((x, x)).into());
    let started = async |task: &str, args: Vec<Value>| {
        let result = client.send_by_name(task, args, ()).await.unwrap();
        ResultTree::from_value(&within(5, result.get()).await.unwrap()).unwrap()
    };
    let values = async |ids: &[&str]| {
        let mut values = Vec::new();
        for id in ids {
            let result = client.result::<Value>(*id);
            values.push(within(5, result.get()).await.unwrap());
        }
        values
    };

    let items = (0..3).map(|n| vec![n, n]).collect::<Vec<_>>();
    let items = Value::from_serialize(&items).unwrap();
    let task = wire(ADD.p(()).into());
    let parts = started("celery.chunks", vec![task, items, 2.into()]).await;
    let parts = values(&parts.leaf_ids()).await;
    let list = |numbers: &[i64]| Value::from_serialize(numbers).unwrap();
    assert_eq!(parts, [list(&[0, 2]), list(&[4])]);

    let header = Value::Array(vec![add(1), add(2)]);
    let body = wire(SUM.p(()).into());
    let sum = started("celery.chord", vec![header.clone(), body]).await;
    assert_eq!(values(&[&sum.id]).await, [Value::Int(6)]);

    let given = vec![header, Value::Null, "gid".into(), Value::Array(vec![])];
    let result = client
        .send_by_name("celery.group", given, ())
        .await
        .unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), Value::Null);

    let kwargs = [("index", 1)].into_iter().collect::<HashMap<_, _>>();
    let result = client.send_by_name("celery.accumulate", (7, 8), kwargs);
    assert_eq!(
        within(5, result.await.unwrap().get()).await.unwrap(),
        Value::Int(8)
    );
    let result = client.send_by_name("celery.chain", (), ()).await.unwrap();
    let error = within(5, result.get()).await.unwrap_err();
    assert!(error.to_string().contains("NotImplementedError"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_tree_of_results_is_revoked_as_a_whole() {
    let (setup, notes, _worker) = start();
    let later = |n: i64| ADD.s((n, n)).countdown(Duration::from_secs(60));
    let chord = group([later(1), later(2)])
        .then(SUM.p(()))
        .then(ADD.p((1,)));
    let chord = chord.link_error(&NOTE.s(("revoked".to_owned(),)));
    let result = setup.client().apply(chord).await.unwrap();
    let ids = result.task_ids();
    assert_eq!(ids.len(), 4, "{ids:?}");
    let is_up = async || while setup.app.control().ping().await.unwrap().is_empty() {};
    within(60, is_up()).await;
    let revoked = setup.app.control().limit(1).revoke(ids).replies();
    assert_eq!(within(60, revoked).await.unwrap().len(), 1);
    let error = within(120, result.get()).await.unwrap_err().to_string();
    assert!(error.contains("TaskRevokedError('revoked')"), "{error}");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(notes.taken().len(), 1);
    assert_eq!(setup.depth("celery").await, 0);
}

/// Its members do not say themselves that they are parts of the outer chord.
#[tokio::test(start_paused = true)]
async fn a_chord_hears_of_a_group_in_its_header_that_never_starts() {
    let (setup, _, _worker) = start();
    let alone = || group([SUM.p(()), SUM.p(())]);
    let chains = || group([SUM.p(()).then(ADD.p((1,))), SUM.p(()).then(ADD.p((2,)))]);
    let fails = || group([FAIL.s((1,)), ADD.s((1, 1))]);
    let headers = [
        Canvas::from(fails().then(alone())),
        fails().then(chains()).into(),
    ];
    for header in headers {
        let outer = Canvas::group([header, ADD.s((1, 1)).into()]).then(TOTAL.p(()).into());
        let result = setup.client().apply(outer).await.unwrap();
        let error = within(5, result.get()).await.unwrap_err();
        assert!(error.to_string().contains("code 1"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_chord_that_nobody_looks_after_any_more_fails() {
    let (setup, notes) = (Setup::new(), Notes::default());
    let app = setup.app.clone();
    let _worker = crate::support::Running::start(app.worker(tasks(&notes)).concurrency(4));
    let body = Canvas::from(SUM.p(())).set("task_id", "body");
    let body = body.link_error(&NOTE.s(("unlock".to_owned(),)).into());
    let body = body.to_wire().unwrap().to_value().unwrap();
    let result = Value::Array(vec![ResultTree::task("never").to_value()]);
    let kwargs: HashMap<_, _> = [("result", result), ("max_retries", Value::Int(2))].into();
    let client = app.client();
    let unlock = client.send_by_name("celery.chord_unlock", ("gid", body), kwargs);
    unlock.await.unwrap();
    let error = within(60, client.result::<i64>("body").get()).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("chord_unlock could not be retried"),
        "{error}"
    );
    assert_eq!(notes.taken().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn numbers_from_elsewhere_are_no_end_of_a_worker() {
    let (setup, _, _worker) = start();
    for option in ["countdown", "expires"] {
        let step = format!(
            r#"{{"task": "tasks.add", "args": [1], "kwargs": {{}}, "options": {{"{option}": 1e19}}}}"#
        );
        push(
            &setup,
            option,
            format!(r#"[[1, 2], {{}}, {{"callbacks": [{step}]}}]"#),
        )
        .await;
        let result = setup.client().result::<i64>(option);
        assert_eq!(within(60, result.get()).await.unwrap(), 3);
    }
    let kwargs: HashMap<_, _> = [("interval", 1e19)].into();
    let result = Value::Array(vec![ResultTree::task("never").to_value()]);
    let args = ("gid", Value::Null, kwargs["interval"], Value::Null, result);
    let client = setup.client();
    client
        .send_by_name("celery.chord_unlock", args, ())
        .await
        .unwrap();
    let result = client.apply(ADD.s((1, 2))).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_errback_that_does_not_end_is_ended() {
    let (setup, notes) = (Setup::new(), Notes::default());
    let tasks = tasks(&notes).errback(HANG, async |_: FailedTask| {
        std::future::pending::<Result<(), TaskError>>().await
    });
    let _worker = setup.start(tasks);
    let failing = group([ADD.s((1, 1)), FAIL.s((3,))]).then(SUM.p(()));
    let failing = failing.link_error(&HANG.s(()));
    let failing = failing.link_error(&NOTE.s(("after".to_owned(),)));
    let result = setup.client().apply(failing).await.unwrap();
    within(90, result.get()).await.unwrap_err();
    // The chord was held meanwhile: nobody else went on with it.
    assert_eq!(notes.taken().len(), 1);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(notes.taken().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_chain_that_would_have_ended_in_a_group_fails_all_its_parts() {
    let (setup, notes, _worker) = start();
    let chain = FAIL.s((1,)).then(group([ADD.p((1,)), ADD.p((2,))]));
    let header = Canvas::group([Canvas::from(chain), ADD.s((1, 1)).into()]);
    let chord = header.then(TOTAL.p(()).into());
    let chord = chord.link_error(&NOTE.s(("once".to_owned(),)).into());
    let result = setup
        .client()
        .apply(chord.then(ADD.p((1,)).into()))
        .await
        .unwrap();
    let error = within(60, result.get()).await.unwrap_err().to_string();
    assert!(error.contains("code 1"), "{error}");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(notes.taken().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_mapped_task_asks_for_is_no_wish_of_the_map() {
    let (setup, _, _worker) = start();
    let result = setup
        .client()
        .apply(SUM_ALL.map([vec![1, 2]]))
        .await
        .unwrap();
    let error = within(60, result.get()).await.unwrap_err().to_string();
    assert!(error.contains("Ignore"), "{error}");
}
