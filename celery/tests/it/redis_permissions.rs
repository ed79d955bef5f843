//! Redis users with the documented permissions of their roles.

use std::time::Duration;

use celery::{Client, Task, TaskError, Tasks, Unique, group};
use test_servers::Reply;

use crate::support::{
    HOP, REJECT, RETRY_TIMES, RedisState, RunningWorker, Setup, TIMEOUT, eventually, test_tasks,
    within,
};
use crate::tasks::Number::Int;
use crate::tasks::{ADD, XSUM};

const BROKER: &str = include_str!("../../../celery-broker-redis/src/permissions.md");
const BACKEND: &str = include_str!("../../../celery-backend-redis/src/permissions.md");

/// The users and their roles.
const ROLES: [(&str, &str); 5] = [
    ("sender", "a client that sends"),
    ("waiter", "a client that waits for results"),
    ("worker", "a worker with remote control and events"),
    ("controller", "a client that controls workers"),
    ("watcher", "a client that receives events"),
];

const UNKNOWN: Task<(), ()> = Task::new("tasks.unknown");

const LOCKED: Task<(), i64> = Task::new("tasks.locked").unique(Unique::arguments());

const ALONE: Task<(), i64> =
    Task::new("tasks.alone").unique(Unique::arguments().while_queued(Duration::from_secs(600)));

/// Which of the documented permissions a user has.
#[derive(Clone, Copy, PartialEq)]
enum Grant {
    All,
    Needed,
}

/// Returns the names of the rules that a role has in the table of a document.
fn rule_names(document: &str, role: &str, grant: Grant) -> Vec<String> {
    let row = document
        .lines()
        .find(|line| line.starts_with(&format!("| {role} |")));
    let cells: Vec<_> = row.map_or(Vec::new(), |row| row.split('|').collect());
    let cells = match grant {
        Grant::All => cells.get(2..4),
        Grant::Needed => cells.get(2..3),
    };
    let words = cells.unwrap_or_default().iter();
    words
        .flat_map(|cell| cell.split_whitespace())
        .map(|name| name.trim_matches('`').to_owned())
        .collect()
}

/// Returns the rules of this name in a document, for the queue `celery` of database 0.
fn rules(document: &str, name: &str) -> Vec<String> {
    let block = document.split("```").nth(1).unwrap().lines().skip(1);
    let rules: Vec<_> = block
        .skip_while(|line| line.split(' ').next() != Some(name))
        .enumerate()
        .take_while(|(index, line)| *index == 0 || line.starts_with(' '))
        .flat_map(|(index, line)| line.split_whitespace().skip(usize::from(index == 0)))
        .map(|rule| rule.replace("<queue>", "celery").replace("<db>", "0"))
        .collect();
    assert!(!rules.is_empty(), "no rules {name}");
    rules
}

/// Creates a user for each role.
fn create_users(setup: &Setup, grant: Grant) {
    for (user, role) in ROLES {
        let mut rule_set = vec![
            "on".to_owned(),
            ">secret".to_owned(),
            "resetchannels".to_owned(),
        ];
        for document in [BROKER, BACKEND] {
            for name in rule_names(document, role, grant) {
                rule_set.extend(rules(document, &name));
            }
        }
        let command: Vec<_> = ["ACL", "SETUSER", user]
            .into_iter()
            .chain(rule_set.iter().map(String::as_str))
            .collect();
        let reply = setup.redis.command(&command);
        assert_eq!(reply, Reply::Data(b"OK".to_vec()), "{command:?}");
    }
}

/// Returns the setup of a user: broker on database 0, result backend on database 1.
fn of(setup: &Setup, user: &str) -> Setup {
    let url = |db| {
        format!(
            "redis://{user}:secret@127.0.0.1:{}/{db}",
            setup.redis.port()
        )
    };
    setup
        .set("broker_url", url(0))
        .set("result_backend", url(1))
}

/// Returns user, reason, context and object of each refused command.
fn refused(setup: &Setup) -> Vec<String> {
    let Reply::Array(entries) = setup.redis.command(&["ACL", "LOG"]) else {
        panic!("ACL LOG is no list");
    };
    let fields = |entry: Reply| {
        let Reply::Array(fields) = entry else {
            panic!("an entry of ACL LOG is no list");
        };
        let value = |name: &str| {
            let at = fields
                .iter()
                .position(|field| field == &Reply::Data(name.into()));
            fields[at.unwrap() + 1].text()
        };
        ["username", "reason", "context", "object"]
            .map(value)
            .join(" ")
    };
    entries.into_iter().map(fields).collect()
}

async fn worker(setup: &Setup) -> RunningWorker {
    let one = async || Ok::<_, TaskError>(1);
    let tasks: Tasks = test_tasks().with(LOCKED, one).with(ALONE, one);
    let setup = of(setup, "worker").set("worker_send_task_events", true);
    setup.serve(tasks).await
}

/// Copies the one message of the queue to the unacked deliveries of a dead Python worker
/// and of a dead worker of this project.
fn add_abandoned(setup: &Setup) {
    let redis = &setup.redis;
    let [raw] = &redis.command(&["LRANGE", "celery", "0", "-1"]).texts()[..] else {
        panic!("expected one message");
    };
    let entry = format!("[{raw}, \"\", \"celery\"]");
    let now = redis.command(&["TIME"]).texts().swap_remove(0);
    for (tag, score) in [("of-kombu", "1"), ("dead-0-1:celery", &now)] {
        redis.command(&["ZADD", "unacked_index", score, tag]);
        redis.command(&["HSET", "unacked", tag, &entry]);
    }
    redis.command(&["ZADD", "unacked.owners", "1", "dead"]);
}

