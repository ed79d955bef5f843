//! Chords on Celery's keys.

use std::time::Duration;

use celery_backend_redis::RedisBackend;
use celery_protocol::{Compression, Raw, ResultTree, Serializer, State, Value, compress_document};
use celery_runtime::{
    ChordClaim, ChordEnd, ChordMember, ChordResults, ChordStart, ChordStore, ServiceErrorKind,
    StalledChord,
};
use serde_json::json;
use test_servers::{Python, RedisServer};

use crate::support::{backend, count, options, wait_until};

const BODY: &str = r#"{"task": "tasks.sum", "args": [], "kwargs": {}, "options": {"task_id": "body", "reply_to": "me"}, "subtask_type": null, "immutable": false}"#;

const INDEX: &str = "celery-rs-chords";

fn claim(token: &str) -> ChordClaim {
    ChordClaim::new(token, Duration::from_secs(6))
}

fn start(size: usize) -> ChordStart {
    ChordStart::new("g", size, &ResultTree::group("g", Vec::new()))
}

async fn begin(backend: &RedisBackend, size: usize) {
    backend.begin(&start(size)).await.expect("begun");
}

/// Completes the task `t<index>` with its index as the result.
async fn complete(backend: &RedisBackend, index: i64, token: &str) -> Option<ChordResults> {
    let (task_id, result) = (format!("t{index}"), index.to_string());
    let (result, body) = (Raw::json(&result), Raw::json(BODY));
    let member = ChordMember::new("g", &task_id, Some(index), &result, &body);
    let stored = backend.complete_member(&member, &claim(token)).await;
    stored.expect("counted")
}

async fn finish(backend: &RedisBackend, token: &str, end: ChordEnd) -> bool {
    let claim = claim(token);
    backend.finish("g", &claim, end).await.expect("finished")
}

async fn claim_stalled(backend: &RedisBackend) -> Vec<StalledChord> {
    let stalled = backend.claim_stalled(&claim("sweeper"), 10).await;
    stalled.expect("claimed")
}

fn values(results: &ChordResults) -> Vec<Option<i64>> {
    let value = |value: Value| value.as_i64();
    let results = results.members.iter().map(|part| part.result.to_value());
    results
        .map(|result| value(result.expect("readable")))
        .collect()
}

/// Returns the keys of the chord, with `K` for the key of the group.
fn keys(server: &RedisServer) -> Vec<String> {
    let mut keys = server.command(&["KEYS", "celery-taskset-meta-g*"]).texts();
    keys.sort_unstable();
    let ending = |key: String| key.replace("celery-taskset-meta-g", "K");
    keys.into_iter().map(ending).collect()
}

fn kind(server: &RedisServer, ending: &str) -> String {
    server.command(&["TYPE", &key(ending)]).text()
}

fn ttl(server: &RedisServer, ending: &str) -> i64 {
    count(server, &["TTL", &key(ending)])
}

fn key(ending: &str) -> String {
    format!("celery-taskset-meta-g{ending}")
}

