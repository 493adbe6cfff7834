//! The loop: what the watches told is worked on, step by step. The only place where the steps meet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt as _};
use lithe::names::STATUS_MANAGER;
use lithe::spec::{ModelDeployment, TrafficMode};
use lithe::status::ModelDeploymentStatus;

use crate::apply::{Access, Applied, WriteError, apply, words};
use crate::cache::{Key, key};
use crate::client::Clients;
use crate::config::Config;
use crate::gateways::{PortBook, gateways};
use crate::inquire::{Answers, inquire};
use crate::lease::Leadership;
use crate::measured::Measured;
use crate::metrics::Metrics;
use crate::objects::objects;
use crate::observe::{Caches, Observed, observe, questions};
use crate::plan::compress::JobState;
use crate::plan::{Plan, plan};
use crate::publish::publish;
use crate::pulse::{BEAT, Pulse};
use crate::queue::{End, Priority, Queue};
use crate::report::{events, report};
use crate::watch;

/// After children were created, their controllers tell more within this time: one status for both.
const FIRST_LOOK: Duration = Duration::from_millis(400);
/// While something is under way, it is looked at this often even without news.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How often a name that somebody else holds is tried again.
const TRY_NAME: Duration = Duration::from_secs(15);
/// Every object is looked at this often, whatever the watches told or missed.
const RESYNC: Duration = Duration::from_secs(600);

/// What every step may use.
pub struct Context {
    /// The API server.
    pub clients: Clients,
    /// What the watches tell.
    pub caches: Caches,
    /// What waits.
    pub queue: Queue<Key>,
    /// Flags.
    pub config: Config,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Whether we may write.
    pub leadership: Leadership,
    /// Events that were asked for.
    pub answers: Answers,
    /// What pods and gateways told.
    pub measured: Measured,
    /// The gateway's ports that are promised.
    pub ports: PortBook,
    /// Whether the loop turns.
    pub pulse: Pulse,
}

/// A reconcile that did not do all it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A child could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The status could not be written.
    #[error("write the status: {}", words(.0))]
    Status(Box<kube::Error>),
}

/// Brings the cluster one step nearer to `model`, and says how far it is.
#[tracing::instrument(skip_all, fields(namespace = model.namespace(), name = model.name_any()))]
async fn reconcile(context: &Context, model: Arc<ModelDeployment>) -> Result<(), Error> {
    let now = Time(Timestamp::now());
    let observed = look(context, model, &now).await;
    let plan = plan(&observed, &context.config, &now);
    let wanted = objects(&observed, &plan, &context.config);
    let leads = || context.leadership.leads();
    let access = Access { client: &context.clients.requests, leads: &leads };
    let applied = apply(&access, &context.caches, &observed, &plan, wanted).await;
    // A step in the number of pods is told at once: the next look would see no step.
    if !applied.created.is_empty() && applied.failed.is_empty() && plan.step.is_none() {
        context.queue.push_at(key(observed.model.as_ref()), Instant::now() + FIRST_LOOK);
        return Ok(());
    }
    // What was just written is part of what is reported.
    let Observed { hints, gateways, scaled, model, .. } = observed;
    let observed = Observed { hints, gateways, scaled, ..observe(&context.caches, model) };
    let status = report(&observed, &plan, &applied, &now);
    let news = events::news(&observed, &plan, &status);
    write_status(context, &observed.model, status).await?;
    for event in news {
        publish(&context.clients.requests, &observed.model, event, &now).await;
    }
    if let Some(pause) = next_look(&observed, &plan, &applied, &now) {
        context.queue.push_at(key(observed.model.as_ref()), Instant::now() + pause);
    }
    applied.failed.into_iter().next().map_or(Ok(()), |error| Err(error.into()))
}

