//! The writes against an API server that is played: what is sent, in which order, and what follows
//! from each answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::{Arc, Mutex};

use clap::Parser as _;
use http::{Request, Response};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::client::Body;
use lithe::names::reason;
use lithe::spec::ModelDeployment;
use lithe_operator::apply::{Access, Applied, WriteError, apply};
use lithe_operator::config::Config;
use lithe_operator::objects::objects;
use lithe_operator::observe::{Caches, Observed, observe};
use lithe_operator::plan::plan;
use lithe_operator::plan::scaling::Scaled;
use lithe_operator::plan::traffic::{Gateway, Gateways};
use serde_json::{Value, json};

/// One request as the API server got it.
#[derive(Clone, Debug)]
struct Got {
    verb: String,
    path: String,
    query: String,
    body: Value,
}

impl Got {
    /// `PATCH services/magika`.
    fn line(&self) -> String {
        let parts: Vec<&str> = self.path.rsplitn(3, '/').collect();
        format!("{} {}/{}", self.verb, parts[1], parts[0])
    }
}

/// Plays the API server: `answer` gives code and body; all requests are noted.
fn play(answer: impl Fn(&Got) -> (u16, Value) + Send + 'static) -> (Client, Arc<Mutex<Vec<Got>>>) {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let log = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&log);
    tokio::spawn(async move {
        while let Some((request, reply)) = handle.next_request().await {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap();
            let got = Got {
                verb: parts.method.to_string(),
                path: parts.uri.path().into(),
                query: parts.uri.query().unwrap_or_default().into(),
                body: serde_json::from_slice(&bytes).unwrap_or_default(),
            };
            let (code, body) = answer(&got);
            noted.lock().unwrap().push(got);
            let body = Body::from(body.to_string().into_bytes());
            reply.send_response(Response::builder().status(code).body(body).unwrap());
        }
    });
    (Client::new(service, "files"), log)
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message});
    (code, status)
}

/// The API server takes everything.
fn taken(got: &Got) -> (u16, Value) {
    let mut object = got.body.clone();
    object["metadata"]["uid"] = json!("made-1");
    object["metadata"]["resourceVersion"] = json!("100");
    object["metadata"]["namespace"] = json!("files");
    (200, object)
}

fn model(spec: Value) -> ModelDeployment {
    serde_json::from_value(json!({
        "metadata": {"name": "magika", "namespace": "files", "uid": "u-1", "generation": 1, "resourceVersion": "5"},
        "spec": spec,
    }))
    .unwrap()
}

struct Case {
    caches: Caches,
    model: Arc<ModelDeployment>,
    config: Config,
}

impl Case {
    fn new(flags: &[&str]) -> Self {
        let flags = ["op", "--store", "oci://s/l", "--worker-image", "w"].iter().chain(flags);
        Self {
            caches: Caches::default(),
            model: Arc::new(model(
                json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"minReplicas": 2}}),
            )),
            config: Config::parse_from(flags),
        }
    }

    /// One pass of plan and apply.
    async fn pass(&self, client: &Client, leads: bool) -> Applied {
        self.pass_seeing(client, leads, |observed| observed).await
    }

    /// One pass in which more is seen than the caches hold.
    async fn pass_seeing(
        &self,
        client: &Client,
        leads: bool,
        more: impl Fn(Observed) -> Observed,
    ) -> Applied {
        let now: Time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let observed = more(observe(&self.caches, Arc::clone(&self.model)));
        let plan = plan(&observed, &self.config, &now);
        let objects = objects(&observed, &plan, &self.config);
        let access = Access { client, leads: &move || leads };
        apply(&access, &self.caches, &observed, &plan, objects).await
    }
}

fn lines(log: &Mutex<Vec<Got>>) -> Vec<String> {
    log.lock().unwrap().drain(..).map(|got| got.line()).collect()
}

/// The name of children without a suffix.
fn child() -> String {
    lithe::names::child("magika", "u-1", "")
}

