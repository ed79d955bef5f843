//! Which part this process plays: worker or child.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{env, io};

use crate::worker::isolated::program::{ANY, MARK};

/// The part of one `Worker` in this process.
#[derive(Debug)]
pub(crate) enum ProcessRole {
    /// An ordinary worker.
    Worker,
    /// It serves the worker at the other end.
    Child(UnixStream),
    /// This process is the child of another worker of the program.
    Other,
}

/// Whether this process was started by a worker to run its isolated tasks.
///
/// A program's `main` runs in each such process up to its
/// [`Worker::run_until`](crate::Worker::run_until); this tells what shall
/// happen once from what every child needs.
pub fn is_isolated_child() -> bool {
    line().is_some()
}

impl ProcessRole {
    /// The part of the worker of this name.
    pub(crate) fn of(worker: &str) -> Self {
        let Some(line) = line() else {
            return Self::Worker;
        };
        if line.worker != ANY && line.worker != worker {
            return Self::Other;
        }
        let mut socket = line.socket.lock().unwrap_or_else(PoisonError::into_inner);
        socket.take().map_or(Self::Other, Self::Child)
    }
}

/// The line to the worker that started this process.
struct RoleChannel {
    worker: String,
    /// Until somebody takes it.
    socket: Mutex<Option<UnixStream>>,
}

fn line() -> Option<&'static RoleChannel> {
    static LINE: OnceLock<Option<RoleChannel>> = OnceLock::new();
    LINE.get_or_init(find_line).as_ref()
}

/// The mark alone says little: what a task starts inherits it. Only who also
/// has the socket is a child.
fn find_line() -> Option<RoleChannel> {
    let worker = env::var(MARK).ok()?;
    let socket = match take_stdin() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!("{MARK} is set, and this process is no child: {error}");
            return None;
        }
    };
    Some(RoleChannel {
        worker,
        socket: Mutex::new(Some(socket)),
    })
}

/// Takes the socket from where the worker put it, so that neither a task nor
/// what it starts can read from it or keep it open.
fn take_stdin() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Of anything else there is no such address.
    socket.peer_addr()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}
