//! Tables of rates measured in alternating rounds.

use std::time::Duration;

/// The rates of one case, round by round.
#[derive(Debug)]
pub struct Rates {
    name: &'static str,
    rates: Vec<f64>,
}

impl Rates {
    /// Creates an empty list of rates for the case of this name.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            rates: Vec::new(),
        }
    }

    /// Adds a round that processed `messages` in `time`.
    pub fn add(&mut self, messages: usize, time: Duration) {
        self.rates.push(messages as f64 / time.as_secs_f64());
    }

    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }
}

/// Prints a table of the medians, each with its ratio to the first.
pub fn print_table(title: &str, cases: &[Rates]) {
    println!("| {title} | per second | ratio |\n|---|---:|---:|");
    for case in cases {
        let (name, rate) = (case.name, case.median());
        println!("| {name} | {rate:.0} | {:.2} |", rate / cases[0].median());
    }
    println!();
}
