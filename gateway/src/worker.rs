//! One worker as the gateway knows it: its connections, what is under way there, how it does.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lithe::gateway::{self, WorkerState};

use crate::balance::{Latency, Load};
use crate::outlier::Health;
use crate::pool::Pool;
use crate::tally::{Protocol, Series};

/// What one revision did, by protocol.
#[derive(Debug, Default)]
pub struct Revision {
    http: Series,
    grpc: Series,
}

impl Revision {
    /// The counts of `protocol`.
    pub fn series(&self, protocol: Protocol) -> &Series {
        match protocol {
            Protocol::Http => &self.http,
            Protocol::Grpc => &self.grpc,
        }
    }
}

/// One worker.
#[derive(Debug)]
pub struct Worker {
    /// What it serves.
    pub revision: String,
    /// Where it is counted.
    pub counted: Arc<Revision>,
    /// Its REST port, by which it is known.
    pub address: SocketAddr,
    http: Pool,
    grpc: Pool,
    /// Its probes.
    pub admin: Pool,
    state: AtomicU8,
    /// It said ready when the gateway asked, before the cluster told.
    probed: AtomicBool,
    /// It could not be reached; cleared when a probe succeeds.
    unreachable: AtomicBool,
    /// Requests under way, open streams included.
    pub in_flight: AtomicU32,
    /// Requests of which not even the head of the answer came.
    pub unanswered: AtomicU32,
    latency: Mutex<Latency>,
    health: Mutex<Health>,
    /// Whether `health` may say that it is out: looked at on every request, without the lock.
    suspect: AtomicBool,
}

impl Worker {
    /// A worker of which nothing is known but `told`.
    pub fn new(told: &gateway::Worker, counted: Arc<Revision>) -> Self {
        let pool = |port| Pool::new(SocketAddr::new(told.address, port));
        Self {
            revision: told.revision.clone(),
            counted,
            address: SocketAddr::new(told.address, told.http_port),
            http: pool(told.http_port),
            grpc: pool(told.grpc_port),
            admin: pool(told.admin_port),
            state: AtomicU8::new(told.state as u8),
            probed: AtomicBool::new(false),
            unreachable: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            unanswered: AtomicU32::new(0),
            latency: Mutex::default(),
            health: Mutex::default(),
            suspect: AtomicBool::new(false),
        }
    }

    /// Takes over what the cluster says. A worker that was ready and is not any more must say so
    /// itself again.
    pub fn tell(&self, state: WorkerState) {
        let before = self.state.swap(state as u8, Ordering::AcqRel);
        if before != state as u8 && state != WorkerState::Ready {
            self.probed.store(false, Ordering::Release);
        }
    }

    fn is(&self, state: WorkerState) -> bool {
        self.state.load(Ordering::Acquire) == state as u8
    }

    /// Whether it takes requests, ejection apart.
    pub fn ready(&self) -> bool {
        let said = self.is(WorkerState::Ready) || self.probed.load(Ordering::Acquire);
        said && !self.unreachable.load(Ordering::Acquire)
    }

    /// Whether it still serves and is about to end.
    pub fn draining(&self) -> bool {
        self.is(WorkerState::Draining) && !self.unreachable.load(Ordering::Acquire)
    }

    /// Whether asking it may find it ready.
    pub fn worth_a_probe(&self) -> bool {
        !self.ready() && !self.is(WorkerState::Draining)
    }

    /// Whether it could not be reached lately.
    pub fn lost(&self) -> bool {
        self.unreachable.load(Ordering::Acquire)
    }

    /// It said ready.
    pub fn found(&self) {
        self.probed.store(true, Ordering::Release);
        self.unreachable.store(false, Ordering::Release);
    }

    /// It cannot be reached.
    pub fn lose(&self) {
        self.unreachable.store(true, Ordering::Release);
        self.probed.store(false, Ordering::Release);
    }

    /// Its connections for `protocol`.
    pub fn pool(&self, protocol: Protocol) -> &Pool {
        match protocol {
            Protocol::Http => &self.http,
            Protocol::Grpc => &self.grpc,
        }
    }

    /// What a request would find there.
    pub fn load(&self, now: Instant) -> Load {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner).estimate(now);
        Load { in_flight: self.in_flight.load(Ordering::Relaxed), latency }
    }

    /// Takes in the time to the head of an answer.
    pub fn answered(&self, took: Duration, now: Instant) {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).observe(took, now);
    }

    /// Whether it is ejected at `now`.
    pub fn ejected(&self, now: Instant) -> bool {
        if !self.suspect.load(Ordering::Acquire) {
            return false;
        }
        let ejected = self.health().ejected(now);
        self.suspect.store(ejected, Ordering::Release);
        ejected
    }

    /// Ejects it at `now`; returns for how long.
    pub fn eject(&self, now: Instant) -> Duration {
        let mut health = self.health();
        self.suspect.store(true, Ordering::Release);
        health.eject(now)
    }

    /// How it has been doing.
    pub fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request as under way at a worker until dropped.
#[derive(Debug)]
pub struct Busy(Arc<Worker>);

impl Busy {
    /// One more under way at `worker`.
    pub fn at(worker: Arc<Worker>) -> Self {
        worker.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(worker)
    }

    /// The worker.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