#[tokio::test]
async fn what_pods_stand_on_is_created_before_pods_and_a_second_pass_is_silent() {
    let case = Case::new(&["--bench-skip-compression", "--network-policy"]);
    let (client, log) = play(taken);
    let applied = case.pass(&client, true).await;
    assert!(applied.failed.is_empty(), "{applied:?}");
    let noted = log.lock().unwrap().clone();
    for got in &noted {
        assert!(
            got.query.contains("force=true") && got.query.contains("fieldManager=lithe-operator")
        );
        // A version that no object has: an object that exists is never overwritten by a creation.
        assert_eq!(got.body["metadata"]["resourceVersion"], "1");
        assert_eq!(got.body["metadata"]["ownerReferences"][0]["uid"], "u-1");
    }
    let name = child();
    assert_eq!(
        lines(&log),
        [
            format!("PATCH serviceaccounts/{name}"),
            format!("PATCH networkpolicies/{name}"),
            "PATCH services/magika".into(),
            format!("PATCH poddisruptionbudgets/{name}"),
            format!("PATCH deployments/{name}"),
        ]
    );
    let applied = case.pass(&client, true).await;
    assert_eq!((applied.created.len(), applied.changed.len()), (0, 0));
    assert_eq!(lines(&log), Vec::<String>::new());
}

#[tokio::test]
async fn a_budget_goes_when_there_is_never_a_second_pod() {
    let mut case = Case::new(&["--bench-skip-compression"]);
    let (client, log) = play(taken);
    case.pass(&client, true).await;
    lines(&log);
    case.model = Arc::new(model(json!({"model": {"uri": "pvc://m/a.onnx"}})));
    let applied = case.pass(&client, true).await;
    assert_eq!(applied.removed, [format!("PodDisruptionBudget/{}", child())]);
    let noted = lines(&log);
    assert!(noted.contains(&format!("DELETE poddisruptionbudgets/{}", child())), "{noted:?}");
    // With more pods it comes at once, and stays.
    case.model = Arc::new(model(
        json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"maxReplicas": 3, "latency": {"target": "50ms"}}}),
    ));
    assert_eq!(case.pass(&client, true).await.removed, Vec::<String>::new());
}

#[tokio::test]
async fn a_foreign_object_is_looked_at_once_and_left_alone_and_holds_up_no_other_child() {
    let case = Case::new(&["--bench-skip-compression"]);
    let (client, log) = play(|got| {
        match (got.verb.as_str(), got.path.ends_with("services/magika")) {
            ("PATCH", true) => failure(409, "Conflict", "the object has been modified"),
            ("GET", true) => (
                200,
                json!({"metadata": {"name": "magika", "uid": "x", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "Other", "name": "theirs", "uid": "o", "controller": true}]}}),
            ),
            _ => taken(got),
        }
    });
    let applied = case.pass(&client, true).await;
    let noted = lines(&log);
    assert_eq!(noted.iter().filter(|line| line.ends_with("services/magika")).count(), 2);
    assert_eq!(applied.created.len(), 3, "{noted:?}");
    let [error] = applied.failed.as_slice() else { panic!("{:?}", applied.failed) };
    assert_eq!(error.reason(), reason::NAME_CONFLICT);
    assert!(error.to_string().contains("belongs to Other theirs"), "{error}");
}

#[tokio::test]
async fn a_child_that_lost_its_labels_is_set_right_and_pinned_to_its_uid() {
    let case = Case::new(&["--bench-skip-compression"]);
    let (client, log) = play(|got| {
        let first = got.body["metadata"]["resourceVersion"] == "1";
        match (got.verb.as_str(), got.path.contains("/services/"), first) {
            ("PATCH", true, true) => failure(409, "Conflict", "the object has been modified"),
            ("GET", ..) => (
                200,
                json!({"metadata": {"name": "magika", "uid": "s-1", "ownerReferences": [
                {"apiVersion": "lithe.dev/v1alpha1", "kind": "ModelDeployment", "name": "magika", "uid": "u-1", "controller": true}]}}),
            ),
            _ => taken(got),
        }
    });
    let applied = case.pass(&client, true).await;
    assert!(applied.failed.is_empty());
    assert_eq!(applied.changed, ["Service/magika"]);
    let noted = log.lock().unwrap().clone();
    let last = noted.iter().rfind(|got| got.path.contains("/services/")).unwrap();
    assert_eq!(last.body["metadata"]["uid"], "s-1");
    assert!(last.body["metadata"].get("resourceVersion").is_none());
}

