//! From a cluster to decisions, children and status: each folder of `golden/` is one case.
//!
//! `in.yaml` holds a ModelDeployment, what the watches told, and the time; `out.yaml` what follows.
//! `UPDATE=1 cargo test -p lithe-operator --test golden` writes the latter anew: read the diff.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use clap::Parser as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::{Resource, ResourceExt as _};
use lithe::spec::{ModelDeployment, ModelDeploymentSpec};
use lithe::status::Verdict;
use lithe_operator::apply::Applied;
use lithe_operator::cache::Cache;
use lithe_operator::config::Config;
use lithe_operator::objects::{Objects, objects};
use lithe_operator::observe::{Caches, Hint, Observed, observe};
use lithe_operator::plan::scaling::Scaled;
use lithe_operator::plan::traffic::{Gateway, Gateways, Ports};
use lithe_operator::plan::{compress, plan, scale};
use lithe_operator::report::{events, report};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

/// One case's input.
#[derive(serde::Deserialize)]
struct Input {
    /// The claim that the case makes.
    #[allow(dead_code)]
    claim: String,
    now: Time,
    #[serde(default)]
    flags: Vec<String>,
    model: ModelDeployment,
    #[serde(default)]
    cluster: Vec<Value>,
    /// (object, message) of events that were asked for.
    #[serde(default)]
    hints: Vec<(String, String)>,
    /// Gateway pods that are ready: address, and whether they listen on the model's ports.
    #[serde(default)]
    gateways: Vec<(String, Option<bool>)>,
    /// What the measurements say: pods that are needed, reason of the condition, words.
    #[serde(default)]
    scaled: Option<(u32, String, String)>,
    /// Kinds that are shown in full; others by name only.
    #[serde(default)]
    show: Vec<String>,
}

#[derive(Serialize)]
struct Output {
    start: Option<String>,
    discard: Option<String>,
    children: Vec<serde_json::Value>,
    events: Vec<String>,
    status: serde_json::Value,
}

fn put<K: Resource<DynamicType = ()> + Clone + DeserializeOwned>(cache: &Cache<K>, value: Value) {
    let object: K = serde_yaml::from_value(value).unwrap();
    cache.put(object);
}

fn caches(cluster: Vec<Value>) -> Caches {
    let caches = Caches::default();
    for object in cluster {
        match object.get("kind").and_then(Value::as_str).unwrap() {
            "Deployment" => put(&caches.deployments, object),
            "Job" => put(&caches.jobs, object),
            "Pod" => put(&caches.pods, object),
            "Service" => put(&caches.services, object),
            "EndpointSlice" => put(&caches.slices, object),
            other => panic!("{other}"),
        }
    }
    caches
}

/// Digests and names that follow from the spec stand in the input by name.
fn read(text: &str) -> Input {
    let raw: Value = serde_yaml::from_str(text).unwrap();
    let model = raw.get("model").unwrap();
    let spec: ModelDeploymentSpec =
        serde_yaml::from_value(model.get("spec").cloned().unwrap()).unwrap();
    let meta: ObjectMeta = serde_yaml::from_value(model.get("metadata").cloned().unwrap()).unwrap();
    let (name, uid) = (meta.name.unwrap(), meta.uid.unwrap());
    let request = compress::request(&spec);
    let text = text
        .replace("$REQUEST", request.as_str())
        .replace("$MEANS", compress::means(&spec).as_str())
        .replace("$JOB", &lithe::names::job(&name, &uid, &request))
        .replace("$CHILD", &lithe::names::child(&name, &uid, ""));
    serde_yaml::from_str(&text).unwrap()
}

fn shown<K: Resource<DynamicType = ()> + Serialize>(
    object: &K,
    show: &[String],
) -> serde_json::Value {
    let kind = K::kind(&()).into_owned();
    if show.contains(&kind) {
        serde_json::json!({ kind: object })
    } else {
        format!("{kind}/{}", object.name_any()).into()
    }
}

fn children(objects: &Objects, show: &[String]) -> Vec<serde_json::Value> {
    let Objects {
        account,
        policies,
        service,
        workers,
        slice,
        budget,
        deployment,
        job,
        job_meta: _,
    } = objects;
    let mut children = vec![shown(account, show)];
    children.extend(policies.iter().map(|policy| shown(policy, show)));
    children.push(shown(service, show));
    children.extend(workers.iter().map(|workers| shown(workers, show)));
    children.extend(slice.iter().map(|slice| shown(slice, show)));
    children.extend(budget.iter().map(|budget| shown(budget, show)));
    children.extend(deployment.iter().map(|deployment| shown(deployment, show)));
    children.extend(job.iter().map(|job| shown(job, show)));
    children
}

fn decide(text: &str) -> String {
    let input = read(text);
    let flags = ["op", "--store", "oci://store:5000/lithe", "--worker-image", "worker:1"];
    let flags = flags.into_iter().map(str::to_owned).chain(input.flags);
    let config = Config::parse_from(flags);
    let hints = input.hints.into_iter().map(|(object, message)| Hint { object, message });
    let observed = observe(&caches(input.cluster), std::sync::Arc::new(input.model));
    let gateway = |(address, listens)| Gateway { address, node: Some("n-1".into()), listens };
    let gateways = Gateways {
        ready: input.gateways.into_iter().map(gateway).collect(),
        offered: Some(Ports { http: 20000, grpc: 20001 }),
        clash: false,
    };
    let scaled = input.scaled.map(|(desired, kind, why)| {
        let reason = [scale::Reason::Staffed, scale::Reason::Idle, scale::Reason::Saturated]
            .into_iter()
            .find(|reason| reason.as_str() == kind)
            .unwrap();
        let verdict = Verdict::new(reason.active(), reason.as_str(), why.clone());
        let told = Scaled { desired, why, verdict, latency: None, replace: Vec::new() };
        std::sync::Arc::new(told)
    });
    let observed = Observed { hints: hints.collect(), gateways, scaled, ..observed };
    let plan = plan(&observed, &config, &input.now);
    let objects = objects(&observed, &plan, &config);
    let status = report(&observed, &plan, &Applied::default(), &input.now);
    let news = events::news(&observed, &plan, &status);
    let output = Output {
        start: plan.start.clone(),
        discard: plan.discard.clone(),
        children: children(&objects, &input.show),
        events: news
            .iter()
            .map(|news| format!("{} {}: {}", news.kind, news.reason, news.message))
            .collect(),
        status: serde_json::to_value(&status).unwrap(),
    };
    // Told twice, the same cluster gives the same status: at rest nothing is written.
    let mut told = observed.model.as_ref().clone();
    told.status = Some(status.clone());
    let observed = Observed { model: std::sync::Arc::new(told), ..observed };
    let again = lithe_operator::plan::plan(&observed, &config, &input.now);
    assert_eq!(report(&observed, &again, &Applied::default(), &input.now), status);
    serde_yaml::to_string(&output).unwrap()
}

#[test]
fn each_case_gives_what_its_file_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 10, "{cases:?}");
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for case in cases {
        let output = decide(&std::fs::read_to_string(case.join("in.yaml")).unwrap());
        let golden = case.join("out.yaml");
        if update {
            std::fs::write(&golden, &output).unwrap();
        } else if std::fs::read_to_string(&golden).unwrap_or_default() != output {
            wrong.push(format!("{}:\n{output}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