/// Runs tasks of every kind that a worker with these permissions supports.
async fn run_tasks(setup: &Setup) {
    let sender = of(setup, "sender").client();
    let waiter = of(setup, "waiter").client();
    for number in 0..10 {
        let sent = sender.send(ADD, (Int(number), Int(1))).await.unwrap();
        let sum = waiter.result::<i64>(sent.id());
        assert_eq!(sum.get_timeout(TIMEOUT).await.unwrap(), number + 1);
    }
    let hour = Duration::from_secs(3600);
    sender
        .apply(ADD.s((Int(0), Int(0))).countdown(hour))
        .await
        .unwrap();
    let exchanged = ADD
        .s((Int(1), Int(1)))
        .exchange("celery")
        .routing_key("celery");
    sender.apply(exchanged.task_id("exchanged")).await.unwrap();
    let exchanged = waiter.result::<i64>("exchanged");
    assert_eq!(exchanged.get_timeout(TIMEOUT).await.unwrap(), 2);
    let locked = waiter.send(LOCKED, ()).await.unwrap();
    assert_eq!(locked.get_timeout(TIMEOUT).await.unwrap(), 1);
    let late = waiter.send(REJECT, (true,)).await.unwrap();
    let retried = waiter.send(RETRY_TIMES, (2, 0.1)).await.unwrap();
    let soon = HOP.s((Vec::new(),)).countdown(Duration::from_secs(1));
    let eta = waiter.apply(soon.priority(9)).await.unwrap();
    let chord = group((0..4).map(|number| ADD.s((Int(number), Int(0))))).then(XSUM.p(()));
    let chord = waiter.apply(chord).await.unwrap();
    assert!(late.get_timeout(TIMEOUT).await.unwrap());
    assert_eq!(retried.get_timeout(TIMEOUT).await.unwrap(), 2);
    assert_eq!(eta.get_timeout(TIMEOUT).await.unwrap(), ["rust"]);
    assert_eq!(chord.get_timeout(TIMEOUT).await.unwrap(), Int(6));
    assert!(chord.forget().await.is_ok());
}

/// Runs a unique task, an unknown one and a malformed message.
async fn run_tasks_with_optional_permissions(setup: &Setup, waiter: &Client) {
    let alone = waiter.send(ALONE, ()).await.unwrap();
    assert_eq!(alone.get_timeout(TIMEOUT).await.unwrap(), 1);
    waiter.apply(UNKNOWN.s(()).priority(9)).await.unwrap();
    setup.redis.push("celery", b"no message");
    eventually("both messages are dead-lettered", async || {
        let depths = ["celery.dead", "celery.dead\x06\x169"].map(|list| setup.redis.depth(list));
        (depths == [1, 1]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn documented_permissions_suffice_for_each_role() {
    let setup = Setup::redis();
    create_users(&setup, Grant::All);
    let sender = of(&setup, "sender").client();
    let waiter = of(&setup, "waiter").client();
    sender.send(ADD, (Int(1), Int(1))).await.unwrap();
    add_abandoned(&setup);
    let mut events = of(&setup, "watcher")
        .app()
        .events()
        .subscribe()
        .await
        .unwrap();
    let workers = [worker(&setup).await, worker(&setup).await];
    eventually("the abandoned deliveries are restored", async || {
        let owners = setup.redis.command(&["ZSCORE", "unacked.owners", "dead"]);
        (setup.redis.unacked() == 0 && owners == Reply::Nil).then_some(())
    })
    .await;
    run_tasks(&setup).await;
    run_tasks_with_optional_permissions(&setup, &waiter).await;
    let control = of(&setup, "controller")
        .app()
        .control()
        .timeout(TIMEOUT)
        .limit(2);
    assert_eq!(control.ping().await.unwrap().len(), 2);
    within("a task event arrives", async {
        while events.next().await.unwrap().kind != "task-succeeded" {}
    })
    .await;
    for worker in workers {
        worker.stop().await;
    }
    drop((control, events));
    assert_eq!(setup.redis.depth("celery"), 1);
    setup.redis.assert_no_unacked();
    for (user, _) in ROLES {
        let kill = ["ACL", "DRYRUN", user, "CLIENT", "KILL", "ID", "1"];
        assert_eq!(setup.redis.command(&kill).text(), "OK", "{user}");
    }
    assert_eq!(refused(&setup), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn needed_permissions_suffice_for_tasks_control_and_events() {
    let setup = Setup::redis();
    create_users(&setup, Grant::Needed);
    let mut events = of(&setup, "watcher")
        .app()
        .events()
        .subscribe()
        .await
        .unwrap();
    let worker = worker(&setup).await;
    run_tasks(&setup).await;
    let control = of(&setup, "controller")
        .app()
        .control()
        .timeout(TIMEOUT)
        .limit(1);
    assert_eq!(control.ping().await.unwrap().len(), 1);
    within("a task event arrives", async {
        while events.next().await.unwrap().kind != "task-succeeded" {}
    })
    .await;
    assert!(of(&setup, "waiter").client().send(ALONE, ()).await.is_err());
    worker.stop().await;
    assert_eq!(setup.redis.depth("celery"), 1);
    setup.redis.assert_no_unacked();
}
