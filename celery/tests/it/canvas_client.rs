//! Canvases of a Rust client, run by a Python worker.

use celery::{
    AnyResult, Canvas, Client, GroupResult, Ignored, Raw, ResultError, Sendable, Signature, Value,
    group,
};

use crate::support::{Setup, TIMEOUT, for_each_broker, start_python};
use crate::tasks::Number::{self, Int};
use crate::tasks::{ADD, FAIL, MUL, XSUM};

for_each_broker! {
    tutorial_canvases_return_expected_values: redis, rabbitmq;
    nested_canvases_return_expected_values: redis, rabbitmq;
    failed_canvas_calls_its_errbacks: redis, rabbitmq;
    canvas_steps_keep_options_and_stamps: redis, rabbitmq;
    results_have_parents_and_children: redis;
    saved_group_is_restored_by_the_other_language: redis;
    python_signature_is_sent_by_rust_client: redis;
}

fn add(x: i64, y: i64) -> Signature<Number> {
    ADD.s((Int(x), Int(y)))
}

fn plus(y: i64) -> Signature<Number, (Number,)> {
    ADD.p((Int(y),))
}

fn ints(numbers: impl IntoIterator<Item = i64>) -> Vec<Number> {
    numbers.into_iter().map(Int).collect()
}

async fn value<T, In>(client: &Client, canvas: Signature<T, In>) -> T
where
    T: serde::de::DeserializeOwned,
    Signature<T, In>: Sendable<Result = celery::AsyncResult<T>>,
{
    let sent = client.apply(canvas).await.unwrap();
    sent.get_timeout(TIMEOUT).await.unwrap()
}

async fn tutorial_canvases_return_expected_values(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let client = setup.client();
    assert_eq!(value(&client, plus(2).given((Int(8),))).await, Int(10));

    let doubles = || group((0..10).map(|i| add(i, i)));
    let sent = client.apply(doubles()).await.unwrap();
    let values = sent.get_timeout(TIMEOUT).await.unwrap();
    assert_eq!(values, ints((0..10).map(|i| 2 * i)));
    assert_eq!(sent.completed_count().await.unwrap(), 10);

    let partial = group((0..10).map(plus)).given((Int(10),));
    let sent = client.apply(partial).await.unwrap();
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), ints(10..20));

    assert_eq!(
        value(&client, add(4, 4).then(MUL.p((Int(8),)))).await,
        Int(64)
    );
    assert_eq!(value(&client, doubles().then(XSUM.p(()))).await, Int(90));
}

async fn nested_canvases_return_expected_values(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let client = setup.client();
    let pair = || group([add(1, 1), add(2, 2)]);
    let sum = || XSUM.p(());

    assert_eq!(
        value(&client, pair().then(sum()).then(plus(3))).await,
        Int(9)
    );
    let inside = add(1, 1).then(group([plus(10), plus(20)])).then(sum());
    assert_eq!(value(&client, inside.clone()).await, Int(34));
    assert_eq!(
        value(&client, inside.then(plus(1)).then(MUL.p((Int(2),)))).await,
        Int(70)
    );
    let chords = pair()
        .then(sum())
        .then(group([plus(1), plus(2)]))
        .then(sum());
    assert_eq!(value(&client, chords.then(plus(5))).await, Int(20));
    let of_chords = group([pair().then(sum()), add(5, 5).then(plus(1))]);
    assert_eq!(value(&client, of_chords.then(sum())).await, Int(17));
    assert_eq!(
        value(&client, add(1, 1).then(ADD.si((Int(5), Int(5))))).await,
        Int(10)
    );
    assert_eq!(
        value(&client, XSUM.map([ints([1, 2]), ints([3])])).await,
        ints([3, 3])
    );
    assert_eq!(
        value(&client, ADD.starmap([(Int(1), Int(2)), (Int(3), Int(4))])).await,
        ints([3, 7])
    );

    let chunks = ADD.chunks((0..5).map(|i| (Int(i), Int(i))), 2);
    let chunks = client.apply(chunks).await.unwrap();
    let expected = vec![ints([0, 2]), ints([4, 6]), ints([8])];
    assert_eq!(chunks.get_timeout(TIMEOUT).await.unwrap(), expected);

    let mixed = group((
        add(1, 2),
        ADD.starmap([(Int(1), Int(1))]).cast::<Vec<Number>, ()>(),
    ));
    let mixed = client.apply(mixed).await.unwrap();
    assert_eq!(
        mixed.get_timeout(TIMEOUT).await.unwrap(),
        (Int(3), ints([2]))
    );

    let ends = client
        .apply(add(1, 1).then(group([plus(1), plus(2)])))
        .await
        .unwrap();
    assert_eq!(ends.get_timeout(TIMEOUT).await.unwrap(), ints([3, 4]));
    let parent = ends.parent().unwrap();
    assert_eq!(parent.get_timeout(TIMEOUT).await.unwrap(), Value::from(2));

    let fan = add(1, 1).then(group([plus(1), plus(2)]));
    let header = Canvas::group([fan.into(), add(5, 5).into()]);
    let echo = Signature::named("tasks.echo", (), ());
    let seen = client.apply(header.then(echo.into())).await.unwrap();
    let seen = seen.get_timeout(TIMEOUT).await.unwrap();
    let expected = Value::from(vec![Value::from(vec![3, 4]), 10.into()]);
    assert_eq!(seen.get("args"), Some(&vec![expected].into()));

    let bodies = client
        .apply(pair().then(group([sum(), sum()])))
        .await
        .unwrap();
    assert_eq!(bodies.get_timeout(TIMEOUT).await.unwrap(), ints([6, 6]));
}