#[tokio::test]
async fn a_refused_write_is_told_in_the_servers_words_and_holds_up_no_other_child() {
    let case = Case::new(&["--bench-skip-compression"]);
    let (client, log) = play(|got| {
        if got.path.contains("poddisruptionbudgets") {
            return failure(403, "Forbidden", "poddisruptionbudgets is forbidden: no");
        }
        taken(got)
    });
    let applied = case.pass(&client, true).await;
    let [error] = applied.failed.as_slice() else { panic!("{:?}", applied.failed) };
    assert_eq!(error.reason(), reason::WRITE_REFUSED);
    assert!(error.to_string().contains("is forbidden: no (403)"), "{error}");
    assert!(lines(&log).iter().any(|line| line.contains("deployments")));
}

#[tokio::test]
async fn a_server_that_asks_for_patience_gets_it() {
    let case = Case::new(&["--bench-skip-compression"]);
    let (client, _log) = play(|_| {
        let (code, mut status) = failure(429, "TooManyRequests", "later");
        status["details"] = json!({"retryAfterSeconds": 30});
        (code, status)
    });
    let applied = case.pass(&client, true).await;
    let asked = applied.failed.first().and_then(WriteError::retry_after);
    assert_eq!(asked, Some(std::time::Duration::from_secs(30)));
}

#[tokio::test]
async fn a_job_whose_creation_got_no_answer_is_not_created_twice() {
    let case = Case::new(&[]);
    let stored: Arc<Mutex<Option<Value>>> = Arc::default();
    let store = Arc::clone(&stored);
    let (client, log) = play(move |got| {
        if !got.path.contains("/jobs/") {
            return taken(got);
        }
        let mut stored = store.lock().unwrap();
        match (got.verb.as_str(), stored.clone()) {
            ("PATCH", None) => {
                *stored = Some(taken(got).1);
                failure(504, "Timeout", "the answer is lost")
            }
            ("PATCH", Some(_)) => failure(409, "Conflict", "the object has been modified"),
            (_, Some(job)) => (200, job),
            (_, None) => failure(404, "NotFound", "no"),
        }
    });
    let first = case.pass(&client, true).await;
    assert_eq!(first.failed.len(), 1);
    let second = case.pass(&client, true).await;
    assert!(second.failed.is_empty(), "{second:?}");
    let names: std::collections::BTreeSet<_> =
        lines(&log).into_iter().filter(|line| line.starts_with("PATCH jobs/")).collect();
    assert_eq!(names.len(), 1, "{names:?}");
    // It is known now: nothing more is asked.
    case.pass(&client, true).await;
    assert_eq!(lines(&log), Vec::<String>::new());
}

#[tokio::test]
async fn a_job_of_another_request_is_deleted_by_uid_with_its_pods() {
    let case = Case::new(&[]);
    let old: Job = serde_json::from_value(json!({
        "metadata": {"name": "old", "namespace": "files", "uid": "j-0", "resourceVersion": "7",
            "labels": {"lithe.dev/uid": "u-1"}, "annotations": {"lithe.dev/request": "sha256:other"}},
    })).unwrap();
    case.caches.jobs.put(old);
    let (client, log) = play(taken);
    case.pass(&client, true).await;
    let noted = log.lock().unwrap().clone();
    let delete = noted.iter().find(|got| got.verb == "DELETE").unwrap();
    assert_eq!(delete.line(), "DELETE jobs/old");
    assert_eq!(delete.body["preconditions"]["uid"], "j-0");
    assert_eq!(delete.body["propagationPolicy"], "Background");
}

