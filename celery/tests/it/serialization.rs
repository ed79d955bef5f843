//! Every serializer with every compression, in both protocols and directions.

use celery::{Compression, Map, Serializer, Signature, Value};

use crate::support::{Setup, TIMEOUT, for_each_broker, start_python};

for_each_broker! {
    rust_worker_reads_every_python_serialization: redis, rabbitmq;
    python_client_reads_rust_results: redis, rabbitmq, rpc;
    python_worker_reads_every_rust_serialization: redis, rabbitmq;
    rust_client_reads_python_results: redis, rabbitmq, rpc;
}

async fn rust_worker_reads_every_python_serialization(setup: Setup) {
    let setup = setup.set(
        "accept_content",
        serde_json::json!(["json", "msgpack", "yaml"]),
    );
    let worker = setup.worker().await;
    let program = r#"
COMPRESSIONS = [None, "zlib", "gzip", "bzip2", "lzma", "brotli", "zstd"]
args = ["ünï", 1, -(2**40), 0.5, None, True, [{"deep": [1]}], b"\x00\xff", "long " * 1000]
sent = []
for app.conf.task_protocol in (2, 1):
    for serializer in ("json", "msgpack", "yaml"):
        for compression in COMPRESSIONS:
            sent.append(send("tasks.echo", args, {"ключ": 1}, serializer=serializer, compression=compression))
for result in sent:
    same(get(result), {"args": args, "kwargs": {"ключ": 1}})
    assert result.state == "SUCCESS"
"#;
    setup.python(program).await;
    worker.stop().await;
    assert_eq!(setup.depth("celery.dead").await, 0);
    setup.assert_drained().await;
}

async fn python_client_reads_rust_results(setup: Setup) {
    for serializer in ["json", "msgpack", "yaml"] {
        let setup = setup.set("result_serializer", serializer);
        let worker = setup.worker().await;
        let program = format!("app.conf.result_serializer = {serializer:?}\n{RESULTS}");
        setup.python(program).await;
        worker.stop().await;
    }
}

const RESULTS: &str = r#"
found = call("tasks.echo", "ünï", 1, 0.5, None, b"\x00\xff", named=[{}])
same(found, {"args": ["ünï", 1, 0.5, None, b"\x00\xff"], "kwargs": {"named": [{}]}})
error = failure(send("tasks.divide", (1, 0)))
same((type(error), str(error)), (ZeroDivisionError, "division by zero"))
"#;

async fn python_worker_reads_every_rust_serialization(setup: Setup) {
    let _python = start_python(setup.python_worker()).await;
    let args = vec![
        Value::from("ünï"),
        Value::from(1),
        Value::from(-(1_i64 << 40)),
        Value::from(0.5),
        Value::Null,
        Value::from(true),
        Value::from(vec![Value::Map(Map::from([("deep", 1)]))]),
        Value::Bytes(vec![0, 255]),
        Value::from("long ".repeat(1000)),
    ];
    for protocol in [2, 1] {
        let setup = setup.set("task_protocol", protocol);
        let client = setup.client();
        let calls = [Serializer::Json, Serializer::MsgPack, Serializer::Yaml]
            .into_iter()
            .flat_map(|serializer| {
                let compressions = Compression::all().map(Some).chain([None]);
                compressions.map(move |compression| (serializer, compression))
            })
            .map(|(serializer, compression)| {
                let call = Signature::named("tasks.echo", &args, Map::from([("ключ", 1)]));
                let call = call.serializer(serializer);
                match compression {
                    Some(compression) => call.compression(compression),
                    None => call,
                }
            });
        for sent in client.apply_all(calls).await {
            let echo = sent.unwrap().get_timeout(TIMEOUT).await.unwrap();
            assert_eq!(echo.get("args").unwrap().as_array().unwrap(), args);
            assert_eq!(echo.get("kwargs"), Some(&Map::from([("ключ", 1)]).into()));
        }
    }
}

async fn rust_client_reads_python_results(setup: Setup) {
    for serializer in ["json", "msgpack", "yaml"] {
        let setup = setup.set("result_serializer", serializer);
        let worker = setup.python_worker();
        let _python = start_python(worker.environment("TEST_RESULT_SERIALIZER", serializer)).await;
        let client = setup.client();
        let echo = client
            .send_by_name("tasks.echo", ("ünï", 1, 0.5), ())
            .await
            .unwrap();
        let failed = client
            .send_by_name("tasks.fail", ("no",), ())
            .await
            .unwrap();
        let echo = echo.get_timeout(TIMEOUT).await.unwrap();
        let args = Value::Array(vec!["ünï".into(), 1.into(), 0.5.into()]);
        assert_eq!(echo.get("args"), Some(&args), "{serializer}");
        let failure = failed.get_timeout(TIMEOUT).await.unwrap_err().to_string();
        assert!(failure.ends_with("ValueError('no')"), "{failure}");
    }
}