async fn failed_canvas_calls_its_errbacks(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let client = setup.client();
    let fails = || FAIL.s(("no".to_owned(),)).cast::<Number, ()>();
    let errback = |id: &str| Signature::named("python.errback", (), ()).task_id(id);

    let chord = group([add(1, 1), fails()]).then(XSUM.p(()));
    let chord = chord.link_error(&errback("of-chord"));
    let sent = client.apply(chord).await.unwrap();
    match sent.get_timeout(TIMEOUT).await {
        Err(ResultError::Task(failure)) => assert_eq!(failure.exception.exc_type, "ChordError"),
        other => panic!("{other:?}"),
    }
    let errback_result = client
        .result::<String>("of-chord")
        .get_timeout(TIMEOUT)
        .await;
    assert_eq!(errback_result.unwrap(), format!("{} failed", sent.id()));

    let chain = fails().then(plus(1)).link_error(&errback("of-chain"));
    let sent = client.apply(chain).await.unwrap();
    assert!(matches!(
        sent.get_timeout(TIMEOUT).await,
        Err(ResultError::Task(_))
    ));
    let errback_result = client
        .result::<String>("of-chain")
        .get_timeout(TIMEOUT)
        .await;
    assert!(errback_result.unwrap().ends_with(" failed"));

    let linked = add(1, 1).then(plus(1)).link(&plus(10).task_id("after-all"));
    assert_eq!(value(&client, linked).await, Int(3));
    let after = client
        .result::<Number>("after-all")
        .get_timeout(TIMEOUT)
        .await;
    assert_eq!(after.unwrap(), Int(13));

    let some = client
        .apply(group([add(1, 1), fails(), add(2, 2)]))
        .await
        .unwrap();
    let outcomes = some.outcomes::<Number>().await;
    assert!(matches!(
        outcomes[..],
        [Ok(Int(2)), Err(ResultError::Task(_)), Ok(Int(4))]
    ));
    assert!(some.get_timeout(TIMEOUT).await.is_err());
}

async fn canvas_steps_keep_options_and_stamps(setup: Setup) {
    let _python = start_python(setup.python_worker().queues(&["celery", "special"])).await;
    let client = setup.client();
    let request = || {
        let step = Signature::named("python.request", (), ());
        step.queue("special").priority(4).shadow("a shadow")
    };
    let chain = add(1, 1).then(request()).stamp("env", "prod");
    let seen = value(&client, chain).await;
    for (name, expected) in [
        ("routing_key", Value::from("special")),
        ("priority", 4.into()),
        ("shadow", "a shadow".into()),
    ] {
        assert_eq!(seen.get(name), Some(&expected), "{name}: {seen:?}");
    }
    let chord = group([add(1, 1), add(2, 2)]).then(request());
    let seen = value(&client, chord).await;
    assert_eq!(seen.get("routing_key"), Some(&"special".into()));
}

async fn results_have_parents_and_children(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let client = setup.client();
    let chain = add(1, 1).then(plus(1)).then(plus(2));
    let last = client.apply(chain).await.unwrap();
    assert_eq!(last.get_timeout(TIMEOUT).await.unwrap(), Int(5));
    let first = last.parent().unwrap().parent().unwrap();
    assert!(first.parent().is_none());
    let AnyResult::Task(first) = first else {
        panic!("the first step is a task");
    };
    let values: Vec<_> = first.collect().await.unwrap();
    let values: Vec<_> = values.into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, [2.into(), 3.into(), Value::from(5)]);
    assert_eq!(last.task_ids().len(), 3);
}

async fn saved_group_is_restored_by_the_other_language(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let client = setup.client();
    let ours = client.apply(group([add(1, 1), add(2, 2)])).await.unwrap();
    ours.save().await.unwrap();
    let program = format!(
        "from celery.result import GroupResult\nprint(GroupResult.restore({:?}, app=app).get(timeout=20))",
        ours.id()
    );
    assert_eq!(setup.python(program).await.trim(), "[2, 4]");
    ours.delete().await.unwrap();
    let gone: Option<GroupResult<Vec<Number>>> = client.group_result(ours.id()).await.unwrap();
    assert!(gone.is_none());

    let program = "from celery import group, signature\n\
                   sent = group(signature('tasks.add', (n, n), app=app) for n in range(3)).apply_async()\n\
                   sent.save()\nprint(sent.id)";
    let id = setup.python(program).await;
    let theirs = client
        .group_result::<Vec<Number>>(id.trim())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(theirs.get_timeout(TIMEOUT).await.unwrap(), ints([0, 2, 4]));
    theirs.forget().await.unwrap();
    assert!(!theirs.ready().await.unwrap());
}

async fn python_signature_is_sent_by_rust_client(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let program = "import json\nfrom celery import chord, signature\n\
                   s = lambda name, *args: signature('tasks.' + name, args, app=app)\n\
                   print(json.dumps(chord([s('add', 1, 1), s('add', 2, 2)], s('xsum')) | s('mul', 10)))";
    let text = setup.python(program).await;
    let canvas = Canvas::read(&Raw::json(text.trim())).unwrap();
    let sent = setup.client().apply(canvas.clone()).await.unwrap();
    assert_eq!(sent.get_timeout(TIMEOUT).await.unwrap(), Value::from(60));
    let typed = Signature::from(canvas).cast::<Number, Ignored>();
    assert_eq!(value(&setup.client(), typed).await, Int(60));
}
