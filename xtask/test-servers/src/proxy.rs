//! A TCP proxy with which tests interrupt connections.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fault::{Faults, Injected};

pub use fault::{Fault, InjectedFault};

mod fault;

/// A TCP proxy to another port of this machine, which can stop forwarding, close connections, slow
/// answers down, and hold or drop single requests and answers.
///
/// ```no_run
/// use test_servers::{Fault, Proxy, RedisServer};
///
/// let redis = RedisServer::start();
/// let proxy = Proxy::to(redis.port());
/// let url = format!("redis://127.0.0.1:{}", proxy.port());
/// proxy.silence(); // neither data nor the end of a connection
/// proxy.heal(); // forwards new connections
/// proxy.throttle(2_000_000); // a link of 2 MB/s
/// let held = proxy.on_request("EVALSHA", Fault::HoldRequest);
/// held.release(); // the request arrives late
/// ```
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: Arc<Mutex<Network>>,
    faults: Arc<Faults>,
    listener: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a free port of the loopback interface and forwards to `port` of that interface.
    ///
    /// A connection that cannot be forwarded is closed, so that the server may start later.
    ///
    /// # Panics
    ///
    /// Panics if no port is free.
    #[must_use]
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let own_port = listener.local_addr().expect("is bound").port();
        let network = Arc::new(Mutex::new(Network::default()));
        let faults = Arc::new(Faults::default());
        let shared = (Arc::clone(&network), Arc::clone(&faults));
        let accept = move || accept(&listener, port, &shared.0, &shared.1);
        Self {
            port: own_port,
            network,
            faults,
            listener: Some(thread::spawn(accept)),
        }
    }

    /// Returns the port for clients.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stops forwarding without closing connections, like a network that drops all packets. New
    /// connections are accepted but not forwarded.
    pub fn silence(&self) {
        let mut network = self.network();
        network.mode = Mode::Silent;
        for connection in network.take_forwarded() {
            connection.silent.store(true, Ordering::SeqCst);
            network.silenced.push(connection);
        }
    }

    /// Forwards new connections again, and answers without a limit; silenced connections stay
    /// silent.
    pub fn heal(&self) {
        self.network().mode = Mode::Forward;
        self.faults.set_rate(0);
    }

    /// Limits what each client gets, on current and later connections.
    ///
    /// # Panics
    ///
    /// Panics if the limit is 0.
    pub fn throttle(&self, bytes_per_second: usize) {
        assert!(bytes_per_second > 0, "use silence to send nothing");
        self.faults.set_rate(bytes_per_second);
    }

    /// Applies a fault to the next request that contains these bytes, on any connection: the name
    /// of a command, the hash of a script or an argument. Several faults apply to one request
    /// each, in the order of their calls.
    ///
    /// # Panics
    ///
    /// Panics if the pattern is empty.
    pub fn on_request(&self, pattern: impl AsRef<[u8]>, fault: Fault) -> InjectedFault {
        self.faults.inject(pattern.as_ref(), fault)
    }

    /// Closes all connections, including silenced ones. The mode for new connections is unchanged.
    pub fn reset(&self) {
        self.network().close_all();
    }

    fn network(&self) -> MutexGuard<'_, Network> {
        lock(&self.network)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.network().mode = Mode::Stopped;
        // Wakes the listener, which then checks the mode.
        let woken = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
        if let Some(listener) = self.listener.take().filter(|_| woken) {
            let _ = listener.join();
        }
        // The threads of the connections end when these are closed and hold nothing back.
        self.network().close_all();
        self.faults.release_all();
    }
}

#[derive(Debug, Default)]
struct Network {
    mode: Mode,
    /// Owned by the threads that forward them.
    forwarded: Vec<Weak<ProxiedConnection>>,
    silenced: Vec<Arc<ProxiedConnection>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Forward,
    Silent,
    Stopped,
}

impl Network {
    /// Takes the connections that are still forwarded.
    fn take_forwarded(&mut self) -> Vec<Arc<ProxiedConnection>> {
        let all = self.forwarded.drain(..);
        all.filter_map(|connection| connection.upgrade()).collect()
    }

    fn close_all(&mut self) {
        let mut all = self.take_forwarded();
        all.append(&mut self.silenced);
        for connection in all {
            connection.close();
        }
    }

    /// Drops the entries of connections that both ends have closed.
    fn remove_closed(&mut self) {
        let is_open = |connection: &Weak<ProxiedConnection>| connection.strong_count() > 0;
        self.forwarded.retain(is_open);
    }
}

