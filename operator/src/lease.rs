//! Who leads: a Lease, taken, renewed, and given back at the end.
//!
//! Another holder's lease counts as lost when it did not change for its duration as measured by
//! our own clock, so that clocks that disagree do no harm. A leader that could not renew in time
//! stops writing before another may start.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::Notify;

/// How long a lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for this long stops writing; shorter than [`DURATION`].
const GIVE_UP: Duration = Duration::from_secs(10);
/// How often a leader renews.
const RENEW: Duration = Duration::from_secs(4);
/// How often others look, so that a lease that was given back is taken within two seconds.
const LOOK: Duration = Duration::from_millis(1500);

/// The lease as this process sees it.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    renewed: Mutex<Option<Instant>>,
    released: Notify,
}

/// What one candidate remembers between two tries.
#[derive(Default)]
struct Memory {
    /// The lease as we wrote it: it is renewed without being read.
    ours: Option<Lease>,
    /// The version of another's lease, and since when it did not change.
    theirs: Option<(String, Instant)>,
}

impl Leadership {
    /// A candidate.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            identity: identity.into(),
            renewed: Mutex::new(None),
            released: Notify::new(),
        }
    }

    /// Whether this process may write now.
    pub fn leads(&self) -> bool {
        self.renewed().is_some_and(|renewed| renewed.elapsed() < GIVE_UP)
    }

    fn renewed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.renewed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes and renews the lease until it is released; `tell` hears when leadership begins or ends.
    pub async fn hold(&self, tell: impl Fn(bool)) {
        let mut memory = Memory::default();
        let mut led = false;
        loop {
            let began = Instant::now();
            let pause = match self.attempt(&mut memory).await {
                Ok(true) => {
                    *self.renewed() = Some(began);
                    RENEW
                }
                Ok(false) => {
                    *self.renewed() = None;
                    LOOK
                }
                Err(error) => {
                    memory.ours = None;
                    tracing::warn!(%error, "lease");
                    LOOK
                }
            };
            let leads = self.leads();
            if leads != led {
                led = leads;
                tell(leads);
            }
            if tokio::time::timeout(pause, self.released.notified()).await.is_ok() {
                return self.give_back(memory.ours).await;
            }
        }
    }

    /// One try; `Ok(true)` when the lease is ours now.
    async fn attempt(&self, memory: &mut Memory) -> Result<bool, kube::Error> {
        let known = match memory.ours.take() {
            Some(ours) => Some(ours),
            None => self.api.get_opt(&self.name).await?,
        };
        let written = match known {
            None => self.api.create(&PostParams::default(), &self.lease(None)).await,
            Some(lease) if self.is_held_by_another(&lease, memory) => return Ok(false),
            Some(mut lease) => {
                lease.spec = self.lease(lease.spec.take()).spec;
                // The resource version makes this a compare-and-swap: of two candidates one loses.
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                memory.ours = Some(lease);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_held_by_another(&self, lease: &Lease, memory: &mut Memory) -> bool {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return false;
        }
        let (version, now) = (lease.resource_version().unwrap_or_default(), Instant::now());
        match &memory.theirs {
            Some((known, since)) if *known == version => now.duration_since(*since) < DURATION,
            _ => {
                memory.theirs = Some((version, now));
                true
            }
        }
    }

    fn lease(&self, before: Option<LeaseSpec>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = before.unwrap_or_default();
        let same = before.holder_identity.as_deref() == Some(&self.identity);
        let transitions = before.lease_transitions.unwrap_or(0) + i32::from(!same);
        Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..Default::default() },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: if same { before.acquire_time } else { Some(now.clone()) },
                renew_time: Some(now),
                lease_transitions: Some(transitions),
                ..Default::default()
            }),
        }
    }

    /// Ends [`Leadership::hold`], which gives the lease back: the next leader need not wait.
    pub fn release(&self) {
        self.released.notify_one();
    }

    async fn give_back(&self, ours: Option<Lease>) {
        *self.renewed() = None;
        let Some(mut lease) = ours else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
            if let Err(error) = self.api.replace(&self.name, &PostParams::default(), &lease).await {
                tracing::warn!(%error, "give the lease back");
            }
        }
    }
}
