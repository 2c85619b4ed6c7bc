//! The front of every remote store: permits, records, deadlines, counters.

use std::sync::Arc;
use std::time::Instant;

use kv_core::key::NamespaceId;
use kv_core::units::Epoch;

use super::backend::{Backend, Call, Fetch, Store};
use super::buffers::Buffers;
use super::call::{Flight, Pending, Reply};
use super::counters::{Counters, RemoteCounters, add};
use super::envelope::{self, HEADER};
use super::limits::{Gate, InFlight, Limits};
use super::writers::Writers;
use super::{PendingGet, PendingSweep, Put, RemoteError, RemoteKey, RemoteStore, Want};

/// A back end behind its front.
pub(crate) struct Client<B> {
    backend: B,
    gate: Arc<Gate>,
    counters: Arc<Counters>,
    writers: Arc<Writers>,
    /// For records.
    buffers: Arc<Buffers>,
}

impl<B: Backend> Client<B> {
    pub(crate) fn new(backend: B, limits: Limits, buffers: Arc<Buffers>) -> Self {
        let gate = Gate::new(limits);
        Self { backend, gate, counters: Arc::default(), writers: Arc::default(), buffers }
    }

    /// Starts a call about `n` blocks that carries `bytes`.
    fn call<T>(
        &self,
        n: usize,
        bytes: usize,
        deadline: Instant,
        served: fn(&Counters, &T),
        build: impl FnOnce(Vec<Reply<T>>) -> Call,
    ) -> Pending<T> {
        let counters = || Arc::clone(&self.counters);
        if n > 0 && Instant::now() >= deadline {
            return Pending::refused(n, RemoteError::Late, counters());
        }
        match self.gate.enter(bytes as u64) {
            Err(why) => Pending::refused(n, why, counters()),
            Ok(permit) => {
                let flight = Flight::new(deadline, permit);
                let (pending, replies) = Pending::start(n, flight, counters(), served);
                self.backend.submit(build(replies));
                pending
            }
        }
    }
}

/// Makes a store of a type around a `Client`.
macro_rules! remote_store {
    ($store:ty) => {
        impl $crate::remote::RemoteStore for $store {
            fn exists(
                &self,
                keys: &[$crate::remote::RemoteKey],
                deadline: std::time::Instant,
            ) -> $crate::remote::Pending<bool> {
                self.0.exists(keys, deadline)
            }
            fn get(
                &self,
                wants: &[$crate::remote::Want],
                deadline: std::time::Instant,
            ) -> $crate::remote::PendingGet {
                self.0.get(wants, deadline)
            }
            fn put(
                &self,
                puts: &[$crate::remote::Put<'_>],
                deadline: std::time::Instant,
            ) -> $crate::remote::Pending<()> {
                self.0.put(puts, deadline)
            }
            fn delete(
                &self,
                keys: &[$crate::remote::RemoteKey],
                deadline: std::time::Instant,
            ) -> $crate::remote::Pending<()> {
                self.0.delete(keys, deadline)
            }
            fn sweep(
                &self,
                namespace: kv_core::key::NamespaceId,
                up_to: kv_core::units::Epoch,
                deadline: std::time::Instant,
            ) -> $crate::remote::PendingSweep {
                self.0.sweep(namespace, up_to, deadline)
            }
            fn counters(&self) -> $crate::remote::RemoteCounters {
                self.0.counters()
            }
            fn in_flight(&self) -> $crate::remote::InFlight {
                self.0.in_flight()
            }
        }
    };
}
pub(crate) use remote_store;

/// Bytes of several records.
fn total(payloads: impl Iterator<Item = usize>) -> usize {
    payloads.fold(0, |sum, bytes| sum.saturating_add(bytes).saturating_add(HEADER))
}

impl<B: Backend> RemoteStore for Client<B> {
    fn exists(&self, keys: &[RemoteKey], deadline: Instant) -> Pending<bool> {
        let served = |c: &Counters, there: &bool| add(if *there { &c.said_present } else { &c.absent }, 1);
        let build = |replies: Vec<_>| Call::Exists(keys.iter().copied().zip(replies).collect());
        self.call(keys.len(), 0, deadline, served, build)
    }

    fn get(&self, wants: &[Want], deadline: Instant) -> PendingGet {
        let bytes = total(wants.iter().map(|want| want.payload_bytes));
        let fetch = |(want, reply): (&Want, _)| Fetch {
            key: want.key,
            record_bytes: want.payload_bytes.saturating_add(HEADER),
            reply,
        };
        let build = |replies: Vec<_>| Call::Get(wants.iter().zip(replies).map(fetch).collect());
        // A hit is counted when it is verified.
        let pending = self.call(wants.len(), bytes, deadline, |_, _| {}, build);
        PendingGet { pending, keys: wants.iter().map(|want| want.key).collect() }
    }

    fn put(&self, puts: &[Put<'_>], deadline: Instant) -> Pending<()> {
        let bytes = total(puts.iter().map(|put| put.payload.len()));
        let store = |(put, reply): (&Put<'_>, _)| {
            let key = RemoteKey::of(&put.meta.identity);
            let (record, encoding) = envelope::encode(put, &self.buffers);
            self.counters.encoded.add(encoding);
            Store { key, record, writer: self.writers.enter(&key), reply }
        };
        let build = |replies: Vec<_>| Call::Put(puts.iter().zip(replies).map(store).collect());
        self.call(puts.len(), bytes, deadline, |c, ()| add(&c.puts, 1), build)
    }

    fn delete(&self, keys: &[RemoteKey], deadline: Instant) -> Pending<()> {
        let build = |replies: Vec<_>| Call::Delete(keys.iter().copied().zip(replies).collect());
        self.call(keys.len(), 0, deadline, |c, ()| add(&c.deletes, 1), build)
    }

    fn sweep(&self, namespace: NamespaceId, up_to: Epoch, deadline: Instant) -> PendingSweep {
        // Counted before it begins: a put that ends meanwhile may have written behind its back.
        let writers = self.writers.up_to(namespace, up_to);
        let build = |replies: Vec<Reply<u64>>| match <[_; 1]>::try_from(replies) {
            Ok([reply]) => Call::Sweep(namespace, up_to, reply),
            Err(_) => Call::Delete(Vec::new()),
        };
        let pending = self.call(1, 0, deadline, |c, removed| add(&c.deletes, *removed), build);
        PendingSweep { pending, writers }
    }

    fn counters(&self) -> RemoteCounters {
        self.counters.read()
    }

    fn in_flight(&self) -> InFlight {
        self.gate.in_flight()
    }
}