fn is_about(found: i64, expected: i64) -> bool {
    (expected - 5..=expected).contains(&found)
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn chord_keys_match_celery_from_begin_to_finish() {
    let server = RedisServer::start();
    let backend = backend(&server);
    begin(&backend, 2).await;
    assert_eq!(keys(&server), ["K.s"]);
    assert_eq!(complete(&backend, 1, "one").await, None);
    // `K.b` holds the body and is not one of Celery's keys.
    assert_eq!(keys(&server), ["K.b", "K.d", "K.j", "K.s"]);
    for (ending, expected) in [
        (".d", "set"),
        (".j", "zset"),
        (".s", "string"),
        (".b", "hash"),
    ] {
        assert_eq!(kind(&server, ending), expected, "{ending}");
        assert!(is_about(ttl(&server, ending), 86_400), "{ending}");
    }
    let stored = server.command(&["ZRANGE", &key(".j"), "0", "-1", "WITHSCORES"]);
    let [stored, score] = &stored.texts()[..] else {
        panic!("{stored:?}");
    };
    let stored: serde_json::Value = serde_json::from_str(stored).unwrap();
    assert_eq!(stored, json!([1, "t1", "SUCCESS", 1]));
    assert_eq!(score, "1");
    assert_eq!(server.command(&["SMEMBERS", &key(".d")]).texts(), ["t1:1"]);
    assert_eq!(count(&server, &["ZCARD", INDEX]), 1);

    backend.add_member("g", "t2").await.unwrap();
    assert_eq!(server.command(&["GET", &key(".t")]).text(), "1");
    assert!(is_about(ttl(&server, ".t"), 86_400));
    assert_eq!(complete(&backend, 0, "two").await, None);
    assert!(complete(&backend, 2, "three").await.is_some());
    assert_eq!(keys(&server), ["K.b", "K.c", "K.d", "K.j", "K.s", "K.t"]);
    assert_eq!(server.command(&["GET", &key(".c")]).text(), "three");
    assert!(is_about(ttl(&server, ".c"), 6));

    let held = ChordClaim::new("three", Duration::from_secs(21));
    assert!(backend.renew_claim("g", &held).await.unwrap());
    assert!(is_about(ttl(&server, ".c"), 21));
    assert!(finish(&backend, "three", ChordEnd::Continued).await);
    assert_eq!(keys(&server), ["K.c"]);
    assert_eq!(server.command(&["GET", &key(".c")]).text(), "done");
    assert!(is_about(ttl(&server, ".c"), 300));
    assert_eq!(count(&server, &["DBSIZE"]), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn failed_chord_keeps_its_results_as_in_celery() {
    let server = RedisServer::start();
    let backend = backend(&server);
    begin(&backend, 1).await;
    assert!(complete(&backend, 0, "one").await.is_some());
    assert!(finish(&backend, "one", ChordEnd::Failed).await);
    assert!(
        finish(&backend, "one", ChordEnd::Failed).await,
        "tried again"
    );
    assert_eq!(keys(&server), ["K.c", "K.d", "K.j"]);
    assert_eq!(count(&server, &["EXISTS", INDEX]), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn done_marker_lives_twice_the_claim_ttl() {
    let server = RedisServer::start();
    let backend = backend(&server);
    begin(&backend, 1).await;
    assert!(complete(&backend, 0, "one").await.is_some());
    let long = ChordClaim::new("one", Duration::from_secs(1000));
    assert!(
        backend
            .finish("g", &long, ChordEnd::Continued)
            .await
            .unwrap()
    );
    assert!(is_about(ttl(&server, ".c"), 2000));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn result_chord_expires_sets_the_time_to_live() {
    let server = RedisServer::start();
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    // Expiry of results and chords; then of the members' results and the result tree.
    for (results, chords, parts, tree) in [
        (seconds(600), None, 600, 600),
        (seconds(600), seconds(60), 60, 600),
        (seconds(600), seconds(6000), 6000, 6000),
        (seconds(600), seconds(0), -1, -1),
        (None, None, -1, -1),
        (None, seconds(60), 60, 60),
    ] {
        server.command(&["FLUSHDB"]);
        let backend = backend(&server)
            .result_expires(results)
            .result_chord_expires(chords);
        let members = vec![ResultTree::group("inner", Vec::new())];
        let chord = ChordStart::new("g", 2, &ResultTree::group("g", members));
        backend.begin(&chord).await.unwrap();
        let about = |ending, expected| {
            let left = ttl(&server, ending);
            assert!(
                left == expected || expected > 0 && is_about(left, expected),
                "{results:?}, {chords:?}: {ending} {left}"
            );
        };
        about(".s", parts);
        about("", parts);
        complete(&backend, 0, "x").await;
        for ending in [".j", ".s", ".d", ".b"] {
            about(ending, parts);
        }
        about("", tree);
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn unordered_chord_returns_results_in_order_of_arrival() {
    let server = RedisServer::start();
    let backend = backend(&server).result_chord_ordered(false);
    begin(&backend, 3).await;
    complete(&backend, 2, "x").await;
    complete(&backend, 2, "x").await;
    complete(&backend, 0, "x").await;
    let results = complete(&backend, 1, "x").await.expect("a complete chord");
    assert_eq!(kind(&server, ".j"), "list");
    assert_eq!(values(&results), [Some(2), Some(0), Some(1)]);
    server.command(&["DEL", &key(".c")]);
    server.command(&["ZADD", INDEX, "0", "g"]);
    let stalled = claim_stalled(&backend).await;
    assert_eq!(values(&stalled[0].results), [Some(2), Some(0), Some(1)]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn chord_keys_have_the_prefix() {
    let server = RedisServer::start();
    let backend = RedisBackend::new(options(&server, &json!({"global_keyprefix": "shop"})));
    begin(&backend, 2).await;
    complete(&backend, 0, "x").await;
    let mut keys = server.command(&["KEYS", "*"]).texts();
    keys.sort_unstable();
    let chord = ["b", "d", "j", "s"].map(|end| format!("shop_celery-taskset-meta-g.{end}"));
    assert_eq!(keys[0], "shop_celery-rs-chords");
    assert_eq!(keys[1..], chord);
    complete(&backend, 1, "x").await;
    assert!(finish(&backend, "x", ChordEnd::Continued).await);
    assert_eq!(count(&server, &["DBSIZE"]), 1);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn results_and_body_have_separate_serializers() {
    let server = RedisServer::start();
    for serializer in [Serializer::Json, Serializer::MsgPack, Serializer::Yaml] {
        server.command(&["FLUSHDB"]);
        let backend = backend(&server).serializer(serializer);
        begin(&backend, 1).await;
        let value = Value::from(vec![Value::from("ünï"), Value::Bytes(vec![0, 255])]);
        let result = Raw::encode(serializer, &value).unwrap();
        let body = Raw::encode(Serializer::MsgPack, &value).unwrap();
        let member = ChordMember::new("g", "t", None, &result, &body);
        let results = backend.complete_member(&member, &claim("x")).await.unwrap();
        let results = results.expect("a complete chord");
        assert_eq!(results.members[0].task_id, "t");
        assert_eq!(results.members[0].result.to_value(), Ok(value.clone()));
        server.command(&["DEL", &key(".c")]);
        server.command(&["ZADD", INDEX, "0", "g"]);
        let stalled = claim_stalled(&backend).await;
        assert_eq!(stalled[0].body.serializer(), Serializer::MsgPack);
        assert_eq!(stalled[0].body.to_value(), Ok(value));
        assert_eq!(stalled[0].results, results);
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn compressed_result_is_decoded() {
    let server = RedisServer::start();
    let backend = backend(&server);
    let zlib = Compression::from_name("zlib").unwrap();
    let stored = compress_document(zlib, br#"[1, "t0", "SUCCESS", 0]"#).unwrap();
    let hex: String = stored.iter().map(|byte| format!("{byte:02x}")).collect();
    let add = "local value = string.gsub(ARGV[1], '..', function(hex) \
               return string.char(tonumber(hex, 16)) end) \
               redis.call('ZADD', KEYS[1], 0, value) return redis.call('SADD', KEYS[2], 't0:0')";
    server.command(&["EVAL", add, "2", &key(".j"), &key(".d"), &hex]);
    begin(&backend, 2).await;
    let results = complete(&backend, 1, "x").await.expect("a complete chord");
    assert_eq!(values(&results), [Some(0), Some(1)]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn malformed_result_error_names_the_chord() {
    let server = RedisServer::start();
    let backend = backend(&server);
    for garbage in ["garbage", "[1]", r#"[1, 5, "SUCCESS", 1]"#, "\u{fffd}"] {
        server.command(&["FLUSHDB"]);
        server.command(&["ZADD", &key(".j"), "7", garbage]);
        begin(&backend, 2).await;
        let raw = Raw::json("1");
        let member = ChordMember::new("g", "t", Some(0), &raw, &raw);
        let error = backend
            .complete_member(&member, &claim("x"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ServiceErrorKind::Invalid, "{garbage}");
        assert!(error.to_string().contains("chord g"), "{error}");
    }
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn broken_chords_are_postponed_and_do_not_block_others() {
    const BREAKS: &[&[&[&str]]] = &[
        &[&["DEL", ".j"], &["ZADD", ".j", "0", "garbage"]],
        &[&["DEL", ".j"], &["SET", ".j", "x"]],
        &[&["SET", ".s", "garbage"]],
        &[&["RPUSH", ".t", "x"]],
        &[&["DEL", ".d"], &["SET", ".d", "x"]],
        &[&["RPUSH", ".c", "x"]],
        &[&["SET", ".b", "x"]],
        &[&["HSET", ".b", "serializer", "x"]],
        &[&["HDEL", ".b", "since"], &["SET", ".s", "2"]],
    ];
    let server = RedisServer::start();
    let backend = backend(&server);
    // Chords of the same time are checked in the order of their names.
    for (number, breaks) in BREAKS.iter().enumerate() {
        let id = format!("bad{number}");
        stall(&server, &backend, &id).await;
        for command in *breaks {
            let key = format!("celery-taskset-meta-{id}{}", command[1]);
            server.command(&[&[command[0], &key], &command[2..]].concat());
        }
    }
    stall(&server, &backend, "good").await;
    let stalled = claim_stalled(&backend).await;
    let ids: Vec<_> = stalled.iter().map(|chord| &chord.group_id).collect();
    assert_eq!(ids, ["good"]);
    // The next checks are minutes away, so that they are not reported all the time.
    let soon = "return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', \
                redis.call('TIME')[1] * 1000 + 200000)";
    let soon = server.command(&["EVAL", soon, "1", INDEX]).texts();
    assert_eq!(soon, ["good"]);
}

/// Makes a complete chord whose worker has died due for a check.
async fn stall(server: &RedisServer, backend: &RedisBackend, id: &str) {
    let raw = Raw::json("1");
    let chord = ChordStart::new(id, 1, &ResultTree::group(id, Vec::new()));
    backend.begin(&chord).await.expect("begun");
    let member = ChordMember::new(id, "t", Some(0), &raw, &raw);
    let claimed = backend.complete_member(&member, &claim("dead")).await;
    assert!(claimed.expect("counted").is_some());
    server.command(&["DEL", &format!("celery-taskset-meta-{id}.c")]);
    server.command(&["ZADD", INDEX, "0", id]);
}

/// Makes the chord `g` due, and sets its age in seconds.
fn make_due(server: &RedisServer, age: &str) {
    let make = "local since = (redis.call('TIME')[1] - ARGV[1]) * 1000 \
                redis.call('HSET', KEYS[1], 'since', since) \
                return redis.call('ZADD', KEYS[2], 0, 'g')";
    server.command(&["EVAL", make, "2", &key(".b"), INDEX, age]);
}

/// Returns the seconds until the next check of the chord `g`.
fn pause(server: &RedisServer) -> i64 {
    let pause = "return redis.call('ZSCORE', KEYS[1], 'g') / 1000 - redis.call('TIME')[1]";
    count(server, &["EVAL", pause, "1", INDEX])
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn check_interval_grows_with_the_age_of_the_chord() {
    let server = RedisServer::start();
    let backend = backend(&server);
    begin(&backend, 2).await;
    complete(&backend, 0, "x").await;
    assert!((3..=5).contains(&pause(&server)));
    for (age, expected) in [("0", 5), ("60", 60), ("3600", 300), ("90000", 300)] {
        make_due(&server, age);
        assert!(claim_stalled(&backend).await.is_empty());
        let pause = pause(&server);
        assert!(
            (expected - 2..=expected + 1).contains(&pause),
            "{age}: {pause}"
        );
    }
    // The last member sets the check to the end of the claim.
    assert!(complete(&backend, 1, "x").await.is_some());
    assert!((4..=7).contains(&pause(&server)));
    // The claim was renewed for longer than the index shows.
    let long = ChordClaim::new("x", Duration::from_secs(90));
    assert!(backend.renew_claim("g", &long).await.unwrap());
    make_due(&server, "0");
    assert!(claim_stalled(&backend).await.is_empty());
    assert!((87..=91).contains(&pause(&server)));
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn ended_chord_is_not_checked_again() {
    let server = RedisServer::start();
    let backend = backend(&server);
    let due = async |age| {
        make_due(&server, age);
        assert!(claim_stalled(&backend).await.is_empty());
        count(&server, &["EXISTS", INDEX, &key(".b")])
    };
    begin(&backend, 1).await;
    assert!(complete(&backend, 0, "x").await.is_some());
    // Python has sent the body.
    server.command(&["DEL", &key(".s"), &key(".j"), &key(".d")]);
    server.command(&["SET", &key(".c"), "done", "EX", "300"]);
    assert_eq!(due("0").await, 0);
    // Python has failed it.
    begin(&backend, 1).await;
    assert!(complete(&backend, 0, "x").await.is_some());
    server.command(&["DEL", &key(".s"), &key(".c")]);
    assert_eq!(due("3600").await, 2);
    assert_eq!(due("90000").await, 0);
    // It has expired.
    begin(&backend, 2).await;
    server.command(&["ZADD", INDEX, "0", "g"]);
    assert!(claim_stalled(&backend).await.is_empty());
    assert_eq!(count(&server, &["EXISTS", INDEX]), 0);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn claim_stalled_returns_at_most_limit_chords() {
    let server = RedisServer::start();
    let backend = backend(&server);
    let raw = Raw::json("1");
    for number in 0..5 {
        let id = format!("g{number}");
        let chord = ChordStart::new(id.as_str(), 1, &ResultTree::group(&*id, Vec::new()));
        backend.begin(&chord).await.unwrap();
        let member = ChordMember::new(&id, "t", Some(0), &raw, &raw);
        let short = ChordClaim::new("dead", Duration::ZERO);
        assert!(
            backend
                .complete_member(&member, &short)
                .await
                .unwrap()
                .is_some()
        );
    }
    let due = "return redis.call('ZCOUNT', KEYS[1], '-inf', redis.call('TIME')[1] * 1000)";
    wait_until("all claims have expired", async || {
        count(&server, &["EVAL", due, "1", INDEX]) == 5
    })
    .await;
    let mut found = Vec::new();
    for expected in [2, 2, 1, 0] {
        let stalled = backend.claim_stalled(&claim("x"), 2).await.unwrap();
        assert_eq!(stalled.len(), expected);
        found.extend(stalled.into_iter().map(|chord| chord.group_id));
    }
    found.sort_unstable();
    assert_eq!(found, ["g0", "g1", "g2", "g3", "g4"]);
}

#[tokio::test]
#[ignore = "needs redis-server; run cargo xtask test"]
async fn hundred_thousand_results_fit_in_one_reply() {
    const MANY: i64 = 100_000;
    let server = RedisServer::start();
    let backend = backend(&server);
    begin(&backend, MANY as usize).await;
    let fill = "for index = 0, ARGV[1] - 2 do \
                redis.call('ZADD', KEYS[1], index, '[1, \"t' .. index .. '\", \"SUCCESS\", ' .. index .. ']') \
                redis.call('SADD', KEYS[2], 't' .. index .. ':' .. index) end return 1";
    let many = MANY.to_string();
    server.command(&["EVAL", fill, "2", &key(".j"), &key(".d"), &many]);
    assert_eq!(complete(&backend, 7, "x").await, None);
    let results = complete(&backend, MANY - 1, "x")
        .await
        .expect("a complete chord");
    assert_eq!(values(&results), (0..MANY).map(Some).collect::<Vec<_>>());
}

/// Celery's own code for the end of a chord member, as `part(index)`.
const PART: &str = r#"
import os
from celery import Celery, signature
from celery.app.task import Context

url = os.environ["REDIS"]
app = Celery(broker=url, backend=url)
body = signature("tasks.sum", options={"task_id": "body"})

def part(index):
    request = Context(id=f"t{index}", group="g", group_index=index, chord=dict(body))
    app.backend.on_chord_part_return(request, "SUCCESS", index)
"#;

fn python(server: &RedisServer, code: &str) {
    let code = format!("{PART}\n{code}");
    Python::new().code(&code, &[("REDIS", &server.url())]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python; run cargo xtask test"]
async fn chord_begun_by_python_is_completed_by_rust() {
    let server = RedisServer::start();
    let backend = backend(&server);
    python(
        &server,
        "part(3); app.backend.set_chord_size('g', 4); part(0)",
    );
    assert_eq!(
        complete(&backend, 0, "x").await,
        None,
        "Python has counted it"
    );
    assert_eq!(complete(&backend, 2, "x").await, None);
    let results = complete(&backend, 1, "x").await.expect("a complete chord");
    assert_eq!(values(&results), [0, 1, 2, 3].map(Some));
    let states = results.members.iter().map(|member| &member.state);
    assert!(states.into_iter().all(|state| *state == State::Success));
    // Python respects the claim, and recognizes the ended chord.
    python(&server, "part(1)");
    assert_eq!(count(&server, &["EXISTS", "celery"]), 0);
    assert!(finish(&backend, "x", ChordEnd::Continued).await);
    python(&server, "part(1)");
    assert_eq!(keys(&server), ["K.c"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python; run cargo xtask test"]
async fn chord_begun_by_rust_is_completed_by_python() {
    let server = RedisServer::start();
    let backend = backend(&server);
    begin(&backend, 2).await;
    backend.add_member("g", "t2").await.unwrap();
    backend.add_member("g", "t2").await.unwrap();
    assert_eq!(complete(&backend, 2, "x").await, None);
    assert_eq!(complete(&backend, 0, "x").await, None);
    python(&server, "part(2); part(1)");
    let message = server.command(&["LINDEX", "celery", "0"]).text();
    let message: serde_json::Value = serde_json::from_str(&message).unwrap();
    assert_eq!(message["headers"]["id"], "body");
    assert_eq!(message["headers"]["argsrepr"], "([0, 1, 2],)");
    // The next check removes the keys that Python does not know.
    assert_eq!(keys(&server), ["K.b", "K.c"]);
    assert_eq!(complete(&backend, 1, "x").await, None);
    server.command(&["ZADD", INDEX, "0", "g"]);
    assert!(claim_stalled(&backend).await.is_empty());
    assert_eq!(keys(&server), ["K.c"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server and Python; run cargo xtask test"]
async fn chord_claimed_by_a_dead_python_worker_is_claimed_again() {
    let server = RedisServer::start();
    let backend = backend(&server);
    begin(&backend, 2).await;
    assert_eq!(complete(&backend, 0, "x").await, None);
    // The process exits after it has taken the claim.
    python(
        &server,
        "class Dead:\n    def restore(*args, **kwargs): os._exit(0)\n\
         import celery.backends.redis as redis\nredis.GroupResult = Dead\npart(1)",
    );
    assert_eq!(keys(&server), ["K.b", "K.c", "K.d", "K.j", "K.s"]);
    assert_eq!(complete(&backend, 1, "x").await, None);
    server.command(&["PEXPIRE", &key(".c"), "1"]);
    wait_until("its claim has expired", async || {
        count(&server, &["EXISTS", &key(".c")]) == 0
    })
    .await;
    make_due(&server, "0");
    let stalled = claim_stalled(&backend).await;
    assert_eq!(values(&stalled[0].results), [Some(0), Some(1)]);
    let body = stalled[0].body.to_value().unwrap();
    assert_eq!(Ok(body), Raw::json(BODY).to_value());
}
