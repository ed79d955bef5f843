//! Time and allocations of the wire protocol; [`benches::codec`] describes the operations and the
//! reference figures.
//!
//! After criterion's report this benchmark prints a table: the best and median time of each
//! operation, the reference figure and the ratio, and the allocations.

use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};

use benches::codec::reference;
use benches::{Measure, OperationName, codec};
use criterion::Criterion;

fn main() {
    let criterion = Criterion::default()
        .configure_from_args()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    let mut timing = Timing {
        criterion,
        times: Vec::new(),
    };
    codec::all(&mut timing);
    timing.criterion.final_summary();
    print(&timing.times, &allocations());
}

/// Measures every operation with criterion and stores the times for the table.
struct Timing {
    criterion: Criterion,
    times: Vec<Time>,
}

/// The time of one operation in nanoseconds. On a busy machine the best time is more accurate.
struct Time {
    name: OperationName,
    best: f64,
    median: f64,
}

impl Measure for Timing {
    fn measure<T>(&mut self, name: OperationName, mut operation: impl FnMut() -> T) {
        let mut samples = Vec::new();
        let mut group = self.criterion.benchmark_group(name.group);
        group.bench_function(&name.case, |bencher| {
            bencher.iter_custom(|count| {
                let start = Instant::now();
                for _ in 0..count {
                    std::hint::black_box(operation());
                }
                let elapsed = start.elapsed();
                samples.push(elapsed.as_secs_f64() * 1e9 / count as f64);
                elapsed
            });
        });
        group.finish();
        samples.sort_unstable_by(f64::total_cmp);
        if let [best, ..] = samples[..] {
            let median = samples[samples.len() / 2];
            self.times.push(Time { name, best, median });
        }
    }
}

/// Runs the program `allocations` and returns allocations and bytes by operation.
fn allocations() -> HashMap<String, (String, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_allocations")).output();
    let output = output.expect("the program allocations starts");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let mut columns = line.split('\t').map(str::to_owned);
            Some((columns.next()?, (columns.next()?, columns.next()?)))
        })
        .collect()
}

fn print(times: &[Time], allocations: &HashMap<String, (String, String)>) {
    println!(
        "{:<38} {:>10} {:>10} {:>10} {:>6} {:>6} {:>8}",
        "operation", "best ns", "median ns", "others' ns", "ratio", "allocs", "bytes"
    );
    let none = || "-".to_owned();
    for Time { name, best, median } in times {
        let others = reference(name);
        let ratio = others.map_or_else(none, |others| format!("{:.2}", median / others));
        let others = others.map_or_else(none, |others| others.to_string());
        let name = name.to_string();
        let (count, bytes) = allocations.get(&name).cloned().unwrap_or((none(), none()));
        println!(
            "{name:<38} {best:>10.1} {median:>10.1} {others:>10} {ratio:>6} {count:>6} {bytes:>8}"
        );
    }
}
