//! Results recorded from Python Celery: each is decoded, compared field by
//! field with what Python reads, encoded again and decoded to equal values.

use std::borrow::Cow;

use celery_protocol::{Raw, ResultDocument, Value};

use crate::fixtures::{Fixture, LIMIT, fixtures, is_feature_off};
use crate::tagged::{sorted, value};

#[test]
fn decoded_results_equal_python() {
    each_result(|fixture, document| check_result(fixture, &document));
}

#[test]
fn reencoded_result_is_equal() {
    each_result(|fixture, document| {
        let bytes = document.encode(fixture.serializer()).unwrap();
        let again = ResultDocument::decode(fixture.serializer(), &bytes, LIMIT).unwrap();
        check_result(fixture, &again);
    });
}

fn each_result(check: impl Fn(&Fixture, ResultDocument<'_>)) {
    for fixture in results() {
        let bytes = fixture.document();
        match ResultDocument::decode(fixture.serializer(), &bytes, LIMIT) {
            Ok(document) => check(&fixture, document),
            Err(error) if is_feature_off(&error) => {}
            Err(error) => panic!("{}: {error}", fixture.name),
        }
    }
}

fn check_result(fixture: &Fixture, document: &ResultDocument<'_>) {
    let text = |text: &Option<Cow<'_, str>>| Value::from(text.as_deref());
    let raw = |raw: &Option<Raw<'_>>| {
        raw.as_ref()
            .map_or(Value::Null, |raw| raw.to_value().unwrap())
    };
    let typed = [
        ("status", Value::from(document.status.name())),
        ("result", document.result.to_value().unwrap()),
        ("traceback", text(&document.traceback)),
        ("children", raw(&document.children)),
        ("date_done", text(&document.date_done)),
        ("group_id", text(&document.group_id)),
        ("parent_id", text(&document.parent_id)),
        ("name", text(&document.name)),
        ("args", raw(&document.args)),
        ("kwargs", raw(&document.kwargs)),
        ("worker", text(&document.worker)),
        ("retries", document.retries.map(i64::from).into()),
        ("queue", text(&document.queue)),
        ("stamped_headers", raw(&document.stamped_headers)),
        ("task_id", Value::from(&*document.task_id)),
    ];
    let expected = fixture.expect("document").as_object().expect("a mapping");
    for (name, expected) in expected {
        let found = match typed.iter().find(|(typed, _)| typed == name) {
            Some((_, found)) => found.clone(),
            None => {
                let extra = document.extra.iter().find(|(extra, _)| extra == name);
                extra
                    .unwrap_or_else(|| panic!("entry {name} is missing"))
                    .1
                    .to_value()
                    .unwrap()
            }
        };
        assert_eq!(
            sorted(found),
            sorted(value(expected).unwrap()),
            "{}: {name}",
            fixture.name
        );
    }
    check_exception(fixture, document);
}

fn check_exception(fixture: &Fixture, document: &ResultDocument<'_>) {
    let Some(exception) = document.exception().unwrap() else {
        assert!(!document.status.is_exception(), "{}", fixture.name);
        return;
    };
    let expected = &fixture.expect("document")["result"];
    assert_eq!(
        Some(&*exception.exc_type),
        expected["exc_type"].as_str(),
        "{}",
        fixture.name
    );
    assert_eq!(
        exception.exc_module.as_deref(),
        expected["exc_module"].as_str()
    );
    let message = value(&expected["exc_message"]).unwrap();
    assert_eq!(
        Value::Array(exception.exc_message),
        message,
        "{}",
        fixture.name
    );
}

fn results() -> Vec<Fixture> {
    let mut found = fixtures(&["document"]);
    found.extend(fixtures(&["document_base64"]));
    found.retain(|fixture| fixture.name != "result-group-saved");
    assert!(found.len() > 25, "only {} results found", found.len());
    found
}
