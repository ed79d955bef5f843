//! Options of `cargo xtask interop`.

use std::time::Duration;

/// The parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) broker: Broker,
    pub(super) backend: Backend,
    pub(super) fleet: Fleet,
    /// The number of tasks that each worker runs at the same time.
    pub(super) concurrency: u32,
    /// The number of times that each test runs.
    pub(super) repetitions: u32,
    /// Seconds that a test waits for a result. The suite waits a minute, which is too long for the
    /// tests that expect no result.
    pub(super) result_timeout: u32,
    pub(super) implementations: Implementations,
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

/// The workers that consume the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fleet {
    /// Only the worker under test.
    Single,
    /// The worker under test and one of Python's.
    Mixed,
}

/// The implementations that run; the results of the other one are read from the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Implementations {
    Both,
    Ours,
    Reference,
}

/// The tests that run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All tests that apply to a worker.
    Whole,
    /// The tests of `Whole` that take less than minutes.
    Fast,
    /// The tests that these arguments of pytest select.
    Selected(Vec<String>),
}

/// All tests of the suite.
const ALL: [&str; 1] = ["t/integration"];

/// The tests of workflows, the only ones for which the concurrency makes a difference.
const CANVAS: [&str; 2] = [
    "t/integration/test_canvas.py",
    "t/integration/test_group_chains.py",
];

impl Options {
    pub(super) fn parse(arguments: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            broker: Broker::Redis,
            backend: Backend::Redis,
            fleet: Fleet::Single,
            concurrency: 1,
            repetitions: 1,
            result_timeout: 20,
            implementations: Implementations::Both,
            scope: Scope::Whole,
        };
        let mut arguments = arguments.iter().copied();
        while let Some(argument) = arguments.next() {
            match argument {
                "--mixed" => options.fleet = Fleet::Mixed,
                "--fast" => {
                    (options.scope, options.implementations) = (Scope::Fast, Implementations::Ours);
                }
                "--" => {
                    let selected = arguments.by_ref().map(str::to_owned);
                    options.scope = Scope::Selected(selected.collect());
                }
                _ => options.set(argument, arguments.next().unwrap_or_default())?,
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
            _ => Err(format!("{name} takes a number above 0, not {value:?}")),
        };
        match (name, value) {
            ("--broker", "redis") => self.broker = Broker::Redis,
            ("--broker", "amqp") => self.broker = Broker::Amqp,
            ("--backend", "redis") => self.backend = Backend::Redis,
            ("--backend", "rpc") => self.backend = Backend::Rpc,
            ("--only", "ours") => self.implementations = Implementations::Ours,
            ("--only", "reference") => self.implementations = Implementations::Reference,
            ("--concurrency", _) => self.concurrency = number()?,
            ("--times", _) => self.repetitions = number()?,
            ("--wait", _) => self.result_timeout = number()?,
            _ => {
                let argument = format!("{name} {value}");
                let argument = argument.trim_end();
                return Err(format!(
                    "cargo xtask interop has no option {argument}; see cargo xtask help"
                ));
            }
        }
        Ok(())
    }

    /// The tests as arguments of pytest.
    pub(super) fn pytest(&self) -> Vec<String> {
        let files = match self.concurrency {
            1 => &ALL[..],
            _ => &CANVAS,
        };
        let files = files.iter().map(|file| (*file).to_owned());
        match &self.scope {
            Scope::Whole | Scope::Fast => files.collect(),
            Scope::Selected(arguments) => {
                // Arguments without a file select among the default files.
                let names_files = arguments.iter().any(|argument| argument.contains(".py"));
                let files = files.filter(|_| !names_files);
                files.chain(arguments.iter().cloned()).collect()
            }
        }
    }

    /// Returns whether every test of the suite is collected, so that none may be missing.
    pub(super) fn collects_all(&self) -> bool {
        self.pytest() == ALL
    }

    /// The conditions that lines of `exclusions.tsv` depend on.
    pub(super) fn conditions(&self) -> String {
        let mut conditions = vec![match self.broker {
            Broker::Redis => "redis",
            Broker::Amqp => "amqp",
        }];
        conditions.extend((self.fleet == Fleet::Mixed).then_some("mixed"));
        conditions.extend((self.scope == Scope::Fast).then_some("fast"));
        conditions.join(" ")
    }

    /// The name of the table's column for these options.
    pub(super) fn column(&self) -> String {
        let servers = match (self.broker, self.backend) {
            (Broker::Redis, _) => "redis/redis",
            (Broker::Amqp, Backend::Redis) => "amqp/redis",
            (Broker::Amqp, Backend::Rpc) => "amqp/rpc",
        };
        let fleet = match self.fleet {
            Fleet::Single => "",
            Fleet::Mixed => " mixed",
        };
        match self.concurrency {
            1 => format!("{servers}{fleet}"),
            concurrency => format!("{servers}{fleet} ×{concurrency}"),
        }
    }

    /// The time limit of one run: a hanging worker must not block the command forever.
    pub(super) fn time_limit(&self) -> Duration {
        match self.scope {
            Scope::Fast => Duration::from_secs(600),
            Scope::Whole | Scope::Selected(_) => Duration::from_secs(3 * 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_options_are_parsed_and_invalid_ones_rejected() {
        let options = Options::parse(&["--broker", "amqp", "--backend", "rpc"]).unwrap();
        assert_eq!(options.broker, Broker::Amqp);
        assert_eq!(options.backend, Backend::Rpc);
        assert_eq!(options.column(), "amqp/rpc");
        assert!(options.collects_all());
        assert!(Options::parse(&["--backend", "rpc"]).is_err());
        assert!(Options::parse(&["--broker"]).is_err());
        assert!(Options::parse(&["--times", "0"]).is_err());
        assert!(Options::parse(&["nothing"]).is_err());
    }

    #[test]
    fn concurrency_above_one_selects_the_workflow_tests() {
        let options = Options::parse(&["--mixed", "--concurrency", "4"]).unwrap();
        assert_eq!(options.pytest(), CANVAS);
        assert_eq!(options.column(), "redis/redis mixed ×4");
        assert_eq!(options.conditions(), "redis mixed");
        assert!(!options.collects_all());
    }

    #[test]
    fn fast_run_excludes_slow_tests_and_skips_the_reference() {
        let options = Options::parse(&["--fast"]).unwrap();
        assert_eq!(options.conditions(), "redis fast");
        assert_eq!(options.implementations, Implementations::Ours);
        assert!(options.collects_all());
    }

    #[test]
    fn pytest_arguments_select_among_the_files_or_replace_them() {
        let pytest = |arguments: &[&str]| Options::parse(arguments).unwrap().pytest();
        assert_eq!(
            pytest(&["--", "-k", "retry"]),
            ["t/integration", "-k", "retry"]
        );
        assert_eq!(pytest(&["--", "t/x.py::y"]), ["t/x.py::y"]);
    }
}
