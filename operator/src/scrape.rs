//! Asks pods and gateways what they measured, every two seconds, and wakes models whose requests
//! wait. Whoever does not answer in time is missing, never zero. Only the leader asks.
//!
//! Nothing here waits for one slow pod: requests run side by side, each with a time limit, on
//! connections that are kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, stream};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::ResourceExt as _;
use lithe::gateway::{
    Acknowledgement, Demand, ModelSignals, PATH_CONFIGURATION, PATH_DEMAND, PATH_SIGNALS,
};
use lithe::latency::Signals;
use lithe::names::{PORT_ADMIN, PORT_GATEWAY_ADMIN};
use lithe::spec::{ModelDeployment, ScalingMode};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::cache::key;
use crate::controller::Context;
use crate::gateways::addresses;
use crate::measured::Taken;
use crate::observe::observe;
use crate::plan::observation::{Answers, observation, spec};
use crate::queue::Priority;

/// Between two rounds: fresh enough to see a burst, rare enough to cost nothing.
const ROUND: Duration = Duration::from_secs(2);
/// A pod in the same cluster that needs longer is in trouble, and the next round asks again.
const LIMIT: Duration = Duration::from_millis(1500);
/// How long the gateway may keep a question about waiting requests open: it answers after 20 s.
const POLL_LIMIT: Duration = Duration::from_secs(25);
/// After a question that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// Requests that are under way at the same time.
const SIDE_BY_SIDE: usize = 128;
/// The largest answer of a pod: some hundred counts.
const LARGEST: usize = 256 << 10;
/// The largest answer of a gateway: such counts for each of five thousand models.
const LARGEST_OF_GATEWAY: usize = 64 << 20;

type Http = Client<HttpConnector, Empty<Bytes>>;

/// Asks until the process ends.
pub async fn run(context: Arc<Context>) {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(LIMIT));
    connector.set_nodelay(true);
    let http: Http = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(1)
        .build(connector);
    let began = Instant::now();
    let asker = Asker { context, http, began };
    let mut polls: HashMap<String, JoinHandle<()>> = HashMap::new();
    let mut ticks = tokio::time::interval(ROUND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !asker.context.leadership.leads() {
            polls.drain().for_each(|(_, poll)| poll.abort());
            asker.context.measured.forget();
            continue;
        }
        let models = asker.models();
        let uids = models.iter().filter_map(|model| model.uid()).collect();
        asker.context.measured.keep_only(&uids);
        let gateways: Vec<String> = if models.is_empty() { Vec::new() } else { asker.gateways() };
        asker.follow(&mut polls, &gateways);
        if !models.is_empty() {
            asker.acknowledge(&gateways).await;
            asker.measure(&models, &gateways).await;
        }
    }
}

#[derive(Clone)]
struct Asker {
    context: Arc<Context>,
    http: Http,
    began: Instant,
}

impl Asker {
    /// The models about which anybody is asked: those with a latency target, and those whose
    /// requests go, or shall go, through the gateway.
    fn models(&self) -> Vec<Arc<ModelDeployment>> {
        let mut models = self.context.caches.models.all();
        models.retain(|model| {
            let scales = model.spec.scaling.latency.is_some();
            let held = model.status.as_ref().is_some_and(|status| status.traffic.is_some());
            model.metadata.deletion_timestamp.is_none() && (scales || held)
        });
        models
    }

    fn gateways(&self) -> Vec<String> {
        addresses(&self.context.caches).into_iter().map(|(address, _)| address).collect()
    }

    /// Which configuration each gateway pod applies.
    async fn acknowledge(&self, gateways: &[String]) {
        let questions = gateways.iter().cloned().map(|address| {
            let asker = self.clone();
            async move {
                let answer: Acknowledgement =
                    asker.ask(&address, PATH_CONFIGURATION, LIMIT).await?;
                Some((address, answer))
            }
            .boxed()
        });
        let answers = side_by_side(questions.collect()).await;
        let present = gateways.iter().cloned().collect();
        let changed = self.context.measured.acknowledge(answers, &present);
        for uid in changed {
            for model in self.context.caches.models.of(&uid) {
                self.context.queue.push(key(model.as_ref()), Priority::Urgent);
            }
        }
    }

    /// One round about `models`. Says whether another round overtook it.
    async fn measure(&self, models: &[Arc<ModelDeployment>], gateways: &[String]) -> bool {
        let scaled: Vec<&Arc<ModelDeployment>> = models
            .iter()
            .filter(|model| model.spec.scaling.latency.is_some())
            .filter(|model| model.spec.scaling.mode() != ScalingMode::Fixed)
            .collect();
        if scaled.is_empty() {
            return false;
        }
        let began = self.began.elapsed();
        let answers = self.answers(&scaled, gateways).await;
        let mut overtaken = false;
        for model in scaled {
            let observed = observe(&self.context.caches, Arc::clone(model));
            let seen = observation(&observed, &answers);
            let Some(spec) = spec(&observed) else { continue };
            let when = began..self.began.elapsed();
            match self.context.measured.take(model, &spec, &seen, when) {
                Taken::Changed => self.context.queue.push(key(model.as_ref()), Priority::Urgent),
                Taken::Same => {}
                Taken::TooLate => overtaken = true,
            }
        }
        overtaken
    }

