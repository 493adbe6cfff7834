//! How requests reach the pods: which ports of the gateway are a model's, and when its Service
//! leads there. Pure; it must not know how gateways are asked.

use std::collections::BTreeSet;

use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt as _;
use lithe::names::{
    GATEWAY_PORTS, LABEL_ROLE, LABEL_SERVICE, LABEL_SLICE_KEEPER, ROLE_GATEWAY, SLICE_KEEPER,
};
use lithe::spec::TrafficMode;
use lithe::status::TrafficStatus;

use crate::config::Config;
use crate::observe::Observed;

/// After the Service left the gateway, its ports stay open this long: connections that were made
/// through it end by themselves, and node proxies that heard of the change late still find somebody.
const LINGER: SignedDuration = SignedDuration::from_secs(30);

/// Two ports that every gateway pod has for one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The REST protocols.
    pub http: u16,
    /// gRPC.
    pub grpc: u16,
}

/// A gateway pod that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its IPv4 address.
    pub address: String,
    /// The node it runs on.
    pub node: Option<String>,
    /// Whether it listens on the model's ports; `None` as long as it was not asked.
    pub listens: Option<bool>,
}

/// What the gateway looks like from one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateways {
    /// The pods that are ready.
    pub ready: Vec<Gateway>,
    /// Ports that no other model has, for when this one has none.
    pub offered: Option<Ports>,
    /// Whether the ports in the model's status are another's too, and it has to take others.
    pub clash: bool,
}

/// One address behind the Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The IPv4 address of a gateway pod.
    pub address: String,
    /// Its node.
    pub node: Option<String>,
}

/// How requests reach the pods now, and on which way that is to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// What is wanted.
    pub wanted: TrafficMode,
    /// The gateway's ports for the model, as long as it has any.
    pub ports: Option<Ports>,
    /// Whether the Service leads to the gateway.
    pub through: bool,
    /// What the operator's EndpointSlice holds; `None` where there must not be one.
    pub endpoints: Option<Vec<Endpoint>>,
    /// Since when it is as it is.
    pub since: Time,
}

impl Traffic {
    /// Whether the gateway must know the pods.
    pub fn uses_gateway(&self) -> bool {
        self.ports.is_some()
    }

    /// What the status says of it.
    pub fn status(&self) -> TrafficStatus {
        TrafficStatus {
            mode: if self.through { TrafficMode::Gateway } else { TrafficMode::Direct },
            http_port: self.ports.map(|ports| ports.http),
            grpc_port: self.ports.map(|ports| ports.grpc),
            since: Some(self.since.clone()),
            weights: Vec::new(),
        }
    }
}

/// The lowest free pair of ports, or none when all are taken.
pub fn lowest_free(taken: &BTreeSet<u16>) -> Option<Ports> {
    GATEWAY_PORTS
        .step_by(2)
        .find(|http| !taken.contains(http) && !taken.contains(&(http + 1)))
        .map(|http| Ports { http, grpc: http + 1 })
}

/// The ports in a status.
pub fn ports_of(status: &TrafficStatus) -> Option<Ports> {
    Some(Ports { http: status.http_port?, grpc: status.grpc_port? })
}

