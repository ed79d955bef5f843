//! Allocations are counted, not timed, so that a test can hold them.

use allocation_counter::measure;
use celery_protocol::{Embed, Serializer, encode_body};

#[test]
fn a_body_is_written_into_one_buffer() {
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
