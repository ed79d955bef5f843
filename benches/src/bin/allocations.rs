//! Prints how often each operation of the codec bench allocates, and how much: one line each,
//! `<operation> TAB <allocations> TAB <bytes>`.
//!
//! It is a program of its own because counting slows down what it counts.

use allocation_counter::measure;
use benches::{Measure, Name, codec};

fn main() {
    codec::all(&mut Counter);
}

struct Counter;

impl Measure for Counter {
    fn measure<T>(&mut self, name: Name, mut operation: impl FnMut() -> T) {
        // The first run may fill caches that later ones use.
        drop(operation());
        let counted = measure(|| drop(operation()));
        println!("{name}\t{}\t{}", counted.count_total, counted.bytes_total);
    }
}
