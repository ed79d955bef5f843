//! A Rust client receives the events of Python workers.

use std::collections::BTreeSet;
use std::time::SystemTime;

use celery::{App, ClusterState, Event, EventStream, State, TaskRecord};
use test_servers::{Proxy, PythonWorkerBuilder, RabbitServer};

use crate::support::{Setup, TIMEOUT, blocking, eventually, for_each_broker, start_python, within};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, FAIL, RETRY};

const NODE: &str = "watched@test";

/// Returns a worker without task events.
fn without_task_events(setup: &Setup) -> PythonWorkerBuilder {
    let worker = setup.python_worker().pool("threads");
    worker.argument("--hostname").argument(NODE)
}

/// Returns a worker with task events.
fn worker(setup: &Setup) -> PythonWorkerBuilder {
    without_task_events(setup).argument("-E")
}

/// A subscriber and the state that it has built from the events.
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

    /// Receives events until a condition is true.
    async fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Self, &Event) -> bool) {
        within(what, async {
            loop {
                let event = self.stream.next().await.unwrap();
                self.cluster.handle(&event, SystemTime::now());
                self.kinds.insert(event.kind.clone());
                if condition(self, &event) {
                    return;
                }
            }
        })
        .await;
    }

    /// Receives events until a periodic heartbeat of the worker.
    async fn wait_for_heartbeat(&mut self) {
        self.wait_until("the worker sends a heartbeat", |monitor, event| {
            let worker = monitor.cluster.worker(NODE);
            let is_alive = worker.is_some_and(|one| one.is_alive(SystemTime::now()));
            // A heartbeat on request lacks this field.
            is_alive && event.fields.contains_key("processed")
        })
        .await;
    }

    /// Receives events until the task has this state.
    async fn wait_for_state(&mut self, id: &str, state: State) -> TaskRecord {
        self.wait_until("the task ends", |monitor, _| {
            let task = monitor.cluster.task(id);
            // Events of earlier states may arrive after the final one.
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
        .wait_until("the worker goes offline", |_, event| {
            event.kind == "worker-offline"
        })
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
    let _python = start_python(without_task_events(&setup)).await;
    monitor.wait_for_heartbeat().await;
    let client = app.client();
    let before_events = client.send(ADD, (Int(0), Int(0))).await.unwrap();
    before_events.get_timeout(TIMEOUT).await.unwrap();
    let control = app.control().timeout(TIMEOUT).limit(1);
    // Celery stores the result before it sends the event, and sends it if events are
    // enabled by then.
    let inspect = control.inspect();
    eventually("the worker has finished the task", async || {
        let active = inspect.active().await.unwrap();
        let mut answers = active.answers();
        answers.all(|(_, tasks)| tasks.is_empty()).then_some(())
    })
    .await;
    let answers = control.enable_events().replies().await.unwrap();
    let on = answers.get(NODE).unwrap().as_ref().unwrap();
    assert_eq!(on.as_str(), Some("task events enabled"));
    let after_events = client.send(ADD, (Int(2), Int(3))).await.unwrap();
    monitor
        .wait_for_state(after_events.id(), State::Success)
        .await;
    assert!(monitor.cluster.task(before_events.id()).is_none());
}

async fn event_stream_survives_connection_loss(setup: Setup) {
    let port = if setup.is_on_redis() {
        setup.redis.port()
    } else {
        RabbitServer::shared().port()
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
        .wait_until("the loss is counted", |monitor, _| {
            monitor.stream.losses() > 0
        })
        .await;
    let sent = setup.client().send(ADD, (Int(2), Int(3))).await.unwrap();
    monitor.wait_for_state(sent.id(), State::Success).await;
    // The reply mailbox has lost its connection as well.
    assert_eq!(control.ping().await.unwrap().len(), 1);
}
