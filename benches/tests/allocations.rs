//! Tests the number of allocations, which is deterministic unlike the time.

use allocation_counter::measure;
use celery_protocol::{Embed, Serializer, encode_body};

#[test]
fn encoding_a_body_allocates_once() {
    let kwargs = std::collections::BTreeMap::from([("b", "bazz")]);
    let embed = Embed::default();
    let counts = [
        count(|| encode_body(Serializer::Json, &(2, 3), &(), &embed)),
        count(|| encode_body(Serializer::Json, &(), &kwargs, &embed)),
        count(|| encode_body(Serializer::Json, &("fizz",), &kwargs, &embed)),
    ];
    assert_eq!(counts, [1, 1, 1]);
}

fn count<T>(operation: impl Fn() -> T) -> u64 {
    measure(|| drop(operation())).count_total
}
