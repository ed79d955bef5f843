//! Celery's built-in tasks, such as `celery.chord_unlock`, which polls the header of a
//! chord if the backend does not count its members.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use celery_protocol::{ResultDocument, ResultTree, Value};
use celery_runtime::memory::MemoryBackend;
use celery_runtime::{
    BackendCapabilities, BoxFuture, Canvas, ResultBackend, ResultRecord, ServiceError, group,
};

use super::{ADD, FAIL, NOTE, Notes, SUM, start, tasks};
use crate::support::{Running, Setup, within};

/// A shared result backend without a chord store.
#[derive(Clone, Debug)]
struct NoChordStore(MemoryBackend);

impl ResultBackend for NoChordStore {
    fn store<'a>(&'a self, record: ResultRecord<'a>) -> BoxFuture<'a, Result<(), ServiceError>> {
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
async fn chord_is_polled_on_backend_without_chord_store() {
    let (setup, notes) = (Setup::new(), Notes::default());
    let backend = NoChordStore(setup.backend.clone());
    let app = setup.app.clone().with_backend(Arc::new(backend));
    let _worker = Running::start(app.worker(tasks(&notes)).concurrency(4));
    let ten = || group((0..10).map(|i| ADD.s((i, i))));
    let result = app.client().apply(ten().then(SUM.p(()))).await.unwrap();
    assert_eq!(within(60, result.get()).await.unwrap(), 90);
    // A chord that a worker begins, in the header of another chord.
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
    assert_eq!(notes.take().len(), 1);
    assert_eq!(setup.depth("celery").await, 0);
}

#[tokio::test(start_paused = true)]
async fn chord_unlock_without_retries_fails_body() {
    let (setup, notes) = (Setup::new(), Notes::default());
    let app = setup.app.clone();
    let _worker = Running::start(app.worker(tasks(&notes)).concurrency(4));
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
    assert_eq!(notes.take().len(), 1);
}

/// Old clients send workflows as calls of these tasks.
#[tokio::test(start_paused = true)]
async fn builtin_tasks_of_celery_are_served() {
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
    let chunks = started("celery.chunks", vec![task, items, 2.into()]).await;
    let chunks = values(&chunks.leaf_ids()).await;
    let list = |numbers: &[i64]| Value::from_serialize(numbers).unwrap();
    assert_eq!(chunks, [list(&[0, 2]), list(&[4])]);

    let header = Value::Array(vec![add(1), add(2)]);
    let body = wire(SUM.p(()).into());
    let sum = started("celery.chord", vec![header.clone(), body]).await;
    assert_eq!(values(&[&sum.id]).await, [Value::Int(6)]);

    let args = vec![header, Value::Null, "gid".into(), Value::Array(vec![])];
    let result = client.send_by_name("celery.group", args, ()).await.unwrap();
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
