//! The Rust side of `stub.h`.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use kv_tiers::remote::MooncakeConfig;
use libloading::Library;

/// What a server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Calls hang until there is another fault.
    Hang,
    /// Calls take longer.
    Slow(Duration),
    /// Each answer is this code.
    Code(i64),
    /// Each call as a whole answers this code.
    CallCode(i64),
    /// A load flips a bit.
    Corrupt,
    /// A load answers fewer bytes.
    Truncate,
    /// A load answers another key's value.
    Swap,
    /// Everything exists.
    LieExist,
    /// A load succeeds and writes nothing.
    Nothing,
    /// A load succeeds and writes half.
    Half,
    /// A load answers more bytes than there is room for.
    TooMany,
    /// The first load of every key finds its lease expired.
    LeaseOnce,
    /// A store succeeds and keeps nothing.
    LosePut,
}

impl Fault {
    fn code(self) -> (c_int, i64) {
        match self {
            Self::None => (0, 0),
            Self::Hang => (1, 0),
            Self::Slow(time) => (2, time.as_millis().try_into().unwrap()),
            Self::Code(code) => (3, code),
            Self::CallCode(code) => (4, code),
            Self::Corrupt => (5, 0),
            Self::Truncate => (6, 0),
            Self::Swap => (7, 0),
            Self::LieExist => (8, 0),
            Self::Nothing => (9, 0),
            Self::Half => (10, 0),
            Self::TooMany => (11, 0),
            Self::LeaseOnce => (12, 0),
            Self::LosePut => (13, 0),
        }
    }
}

/// One server of the stub. Its master's address is a name that this process uses once.
pub struct Stub {
    master: CString,
}

fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| super::library("mooncake_stub", "stub.cpp", Vec::new()).build().unwrap())
}

fn stub() -> &'static Library {
    static STUB: OnceLock<Library> = OnceLock::new();
    // SAFETY: its initialisers are those of the C++ runtime.
    STUB.get_or_init(|| unsafe { Library::new(file()) }.unwrap())
}

/// A function of the stub.
///
/// # Safety
/// `F` is its type.
unsafe fn function<F: Copy>(name: &str) -> F {
    // SAFETY: passed on. The library is never unloaded.
    unsafe { *stub().get::<F>(name).unwrap() }
}

impl Stub {
    /// The server behind a master of that name.
    #[must_use]
    pub fn new(master: &str) -> Self {
        Self { master: CString::new(master).unwrap() }
    }

    /// For clients of it.
    #[must_use]
    pub fn config(&self, record_bytes: usize) -> MooncakeConfig {
        super::config(file().clone(), self.master.to_str().unwrap().to_owned(), record_bytes)
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        let (code, amount) = fault.code();
        // SAFETY: the type is that of stub.h; the string lives until the call returns.
        unsafe {
            let set: unsafe extern "C" fn(*const c_char, c_int, i64) = function("stub_fault");
            set(self.master.as_ptr(), code, amount);
        }
    }

    fn count(&self, name: &str) -> u64 {
        // SAFETY: as above.
        unsafe {
            let count: unsafe extern "C" fn(*const c_char) -> u64 = function(name);
            count(self.master.as_ptr())
        }
    }

    /// Answers that faults have changed.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.count("stub_struck")
    }

    /// Calls that hang now.
    #[must_use]
    pub fn hung(&self) -> u64 {
        self.count("stub_hung")
    }

    /// Clients that are set up and have not ended.
    #[must_use]
    pub fn clients(&self) -> u64 {
        self.count("stub_clients")
    }

    /// Bytes that they have registered.
    #[must_use]
    pub fn registered(&self) -> u64 {
        self.count("stub_bytes")
    }

    /// Calls of this process that broke the rules of the API.
    #[must_use]
    pub fn misuse() -> u64 {
        // SAFETY: as above.
        unsafe {
            let misuse: unsafe extern "C" fn() -> u64 = function("stub_misuse");
            misuse()
        }
    }

    /// Replaces a value.
    pub fn write(&self, key: &str, value: &[u8]) {
        let key = CString::new(key).unwrap();
        // SAFETY: as above; the value has that many bytes.
        unsafe {
            let set: unsafe extern "C" fn(*const c_char, *const c_char, *const c_void, usize) =
                function("stub_set");
            set(self.master.as_ptr(), key.as_ptr(), value.as_ptr().cast(), value.len());
        }
    }

    /// A value of up to a mebibyte.
    #[must_use]
    pub fn read(&self, key: &str) -> Option<Vec<u8>> {
        let (key, mut value) = (CString::new(key).unwrap(), vec![0_u8; 1 << 20]);
        // SAFETY: as above.
        let len = unsafe {
            let get: unsafe extern "C" fn(*const c_char, *const c_char, *mut c_void, usize) -> i64 =
                function("stub_value");
            get(self.master.as_ptr(), key.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        value.truncate(usize::try_from(len).ok()?);
        Some(value)
    }
}