    async fn answers(&self, models: &[&Arc<ModelDeployment>], gateways: &[String]) -> Answers {
        let uids = models.iter().filter_map(|model| model.uid());
        let pods = uids.flat_map(|uid| self.context.caches.pods.of(&uid));
        let pods = pods.filter_map(|pod| Some((pod.uid()?, pod.status.as_ref()?.pod_ip.clone()?)));
        let of_pods = pods.map(|(uid, address)| {
            let asker = self.clone();
            async move {
                let place = (address.as_str(), PORT_ADMIN, PATH_SIGNALS);
                let bytes = asker.fetch(place, LIMIT, LARGEST).await?;
                let signals = Signals::parse(&bytes);
                let signals = signals
                    .inspect_err(|error| tracing::warn!(address, %error, "signals of a pod"));
                Some((uid, signals.ok()?))
            }
            .boxed()
        });
        let of_gateways = gateways.iter().cloned().map(|address| {
            let asker = self.clone();
            async move {
                let told: Vec<ModelSignals> = asker.ask(&address, PATH_SIGNALS, LIMIT).await?;
                let by_model = told.into_iter().map(|told| (told.uid, told.signals));
                Some(by_model.collect::<HashMap<String, Signals>>())
            }
            .boxed()
        });
        let (pods, gateways) =
            futures::join!(side_by_side(of_pods.collect()), side_by_side(of_gateways.collect()));
        Answers { pods: pods.into_iter().collect(), gateways }
    }

    /// Keeps one question about waiting requests open at each gateway pod.
    fn follow(&self, polls: &mut HashMap<String, JoinHandle<()>>, gateways: &[String]) {
        let present: HashSet<&String> = gateways.iter().collect();
        polls.retain(|address, poll| {
            let stays = present.contains(address) && !poll.is_finished();
            if !stays {
                poll.abort();
            }
            stays
        });
        for address in
            gateways.iter().filter(|address| !polls.contains_key(*address)).collect::<Vec<_>>()
        {
            let poll = self.clone().poll(address.clone());
            polls.insert(address.clone(), tokio::spawn(poll));
        }
    }

    /// As soon as requests for a model wait at `gateway`, that model is measured and decided on:
    /// the next round would be up to two seconds away.
    async fn poll(self, gateway: String) {
        let mut after = 0;
        loop {
            let path = format!("{PATH_DEMAND}?after={after}");
            let answer: Option<Demand> = self.ask(&gateway, &path, POLL_LIMIT).await;
            let Some(demand) = answer else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            after = demand.sequence;
            let waiting = demand.waiting.iter().filter(|waiting| waiting.requests > 0);
            let models: Vec<Arc<ModelDeployment>> =
                waiting.flat_map(|waiting| self.context.caches.models.of(&waiting.uid)).collect();
            // The round that overtook this one may have asked before the requests came.
            if self.measure(&models, &self.gateways()).await {
                self.measure(&models, &self.gateways()).await;
            }
        }
    }

    /// The answer of the gateway pod at `address`.
    async fn ask<T>(&self, address: &str, path: &str, limit: Duration) -> Option<T>
    where
        T: serde::de::DeserializeOwned,
    {
        let place = (address, PORT_GATEWAY_ADMIN, path);
        let bytes = self.fetch(place, limit, LARGEST_OF_GATEWAY).await?;
        serde_json::from_slice(&bytes)
            .inspect_err(|error| tracing::warn!(address, path, %error, "answer of a gateway"))
            .ok()
    }

    /// The body of a successful answer of (address, port, path) within `limit`, of at most `largest`
    /// bytes.
    async fn fetch(
        &self,
        (address, port, path): (&str, u16, &str),
        limit: Duration,
        largest: usize,
    ) -> Option<Bytes> {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let uri: http::Uri = format!("http://{host}:{port}{path}").parse().ok()?;
        let answer = async {
            let reply = self.http.get(uri).await.ok()?;
            if !reply.status().is_success() {
                return None;
            }
            let body = Limited::new(reply.into_body(), largest).collect().await;
            body.ok().map(|body| body.to_bytes())
        };
        tokio::time::timeout(limit, answer).await.ok().flatten()
    }
}

/// What came of `questions`, without those that got no answer, in any order.
async fn side_by_side<T>(questions: Vec<BoxFuture<'static, Option<T>>>) -> Vec<T> {
    let answers = stream::iter(questions).buffer_unordered(SIDE_BY_SIDE);
    answers.collect::<Vec<_>>().await.into_iter().flatten().collect()
}
