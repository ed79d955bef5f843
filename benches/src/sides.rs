//! Tables of sides that take turns.

use std::time::Duration;

/// The rates of one side, round by round.
#[derive(Debug)]
pub struct Side {
    name: &'static str,
    rates: Vec<f64>,
}

impl Side {
    /// One that is called so.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            rates: Vec::new(),
        }
    }

    /// What one round took.
    pub fn add(&mut self, messages: usize, time: Duration) {
        self.rates.push(messages as f64 / time.as_secs_f64());
    }

    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }
}

/// A table of the medians, each with its ratio to the first.
pub fn report(what: &str, sides: &[Side]) {
    println!("| {what} | a second | ratio |\n|---|---:|---:|");
    for side in sides {
        let (name, rate) = (side.name, side.median());
        println!("| {name} | {rate:.0} | {:.2} |", rate / sides[0].median());
    }
    println!();
}