/// The next step towards what is wanted.
///
/// | wanted | a gateway listens | our endpoints seen | pods' endpoints ready | Service leads | our endpoints |
/// |---|---|---|---|---|---|
/// | Gateway | no | no | - | to the pods | none |
/// | Gateway | yes | no | - | to the pods | those that listen |
/// | Gateway | yes | yes | - | to the gateway | those that listen |
/// | Gateway | no more | yes | - | as it did | as they were: no gateway is better than no address |
/// | Direct | - | yes | no | to the pods | as they were |
/// | Direct | - | yes | yes | to the pods | none; the ports go 30 s later |
///
/// So at each step there is an address that answers. A gateway that was not asked yet keeps its
/// place: missing news are no reason to move traffic.
pub fn traffic(observed: &Observed, config: &Config, now: &Time) -> Traffic {
    let wanted = match observed.model.spec.traffic_mode() {
        TrafficMode::Gateway if config.gateway_service.is_some() => TrafficMode::Gateway,
        _ => TrafficMode::Direct,
    };
    let before = observed.model.status.as_ref().and_then(|status| status.traffic.clone());
    // A status that was lost is no reason to move: our slice has the ports, too.
    let known = before.as_ref().and_then(ports_of).or_else(|| written_ports(observed));
    let known = known.filter(|_| !observed.gateways.clash);
    let ours = written(observed);
    let led = leads_to_gateway(observed);
    let (through, endpoints) = match wanted {
        TrafficMode::Gateway => {
            let listening = known.map(|_| listening(observed, ours.as_deref()));
            let endpoints = listening.filter(|found| !found.is_empty()).or(ours.clone());
            let seen = ours.as_ref().is_some_and(|ours| !ours.is_empty());
            ((led || seen) && endpoints.is_some(), endpoints)
        }
        TrafficMode::Direct => (false, ours.filter(|_| led || !pods_are_behind(observed))),
    };
    let mode = if through { TrafficMode::Gateway } else { TrafficMode::Direct };
    let since = before
        .filter(|before| before.mode == mode)
        .and_then(|before| before.since)
        .unwrap_or_else(|| now.clone());
    let lingers = endpoints.is_some() || now.0.duration_since(since.0) < LINGER;
    let ports = match wanted {
        TrafficMode::Gateway => known.or(observed.gateways.offered),
        TrafficMode::Direct => known.filter(|_| lingers),
    };
    Traffic { wanted, ports, through, endpoints, since }
}

/// The gateway pods that may get requests, by address: those that listen, and of those that were
/// not asked yet the ones that get them already.
fn listening(observed: &Observed, ours: Option<&[Endpoint]>) -> Vec<Endpoint> {
    let has = |gateway: &Gateway| {
        ours.into_iter().flatten().any(|endpoint| endpoint.address == gateway.address)
    };
    let ready = observed.gateways.ready.iter();
    let mut found: Vec<Endpoint> = ready
        .filter(|gateway| gateway.listens.unwrap_or_else(|| has(gateway)))
        .map(|gateway| Endpoint { address: gateway.address.clone(), node: gateway.node.clone() })
        .collect();
    found.sort_by(|a, b| a.address.cmp(&b.address));
    found
}

/// Whether the Service selects the role that no pod has.
pub fn leads_to_gateway(observed: &Observed) -> bool {
    let selector = |role: &String| role == ROLE_GATEWAY;
    observed.service.as_ref().is_some_and(|service| {
        let spec = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        spec.and_then(|selector| selector.get(LABEL_ROLE)).is_some_and(selector)
    })
}

/// Whether `slice` is one that the operator writes.
pub fn is_ours(slice: &EndpointSlice) -> bool {
    slice.labels().get(LABEL_SLICE_KEEPER).is_some_and(|keeper| keeper == SLICE_KEEPER)
}

/// What our slice holds, when there is one.
fn written(observed: &Observed) -> Option<Vec<Endpoint>> {
    let slice = observed.slices.iter().find(|slice| is_ours(slice))?;
    let endpoint = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        let address = endpoint.addresses.first()?.clone();
        Some(Endpoint { address, node: endpoint.node_name.clone() })
    };
    Some(slice.endpoints.iter().flatten().filter_map(endpoint).collect())
}

/// The ports in our slice.
fn written_ports(observed: &Observed) -> Option<Ports> {
    let slice = observed.slices.iter().find(|slice| is_ours(slice))?;
    let port = |name: &str| {
        let named = |port: &&EndpointPort| port.name.as_deref() == Some(name);
        let port = slice.ports.iter().flatten().find(named)?.port?;
        u16::try_from(port).ok()
    };
    Some(Ports { http: port("http")?, grpc: port("grpc")? })
}

