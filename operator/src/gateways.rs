//! The gateway's pods as one model sees them: who is ready, who listens on the model's ports, and
//! which ports are free. It must not ask anybody: what is not in the caches is not known.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use kube::ResourceExt as _;
use lithe::gateway::Acknowledgement;
use lithe::spec::{ModelDeployment, TrafficMode};

use crate::observe::Caches;
use crate::plan::traffic::{Gateway, Gateways, Ports, lowest_free, ports_of};

/// What gateway pods acknowledged, by address.
pub type Acknowledged = HashMap<String, Acknowledgement>;

/// Ports that were offered to a model and do not stand in its status yet: two models that are
/// worked on at the same time must not get the same.
#[derive(Debug, Default)]
pub struct PortBook {
    offered: Mutex<HashMap<String, Ports>>,
}

impl PortBook {
    /// The ports for `model`, and whether those in its status are an older model's too.
    fn offer(&self, caches: &Caches, model: &ModelDeployment) -> (Option<Ports>, bool) {
        let uid = model.uid().unwrap_or_default();
        let mut taken: BTreeSet<u16> = BTreeSet::new();
        let mut clash = false;
        let mut offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        let own = held(model);
        let mut known = BTreeSet::new();
        for other in caches.models.all() {
            let other_uid = other.uid().unwrap_or_default();
            if let (Some(ports), true) = (held(&other), other_uid != uid) {
                taken.extend([ports.http, ports.grpc]);
                let older = age(&other) < age(model);
                clash |= older && own.is_some_and(|own| overlap(own, ports));
            }
            known.insert(other_uid);
        }
        offered.retain(|owner, _| known.contains(owner));
        if own.is_some() && !clash {
            offered.remove(&uid);
            return (None, false);
        }
        for (_, ports) in offered.iter().filter(|(owner, _)| **owner != uid) {
            taken.extend([ports.http, ports.grpc]);
        }
        let before = offered.get(&uid).copied().filter(|ports| !taken.contains(&ports.http));
        let ports = before.or_else(|| lowest_free(&taken));
        if let Some(ports) = ports {
            offered.insert(uid, ports);
        }
        (ports, clash)
    }
}

fn held(model: &ModelDeployment) -> Option<Ports> {
    model.status.as_ref()?.traffic.as_ref().and_then(ports_of)
}

fn overlap(a: Ports, b: Ports) -> bool {
    [a.http, a.grpc].iter().any(|port| [b.http, b.grpc].contains(port))
}

/// Of two models with the same ports the older one keeps them.
fn age(model: &ModelDeployment) -> (Option<i64>, Option<String>) {
    let born = model.metadata.creation_timestamp.as_ref();
    (born.map(|born| born.0.as_second()), model.uid())
}

/// The gateway as `model` sees it.
pub fn gateways(
    caches: &Caches,
    acknowledged: &Acknowledged,
    book: &PortBook,
    model: &ModelDeployment,
) -> Gateways {
    let wanted = model.spec.traffic_mode() == TrafficMode::Gateway;
    let own = held(model);
    if !wanted && own.is_none() {
        return Gateways::default();
    }
    let (offered, clash) = if wanted { book.offer(caches, model) } else { (None, false) };
    let uid = model.uid().unwrap_or_default();
    let listens = |address: &str| {
        let answer = acknowledged.get(address)?;
        let applied = answer.models.iter().find(|applied| applied.uid == uid);
        Some(
            !answer.draining
                && applied.is_some_and(|applied| {
                    let ports = Ports { http: applied.http_port, grpc: applied.grpc_port };
                    applied.listening && Some(ports) == own
                }),
        )
    };
    let ready = addresses(caches)
        .into_iter()
        .map(|(address, node)| Gateway { listens: listens(&address), address, node })
        .collect();
    Gateways { ready, offered, clash }
}

/// The IPv4 addresses and nodes of the gateway pods that are ready, by address.
pub fn addresses(caches: &Caches) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for slice in caches.gateways.all().iter().filter(|slice| slice.address_type == "IPv4") {
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
            if ready.unwrap_or(true)
                && let Some(address) = endpoint.addresses.first()
            {
                found.push((address.clone(), endpoint.node_name.clone()));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}
