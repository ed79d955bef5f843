//! Whether this process is a worker or the child of one: [`ProcessRole`].

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::{env, io};

use crate::worker::isolated::program::{ANY_WORKER, CHILD_ENV};

/// The role of one `Worker` in this process.
#[derive(Debug)]
pub(crate) enum ProcessRole {
    /// An ordinary worker.
    Worker,
    /// It runs tasks for the worker at the other end of the socket.
    Child(UnixStream),
    /// This process is the child of another worker of the program.
    Other,
}

/// Returns whether this process was started by a worker to run isolated tasks.
///
/// The program's `main` also runs in each child process, up to
/// [`Worker::run_until`](crate::Worker::run_until). Use this function to skip what
/// must happen only once, such as starting other servers.
pub fn is_isolated_child() -> bool {
    parent_socket().is_some()
}

impl ProcessRole {
    /// Returns the role of the worker of this name.
    pub(crate) fn of(worker: &str) -> Self {
        let Some(parent_socket) = parent_socket() else {
            return Self::Worker;
        };
        if parent_socket.worker != ANY_WORKER && parent_socket.worker != worker {
            return Self::Other;
        }
        let mut socket = parent_socket
            .socket
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        socket.take().map_or(Self::Other, Self::Child)
    }
}

/// The socket to the worker that started this process.
struct ParentSocket {
    worker: String,
    /// `None` once a worker has taken it.
    socket: Mutex<Option<UnixStream>>,
}

fn parent_socket() -> Option<&'static ParentSocket> {
    static PARENT: OnceLock<Option<ParentSocket>> = OnceLock::new();
    PARENT.get_or_init(find_parent_socket).as_ref()
}

/// The environment variable alone is not enough, since processes that a task
/// starts inherit it. Only a child also has the socket.
fn find_parent_socket() -> Option<ParentSocket> {
    let worker = env::var(CHILD_ENV).ok()?;
    let socket = match take_stdin() {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!("{CHILD_ENV} is set, but this process is not a child: {error}");
            return None;
        }
    };
    Some(ParentSocket {
        worker,
        socket: Mutex::new(Some(socket)),
    })
}

/// Moves the socket away from standard input, so that neither a task nor a process
/// that it starts can read from it or keep it open.
fn take_stdin() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Fails if standard input is not a connected socket.
    socket.peer_addr()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}