#[derive(Debug)]
struct ProxiedConnection {
    client: TcpStream,
    /// `None` if the connection was accepted in silent mode.
    server: Option<TcpStream>,
    silent: AtomicBool,
    /// Applies to what the server sends from now on.
    answer_fault: Mutex<Option<Arc<Injected>>>,
}

impl ProxiedConnection {
    fn close(&self) {
        for stream in std::iter::once(&self.client).chain(&self.server) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Forwards requests until the client closes or the connection is silenced; closes the server's
    /// side only in the first case.
    fn forward_requests(&self, mut from: &TcpStream, mut to: &TcpStream, faults: &Faults) {
        let mut buffer = vec![0; 64 * 1024];
        let mut recent = Vec::new();
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            recent.extend_from_slice(&buffer[..count]);
            while let Some(injected) = faults.take(&recent, count) {
                match injected.fault {
                    Fault::HoldRequest => injected.wait(Duration::MAX),
                    _ => *lock(&self.answer_fault) = Some(injected),
                }
            }
            recent.drain(..recent.len().saturating_sub(faults.longest_pattern()));
            if self.is_silent() || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        self.end(to);
    }

    /// Forwards answers until the server closes or the connection is silenced; closes the client's
    /// side only in the first case.
    fn forward_answers(&self, mut from: &TcpStream, mut to: &TcpStream, faults: &Faults) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer[..faults.chunk_size()]) {
            let injected = lock(&self.answer_fault).clone();
            match injected.as_ref().map(|injected| injected.fault) {
                Some(Fault::Cut) => self.close(),
                Some(Fault::SwallowAnswer) => continue,
                Some(Fault::DelayAnswer(time)) => {
                    injected.inspect(|injected| injected.wait(time));
                    *lock(&self.answer_fault) = None;
                }
                Some(Fault::HoldRequest) | None => {}
            }
            if self.is_silent() || to.write_all(&buffer[..count]).is_err() {
                break;
            }
            faults.pace(count);
        }
        self.end(to);
    }

    fn end(&self, to: &TcpStream) {
        if !self.is_silent() {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::SeqCst)
    }
}

/// Accepts connections until the proxy is dropped.
fn accept(listener: &TcpListener, port: u16, network: &Mutex<Network>, faults: &Arc<Faults>) {
    for client in listener.incoming().flatten() {
        let mut network = lock(network);
        network.remove_closed();
        match network.mode {
            Mode::Forward => network.forwarded.extend(connect(client, port, faults).ok()),
            Mode::Silent => network.silenced.push(Arc::new(ProxiedConnection {
                client,
                server: None,
                silent: AtomicBool::new(true),
                answer_fault: Mutex::default(),
            })),
            Mode::Stopped => return,
        }
    }
}

