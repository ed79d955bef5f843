//! A Rust client watches Python workers.

use std::collections::BTreeSet;
use std::time::SystemTime;

use celery::{App, ClusterState, Event, EventStream, State, TaskRecord};
use test_servers::{Proxy, PythonWorkerBuilder, RabbitServer};

use crate::support::{Setup, TIMEOUT, blocking, eventually, for_each_broker, start_python, within};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, FAIL, RETRY};

const NODE: &str = "watched@test";

/// A worker that tells about itself alone.
fn quiet(setup: &Setup) -> PythonWorkerBuilder {
    let worker = setup.python_worker().pool("threads");
    worker.argument("--hostname").argument(NODE)
}

/// A worker that tells about its tasks, too.
fn worker(setup: &Setup) -> PythonWorkerBuilder {
    quiet(setup).argument("-E")
}

/// What a program knows that watches.
struct EventMonitor {
    stream: EventStream,
    cluster: ClusterState,
    kinds: BTreeSet<String>,
}

impl EventMonitor {
    async fn subscribe(app: &App) -> Self {
        Self {
            stream: app.events().subscribe().await.unwrap(),
            cluster: ClusterState::new(),
            kinds: BTreeSet::new(),
        }
    }

    /// Watches until something is so.
    async fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&Self, &Event) -> bool) {
        within(what, async {
            loop {
                let event = self.stream.next().await.unwrap();
                self.cluster.handle(&event, SystemTime::now());
                self.kinds.insert(event.kind.clone());
                if is_so(self, &event) {
                    return;
                }
            }
        })
        .await;
    }

    /// Watches until the worker has shown that it lives.
    async fn wait_for_heartbeat(&mut self) {
        self.wait_until("the worker lives", |monitor, event| {
            let worker = monitor.cluster.worker(NODE);
            let is_alive = worker.is_some_and(|one| one.is_alive(SystemTime::now()));
            // One that was asked for does not say all.
            is_alive && event.fields.contains_key("processed")
        })
        .await;
    }

    /// Watches until the task has ended so.
    async fn wait_for_state(&mut self, id: &str, state: State) -> TaskRecord {
        self.wait_until("the task ends", |monitor, _| {
            let task = monitor.cluster.task(id);
            // What came before its end may come after it.
            task.is_some_and(|task| task.state == state && task.name.is_some())
        })
        .await;
        self.cluster.task(id).unwrap().clone()
    }
}

for_each_broker! {
    cluster_state_reflects_events: redis, rabbitmq;
    event_streams_filter_by_routing_key: redis, rabbitmq;
    task_events_are_enabled_by_control: redis, rabbitmq;
    event_stream_survives_connection_loss: redis, rabbitmq;
}

async fn cluster_state_reflects_events(setup: Setup) {
    let app = setup.app();
    let mut monitor = EventMonitor::subscribe(&app).await;
    let python = start_python(worker(&setup)).await;
    monitor.wait_for_heartbeat().await;
    let known = monitor.cluster.worker(NODE).unwrap();
    assert_eq!(known.sw_ident.as_deref(), Some("py-celery"));
    assert_eq!((known.freq, known.active), (2.0, Some(0)));
    assert!(known.pid.is_some() && known.loadavg.is_some() && known.sw_ver.is_some());

    let client = app.client();
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let sent = client.send(ADD, (Int(2), Int(3))).await.unwrap();
    let added = monitor.wait_for_state(sent.id(), State::Success).await;
    assert_eq!(added.name.as_deref(), Some("tasks.add"));
    assert_eq!(added.worker.as_deref(), Some(NODE));
    assert_eq!(added.result.as_deref(), Some("5"));
    assert!(added.args.is_some() && added.runtime.is_some());
    assert_eq!(added.root_id.as_deref(), Some(sent.id()));
    let (received, succeeded) = (added.received.unwrap(), added.succeeded.unwrap());
    assert!(before.unwrap().as_secs_f64() - 1.0 < received && received <= succeeded);

    let sent = client.send(FAIL, ("why".to_owned(),)).await.unwrap();
    let failed = monitor.wait_for_state(sent.id(), State::Failure).await;
    assert_eq!(failed.exception.as_deref(), Some("ValueError('why')"));
    assert!(failed.traceback.unwrap().contains("ValueError"));

    let sent = client.send(RETRY, (1,)).await.unwrap();
    let again = monitor.wait_for_state(sent.id(), State::Success).await;
    assert!(again.retried.is_some());
    assert_eq!(monitor.cluster.tasks_in(&State::Success).count(), 2);
    assert_eq!(monitor.cluster.tasks_of(NODE).count(), 3);
    assert!(monitor.cluster.rates(SystemTime::now()).succeeded > 0.0);
    assert_eq!(monitor.stream.losses(), 0);

    app.control().heartbeat().send().await.unwrap();
    monitor
        .wait_until("a heartbeat", |_, event| event.kind == "worker-heartbeat")
        .await;
    blocking(|| python.terminate()).await;
    monitor
        .wait_until("the worker goes", |_, event| event.kind == "worker-offline")
        .await;
    assert_eq!(monitor.cluster.alive(SystemTime::now()).count(), 0);
    for kind in ["worker-online", "task-received", "task-started"] {
        assert!(monitor.kinds.contains(kind), "{kind}");
    }
}

