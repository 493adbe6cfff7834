//! The whole job through the chart: what was installed by Helm, with its own rights, on real models.
//!
//! Run by `cargo e2e test` after the demo, in its namespace, one test after the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use lithe::names::{LABEL_MODEL, reason};
use lithe::spec::ModelDeployment;
use lithe::status::Phase;
use serde_json::{Value, json};

use support::load::Load;
use support::{Place, condition, variable};

const DEMO: &str = "lithe-demo";
const SYSTEM: &str = "lithe-system";

fn phase(model: &ModelDeployment) -> Option<Phase> {
    model.status.as_ref()?.phase
}

fn served(model: &ModelDeployment) -> Option<String> {
    Some(model.status.as_ref()?.artifact.as_ref()?.digest.to_string())
}

/// Nothing of an older spec is shown.
fn current(model: &ModelDeployment) -> bool {
    model.status.as_ref().and_then(|status| status.observed_generation) == model.metadata.generation
}

async fn jobs(place: &Place, model: &str) -> Vec<String> {
    let all = place.list::<Job>().await;
    let ours = all.iter().filter(|job| job.labels().get(LABEL_MODEL).is_some_and(|m| m == model));
    ours.filter_map(|job| job.uid()).collect()
}

async fn patch(place: &Place, model: &str, compression: Value) {
    let body = json!({"spec": {"compression": compression}});
    let params = PatchParams::default();
    place.models().patch(model, &params, &Patch::Merge(&body)).await.unwrap();
}

fn magika(compression: Value) -> Value {
    let mut compression = compression;
    compression["data"] = json!({"uri": "pvc://models/magika.npz"});
    compression["resources"] = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
    json!({
        "model": {"uri": "pvc://models/magika.onnx"}, "compression": compression,
        "runtime": {"resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "512Mi"}}},
    })
}

#[tokio::test]
async fn a_second_apply_starts_no_job_and_writes_nothing() {
    let place = Place::existing(DEMO).await;
    let before = (place.settled("magika").await, jobs(&place, "magika").await);
    for example in ["magika", "minilm"] {
        let file = format!("{}/../crds/examples/{example}.yaml", env!("CARGO_MANIFEST_DIR"));
        let output = tokio::process::Command::new(variable("LITHE_KUBECTL"))
            .env("KUBECONFIG", variable("LITHE_E2E_KUBECONFIG"))
            .args(["apply", "-n", DEMO, "-f", &file])
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.trim_end().ends_with("unchanged"), "{said}");
    }
    assert_eq!((place.settled("magika").await, jobs(&place, "magika").await), before);
}

