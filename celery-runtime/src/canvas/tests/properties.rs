//! Property tests.

use std::collections::HashSet;

use celery_protocol::Raw;
use proptest::prelude::*;

use super::{sent, try_planned};
use crate::canvas::*;

fn canvases() -> impl Strategy<Value = Canvas> {
    let leaf = (0..5_i64, any::<bool>(), 0..3).prop_map(|(number, immutable, option)| {
        let task = Canvas::from(Signature::named("tasks.add", (number,), ()));
        let task = match option {
            0 => task.set("queue", "slow").set("mine", vec![number]),
            1 => task.stamp("env", number),
            _ => task,
        };
        if immutable { task.immutable() } else { task }
    });
    leaf.prop_recursive(5, 40, 4, |inner| {
        let several = || proptest::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            several().prop_map(Canvas::chain),
            several().prop_map(Canvas::group),
            (several(), inner.clone()).prop_map(|(header, body)| Canvas::chord(header, body)),
            (inner.clone(), inner.clone()).prop_map(|(one, next)| one.then(next)),
            (inner.clone(), inner.clone()).prop_map(|(one, link)| one.link(&link)),
            (inner.clone(), inner).prop_map(|(one, link)| one.link_error(&link)),
        ]
    })
}

proptest! {
    #[test]
    fn canvas_is_decoded_and_encoded_unchanged(canvas in canvases()) {
        let wire = canvas.to_wire().unwrap();
        let again = Canvas::read(&wire).unwrap();
        prop_assert_eq!(&again.to_wire().unwrap(), &wire);
        // Both are sent alike, or are the same error.
        match (try_planned(canvas), try_planned(again)) {
            (Ok(ours), Ok(again)) => prop_assert_eq!(sent(&ours), sent(&again)),
            (ours, again) => prop_assert_eq!(ours.err(), again.err()),
        }
    }

    #[test]
    fn task_ids_are_distinct(canvas in canvases()) {
        let Ok(plan) = try_planned(canvas) else { return Ok(()) };
        let ids = plan.result.task_ids();
        let distinct: HashSet<_> = ids.iter().collect();
        prop_assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in "[\\[\\]{}\":,a-z0-9]{0,200}") {
        let _ = Canvas::read(&Raw::json(&text));
    }
}
