//! What is to be judged, and on which servers.

/// The options of the command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) broker: Broker,
    pub(super) backend: Backend,
    /// Which tests, and how, in pytest's words.
    pub(super) pytest: Vec<String>,
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

/// The files of the suite whose tests need no workflows, but for those in `left_out.tsv`.
const FILES: [&str; 2] = [
    "t/integration/test_inspect.py",
    "t/integration/test_tasks.py",
];

impl Options {
    pub(super) fn read(words: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            broker: Broker::Redis,
            backend: Backend::Redis,
            pytest: FILES.map(str::to_owned).to_vec(),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--broker" => {
                    options.broker = match words.next() {
                        Some(&"redis") => Broker::Redis,
                        Some(&"amqp") => Broker::Amqp,
                        _ => return Err("--broker takes redis or amqp".to_owned()),
                    }
                }
                "--backend" => {
                    options.backend = match words.next() {
                        Some(&"redis") => Backend::Redis,
                        Some(&"rpc") => Backend::Rpc,
                        _ => return Err("--backend takes redis or rpc".to_owned()),
                    }
                }
                "--" => {
                    let rest: Vec<_> = words.map(|word| (*word).to_owned()).collect();
                    // Without a file, the arguments choose among those that are run anyway.
                    let names_files = rest.iter().any(|word| word.contains(".py"));
                    match names_files {
                        true => options.pytest = rest,
                        false => options.pytest.extend(rest),
                    }
                    break;
                }
                other => return Err(format!("cargo xtask judge does not know {other}")),
            }
        }
        if options.backend == Backend::Rpc && options.broker != Broker::Amqp {
            return Err("--backend rpc needs --broker amqp".to_owned());
        }
        Ok(options)
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
        assert_eq!(options.pytest, FILES);
        assert!(Options::read(&["--backend", "rpc"]).is_err());
        assert!(Options::read(&["--broker"]).is_err());
        assert!(Options::read(&["nothing"]).is_err());
    }

    #[test]
    fn arguments_of_pytest_choose_among_the_files_or_name_others() {
        let pytest = |words: &[&str]| Options::read(words).unwrap().pytest;
        let [inspect, tasks] = FILES;
        assert_eq!(
            pytest(&["--", "-k", "retry"]),
            [inspect, tasks, "-k", "retry"]
        );
        assert_eq!(pytest(&["--", "t/x.py::y"]), ["t/x.py::y"]);
    }
}