#[tokio::test]
async fn an_operator_killed_while_the_job_works_ends_with_one_job_and_the_same_artifact() {
    let place = Place::existing(DEMO).await;
    let gates = json!({"metric": "Agreement", "minimum": 0.98});
    let steps = json!([{"optimize": {}}, {"quantize": {"mode": "Dynamic"}}]);
    place.create_anew("killed", magika(json!({"steps": steps, "gates": gates}))).await;
    place.eventually("the Job", || async { jobs(&place, "killed").await.len() == 1 }).await;
    let before = jobs(&place, "killed").await;
    let pods = Api::<Pod>::namespaced(place.client.clone(), SYSTEM);
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    let found = pods.list(&operators).await.unwrap().items;
    assert!(!found.is_empty(), "no pod of the operator was found");
    for pod in found {
        let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        pods.delete(&pod.name_any(), &now).await.unwrap();
    }
    let model = place.until("killed", "the rollout", |m| phase(m) == Some(Phase::Serving)).await;
    assert_eq!(jobs(&place, "killed").await, before);
    // The same steps on the same model give the same bytes, whoever watched them.
    let other = place.models().get("magika").await.unwrap();
    assert_eq!(served(&model), served(&other));
    place.models().delete("killed", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_model_is_told_in_a_condition() {
    let place = Place::existing(DEMO).await;
    let volume = support::volume("models");
    let bad = volume.join("bad");
    std::fs::create_dir_all(&bad).unwrap();
    let whole = std::fs::read(volume.join("magika.onnx")).unwrap();
    std::fs::write(bad.join("truncated.onnx"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(bad.join("page.onnx"), "<!DOCTYPE html><html><body>404</body></html>").unwrap();
    std::fs::write(bad.join("operator.onnx"), support::onnx("Nonsense", 17)).unwrap();
    std::fs::write(bad.join("opset.onnx"), support::onnx("Relu", 99)).unwrap();
    let mut half = Secret::default();
    half.metadata.name = Some("half".into());
    half.string_data = Some([("username".to_owned(), "somebody".to_owned())].into());
    let secrets = Api::<Secret>::namespaced(place.client.clone(), DEMO);
    let _ = secrets.delete("half", &DeleteParams::default()).await;
    secrets.create(&PostParams::default(), &half).await.unwrap();
    let zeros = format!("sha256:{}", "0".repeat(64));
    let rows = [
        (
            "digest",
            json!({"uri": "pvc://models/magika.onnx", "digest": zeros}),
            reason::DIGEST_MISMATCH,
            "spec.model.digest",
        ),
        (
            "absent",
            json!({"uri": "pvc://models/absent.onnx"}),
            reason::SOURCE_NOT_FOUND,
            "absent.onnx",
        ),
        ("page", json!({"uri": "pvc://models/bad/page.onnx"}), reason::CORRUPT, "web page"),
        (
            "truncated",
            json!({"uri": "pvc://models/bad/truncated.onnx"}),
            reason::CORRUPT,
            "truncated",
        ),
        (
            "operator",
            json!({"uri": "pvc://models/bad/operator.onnx"}),
            reason::RUNTIME_REFUSED,
            "Nonsense",
        ),
        (
            "opset",
            json!({"uri": "pvc://models/bad/opset.onnx"}),
            reason::FORBIDDEN_OP,
            "operator set ai.onnx 99",
        ),
        (
            "key",
            json!({"uri": "https://models.example/m.onnx", "credentialsSecret": "half"}),
            reason::SECRET_MISSING,
            "password",
        ),
        (
            "private",
            json!({"uri": "https://10.77.128.1/m.onnx"}),
            reason::SOURCE_FORBIDDEN,
            "10.77.128.1",
        ),
    ];
    for (name, model, ..) in &rows {
        place.create_anew(&format!("bad-{name}"), json!({"model": model})).await;
    }
    for (name, _, wanted, words) in &rows {
        let name = format!("bad-{name}");
        let model = place
            .until(&name, wanted, |m| {
                condition(m, "ModelVerified").is_some_and(|c| c.reason == *wanted)
            })
            .await;
        let verified = condition(&model, "ModelVerified").unwrap();
        assert!(verified.message.contains(words), "{name}: {}", verified.message);
        assert_eq!(condition(&model, "Ready").unwrap().status, "False", "{name}");
        assert_eq!(model.status.unwrap().last_failure.unwrap().reason, *wanted, "{name}");
        place.models().delete(&name, &DeleteParams::default()).await.unwrap();
    }
    secrets.delete("half", &DeleteParams::default()).await.unwrap();
    std::fs::remove_dir_all(bad).unwrap();
}

#[tokio::test]
async fn a_job_that_is_killed_for_memory_says_what_to_raise() {
    let place = Place::existing(DEMO).await;
    let mut spec = magika(json!({"steps": [{"optimize": {}}]}));
    spec["compression"]["resources"] = json!({"limits": {"memory": "24Mi"}});
    place.create_anew("hungry", spec).await;
    let model = place
        .until("hungry", "the lack of memory", |m| {
            condition(m, "Compressed").is_some_and(|c| c.reason == reason::OOM_KILLED)
        })
        .await;
    let words = condition(&model, "Compressed").unwrap().message;
    assert!(words.contains("spec.compression.resources"), "{words}");
    place.models().delete("hungry", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn through_a_failed_gate_a_rollout_and_a_return_no_request_fails() {
    let place = Place::existing(DEMO).await;
    let steps = json!([{"optimize": {}}, {"quantize": {"mode": "Dynamic"}}]);
    let good = json!({"steps": steps, "gates": {"metric": "Agreement", "minimum": 0.97}});
    place.create_anew("steady", magika(good.clone())).await;
    let first =
        place.until("steady", "the first rollout", |m| phase(m) == Some(Phase::Serving)).await;
    let service = place.api::<Service>().get("steady").await.unwrap();
    let address = service.spec.unwrap().cluster_ip.unwrap();
    let load = Load::start(&format!("{address}:80"), "steady", 1);

    // A gate that cannot hold: it is named, and what was served is served.
    let gates = json!({"metric": "Agreement", "minimum": 0.97, "maxSize": "1k"});
    patch(&place, "steady", json!({"gates": gates})).await;
    let failed = place
        .until("steady", "the failed gate", |m| {
            condition(m, "Compressed").is_some_and(|c| c.reason == reason::GATE_FAILED)
        })
        .await;
    let words = condition(&failed, "Compressed").unwrap().message;
    assert!(words.contains("maxSize is 1k") && words.contains("measured 834"), "{words}");
    assert_eq!(served(&failed), served(&first));
    assert_eq!(condition(&failed, "Available").unwrap().status, "True");

    // Another recipe: other bytes are rolled out.
    let only = json!({"steps": [{"optimize": {}}], "gates": {"metric": "Agreement", "minimum": 0.99, "maxSize": null}});
    patch(&place, "steady", only).await;
    let second = place
        .until("steady", "the second rollout", |m| {
            current(m) && phase(m) == Some(Phase::Serving) && served(m) != served(&first)
        })
        .await;
    assert_ne!(served(&second), served(&first));

    // Back: the first artifact returns from the history, without a Job of its own.
    let before = jobs(&place, "steady").await;
    patch(&place, "steady", good).await;
    place
        .until("steady", "the return", |m| {
            current(m) && phase(m) == Some(Phase::Serving) && served(m) == served(&first)
        })
        .await;
    let after = jobs(&place, "steady").await;
    assert!(after.iter().all(|uid| before.contains(uid)), "{before:?} became {after:?}");

    let (count, failures) = load.end();
    println!("{count} requests during two rollouts and a failed gate, {} failed", failures.len());
    assert!(count > 50, "only {count} requests");
    assert_eq!(failures, Vec::<String>::new());
    place.models().delete("steady", &DeleteParams::default()).await.unwrap();
}
