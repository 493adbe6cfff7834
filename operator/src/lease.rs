//! Who leads: a Lease, taken, renewed, and given back at the end.
//!
//! Another holder's lease counts as lost when it did not change for its duration as measured by
//! our own clock, so that clocks that disagree do no harm. A leader that could not renew in time
//! stops writing before another may start.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt as _};

/// How long a lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(10);
/// How often it is renewed or looked at.
const RENEW: Duration = Duration::from_secs(2);
/// A leader that could not renew for this long stops writing; shorter than [`DURATION`].
const GIVE_UP: Duration = Duration::from_secs(7);

/// The lease as this process sees it.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    renewed: Mutex<Option<Instant>>,
}

impl Leadership {
    /// A candidate.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            identity: identity.into(),
            renewed: Mutex::new(None),
        }
    }

    /// Whether this process may write at `now`.
    pub fn leads(&self, now: Instant) -> bool {
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.is_some_and(|renewed| now.duration_since(renewed) < GIVE_UP)
    }

    fn set(&self, renewed: Option<Instant>) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = renewed;
    }

    /// Takes and renews the lease for ever; `tell` hears when leadership begins or ends.
    pub async fn hold(&self, tell: impl Fn(bool)) {
        let mut seen: Option<(String, Instant)> = None;
        let mut led = false;
        loop {
            let began = Instant::now();
            match self.attempt(&mut seen).await {
                Ok(true) => self.set(Some(began)),
                Ok(false) => self.set(None),
                Err(error) => tracing::warn!(%error, "lease"),
            }
            let leads = self.leads(Instant::now());
            if leads != led {
                led = leads;
                tell(leads);
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    /// One try; `Ok(true)` when the lease is ours now.
    async fn attempt(&self, seen: &mut Option<(String, Instant)>) -> Result<bool, kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let created = self.api.create(&PostParams::default(), &self.lease(None)).await;
            return won(created);
        };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
        let holder = holder.unwrap_or_default();
        if !holder.is_empty() && holder != self.identity {
            let version = lease.resource_version().unwrap_or_default();
            let now = Instant::now();
            match seen {
                Some((known, since)) if *known == version => {
                    if now.duration_since(*since) < DURATION {
                        return Ok(false);
                    }
                }
                _ => {
                    *seen = Some((version, now));
                    return Ok(false);
                }
            }
        }
        lease.spec = self.lease(lease.spec.take()).spec;
        // The resource version makes this a compare-and-swap: of two candidates one loses.
        won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
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

    /// Gives the lease back, so that the next leader need not wait.
    pub async fn release(&self) {
        if !self.leads(Instant::now()) {
            return;
        }
        self.set(None);
        let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await else { return };
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.identity)
        {
            spec.holder_identity = Some(String::new());
            let _ = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        }
    }
}

fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
