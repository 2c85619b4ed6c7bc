//! A TCP proxy between a client and its server that does what networks and broken servers do.
//!
//! Two threads for each connection. What is done to its bytes follows from the proxy's seed and the number of the
//! connection; when it is done depends on the machine, so tests count what happened and do not expect it in order.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvtier_benches::SplitMix64;
use parking_lot::Mutex;

/// A server that says nothing for so long is answering another question when it goes on.
const SILENCE: Duration = Duration::from_micros(300);

/// What is done to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every piece that the server sends comes later: so much, and up to so much more.
    Delay(Duration, Duration),
    /// So many bytes a second from the server.
    Bandwidth(u64),
    /// A link: what the server sends after a silence comes later by so much, and up to so much more; then so many bytes a
    /// second.
    Link {
        /// Least.
        latency: Duration,
        /// Up to so much more.
        jitter: Duration,
        /// Of one connection.
        per_second: u64,
    },
    /// The connection is reset after so many bytes from the server, at most.
    Reset(u64),
    /// After so many bytes at most the server's side is closed, and the client is not told.
    HalfOpen(u64),
    /// After so many bytes at most nothing comes through any more, in either direction.
    BlackHole(u64),
    /// The server's bytes end after so many at most, as if it had no more to say.
    Truncate(u64),
    /// One bit in so many bytes from the server is flipped, on average. In headers as well as in values.
    Flip(u64),
}

/// A proxy at a port of its own. Its threads end when it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    seed: u64,
    fault: Mutex<Fault>,
    closing: AtomicBool,
    connections: AtomicU64,
    /// Bytes that were held back, cut off or changed, and connections that were broken.
    faults: AtomicU64,
    /// Both ends of what is open, to be shut when the fault changes.
    open: Mutex<Vec<(u64, TcpStream, TcpStream)>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Proxy {
    /// In front of a server on this machine.
    #[must_use]
    pub fn start(server_port: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server: SocketAddr::from(([127, 0, 0, 1], server_port)),
            seed,
            fault: Mutex::new(Fault::None),
            closing: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            open: Mutex::default(),
            threads: Mutex::default(),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.listen(&listener)
        });
        Self { shared, port, listener: Some(thread) }
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on, on old connections and new.
    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock() = fault;
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        for (_, client, server) in self.shared.open.lock().drain(..) {
            shut(&client);
            shut(&server);
        }
    }

    /// How often a fault struck.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.set(Fault::None);
        // Wakes the listener.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if let Some(listener) = self.listener.take() {
            listener.join().unwrap();
        }
        self.cut();
        for thread in self.shared.threads.lock().drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Both directions, if it is open still.
fn shut(stream: &TcpStream) {
    stream.shutdown(Shutdown::Both).unwrap_or_default();
}

impl Shared {
    fn listen(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            let Ok(client) = client else { continue };
            let number = self.connections.fetch_add(1, Ordering::Relaxed);
            self.threads.lock().retain(|thread| !thread.is_finished());
            // No server: the client's connection is closed at once.
            let Ok(server) = TcpStream::connect(self.server) else { continue };
            // The delays are the proxy's affair and nobody else's.
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            self.open.lock().push((number, client.try_clone().unwrap(), server.try_clone().unwrap()));
            let (up, down) = (Arc::clone(self), Arc::clone(self));
            let up = std::thread::spawn(move || up.to_server(client, server).unwrap_or_default());
            let down = std::thread::spawn(move || {
                // An error is the end of a connection, which is what it is to the ends.
                let told = down.to_client(number, &server2, &client2).unwrap_or(true);
                shut(&server2);
                if told {
                    shut(&client2);
                    down.open.lock().retain(|(n, ..)| *n != number);
                }
            });
            self.threads.lock().extend([up, down]);
        }
    }

    fn to_server(&self, mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = client.read(&mut buffer)?;
            if n == 0 {
                return server.shutdown(Shutdown::Both);
            }
            if !matches!(*self.fault.lock(), Fault::BlackHole(0)) {
                server.write_all(&buffer[..n])?;
            }
        }
    }

    /// Whether the client is to be told that it is over.
    fn to_client(&self, number: u64, mut server: &TcpStream, mut client: &TcpStream) -> io::Result<bool> {
        let mut rng = SplitMix64::new(self.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut buffer = vec![0; 64 << 10];
        // When the fault strikes, in bytes from the time when it was set.
        let mut armed = (Fault::None, 0);
        let mut sent = 0;
        loop {
            let asked = Instant::now();
            let n = server.read(&mut buffer)?;
            if n == 0 {
                return Ok(true);
            }
            let silent = asked.elapsed() > SILENCE;
            let mut bytes = &mut buffer[..n];
            let fault = *self.fault.lock();
            if armed.0 != fault {
                let most = match fault {
                    Fault::Reset(most)
                    | Fault::HalfOpen(most)
                    | Fault::BlackHole(most)
                    | Fault::Truncate(most)
                    | Fault::Flip(most) => most,
                    _ => 0,
                };
                armed = (fault, sent + rng.below(most + 1));
            }
            let strikes = sent + bytes.len() as u64 > armed.1;
            let cut = usize::try_from(armed.1.saturating_sub(sent)).unwrap().min(bytes.len());
            let count = || self.faults.fetch_add(1, Ordering::Relaxed);
            match fault {
                Fault::None => {}
                Fault::Delay(least, jitter) => {
                    count();
                    std::thread::sleep(least + jitter.mul_f64(rng.below(1000) as f64 / 1000.0));
                }
                Fault::Bandwidth(per_second) => {
                    count();
                    std::thread::sleep(Duration::from_secs_f64(bytes.len() as f64 / per_second as f64));
                }
                Fault::Link { latency, jitter, per_second } => {
                    count();
                    let first = if silent {
                        latency + jitter.mul_f64(rng.below(1000) as f64 / 1000.0)
                    } else {
                        Duration::ZERO
                    };
                    std::thread::sleep(
                        first + Duration::from_secs_f64(bytes.len() as f64 / per_second as f64),
                    );
                }
                Fault::Flip(most) => {
                    while armed.1 < sent + bytes.len() as u64 {
                        let at = usize::try_from(armed.1 - sent).unwrap();
                        bytes[at] ^= 1 << rng.below(8);
                        count();
                        armed.1 += 1 + rng.below(2 * most);
                    }
                }
                Fault::Reset(_) if strikes => {
                    count();
                    client.write_all(&bytes[..cut])?;
                    // With data unread, or nobody lingering, a close is a reset.
                    rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO))?;
                    return Ok(true);
                }
                Fault::Truncate(_) if strikes => {
                    count();
                    client.write_all(&bytes[..cut])?;
                    return Ok(true);
                }
                Fault::HalfOpen(_) if strikes => {
                    count();
                    client.write_all(&bytes[..cut])?;
                    return Ok(false);
                }
                Fault::BlackHole(_) if strikes => {
                    count();
                    client.write_all(&bytes[..cut])?;
                    bytes = &mut [];
                }
                _ => {}
            }
            client.write_all(bytes)?;
            sent += n as u64;
        }
    }
}
