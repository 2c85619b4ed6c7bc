//! A real master and real nodes that lend memory, of the package that `make mooncake` installs, and a library that
//! drives that package's client.

use std::ffi::{CString, c_char, c_int};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kv_tiers::remote::MooncakeConfig;
use libloading::Library;

/// As in the Makefile.
const PACKAGE: &str = "../.tools/mooncake-0.3.13.post1";

fn package() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join(PACKAGE);
    package.canonicalize().unwrap_or_else(|error| panic!("{PACKAGE}: {error}; run `make mooncake`"))
}

/// A master, killed when dropped.
pub struct Master {
    process: Child,
    port: u16,
    metrics_port: u16,
}

/// A port that nobody listens on. Somebody else may take it first: then the master fails to start, and is tried again.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn_master(port: u16, metrics_port: u16) -> Child {
    Command::new(package().join("mooncake/mooncake_master"))
        .args(["--rpc_address=127.0.0.1", "--metrics_host=127.0.0.1"])
        .args([format!("--rpc_port={port}"), format!("--metrics_port={metrics_port}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Master {
    /// Starts one, and waits until it listens.
    #[must_use]
    pub fn start() -> Self {
        for _ in 0..10 {
            let (port, metrics_port) = (free_port(), free_port());
            let mut master = Self { process: spawn_master(port, metrics_port), port, metrics_port };
            if master.is_up() {
                return master;
            }
        }
        panic!("mooncake_master does not start");
    }

    fn is_up(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end {
            if self.process.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("mooncake_master does not listen");
    }

    /// Kills it (`kill -9`), and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again at the same port. It has forgotten everything.
    pub fn start_again(&mut self) {
        self.process = spawn_master(self.port, self.metrics_port);
        assert!(self.is_up(), "mooncake_master does not start again");
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A node that lends so many bytes.
    #[must_use]
    pub fn node(&self, bytes: u64) -> Node {
        let mut process = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/mooncake/node.py"))
            .args([self.address(), bytes.to_string()])
            .env("PYTHONPATH", package())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let node = Node(process);
        assert_eq!(line, "ready\n", "the node does not start");
        node
    }

    /// For clients of it.
    #[must_use]
    pub fn config(&self, record_bytes: usize) -> MooncakeConfig {
        super::config(shim().clone(), self.address(), record_bytes)
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.kill();
        }
    }
}

/// A node that lends memory, killed when dropped.
pub struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The shared library of the `python3` that the package was installed for.
fn interpreter() -> String {
    let ask =
        "import sysconfig as s; print(s.get_config_var('LIBDIR') + '/' + s.get_config_var('INSTSONAME'))";
    let output = Command::new("python3").args(["-c", ask]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The library, with its interpreter started.
fn shim() -> &'static PathBuf {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let file = super::library("mooncake_shim", "shim.cpp", vec!["-ldl".to_owned()]).build().unwrap();
        let [interpreter, package] = [interpreter(), package().into_os_string().into_string().unwrap()]
            .map(|s| CString::new(s).unwrap());
        // SAFETY: its initialisers are those of the C++ runtime; the type is that of shim.cpp; the strings live until
        // the call returns. The library stays loaded.
        let code = unsafe {
            let library = Box::leak(Box::new(Library::new(&file).unwrap()));
            let start = library
                .get::<unsafe extern "C" fn(*const c_char, *const c_char) -> c_int>("shim_start")
                .unwrap();
            start(interpreter.as_ptr(), package.as_ptr())
        };
        assert_eq!(code, 0, "{interpreter:?} with Mooncake's package does not start");
        file
    })
}
