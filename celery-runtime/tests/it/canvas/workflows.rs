//! Workflows that succeed.

use std::time::Duration;

use celery_protocol::{Raw, ResultTree, Value};
use celery_runtime::{
    Canvas, ChordClaim, ChordMember, ChordStart, ChordStore, Config, TaskError, Tasks, group,
};

use super::{ADD, FAIL, GROW, NOTE, Notes, SAY, SPREAD, SUM, SUM_ALL, TOTAL, start, tasks};
use crate::support::{Setup, within};

#[tokio::test(start_paused = true)]
async fn nested_canvas_returns_its_result() {
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
async fn groups_in_header_keep_nesting() {
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
async fn map_and_chunks_return_results() {
    let (setup, _, _worker) = start();
    let client = setup.client();
    let result = client.apply(ADD.starmap([(1, 2), (3, 4)])).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), [3, 7]);
    let result = client.apply(SUM.map([vec![1, 2], vec![3]])).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), [3, 3]);
    let items = (0..5).map(|n| (n, n));
    let result = client.apply(ADD.chunks(items, 2)).await.unwrap();
    let chunks = within(5, result.get()).await.unwrap();
    assert_eq!(chunks, [vec![0, 2], vec![4, 6], vec![8]]);
    let bad = client.apply(FAIL.map([1, 2])).await.unwrap();
    let error = within(5, bad.get()).await.unwrap_err();
    assert!(error.to_string().contains("code 1"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn callback_runs_once() {
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
    assert_eq!(notes.take(), ["body 0", "one 0", "two 0"]);
}

#[tokio::test(start_paused = true)]
async fn task_is_replaced_by_workflow() {
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
async fn running_chord_waits_for_added_tasks() {
    let (setup, _, _worker) = start();
    let chord = group([GROW.s((3,)), GROW.s((4,))]).then(SUM.p(()));
    let result = setup.client().apply(chord).await.unwrap();
    assert_eq!(within(5, result.get()).await.unwrap(), 7 + 3 + 6);
    let alone = setup.client().apply(GROW.s((1,))).await.unwrap();
    let error = within(5, alone.get()).await.unwrap_err();
    assert!(
        error.to_string().contains("not a member of a chord"),
        "{error}"
    );
}

/// A worker counted the last member and crashed before it sent the body.
#[tokio::test(start_paused = true)]
async fn stalled_chord_is_resumed_once() {
    let (setup, _, _worker) = start();
    let body = Canvas::from(SUM.p(()))
        .set("task_id", "body")
        .to_wire()
        .unwrap();
    let header = ResultTree::group("gid", ["a", "b"].map(ResultTree::task).to_vec());
    let started = ChordStart::new("gid", 2, &header);
    setup.backend.begin(&started).await.unwrap();
    let claim = ChordClaim::new("dead", Duration::from_secs(6));
    for (index, id) in ["a", "b"].into_iter().enumerate() {
        let value = Raw::from_value(Value::Int(10));
        let member = ChordMember::new("gid", id, i64::try_from(index).ok(), &value, &body);
        setup
            .backend
            .complete_member(&member, &claim)
            .await
            .unwrap();
    }
    let result = setup.client().result::<i64>("body");
    assert!(!result.ready().await.unwrap());
    assert_eq!(within(60, result.get()).await.unwrap(), 20);
    assert!(setup.elapsed() > 6.0, "{}", setup.elapsed());
    // A completed member counts no more.
    tokio::time::sleep(Duration::from_secs(120)).await;
    let value = Raw::NULL;
    let member = ChordMember::new("gid", "a", Some(0), &value, &body);
    let late = ChordClaim::new("late", Duration::from_secs(6));
    let again = setup.backend.complete_member(&member, &late).await.unwrap();
    assert_eq!(again, None);
}

#[tokio::test(start_paused = true)]
async fn chain_runs_with_protocol_1() {
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
    // As in Celery, the callbacks of a failed step do not fail; its own result does.
    let first = result.parent().unwrap();
    within(5, first.get()).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn mapped_task_cannot_replace_map() {
    let (setup, _, _worker) = start();
    let result = setup
        .client()
        .apply(SUM_ALL.map([vec![1, 2]]))
        .await
        .unwrap();
    let error = within(60, result.get()).await.unwrap_err().to_string();
    assert!(error.contains("Ignore"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn revoked_result_tree_fails_chord_once() {
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
    assert_eq!(notes.take().len(), 1);
    assert_eq!(setup.depth("celery").await, 0);
}