/// Whether the cluster itself has put ready pods behind the model's Service.
fn pods_are_behind(observed: &Observed) -> bool {
    let service = observed.service.as_ref().map(|service| service.name_any());
    let of_service = |slice: &&std::sync::Arc<EndpointSlice>| {
        !is_ours(slice) && slice.labels().get(LABEL_SERVICE) == service.as_ref()
    };
    observed.slices.iter().filter(of_service).any(|slice| {
        slice.endpoints.iter().flatten().any(|endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use serde_json::json;

    use super::*;
    use crate::observe::{Caches, observe};

    fn now(second: u32) -> Time {
        serde_json::from_value(json!(format!(
            "2026-01-01T00:{:02}:{:02}Z",
            second / 60,
            second % 60
        )))
        .unwrap()
    }

    fn config(gateway: bool) -> Config {
        let flags = ["op", "--store", "oci://s/l", "--worker-image", "w"];
        let gateway: &[&str] = if gateway { &["--gateway-service", "gate"] } else { &[] };
        Config::parse_from(flags.iter().chain(gateway))
    }

    /// What the watches would tell of one model.
    struct Seen {
        mode: &'static str,
        status: Option<TrafficStatus>,
        through: bool,
        ours: Option<Vec<Endpoint>>,
        pods: bool,
        gateways: Vec<(&'static str, Option<bool>)>,
        offered: Option<Ports>,
    }

    impl Seen {
        fn observed(&self) -> Observed {
            let model = json!({
                "metadata": {"name": "magika", "namespace": "files", "uid": "u-1"},
                "spec": {"model": {"uri": "pvc://m/a.onnx"}, "traffic": {"mode": self.mode}},
                "status": {"traffic": self.status},
            });
            let observed =
                observe(&Caches::default(), Arc::new(serde_json::from_value(model).unwrap()));
            let role = if self.through { ROLE_GATEWAY } else { "serve" };
            let service = json!({
                "metadata": {"name": "magika"}, "spec": {"selector": {LABEL_ROLE: role}},
            });
            // The cluster keeps the addresses of the pods that the Service selects.
            let theirs = json!({
                "metadata": {"name": "theirs", "labels": {LABEL_SERVICE: "magika"}},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.9"], "conditions": {"ready": self.pods && !self.through}}],
            });
            let mut slices = vec![theirs];
            if let Some(ours) = &self.ours {
                let addresses: Vec<_> =
                    ours.iter().map(|endpoint| json!({"addresses": [endpoint.address]})).collect();
                slices.push(json!({
                    "metadata": {"name": "ours", "labels": {LABEL_SERVICE: "magika", LABEL_SLICE_KEEPER: SLICE_KEEPER}},
                    "addressType": "IPv4", "endpoints": addresses,
                }));
            }
            let gateway = |(address, listens): &(&str, Option<bool>)| Gateway {
                address: (*address).to_owned(),
                node: None,
                listens: *listens,
            };
            Observed {
                service: Some(Arc::new(serde_json::from_value(service).unwrap())),
                slices: slices
                    .into_iter()
                    .map(|slice| Arc::new(serde_json::from_value(slice).unwrap()))
                    .collect(),
                gateways: Gateways {
                    ready: self.gateways.iter().map(gateway).collect(),
                    offered: self.offered,
                    clash: false,
                },
                ..observed
            }
        }

        /// One pass at `second`, after which the cluster shows what was wanted.
        fn pass(&mut self, second: u32) -> Traffic {
            let next = traffic(&self.observed(), &config(true), &now(second));
            self.status = next.uses_gateway().then(|| next.status());
            self.through = next.through;
            self.ours = next.endpoints.clone();
            // What the Service leads to must answer at each step.
            let answers = |endpoint: &Endpoint| {
                self.gateways.iter().any(|(address, _)| *address == endpoint.address)
            };
            let by_gateway = self.ours.iter().flatten().any(answers);
            assert!(by_gateway || (self.pods && !self.through), "no address at {second}: {next:?}");
            next
        }
    }

    fn addresses(traffic: &Traffic) -> Vec<&str> {
        traffic.endpoints.iter().flatten().map(|endpoint| endpoint.address.as_str()).collect()
    }

    const PORTS: Ports = Ports { http: 20000, grpc: 20001 };

    fn direct() -> Seen {
        Seen {
            mode: "Gateway",
            status: None,
            through: false,
            ours: None,
            pods: true,
            gateways: vec![("10.0.1.1", None), ("10.0.1.2", None)],
            offered: Some(PORTS),
        }
    }

    #[test]
    fn a_service_leads_to_the_gateway_only_when_its_pods_listen_and_back_only_when_pods_answer() {
        let mut seen = direct();
        // Ports are given; nobody listens yet.
        let first = seen.pass(0);
        assert_eq!((first.ports, first.through, first.endpoints), (Some(PORTS), false, None));
        // One of two listens: it is put behind the Service, which still leads to the pods.
        seen.gateways = vec![("10.0.1.1", Some(true)), ("10.0.1.2", Some(false))];
        let second = seen.pass(2);
        assert_eq!((second.through, addresses(&second)), (false, vec!["10.0.1.1"]));
        let third = seen.pass(3);
        assert_eq!((third.through, third.since.clone()), (true, now(3)));
        seen.gateways = vec![("10.0.1.1", Some(true)), ("10.0.1.2", Some(true))];
        assert_eq!(addresses(&seen.pass(4)), ["10.0.1.1", "10.0.1.2"]);
        // Back: the Service selects pods, and the gateway stays behind it until one is ready.
        (seen.mode, seen.pods) = ("Direct", false);
        let leaves = seen.pass(10);
        assert_eq!((leaves.through, addresses(&leaves).len()), (false, 2));
        assert_eq!(addresses(&seen.pass(11)).len(), 2);
        seen.pods = true;
        let left = seen.pass(12);
        assert_eq!((left.endpoints.clone(), left.ports), (None, Some(PORTS)));
        assert_eq!(seen.pass(39).ports, Some(PORTS));
        assert_eq!(seen.pass(40).ports, None);
    }

    #[test]
    fn a_gateway_that_was_not_asked_yet_keeps_its_place_and_one_that_went_loses_it() {
        let mut seen = direct();
        seen.status = Some(TrafficStatus {
            mode: TrafficMode::Gateway,
            http_port: Some(20000),
            grpc_port: Some(20001),
            weights: Vec::new(),
            since: Some(now(0)),
        });
        (seen.through, seen.offered) = (true, None);
        seen.ours = Some(vec![Endpoint { address: "10.0.1.1".into(), node: None }]);
        // The operator began anew: nobody was asked.
        assert_eq!(addresses(&seen.pass(60)), ["10.0.1.1"]);
        seen.gateways = vec![("10.0.1.2", Some(true))];
        assert_eq!(addresses(&seen.pass(62)), ["10.0.1.2"]);
        // None is ready: the last ones stay, for there is nothing better.
        let mut none = Seen { gateways: Vec::new(), ..seen };
        let held = traffic(&none.observed(), &config(true), &now(64));
        assert_eq!((held.through, addresses(&held)), (true, vec!["10.0.1.2"]));
        // The installation lost its gateway: straight to the pods.
        let lost = traffic(&none.observed(), &config(false), &now(66));
        assert_eq!((lost.wanted, lost.through), (TrafficMode::Direct, false));
        none.through = false;
        assert_eq!(traffic(&none.observed(), &config(false), &now(68)).endpoints, None);
    }

    #[test]
    fn ports_are_the_lowest_free_pair() {
        let rows: [(&[u16], Option<u16>); 4] = [
            (&[], Some(20000)),
            (&[20000, 20001, 20004], Some(20002)),
            (&[20001], Some(20002)),
            (&[19999, 30000], Some(20000)),
        ];
        for (taken, http) in rows {
            let found = lowest_free(&taken.iter().copied().collect());
            assert_eq!(found.map(|ports| ports.http), http, "{taken:?}");
            assert!(found.is_none_or(|ports| ports.grpc == ports.http + 1));
        }
        assert_eq!(lowest_free(&GATEWAY_PORTS.collect()), None);
    }
}
