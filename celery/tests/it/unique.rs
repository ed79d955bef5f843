//! Unique tasks: one at a time across workers, or at most one in the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use celery::{SendError, Task, TaskError, Tasks, Unique};

use crate::support::{RECORD, Setup, TIMEOUT, for_each_broker, start_python, within};
use crate::tasks::FAIL;

for_each_broker! {
    unique_task_runs_one_at_a_time_on_two_workers: redis, rabbitmq;
    second_send_of_queued_unique_task_fails: redis, rabbitmq;
    queued_unique_task_is_sent_again_after_it_ran_in_python: redis, rabbitmq;
}

const ALONE: Task<(String, u64), u32> = Task::new("tasks.alone")
    .params(&["key", "milliseconds=200"])
    .unique(Unique::by(&["key"]));

const QUEUED: Task<(String, u64), u32> = Task::new("tasks.queued_alone")
    .params(&["key", "milliseconds=200"])
    .unique(
        Unique::arguments()
            .while_queued(Duration::from_secs(600))
            .or_fail(),
    );

/// The unique tasks, which return how many of them ran at the same time, over all
/// workers that share `running`.
fn tasks(running: &Arc<AtomicU32>) -> Tasks {
    let running = Arc::clone(running);
    let count = move |_key: String, milliseconds: u64| {
        let running = Arc::clone(&running);
        async move {
            let concurrent = running.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, TaskError>(concurrent)
        }
    };
    Tasks::new().with(ALONE, count.clone()).with(QUEUED, count)
}

async fn unique_task_runs_one_at_a_time_on_two_workers(setup: Setup) {
    let running = Arc::default();
    let workers = [
        setup.serve(tasks(&running)).await,
        setup.serve(tasks(&running)).await,
    ];
    let answers = setup
        .python(
            "
results = [app.send_task('tasks.alone', (), {'key': 'a'}) for _ in range(4)]
results += [app.send_task('tasks.alone', ('a', 100)) for _ in range(4)]
print(sorted(set(result.get(timeout=60) for result in results)))
",
        )
        .await;
    assert_eq!(answers.trim(), "[1]");
    for worker in workers {
        worker.stop().await;
    }
    setup.assert_drained().await;
}

async fn second_send_of_queued_unique_task_fails(setup: Setup) {
    let client = setup.client();
    let arguments = || ("a".to_owned(), 10);
    let first = client.send(QUEUED, arguments()).await.unwrap();
    let error = setup.client().send(QUEUED, arguments()).await.unwrap_err();
    assert!(
        matches!(&error, SendError::NotUnique { holder, .. } if holder == first.id()),
        "{error}"
    );
    let worker = setup.serve(tasks(&Arc::default())).await;
    assert_eq!(within("the first task", first.get()).await.unwrap(), 1);
    worker.stop().await;
    setup.assert_drained().await;
}

async fn queued_unique_task_is_sent_again_after_it_ran_in_python(setup: Setup) {
    let unique = Unique::arguments().while_queued(Duration::from_secs(3600));
    let record = RECORD.unique(unique.or_fail());
    let fail = FAIL.unique(unique.or_fail());
    let (number, message) = (|| (7, 0), || ("as asked".to_owned(),));
    let client = setup.client();
    let succeeding = client.send(record, number()).await.unwrap();
    let failing = client.send(fail, message()).await.unwrap();
    let taken = [
        client.send(record, number()).await.err(),
        client.send(fail, message()).await.err(),
    ];
    for (error, first) in taken.iter().zip([succeeding.id(), failing.id()]) {
        assert!(
            matches!(error, Some(SendError::NotUnique { holder, .. }) if holder == first),
            "{error:?}"
        );
    }
    let python = start_python(setup.python_worker()).await;
    assert_eq!(succeeding.get_timeout(TIMEOUT).await.unwrap(), 7);
    failing.get_timeout(TIMEOUT).await.unwrap_err();
    let succeeding = client.send(record, number()).await.unwrap();
    let failing = client.send(fail, message()).await.unwrap();
    assert_eq!(succeeding.get_timeout(TIMEOUT).await.unwrap(), 7);
    failing.get_timeout(TIMEOUT).await.unwrap_err();
    python.terminate();
}