async fn event_streams_filter_by_routing_key(setup: Setup) {
    let app = setup.app();
    let mut monitor = EventMonitor::subscribe(&app).await;
    let mut workers = app.events().matching("worker.#").subscribe().await.unwrap();
    let mut online = app
        .events()
        .matching("worker.online")
        .subscribe()
        .await
        .unwrap();
    let python = start_python(worker(&setup)).await;
    monitor.wait_for_heartbeat().await;
    let sent = app.client().send(ADD, (Int(2), Int(3))).await.unwrap();
    monitor.wait_for_state(sent.id(), State::Success).await;
    blocking(|| python.terminate()).await;
    let mut kinds = BTreeSet::new();
    while !kinds.contains("worker-offline") {
        kinds.insert(within("an event", workers.next()).await.unwrap().kind);
    }
    assert!(
        kinds.iter().all(|kind| kind.starts_with("worker-")),
        "{kinds:?}"
    );
    let first = within("an event", online.next()).await.unwrap();
    assert_eq!((&*first.kind, &*first.hostname), ("worker-online", NODE));
    assert!(first.clock > 0 && first.timestamp > 1e9);
}

async fn task_events_are_enabled_by_control(setup: Setup) {
    let app = setup.app();
    let mut monitor = EventMonitor::subscribe(&app).await;
    let _python = start_python(quiet(&setup)).await;
    monitor.wait_for_heartbeat().await;
    let client = app.client();
    let unheard = client.send(ADD, (Int(0), Int(0))).await.unwrap();
    unheard.get_timeout(TIMEOUT).await.unwrap();
    let control = app.control().timeout(TIMEOUT).limit(1);
    // Celery stores the result first and tells of it then, if events are on by
    // that time.
    let inspect = control.inspect();
    eventually("the worker is done with it", async || {
        let active = inspect.active().await.unwrap();
        let mut answers = active.answers();
        answers.all(|(_, tasks)| tasks.is_empty()).then_some(())
    })
    .await;
    let answers = control.enable_events().replies().await.unwrap();
    let on = answers.get(NODE).unwrap().as_ref().unwrap();
    assert_eq!(on.as_str(), Some("task events enabled"));
    let heard = client.send(ADD, (Int(2), Int(3))).await.unwrap();
    monitor.wait_for_state(heard.id(), State::Success).await;
    assert!(monitor.cluster.task(unheard.id()).is_none());
}

async fn event_stream_survives_connection_loss(setup: Setup) {
    let port = match setup.is_on_redis() {
        true => setup.redis.port(),
        false => RabbitServer::shared().port(),
    };
    let network = Proxy::to(port);
    let through = format!(":{}", network.port());
    let url = setup.broker_url().replace(&format!(":{port}"), &through);
    let watching = setup.set("broker_url", url).app();
    let _python = start_python(worker(&setup)).await;
    let mut monitor = EventMonitor::subscribe(&watching).await;
    monitor.wait_for_heartbeat().await;
    let control = watching.control().timeout(TIMEOUT).limit(1);
    assert_eq!(control.ping().await.unwrap().len(), 1);

    network.reset();
    monitor.wait_for_heartbeat().await;
    monitor
        .wait_until("the loss is noticed", |monitor, _| {
            monitor.stream.losses() > 0
        })
        .await;
    let sent = setup.client().send(ADD, (Int(2), Int(3))).await.unwrap();
    monitor.wait_for_state(sent.id(), State::Success).await;
    // The mailbox for replies was lost as well.
    assert_eq!(control.ping().await.unwrap().len(), 1);
}
