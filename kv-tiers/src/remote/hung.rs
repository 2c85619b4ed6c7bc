//! A store that takes every call and answers none, for tests.

use std::sync::Arc;

use parking_lot::Mutex;

use super::backend::{Backend, Call};
use super::client::{Client, remote_store};
use super::{Limits, RemoteStore};

/// Keeps its calls until it is dropped.
pub(crate) struct HungStore(Client<Hung>);

#[derive(Default)]
struct Hung(Mutex<Vec<Call>>);

impl Backend for Hung {
    fn submit(&self, call: Call) {
        self.0.lock().push(call);
    }
}

impl HungStore {
    /// One.
    pub(crate) fn open() -> Arc<dyn RemoteStore> {
        Arc::new(Self(Client::new(Hung::default(), Limits::default(), Arc::default())))
    }
}

remote_store!(HungStore);
