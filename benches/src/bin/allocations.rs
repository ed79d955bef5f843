//! Prints the allocations of each operation of the codec benchmark, one line each:
//! `<operation> TAB <allocations> TAB <bytes>`.
//!
//! This is a separate program because counting slows the operations down.

use allocation_counter::measure;
use benches::{Measure, OperationName, codec};

fn main() {
    codec::all(&mut Counter);
}

struct Counter;

impl Measure for Counter {
    fn measure<T>(&mut self, name: OperationName, mut operation: impl FnMut() -> T) {
        // The first run may fill caches that later runs use.
        drop(operation());
        let counted = measure(|| drop(operation()));
        println!("{name}\t{}\t{}", counted.count_total, counted.bytes_total);
    }
}