async fn look(context: &Context, model: Arc<ModelDeployment>, now: &Time) -> Observed {
    let observed = observe(&context.caches, model);
    let asked = questions(&observed, now);
    let namespace = observed.model.namespace().unwrap_or_default();
    let hints = inquire(&context.clients.requests, &context.answers, &namespace, &asked).await;
    let acknowledged = context.measured.acknowledged();
    let model = observed.model.as_ref();
    let gateways = gateways(&context.caches, &acknowledged, &context.ports, model);
    let scaled = context.measured.scaled(&model.uid().unwrap_or_default());
    Observed { hints, gateways, scaled, ..observed }
}

/// When something may have changed without an event that tells us.
fn next_look(observed: &Observed, plan: &Plan, applied: &Applied, now: &Time) -> Option<Duration> {
    let works = !plan.current && matches!(plan.job, JobState::Running(_) | JobState::Unreadable(_));
    if works || !questions(observed, now).is_empty() {
        return Some(LOOK_AGAIN);
    }
    // The ports of a gateway that is left are given back when they have lingered.
    let leaves = plan.traffic.wanted == TrafficMode::Direct && plan.traffic.uses_gateway();
    (!applied.failed.is_empty() || leaves).then_some(TRY_NAME)
}

async fn write_status(
    context: &Context,
    model: &ModelDeployment,
    status: ModelDeploymentStatus,
) -> Result<(), Error> {
    if model.status.as_ref() == Some(&status) {
        return Ok(());
    }
    if !context.leadership.leads() {
        return Err(WriteError::NotLeader.into());
    }
    let client = context.clients.requests.clone();
    let api: Api<ModelDeployment> = Api::namespaced(client, &model.namespace().unwrap_or_default());
    let body = serde_json::json!({
        "apiVersion": ModelDeployment::api_version(&()),
        "kind": ModelDeployment::kind(&()),
        "metadata": {"name": model.name_any(), "uid": model.uid()},
        "status": status,
    });
    let params = PatchParams::apply(STATUS_MANAGER).force();
    match api.patch_status(&model.name_any(), &params, &Patch::Apply(&body)).await {
        Ok(written) => {
            context.caches.models.put(written);
            Ok(())
        }
        // The object went away meanwhile; its children go with it.
        Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => Ok(()),
        Err(error) => Err(Error::Status(Box::new(error))),
    }
}

/// Watches and works until the process ends.
pub async fn run(context: Arc<Context>) {
    watch::start(&context);
    while !context.caches.ready() {
        context.pulse.beat();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut last = Instant::now();
    loop {
        context.pulse.beat();
        if let Ok(key) = tokio::time::timeout(BEAT, context.queue.next()).await {
            let ticket = Ticket { context: Arc::clone(&context), key, end: End::Badly(None) };
            tokio::spawn(work(ticket));
        }
        if last.elapsed() >= RESYNC {
            last = Instant::now();
            look_at_all(&context);
        }
    }
}

/// A key that was taken from the queue; it goes back even when the work panics.
struct Ticket {
    context: Arc<Context>,
    key: Key,
    end: End,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.context.queue.done(&self.key, self.end, Instant::now());
    }
}

async fn work(mut ticket: Ticket) {
    let (context, key) = (Arc::clone(&ticket.context), ticket.key.clone());
    // The next leader begins with all objects; so do we, if we become it.
    let model = context.caches.models.get(&key).filter(|_| context.leadership.leads());
    let Some(model) = model.filter(|model| model.metadata.deletion_timestamp.is_none()) else {
        ticket.end = End::Well;
        return;
    };
    let began = Instant::now();
    let result = reconcile(&context, model).await;
    context.metrics.reconcile(if result.is_ok() { "ok" } else { "error" }, began.elapsed());
    if let Err(error) = &result {
        tracing::warn!(namespace = key.0, name = key.1, %error, "reconcile");
    }
    ticket.end = match result {
        Ok(()) => End::Well,
        Err(Error::Write(error)) if !error.passes() => End::Well,
        Err(Error::Write(error)) => End::Badly(error.retry_after()),
        Err(Error::Status(_)) => End::Badly(None),
    };
}

/// Everything that is declared must be looked at: a leader begins with this.
pub fn look_at_all(context: &Context) {
    for key in context.caches.models.keys() {
        context.queue.push(key, Priority::Normal);
    }
}
