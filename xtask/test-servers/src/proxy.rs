//! A network between client and server that a test can cut.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};

/// Forwards the connections to its port to another port of this machine, until it is told not to.
///
/// ```no_run
/// use test_servers::{Proxy, RedisServer};
///
/// let redis = RedisServer::start();
/// let network = Proxy::to(redis.port());
/// let url = format!("redis://127.0.0.1:{}", network.port());
/// network.silence(); // no answer, and no end of a connection either
/// network.heal(); // who connects again is served
/// ```
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: Arc<Mutex<Network>>,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of the loopback interface and forwards to `port` of the same.
    ///
    /// Nobody has to listen there yet: a connection that cannot be forwarded is closed.
    ///
    /// # Panics
    ///
    /// If the system has no port to give.
    #[must_use]
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let own_port = listener.local_addr().expect("is bound").port();
        let network = Arc::new(Mutex::new(Network::default()));
        let shared = Arc::clone(&network);
        Self {
            port: own_port,
            network,
            listener: Some(thread::spawn(move || accept(&listener, port, &shared))),
        }
    }

    /// The port that clients connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing is forwarded and nothing is closed: neither end can tell this from a
    /// slow network. New connections are accepted and get nothing.
    pub fn silence(&self) {
        let mut network = self.network();
        network.mode = Mode::Silent;
        for connection in network.living() {
            connection.silent.store(true, Ordering::SeqCst);
            network.silenced.push(connection);
        }
    }

    /// New connections are forwarded again; those that were silenced stay silent for ever.
    pub fn heal(&self) {
        self.network().mode = Mode::Forward;
    }

    /// Closes all connections, the silent ones too. What becomes of new ones stays as it is.
    pub fn reset(&self) {
        self.network().close_all();
    }

    fn network(&self) -> MutexGuard<'_, Network> {
        lock(&self.network)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.network().mode = Mode::Ended;
        // Wakes the listener, which then looks at the mode.
        let woken = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
        if let Some(listener) = self.listener.take().filter(|_| woken) {
            let _ = listener.join();
        }
        // The threads of the connections end when these are closed.
        self.network().close_all();
    }
}

#[derive(Debug, Default)]
struct Network {
    mode: Mode,
    /// Held by the threads that forward them.
    forwarded: Vec<Weak<Connection>>,
    silenced: Vec<Arc<Connection>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Forward,
    Silent,
    Ended,
}

impl Network {
    /// Those that are forwarded, taken out of the list.
    fn living(&mut self) -> Vec<Arc<Connection>> {
        let all = self.forwarded.drain(..);
        all.filter_map(|connection| connection.upgrade()).collect()
    }

    fn close_all(&mut self) {
        let mut all = self.living();
        all.append(&mut self.silenced);
        for connection in all {
            connection.close();
        }
    }

    /// Forgets the connections that both ends have closed.
    fn tidy(&mut self) {
        let living = |connection: &Weak<Connection>| connection.strong_count() > 0;
        self.forwarded.retain(living);
    }
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    /// None if it was silent from the start.
    server: Option<TcpStream>,
    silent: AtomicBool,
}

impl Connection {
    fn close(&self) {
        for stream in std::iter::once(&self.client).chain(&self.server) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Forwards in one direction until that end closes, or the network falls silent: then
    /// without a word to the other end.
    fn forward(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if self.is_silent() || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        if !self.is_silent() {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }
}

/// Takes connections until the proxy is dropped.
fn accept(listener: &TcpListener, port: u16, network: &Mutex<Network>) {
    for client in listener.incoming().flatten() {
        let mut network = lock(network);
        network.tidy();
        match network.mode {
            Mode::Forward => network.forwarded.extend(connect(client, port).ok()),
            Mode::Silent => network.silenced.push(Arc::new(Connection {
                client,
                server: None,
                silent: AtomicBool::new(true),
            })),
            Mode::Ended => return,
        }
    }
}

/// Connects to the server and starts the two threads that forward.
fn connect(client: TcpStream, port: u16) -> io::Result<Weak<Connection>> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let connection = Arc::new(Connection {
        client: client.try_clone()?,
        server: Some(server.try_clone()?),
        silent: AtomicBool::new(false),
    });
    let weak = Arc::downgrade(&connection);
    let back = Arc::clone(&connection);
    let (to_client, from_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || connection.forward(&client, &server));
    thread::spawn(move || back.forward(&from_server, &to_client));
    Ok(weak)
}

fn lock(network: &Mutex<Network>) -> MutexGuard<'_, Network> {
    network.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process_group::poll_until;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A server that sends back what it gets.
    fn echo() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        port
    }

    fn client(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// What comes back for a word: `None` if nothing does.
    fn ask(mut stream: &TcpStream) -> Option<String> {
        stream.write_all(b"word").ok()?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Whether it is open and without data.
    fn is_silent(mut stream: &TcpStream) -> bool {
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let kind = stream.read(&mut [0]).map_err(|error| error.kind());
        matches!(
            kind,
            Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
        )
    }

    #[test]
    fn a_silent_connection_stays_silent_and_a_new_one_is_served_after_the_healing() {
        let proxy = Proxy::to(echo());
        let before = client(&proxy);
        assert_eq!(ask(&before).as_deref(), Some("word"));

        proxy.silence();
        let during = client(&proxy);
        for mut stream in [&before, &during] {
            stream.write_all(b"word").unwrap();
            assert!(is_silent(stream));
        }

        proxy.heal();
        assert_eq!(ask(&client(&proxy)).as_deref(), Some("word"));
        assert!(is_silent(&before) && is_silent(&during));
    }

    #[test]
    fn a_reset_closes_the_silent_connections_too() {
        let proxy = Proxy::to(echo());
        let before = client(&proxy);
        proxy.silence();
        let during = client(&proxy);
        // Accepted, not only queued by the system.
        poll_until(LIMIT, || {
            (proxy.network().silenced.len() == 2).then_some(())
        })
        .unwrap();

        proxy.reset();

        for mut stream in [&before, &during] {
            assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
            assert!(!is_silent(stream));
        }
        assert!(is_silent(&client(&proxy)));
    }

    #[test]
    fn the_end_of_one_side_reaches_the_other() {
        let proxy = Proxy::to(echo());
        let stream = client(&proxy);
        assert_eq!(ask(&stream).as_deref(), Some("word"));
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
        let forgotten = || {
            let mut network = proxy.network();
            network.tidy();
            network.forwarded.is_empty().then_some(())
        };
        poll_until(LIMIT, forgotten).expect("the threads end");
    }

    #[test]
    fn a_connection_that_nobody_serves_is_closed() {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let port = port.unwrap().local_addr().unwrap().port();
        let proxy = Proxy::to(port);
        assert_eq!(ask(&client(&proxy)), None);
    }

    #[test]
    fn dropping_ends_the_threads_and_the_connections() {
        let proxy = Proxy::to(echo());
        let stream = client(&proxy);
        assert_eq!(ask(&stream).as_deref(), Some("word"));
        let network = Arc::downgrade(&proxy.network);
        drop(proxy);
        assert_eq!((&stream).read(&mut [0]).unwrap_or(0), 0);
        assert!(network.upgrade().is_none(), "the listener has ended");
    }
}
