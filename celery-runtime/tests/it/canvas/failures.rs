//! Failures in workflows, and their errbacks.

use std::time::Duration;

use celery_protocol::State;
use celery_runtime::{Canvas, FailedTask, ResultError, TaskError, group};

use super::{ADD, FAIL, FAIL_ON, HANG, NOTE, Notes, OLD_NOTE, SUM, TOTAL, start, tasks};
use crate::support::{Setup, within};

#[tokio::test(start_paused = true)]
async fn errback_of_each_style_is_called_once() {
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
        notes.take(),
        ["new: tasks.fail ValueError('code 7')", "old: true"]
    );

    // The steps after the failed one fail, too.
    let chain = FAIL.s((1,)).then(ADD.p((2,))).then(ADD.p((3,)));
    let result = setup
        .client()
        .apply(chain.link_error(&note("chain")))
        .await
        .unwrap();
    let error = within(5, result.get()).await.unwrap_err();
    assert!(error.to_string().contains("code 1"), "{error}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(notes.take(), ["chain: tasks.fail ValueError('code 1')"]);
}

#[tokio::test(start_paused = true)]
async fn failing_header_fails_chord_once() {
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
    let notes = notes.take();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].starts_with("chord: tasks.sum ChordError("),
        "{notes:?}"
    );

    // The steps after its body fail, too, and so does a chord around it.
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
async fn nested_chord_failure_calls_errback_once() {
    let (setup, notes, _worker) = start();
    let inner = || group([ADD.s((1, 1)), FAIL.s((3,))]).then(SUM.p(()));
    let outer = group([ADD.s((2, 2)), inner()]).then(SUM.p(()));
    let outer = outer.link_error(&NOTE.s(("both".to_owned(),)));
    let result = setup.client().apply(outer.clone()).await.unwrap();
    let error = within(60, result.get()).await.unwrap_err().to_string();
    assert!(error.contains("ChordError"), "{error}");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(notes.take().len(), 1);

    // An errback of the outer body only is called once.
    let alone = SUM.p(()).link_error(&NOTE.s(("outer".to_owned(),)));
    let outer = group([inner(), inner()]).then(alone);
    let result = setup.client().apply(outer).await.unwrap();
    within(60, result.get()).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(notes.take().len(), 1);
}

/// The members of the inner group carry no position in the outer chord.
#[tokio::test(start_paused = true)]
async fn chord_fails_with_group_in_header_that_never_starts() {
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
async fn hanging_errback_is_ended() {
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
    // The claim was renewed meanwhile, so no other worker resumed the chord.
    assert_eq!(notes.take().len(), 1);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(notes.take().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn failing_chain_fails_group_at_its_end() {
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
    assert_eq!(notes.take().len(), 1);
}
