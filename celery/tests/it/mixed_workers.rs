//! Rust and Python workers on one queue, with clients of both languages.

use std::collections::HashMap;

use celery::{Canvas, Signature};

use crate::support::{
    HOP, LANGUAGE, RETRY_TIMES, RunningWorker, Setup, TIMEOUT, for_each_broker, start_python,
    test_tasks,
};

for_each_broker! {
    rust_and_python_workers_share_a_queue: redis, rabbitmq, quorum, rpc;
    retries_and_chains_cross_languages: redis, rabbitmq, quorum, rpc;
    chord_members_are_counted_across_languages: redis, rabbitmq;
}

async fn rust_and_python_workers_share_a_queue(setup: Setup) {
    let worker = setup.app().worker(test_tasks()).concurrency(2);
    let worker = RunningWorker::start(worker.prefetch_multiplier(1).mingle(false)).await;
    let python = start_python(setup.python_worker().argument("--prefetch-multiplier=1")).await;

    let client = setup.client();
    let ours = async {
        let mut done_by = HashMap::new();
        let sent = client.apply_all((0..100).map(|_| LANGUAGE.s(()))).await;
        for sent in sent {
            let language = sent.unwrap().get_timeout(TIMEOUT).await.unwrap();
            *done_by.entry(language).or_insert(0) += 1;
        }
        let sent = client.apply_all((0..50).map(|n| Signature::named("tasks.add", (n, n), ())));
        for (n, sent) in sent.await.into_iter().enumerate() {
            let sum = sent.unwrap().get_timeout(TIMEOUT).await.unwrap();
            assert_eq!(sum.as_u64(), Some(2 * n as u64));
        }
        done_by
    };
    let theirs = setup.python(
        r#"
sent = [send("test.language") for _ in range(100)]
added = [send("tasks.add", (n, n)) for n in range(50)]
done_by = [get(one) for one in sent]
same([get(one) for one in added], [2 * n for n in range(50)])
print(json.dumps({language: done_by.count(language) for language in set(done_by)}))
"#,
    );
    let (ours, theirs) = tokio::join!(ours, theirs);
    let theirs: HashMap<String, i32> = serde_json::from_str(&theirs).unwrap();
    for language in ["rust", "python"] {
        let count = ours.get(language).unwrap_or(&0) + theirs.get(language).unwrap_or(&0);
        assert!(
            count > 0,
            "the {language} worker ran no task: {ours:?} {theirs:?}"
        );
    }
    worker.stop().await;
    python.terminate();
    setup.assert_drained().await;
}

async fn retries_and_chains_cross_languages(setup: Setup) {
    let worker = setup.app().worker(test_tasks()).concurrency(1);
    let worker = RunningWorker::start(worker.prefetch_multiplier(1).mingle(false)).await;
    let python = start_python(setup.python_worker()).await;
    let program = r#"
hop = app.signature("test.hop")
chains = [chain(app.signature("test.hop", ([],)), *[hop] * 5).apply_async() for _ in range(20)]
for path in chains:
    print(json.dumps(get(path)))
retried = [send("test.retry", (4,)) for _ in range(10)]
same([get(one) for one in retried], [4] * 10)
"#;
    let output = setup.python(program).await;
    let paths: Vec<Vec<String>> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(paths.len(), 20);
    assert!(paths.iter().all(|path| path.len() == 6), "{paths:?}");
    for crossing in [["rust", "python"], ["python", "rust"]] {
        let crosses = |path: &Vec<String>| path.windows(2).any(|step| step == crossing);
        assert!(
            paths.iter().any(crosses),
            "no chain crosses from {crossing:?}: {paths:?}"
        );
    }

    let client = setup.client();
    let retried = client
        .apply_all((0..10).map(|_| RETRY_TIMES.s((4, 0.2))))
        .await;
    for sent in retried {
        assert_eq!(sent.unwrap().get_timeout(TIMEOUT).await.unwrap(), 4);
    }
    let hop = client.send(HOP, (Vec::new(),)).await.unwrap();
    assert_eq!(hop.get_timeout(TIMEOUT).await.unwrap().len(), 1);
    worker.stop().await;
    python.terminate();
    setup.assert_drained().await;
}

/// The worker of either language that stores the last member sends the body.
async fn chord_members_are_counted_across_languages(setup: Setup) {
    let worker = setup.app().worker(test_tasks()).concurrency(2);
    let worker = RunningWorker::start(worker.prefetch_multiplier(1).mingle(false)).await;
    let python = start_python(setup.python_worker().argument("--prefetch-multiplier=1")).await;
    let theirs = setup.python(
        r#"
add, xsum = app.tasks["tasks.add"], app.tasks["tasks.xsum"]
inner = lambda n: chord([add.s(n, m) for m in range(5)], xsum.s())
chords = [chord([inner(n) for n in range(3)], xsum.s()).apply_async() for _ in range(20)]
same([get(one) for one in chords], [45] * 20)
"#,
    );
    let ours = async {
        let add = |x: i64, y: i64| Canvas::from(Signature::named("tasks.add", (x, y), ()));
        let xsum = || Canvas::from(Signature::named("tasks.xsum", (), ()));
        let inner = |n: i64| Canvas::chord((0..5).map(|m| add(n, m)), xsum());
        let chords = (0..20).map(|_| Canvas::chord((0..3).map(inner), xsum()));
        for sent in setup.client().apply_all(chords).await {
            let sum = sent.unwrap().get_timeout(TIMEOUT).await.unwrap();
            assert_eq!(sum.as_u64(), Some(45));
        }
    };
    tokio::join!(ours, theirs);
    worker.stop().await;
    python.terminate();
    setup.assert_drained().await;
}
