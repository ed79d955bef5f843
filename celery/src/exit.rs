//! The exit code of a program: [`exit`].

use std::error::Error as StdError;
use std::process::ExitCode;

use celery_runtime::{ConfigError, WorkerError};

use crate::Error;

/// Prints the error of a program, if there is one, to standard error, and returns the exit code
/// for `main`:
///
/// | code | means |
/// |---|---|
/// | 0 | a clean end |
/// | 1 | any other error, for example a broker that stayed unreachable |
/// | 2 | a configuration that cannot be used, so that a restart does not help |
/// | 3 | a worker ended with deliveries that are in doubt or not settled; the log names their tasks |
///
/// The codes of workers are those of [`WorkerError::exit_code`].
///
/// ```no_run
/// use std::process::ExitCode;
///
/// use celery::{App, Tasks};
///
/// #[tokio::main]
/// async fn main() -> ExitCode {
///     celery::exit(work().await)
/// }
///
/// async fn work() -> Result<(), celery::Error> {
///     let app = celery::connect("redis://localhost")?;
///     Ok(app.worker(Tasks::new()).run_until(celery::shutdown_signal()).await?)
/// }
/// ```
pub fn exit(ended: Result<(), impl Into<Box<dyn StdError>>>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = error.into();
            eprintln!("error: {error}");
            code(&*error).into()
        }
    }
}

fn code(error: &(dyn StdError + 'static)) -> u8 {
    if let Some(error) = error.downcast_ref::<Error>() {
        return match error {
            Error::Config(error) => code(error),
            Error::Worker(error) => code(error),
            _ => 1,
        };
    }
    if error.is::<ConfigError>() {
        return 2;
    }
    error
        .downcast_ref::<WorkerError>()
        .map_or(1, WorkerError::exit_code)
}

#[cfg(test)]
mod tests {
    use celery_runtime::{Config, ServiceError, ServiceErrorKind};

    use super::*;

    #[test]
    fn exit_code_of_error_does_not_depend_on_its_wrapping() {
        let config = || Config::new().require_broker_url().map(drop).unwrap_err();
        let refused = || ServiceError::new(ServiceErrorKind::Unreachable, "connect to", "b", "no");
        let unsettled = || WorkerError::Unsettled {
            count: 1,
            in_doubt: 0,
            error: None,
        };
        let errors: [(Box<dyn StdError>, u8); 8] = [
            (config().into(), 2),
            (WorkerError::Config(config()).into(), 2),
            (Error::Config(config()).into(), 2),
            (Error::Worker(config().into()).into(), 2),
            (WorkerError::Broker(refused()).into(), 1),
            (unsettled().into(), 3),
            (Error::Worker(unsettled()).into(), 3),
            ("text".into(), 1),
        ];
        for (error, expected) in errors {
            assert_eq!(code(&*error), expected, "{error}");
        }
    }
}