/// Connects to the server and starts the two threads that forward.
fn connect(
    client: TcpStream,
    port: u16,
    faults: &Arc<Faults>,
) -> io::Result<Weak<ProxiedConnection>> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let connection = Arc::new(ProxiedConnection {
        client: client.try_clone()?,
        server: Some(server.try_clone()?),
        silent: AtomicBool::new(false),
        answer_fault: Mutex::default(),
    });
    let weak = Arc::downgrade(&connection);
    let back = Arc::clone(&connection);
    let (to_client, from_server) = (client.try_clone()?, server.try_clone()?);
    let (to_server, answers) = (Arc::clone(faults), Arc::clone(faults));
    thread::spawn(move || connection.forward_requests(&client, &server, &to_server));
    thread::spawn(move || back.forward_answers(&from_server, &to_client, &answers));
    Ok(weak)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::process_group::poll_until;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Starts a server that sends received data back, and returns its port.
    fn echo_server() -> u16 {
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
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream
    }

    /// Sends a word and returns the reply; `None` if there is none.
    fn echo(mut stream: &TcpStream) -> Option<String> {
        stream.write_all(b"word").ok()?;
        let mut reply = [0; 4];
        stream.read_exact(&mut reply).ok()?;
        Some(String::from_utf8_lossy(&reply).into_owned())
    }

    /// Returns whether the connection is open and has no data.
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
    fn silenced_connection_stays_silent_after_heal_and_new_one_is_forwarded() {
        let proxy = Proxy::to(echo_server());
        let before = client(&proxy);
        assert_eq!(echo(&before).as_deref(), Some("word"));

        proxy.silence();
        let during = client(&proxy);
        for mut stream in [&before, &during] {
            stream.write_all(b"word").unwrap();
            assert!(is_silent(stream));
        }

        proxy.heal();
        assert_eq!(echo(&client(&proxy)).as_deref(), Some("word"));
        assert!(is_silent(&before) && is_silent(&during));
    }

    #[test]
    fn reset_closes_silenced_connections() {
        let proxy = Proxy::to(echo_server());
        let before = client(&proxy);
        proxy.silence();
        let during = client(&proxy);
        // Waits until the proxy has accepted it.
        poll_until(TIMEOUT, || {
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
    fn end_of_stream_is_forwarded() {
        let proxy = Proxy::to(echo_server());
        let stream = client(&proxy);
        assert_eq!(echo(&stream).as_deref(), Some("word"));
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&stream).read(&mut [0]).unwrap(), 0);
        let removed = || {
            let mut network = proxy.network();
            network.remove_closed();
            network.forwarded.is_empty().then_some(())
        };
        poll_until(TIMEOUT, removed).expect("the threads end");
    }

    #[test]
    fn connection_without_a_server_is_closed() {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let port = port.unwrap().local_addr().unwrap().port();
        let proxy = Proxy::to(port);
        assert_eq!(echo(&client(&proxy)), None);
    }

    #[test]
    fn drop_closes_connections_and_stops_threads() {
        let proxy = Proxy::to(echo_server());
        let stream = client(&proxy);
        assert_eq!(echo(&stream).as_deref(), Some("word"));
        let network = Arc::downgrade(&proxy.network);
        drop(proxy);
        assert_eq!((&stream).read(&mut [0]).unwrap_or(0), 0);
        assert!(
            network.upgrade().is_none(),
            "the listener thread has stopped"
        );
    }

    #[test]
    fn throttled_answers_take_their_time_until_heal() {
        let proxy = Proxy::to(echo_server());
        let stream = client(&proxy);
        let send = |bytes: usize| {
            let begun = Instant::now();
            (&stream).write_all(&vec![0; bytes]).unwrap();
            (&stream).read_exact(&mut vec![0; bytes]).unwrap();
            begun.elapsed()
        };
        proxy.throttle(100_000);
        // The last part is not waited for.
        assert!(send(30_000) >= Duration::from_millis(200));
        proxy.heal();
        assert!(send(3_000_000) < Duration::from_secs(10));
    }

    #[test]
    fn held_request_arrives_after_its_client_has_left() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Proxy::to(listener.local_addr().unwrap().port());
        let fault = proxy.on_request("wor", Fault::HoldRequest);
        let stream = client(&proxy);
        (&stream).write_all(b"first w").unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        (&server).read_exact(&mut [0; 7]).unwrap();
        assert!(!fault.has_request());

        (&stream).write_all(b"ord").unwrap();
        poll_until(TIMEOUT, || fault.has_request().then_some(())).unwrap();
        drop(stream);
        assert!(is_silent(&server));
        fault.release();

        server.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut rest = String::new();
        (&server).read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "ord");
    }

    #[test]
    fn delayed_answer_arrives_after_its_release() {
        let proxy = Proxy::to(echo_server());
        let fault = proxy.on_request("word", Fault::DelayAnswer(Duration::MAX));
        let stream = client(&proxy);
        (&stream).write_all(b"word").unwrap();
        assert!(is_silent(&stream));
        fault.release();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        (&stream).read_exact(&mut [0; 4]).unwrap();
        assert_eq!(echo(&stream).as_deref(), Some("word"));
    }

    #[test]
    fn delayed_answer_arrives_after_its_time() {
        let proxy = Proxy::to(echo_server());
        let _ = proxy.on_request("word", Fault::DelayAnswer(Duration::from_millis(50)));
        let begun = Instant::now();
        assert_eq!(echo(&client(&proxy)).as_deref(), Some("word"));
        assert!(begun.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn swallowed_answer_leaves_the_connection_open() {
        let proxy = Proxy::to(echo_server());
        let stream = client(&proxy);
        assert_eq!(echo(&stream).as_deref(), Some("word"));
        let fault = proxy.on_request("word", Fault::SwallowAnswer);
        for _ in 0..2 {
            (&stream).write_all(b"word").unwrap();
            assert!(is_silent(&stream));
        }
        assert!(fault.has_request());
        assert_eq!(echo(&client(&proxy)).as_deref(), Some("word"));
    }

    #[test]
    fn cut_closes_the_connection_of_one_request() {
        let proxy = Proxy::to(echo_server());
        let fault = proxy.on_request("word", Fault::Cut);
        assert_eq!(echo(&client(&proxy)), None);
        assert!(fault.has_request());
        assert_eq!(echo(&client(&proxy)).as_deref(), Some("word"));
    }
}