#[tokio::test]
async fn a_changed_child_is_overwritten_by_uid_and_one_on_its_way_out_is_waited_for() {
    let case = Case::new(&["--bench-skip-compression"]);
    let (client, log) = play(taken);
    case.pass(&client, true).await;
    lines(&log);
    let account = case.caches.accounts.get(&("files".into(), child())).unwrap();
    let mut account: ServiceAccount = account.as_ref().clone();
    account.automount_service_account_token = Some(true);
    account.metadata.resource_version = Some("101".into());
    case.caches.accounts.put(account);
    let deployment = case.caches.deployments.get(&("files".into(), child())).unwrap();
    let mut deployment: Deployment = deployment.as_ref().clone();
    deployment.metadata.deletion_timestamp =
        Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
    deployment.metadata.resource_version = Some("102".into());
    case.caches.deployments.put(deployment);
    let applied = case.pass(&client, true).await;
    assert_eq!(applied.changed, [format!("ServiceAccount/{}", child())]);
    let noted = log.lock().unwrap().clone();
    assert_eq!(noted.len(), 1, "{noted:?}");
    assert_eq!(noted[0].body["metadata"]["uid"], "made-1");
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing() {
    let case = Case::new(&["--bench-skip-compression"]);
    let (client, log) = play(taken);
    let applied = case.pass(&client, false).await;
    assert!(applied.failed.iter().all(|error| matches!(error, WriteError::NotLeader)));
    assert_eq!(lines(&log), Vec::<String>::new());
}

#[tokio::test]
async fn the_gateways_addresses_are_written_before_the_service_leads_there() {
    let mut case = Case::new(&["--bench-skip-compression", "--gateway-service", "gate"]);
    let mut told =
        model(json!({"model": {"uri": "pvc://m/a.onnx"}, "traffic": {"mode": "Gateway"}}));
    let traffic = json!({"mode": "Direct", "httpPort": 20000, "grpcPort": 20001});
    told.status = Some(serde_json::from_value(json!({"traffic": traffic})).unwrap());
    case.model = Arc::new(told);
    let (client, log) = play(taken);
    let gateway = Gateway { address: "10.0.1.1".into(), node: None, listens: Some(true) };
    let seen = |observed: Observed| Observed {
        gateways: Gateways { ready: vec![gateway.clone()], ..Default::default() },
        ..observed
    };
    case.pass_seeing(&client, true, seen).await;
    let first = log.lock().unwrap().clone();
    let find = |kind: &str| first.iter().position(|got| got.line().contains(kind)).unwrap();
    assert!(find("endpointslices/") < find("services/magika"));
    let slice = &first[find("endpointslices/")].body;
    assert_eq!(slice["endpoints"][0]["addresses"][0], "10.0.1.1");
    assert_eq!(slice["ports"][0]["port"], 20000);
    assert_eq!(first[find("services/magika")].body["spec"]["selector"]["lithe.dev/role"], "serve");
    log.lock().unwrap().clear();
    case.pass_seeing(&client, true, seen).await;
    let second = log.lock().unwrap().clone();
    let [service] = second.as_slice() else { panic!("{second:?}") };
    assert_eq!(service.line(), "PATCH services/magika");
    assert_eq!(service.body["spec"]["selector"]["lithe.dev/role"], "gateway");
}

#[tokio::test]
async fn a_slow_pod_is_deleted_once_and_by_its_uid() {
    let case = Case::new(&["--bench-skip-compression"]);
    let pod = |uid: &str| {
        json!({
            "metadata": {
                "name": format!("magika-{uid}"), "namespace": "files", "uid": uid, "resourceVersion": "7",
                "labels": {"lithe.dev/uid": "u-1", "lithe.dev/role": "serve"},
            },
        })
    };
    for uid in ["p-1", "p-2"] {
        case.caches.pods.put(serde_json::from_value(pod(uid)).unwrap());
    }
    let (client, log) = play(move |got| {
        if got.verb != "DELETE" {
            return taken(got);
        }
        let mut going = pod("p-2");
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z");
        going["metadata"]["resourceVersion"] = json!("8");
        (200, going)
    });
    let seen = |observed: Observed| {
        let scaled = Scaled {
            desired: 2,
            why: String::new(),
            verdict: lithe::status::Verdict::new(true, reason::READY, ""),
            latency: None,
            replace: vec!["p-2".into()],
        };
        Observed { scaled: Some(Arc::new(scaled)), ..observed }
    };
    case.pass_seeing(&client, true, seen).await;
    case.pass_seeing(&client, true, seen).await;
    let deleted: Vec<Got> =
        log.lock().unwrap().iter().filter(|got| got.verb == "DELETE").cloned().collect();
    let [deleted] = deleted.as_slice() else { panic!("{deleted:?}") };
    assert_eq!(deleted.line(), "DELETE pods/magika-p-2");
    assert_eq!(deleted.body["preconditions"]["uid"], "p-2");
}
