//! Comparison with the recorded messages that Celery sends for canvases.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::{planned, read, sent, wire};

/// Normalizes a message so that equivalent messages are equal: numbers ids by their first
/// occurrence, sorts entries, and removes empty and null ones.
fn normalized(value: &Json) -> Json {
    let mut ids = HashMap::new();
    number_ids(&sorted(value), &mut ids)
}

fn sorted(value: &Json) -> Json {
    match value {
        Json::Object(entries) => {
            let mut names: Vec<_> = entries.keys().collect();
            names.sort_unstable();
            let entry = |name: &&String| {
                let value = sorted(&entries[*name]);
                // Internal entries of Celery, which readers do not use.
                let internal = matches!(name.as_str(), "add_to_parent" | "stamped_headers");
                let empty = value.is_null() || value == json!([]) || value == json!({});
                (!internal && !empty).then(|| ((*name).clone(), value))
            };
            Json::Object(names.iter().filter_map(entry).collect())
        }
        Json::Array(all) => Json::Array(all.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

fn number_ids(value: &Json, ids: &mut HashMap<String, String>) -> Json {
    match value {
        Json::String(text) if text.starts_with("id-") || text.starts_with("fresh-") => {
            let next = format!("#{}", ids.len());
            Json::String(ids.entry(text.clone()).or_insert(next).clone())
        }
        Json::String(text) if text == "replies" => number_ids(&json!("id-replies"), ids),
        Json::Array(all) => all.iter().map(|value| number_ids(value, ids)).collect(),
        Json::Object(entries) => {
            let entry = |(name, value): (&String, &Json)| (name.clone(), number_ids(value, ids));
            Json::Object(entries.iter().map(entry).collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

fn cases() -> Map<String, Json> {
    let text = include_str!("../../../fixtures/canvas.json");
    let fixtures: Json = serde_json::from_str(text).unwrap();
    fixtures["cases"].as_object().unwrap().clone()
}

/// The cases whose result differs on purpose. If the body of a chord is a chain, the result of
/// Celery lacks the steps between body and header. The result of a chord at the end of a chain in a
/// header has another id there than in its message.
const OTHER_RESULTS: [&str; 4] = [
    "chord-body-chain",
    "chord-of-chains",
    "chord-chord-chord",
    "chord-header-chain-ending-in-chord",
];

#[test]
fn recorded_canvas_is_sent_as_by_celery() {
    let mut wrong = Vec::new();
    for (name, case) in cases() {
        let plan = planned(read(&case["canvas"]).unwrap());
        let mut ours = sent(&plan);
        let mut theirs = case.clone();
        theirs.as_object_mut().unwrap().remove("canvas");
        if OTHER_RESULTS.contains(&name.as_str()) {
            for one in [&mut ours, &mut theirs] {
                one.as_object_mut().unwrap().remove("result");
            }
        }
        if normalized(&ours) != normalized(&theirs) {
            wrong.push(format!(
                "{name}\n ours {}\n celery's {}",
                normalized(&ours),
                normalized(&theirs)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn decoded_signature_is_encoded_unchanged() {
    for (name, case) in cases() {
        let canvas = read(&case["canvas"]).unwrap();
        assert_eq!(sorted(&wire(canvas)), sorted(&case["canvas"]), "{name}");
        // And the frozen ones that travel in messages.
        for message in case["sent"].as_array().unwrap() {
            let embed = &message["body"][2];
            let chain = embed["chain"].as_array().into_iter().flatten();
            for signature in chain.chain(Some(&embed["chord"]).filter(|raw| !raw.is_null())) {
                let again = wire(read(signature).unwrap());
                assert_eq!(sorted(&again), sorted(signature), "{name}");
            }
        }
    }
}
