//! What is to be judged, and on which servers.

use std::time::Duration;

/// The options of the command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) broker: Broker,
    pub(super) backend: Backend,
    pub(super) fleet: Fleet,
    /// How many tasks each worker runs at once.
    pub(super) concurrency: u32,
    /// How often every test is run.
    pub(super) times: u32,
    /// Seconds that a test waits for a result. The suite's own minute is too long for results that
    /// never come: some tests see to it that they do not.
    pub(super) wait: u32,
    pub(super) sides: Sides,
    pub(super) scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broker {
    Redis,
    Amqp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Redis,
    Rpc,
}

/// Who takes tasks from the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fleet {
    /// The worker that is judged.
    Alone,
    /// It, and one of Python's.
    Mixed,
}

/// Whose turn it is; what the other one has done is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sides {
    Both,
    Ours,
    Reference,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All tests that can judge a worker.
    Whole,
    /// Those of them that do not take minutes.
    Fast,
    /// What pytest makes of these arguments.
    Chosen(Vec<String>),
}

/// Every test.
const ALL: [&str; 1] = ["t/integration"];

/// The tests of workflows: those that more than one task at once can show something in.
const CANVAS: [&str; 2] = [
    "t/integration/test_canvas.py",
    "t/integration/test_group_chains.py",
];

impl Options {
    pub(super) fn read(words: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            broker: Broker::Redis,
            backend: Backend::Redis,
            fleet: Fleet::Alone,
            concurrency: 1,
            times: 1,
            wait: 20,
            sides: Sides::Both,
            scope: Scope::Whole,
        };
        let mut words = words.iter().copied();
        while let Some(word) = words.next() {
            match word {
                "--mixed" => options.fleet = Fleet::Mixed,
                "--fast" => (options.scope, options.sides) = (Scope::Fast, Sides::Ours),
                "--" => {
                    let chosen = words.by_ref().map(str::to_owned);
                    options.scope = Scope::Chosen(chosen.collect());
                }
                _ => options.set(word, words.next().unwrap_or_default())?,
            }
        }
        if options.backend == Backend::Rpc && options.broker != Broker::Amqp {
            return Err("--backend rpc needs --broker amqp".to_owned());
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || match value.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{name} takes a number")),
        };
        match (name, value) {
            ("--broker", "redis") => self.broker = Broker::Redis,
            ("--broker", "amqp") => self.broker = Broker::Amqp,
            ("--backend", "redis") => self.backend = Backend::Redis,
            ("--backend", "rpc") => self.backend = Backend::Rpc,
            ("--only", "ours") => self.sides = Sides::Ours,
            ("--only", "reference") => self.sides = Sides::Reference,
            ("--concurrency", _) => self.concurrency = number()?,
            ("--times", _) => self.times = number()?,
            ("--wait", _) => self.wait = number()?,
            _ => return Err(format!("cargo xtask judge does not know {name} {value}")),
        }
        Ok(())
    }

    /// Which tests, in pytest's words.
    pub(super) fn pytest(&self) -> Vec<String> {
        let files = match self.concurrency {
            1 => &ALL[..],
            _ => &CANVAS,
        };
        let files = files.iter().map(|file| (*file).to_owned());
        match &self.scope {
            Scope::Whole | Scope::Fast => files.collect(),
            Scope::Chosen(words) => {
                // Without a file, the arguments choose among those that are run anyway.
                let names_files = words.iter().any(|word| word.contains(".py"));
                let files = files.filter(|_| !names_files);
                files.chain(words.iter().cloned()).collect()
            }
        }
    }

    /// Whether no test of the suite may be missing.
    pub(super) fn reads_all(&self) -> bool {
        self.pytest() == ALL
    }

    /// What lines of `left_out.tsv` depend on.
    pub(super) fn conditions(&self) -> String {
        let mut words = vec![match self.broker {
            Broker::Redis => "redis",
            Broker::Amqp => "amqp",
        }];
        words.extend((self.fleet == Fleet::Mixed).then_some("mixed"));
        words.extend((self.scope == Scope::Fast).then_some("fast"));
        words.join(" ")
    }

    /// The name of the column in the table.
    pub(super) fn column(&self) -> String {
        let servers = match (self.broker, self.backend) {
            (Broker::Redis, _) => "redis/redis",
            (Broker::Amqp, Backend::Redis) => "amqp/redis",
            (Broker::Amqp, Backend::Rpc) => "amqp/rpc",
        };
        let fleet = match self.fleet {
            Fleet::Alone => "",
            Fleet::Mixed => " mixed",
        };
        match self.concurrency {
            1 => format!("{servers}{fleet}"),
            number => format!("{servers}{fleet} ×{number}"),
        }
    }

    /// How long one run may take. No longer than a hanging worker is worth.
    pub(super) fn limit(&self) -> Duration {
        match self.scope {
            Scope::Fast => Duration::from_secs(600),
            Scope::Whole | Scope::Chosen(_) => Duration::from_secs(3 * 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let options = Options::read(&["--broker", "amqp", "--backend", "rpc"]).unwrap();
        assert_eq!(options.broker, Broker::Amqp);
        assert_eq!(options.backend, Backend::Rpc);
        assert_eq!(options.column(), "amqp/rpc");
        assert!(options.reads_all());
        assert!(Options::read(&["--backend", "rpc"]).is_err());
        assert!(Options::read(&["--broker"]).is_err());
        assert!(Options::read(&["--times", "0"]).is_err());
        assert!(Options::read(&["nothing"]).is_err());
    }

    #[test]
    fn more_tasks_at_once_are_for_workflows() {
        let options = Options::read(&["--mixed", "--concurrency", "4"]).unwrap();
        assert_eq!(options.pytest(), CANVAS);
        assert_eq!(options.column(), "redis/redis mixed ×4");
        assert_eq!(options.conditions(), "redis mixed");
        assert!(!options.reads_all());
    }

    #[test]
    fn the_fast_part_leaves_out_more_and_trusts_the_table() {
        let options = Options::read(&["--fast"]).unwrap();
        assert_eq!(options.conditions(), "redis fast");
        assert_eq!(options.sides, Sides::Ours);
        assert!(options.reads_all());
    }

    #[test]
    fn arguments_of_pytest_choose_among_the_files_or_name_others() {
        let pytest = |words: &[&str]| Options::read(words).unwrap().pytest();
        assert_eq!(
            pytest(&["--", "-k", "retry"]),
            ["t/integration", "-k", "retry"]
        );
        assert_eq!(pytest(&["--", "t/x.py::y"]), ["t/x.py::y"]);
    }
}
