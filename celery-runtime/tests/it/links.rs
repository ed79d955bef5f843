//! Messages that follow a task: callbacks, errbacks and the next steps of a chain.

use std::time::Duration;

use bytes::Bytes;
use celery_protocol::{Headers, Message, Properties, Value};
use celery_runtime::{Broker, Context, Publication, Task, TaskError, Tasks};

use crate::support::{Setup, within};

const ADD: Task<(i64, i64), i64> = Task::new("tasks.add").params(&["x", "y"]);
const FAIL: Task<(), ()> = Task::new("tasks.fail");
const NOTE: Task<(String,), String> = Task::new("tasks.note").params(&["failed"]);

fn tasks() -> Tasks {
    async fn note(_ctx: Context, failed: String) -> Result<String, TaskError> {
        Ok(failed)
    }
    Tasks::new()
        .with(ADD, async |x: i64, y: i64| Ok::<_, TaskError>(x + y))
        .with(FAIL, async || {
            Err::<(), _>(TaskError::exception("ValueError", "no"))
        })
        .with(NOTE, note)
}

#[tokio::test(start_paused = true)]
async fn chain_from_python_runs_to_its_end() {
    let setup = Setup::new();
    let step = |id: &str, y: i64| {
        format!(
            r#"{{"task": "tasks.add", "args": [{y}], "kwargs": {{}}, "options": {{"task_id": "{id}", "reply_to": "r"}}, "subtask_type": null, "immutable": false}}"#
        )
    };
    // The remaining steps are stored in reverse.
    let chain = [step("third", 300), step("second", 20)].join(", ");
    let body = format!(
        r#"[[1, 2], {{}}, {{"callbacks": null, "errbacks": null, "chain": [{chain}], "chord": null}}]"#
    );
    let headers = r#"{"task": "tasks.add", "id": "first", "root_id": "first"}"#;
    let headers = Headers::from_json(Bytes::from_static(headers.as_bytes())).unwrap();
    let message = Message::new(headers, Properties::default(), body);
    setup
        .broker
        .publish(&[Publication::to_queue(message, "celery")])
        .await;

    let _worker = setup.start(tasks());
    let client = setup.client();
    assert_eq!(
        within(5, client.result::<i64>("third").get())
            .await
            .unwrap(),
        323
    );
    assert_eq!(client.result::<i64>("second").get().await.unwrap(), 23);
    let document = client
        .result::<Value>("third")
        .document()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(document.parent_id.as_deref(), Some("second"));
}

#[tokio::test(start_paused = true)]
async fn callback_result_goes_to_reply_address_of_signature() {
    let setup = Setup::new();
    let step = r#"{"task": "tasks.add", "args": [1], "kwargs": {}, "options": {"task_id": "second", "reply_to": "client", "queue": "other"}, "subtask_type": null, "immutable": false}"#;
    let body = format!(
        r#"[[1, 2], {{}}, {{"callbacks": null, "errbacks": null, "chain": [{step}], "chord": null}}]"#
    );
    let headers = r#"{"task": "tasks.add", "id": "first", "root_id": "first"}"#;
    let headers = Headers::from_json(Bytes::from_static(headers.as_bytes())).unwrap();
    let message = Message::new(headers, Properties::default(), body);
    setup
        .broker
        .publish(&[Publication::to_queue(message, "celery")])
        .await;
    let _worker = setup.start(tasks());
    let sent = within(5, setup.take("other")).await;
    assert_eq!(sent.properties.reply_to.as_deref(), Some("client"));
}

#[tokio::test(start_paused = true)]
async fn callback_gets_value_and_errback_gets_id() {
    let setup = Setup::new();
    let _worker = setup.start(tasks());
    let client = setup.client();

    let callback = celery_runtime::Signature::named("tasks.add", (10,), ()).task_id("callback");
    let linked = client.apply(ADD.s((1, 2)).link(&callback)).await.unwrap();
    assert_eq!(
        within(5, client.result::<i64>("callback").get())
            .await
            .unwrap(),
        13
    );

    within(5, linked.get()).await.unwrap();
    assert_eq!(linked.children().await.unwrap(), ["callback"]);

    let errback = celery_runtime::Signature::named("tasks.note", (), ()).task_id("errback");
    let failed = client.apply(FAIL.s(()).link_error(&errback)).await.unwrap();
    let noted = within(5, client.result::<String>("errback").get())
        .await
        .unwrap();
    assert_eq!(noted, failed.id());
}

#[tokio::test(start_paused = true)]
async fn callback_keeps_its_options() {
    let setup = Setup::new();
    let _worker = setup.start(tasks());
    let client = setup.client();
    let callback = celery_runtime::Signature::named("tasks.add", (10,), ())
        .task_id("later")
        .countdown(Duration::from_secs(100));
    client.apply(ADD.s((1, 2)).link(&callback)).await.unwrap();
    assert_eq!(client.result::<i64>("later").get().await.unwrap(), 13);
    assert_eq!(setup.elapsed().round() as u64, 100);
}
