//! The operator on a real API server: what is refused, made, repaired, reported, and left alone.
//!
//! Run by `cargo e2e test`, which starts the cluster and names the kubeconfig and the binary.
//! Every test has its own namespace and its own operator, limited to that namespace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use lithe::names::reason;
use serde_json::json;

use support::{Mode, Operator, Place, condition, ready_condition};

#[tokio::test]
async fn admission_refuses_what_can_never_be_right() {
    let place = Place::new("admission").await;
    let rows = [
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"minReplicas": 5, "maxReplicas": 2}}),
            "minReplicas must not be above scaling.maxReplicas",
        ),
        (json!({"model": {"uri": "file:///etc/passwd"}}), "must be one of s3://"),
        (json!({"model": {"uri": "https://user:secret@host/a.onnx"}}), "must be one of s3://"),
        (json!({"model": {"uri": "pvc://m/../a.onnx"}}), "must not contain '..'"),
        (json!({"model": {"uri": "pvc://m/a.onnx", "digest": "sha256:ABC"}}), "spec.model.digest"),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "compression": {"steps": [{"optimize": {}, "quantize": {}}]}}),
            "exactly one of optimize, equalize, prune, finetune, quantize",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "compression": {"steps": [{}]}}),
            "exactly one of optimize",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "compression": {}}),
            "either steps, or an objective",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "compression": {"steps": [{"optimize": {}}], "gates": {"minimum": 0.9}}}),
            "give compression.data",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"latency": {"percentile": 200, "target": "50ms"}}}),
            "percentile",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"latency": {"target": "1us"}}}),
            "must be between 1ms and 10m",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"minReplicas": 1, "maxReplicas": 4}}),
            "needs something that scales",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"minReplicas": 0}}),
            "needs something that starts a pod again",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"minReplicas": 0, "latency": {"target": "50ms"}}, "traffic": {"mode": "Direct"}}),
            "needs the gateway, which keeps requests",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"mode": "Latency"}}),
            "mode: Latency needs the target",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"latency": {"target": "50ms"}, "holdFor": "1s"}}),
            "must be between 5s and 24h",
        ),
        (
            json!({"model": {"uri": "pvc://m/a.onnx"}, "rollout": {"steps": ["10%"]}}),
            "steps belong to strategy: Canary",
        ),
    ];
    for (spec, words) in rows {
        let dry = PostParams { dry_run: true, ..Default::default() };
        let error = place
            .raw()
            .create(&dry, &place.untyped("wrong", &spec))
            .await
            .expect_err(&spec.to_string());
        assert!(error.to_string().contains(words), "{spec}: {error}");
    }
    place.end().await;
}

#[tokio::test]
async fn children_come_and_no_condition_is_blank() {
    let place = Place::new("children").await;
    let _operator = Operator::start(&place, Mode::WithoutJobs).await;
    let spec = json!({"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"minReplicas": 2}});
    place.create("plain", spec).await;
    let model = place
        .until("plain", "a Deployment reported", |m| {
            m.status.as_ref().is_some_and(|s| s.artifact.is_some())
        })
        .await;
    place.until_exists::<Deployment>(1).await;
    for count in [
        place.count::<Service>().await,
        place.count::<ServiceAccount>().await,
        place.count::<PodDisruptionBudget>().await,
        place.count::<NetworkPolicy>().await,
    ] {
        assert_eq!(count, 1);
    }
    let status = model.status.unwrap();
    let kinds: Vec<_> = status.conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(kinds, lithe::status::condition::ALL);
    for condition in &status.conditions {
        assert!(!condition.reason.is_empty() && !condition.message.is_empty(), "{condition:?}");
        assert_eq!(condition.observed_generation, Some(1));
    }
    // Zero pods serve nothing.
    assert_eq!(ready_condition(&status).status, "False");
    place.end().await;
}

#[tokio::test]
async fn a_second_apply_and_a_restart_write_nothing() {
    let place = Place::new("quiet").await;
    let operator = Operator::start(&place, Mode::WithoutJobs).await;
    let applied = PatchParams::apply("a-user").force();
    let same = json!({"apiVersion": "lithe.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "calm"}, "spec": {"model": {"uri": "pvc://m/a.onnx"}}});
    place.raw().patch("calm", &applied, &Patch::Apply(&same)).await.unwrap();
    place.until_exists::<Deployment>(1).await;
    let before = place.settled("calm").await;
    operator.end().await;
    let operator = Operator::start(&place, Mode::WithoutJobs).await;
    place.raw().patch("calm", &applied, &Patch::Apply(&same)).await.unwrap();
    operator.until_reconciled().await;
    assert_eq!(operator.writes().await, 0.0);
    assert_eq!(place.versions().await, before);
    place.end().await;
}

#[tokio::test]
async fn what_was_meddled_with_is_set_right() {
    let place = Place::new("repair").await;
    let _operator = Operator::start(&place, Mode::WithoutJobs).await;
    place.create("mended", json!({"model": {"uri": "pvc://m/a.onnx"}})).await;
    let deployment = place.until_exists::<Deployment>(1).await.remove(0);
    let service = place.until_exists::<Service>(1).await.remove(0);
    let api = place.api::<Deployment>();
    // Deleted: comes back under the same name with another UID.
    api.delete(&deployment.name_any(), &DeleteParams::default()).await.unwrap();
    let old = deployment.uid();
    place
        .eventually("the Deployment is back", || async {
            api.get_opt(&deployment.name_any()).await.unwrap().is_some_and(|new| new.uid() != old)
        })
        .await;
    // Changed: what we declared is set back, what somebody added stays.
    let meddle = json!({"metadata": {"labels": {"theirs": "stays"}}, "spec": {"strategy": {"rollingUpdate": {"maxUnavailable": 1}}}});
    api.patch(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(&meddle))
        .await
        .unwrap();
    place
        .eventually("the strategy is ours again", || async {
            let now = api.get(&deployment.name_any()).await.unwrap();
            let update = now
                .spec
                .as_ref()
                .unwrap()
                .strategy
                .as_ref()
                .unwrap()
                .rolling_update
                .as_ref()
                .unwrap()
                .clone();
            let zero = k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(0);
            update.max_unavailable == Some(zero) && now.labels().get("theirs").is_some()
        })
        .await;
    // Orphaned: the owner reference comes back.
    let services = place.api::<Service>();
    let orphan = json!({"metadata": {"ownerReferences": null}});
    services
        .patch(&service.name_any(), &PatchParams::default(), &Patch::Merge(&orphan))
        .await
        .unwrap();
    place
        .eventually("the owner reference is back", || async {
            services.get(&service.name_any()).await.unwrap().owner_references().len() == 1
        })
        .await;
    place.end().await;
}

#[tokio::test]
async fn a_foreign_service_is_neither_adopted_nor_overwritten() {
    let place = Place::new("foreign").await;
    let theirs: Service = serde_json::from_value(json!({
        "metadata": {"name": "taken"}, "spec": {"ports": [{"port": 1234}], "selector": {"app": "theirs"}},
    })).unwrap();
    let before = place.api::<Service>().create(&PostParams::default(), &theirs).await.unwrap();
    let _operator = Operator::start(&place, Mode::WithoutJobs).await;
    place.create("taken", json!({"model": {"uri": "pvc://m/a.onnx"}})).await;
    let model = place
        .until("taken", "a name conflict", |m| {
            condition(m, "Progressing").is_some_and(|c| c.reason == reason::NAME_CONFLICT)
        })
        .await;
    let words = condition(&model, "Progressing").unwrap().message;
    assert!(words.contains("Service taken") && words.contains("rename"), "{words}");
    let after = place.api::<Service>().get("taken").await.unwrap();
    assert_eq!(after.resource_version(), before.resource_version());
    // Once the name is free, the operator goes on by itself.
    place.api::<Service>().delete("taken", &DeleteParams::default()).await.unwrap();
    place.until_exists::<Deployment>(1).await;
    place.end().await;
}

#[tokio::test]
async fn a_field_that_cannot_be_honoured_is_named_and_starts_no_job() {
    let place = Place::new("unsupported").await;
    let _operator = Operator::start(&place, Mode::Real).await;
    let spec = json!({"model": {"uri": "pvc://m/a.onnx"}, "compression": {"steps": [{"optimize": {}}, {"prune": {"structure": "TwoFour", "sparsity": 0.6}}]}});
    place.create("early", spec).await;
    let model = place
        .until("early", "Accepted=False", |m| {
            condition(m, "Accepted").is_some_and(|c| c.status == "False")
        })
        .await;
    let accepted = condition(&model, "Accepted").unwrap();
    assert_eq!(accepted.reason, reason::UNSUPPORTED);
    assert!(
        accepted.message.contains("spec.compression.steps[1].prune.sparsity"),
        "{}",
        accepted.message
    );
    assert_eq!(place.count::<Job>().await, 0);
    place.end().await;
}

#[tokio::test]
async fn one_request_has_one_job_through_kills_and_a_new_request_replaces_it() {
    let place = Place::new("job").await;
    let operator = Operator::start(&place, Mode::Real).await;
    place.create("worked", json!({"model": {"uri": "pvc://absent/a.onnx"}})).await;
    let first = place.until_exists::<Job>(1).await.remove(0);
    operator.kill().await;
    let operator = Operator::start(&place, Mode::Real).await;
    operator.until_reconciled().await;
    assert_eq!(
        place.list::<Job>().await.iter().map(|job| job.uid()).collect::<Vec<_>>(),
        [first.uid()]
    );
    // A missing claim is told in the cluster's words, with the field to look at.
    let model = place
        .until("worked", "the missing claim", |m| {
            condition(m, "ModelVerified").is_some_and(|c| c.reason == reason::VOLUME_MISSING)
        })
        .await;
    let words = condition(&model, "ModelVerified").unwrap().message;
    assert!(words.contains("\"absent\" not found"), "{words}");
    // A new spec wins over the Job that still waits.
    let patch = json!({"spec": {"model": {"uri": "pvc://absent/b.onnx"}}});
    place.models().patch("worked", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    place
        .eventually("the new Job stands alone", || async {
            let jobs = place.list::<Job>().await;
            jobs.len() == 1 && jobs[0].uid() != first.uid()
        })
        .await;
    place.end().await;
}

#[tokio::test]
async fn a_selector_that_no_node_matches_is_told_in_the_schedulers_words() {
    let place = Place::new("placement").await;
    let _operator = Operator::start(&place, Mode::Real).await;
    let spec = json!({"model": {"uri": "https://example.com/a.onnx"}, "placement": {"nodeSelector": {"no-such": "node"}}});
    place.create("homeless", spec).await;
    let model = place
        .until("homeless", "Unschedulable", |m| {
            condition(m, "Compressed").is_some_and(|c| c.reason == reason::UNSCHEDULABLE)
        })
        .await;
    let words = condition(&model, "Compressed").unwrap().message;
    assert!(
        words.contains("0/1 nodes are available") && words.contains("spec.placement"),
        "{words}"
    );
    assert_eq!(model.status.unwrap().last_failure.unwrap().reason, reason::UNSCHEDULABLE);
    place.end().await;
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_and_a_missing_secret_are_told() {
    let place = Place::new("image").await;
    let _operator = Operator::start(&place, Mode::Real).await;
    place.create("imageless", json!({"model": {"uri": "https://example.com/a.onnx"}})).await;
    place.create("secretless", json!({"model": {"uri": "https://example.com/b.onnx", "credentialsSecret": "no-such-secret"}})).await;
    place
        .until("imageless", "ImagePullFailed", |m| {
            condition(m, "Compressed").is_some_and(|c| c.reason == reason::IMAGE_PULL_FAILED)
        })
        .await;
    let model = place
        .until("secretless", "SecretMissing", |m| {
            condition(m, "ModelVerified").is_some_and(|c| c.reason == reason::SECRET_MISSING)
        })
        .await;
    let words = condition(&model, "ModelVerified").unwrap().message;
    assert!(words.contains("no-such-secret"), "{words}");
    place.end().await;
}

/// A registry whose disk holds less than a model.
const FULL: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: full}
data:
  config.yml: |
    version: 0.1
    storage: {filesystem: {rootdirectory: /var/lib/registry}}
    http: {addr: ':5000'}
---
apiVersion: v1
kind: Service
metadata: {name: full}
spec: {selector: {app: full}, ports: [{port: 5000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: full, labels: {app: full}}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 65532, fsGroup: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: registry
      image: IMAGE
      args: [serve, /etc/distribution/config.yml]
      env: [{name: OTEL_TRACES_EXPORTER, value: none}]
      readinessProbe: {httpGet: {path: /v2/, port: 5000}, periodSeconds: 1}
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      volumeMounts:
        - {name: config, mountPath: /etc/distribution}
        - {name: disk, mountPath: /var/lib/registry}
  volumes:
    - {name: config, configMap: {name: full}}
    - {name: disk, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: model}
spec:
  accessModes: [ReadOnlyMany]
  storageClassName: lithe-local
  volumeName: lithe-spare-6
  resources: {requests: {storage: 1Gi}}
";

#[tokio::test]
async fn a_full_store_is_told() {
    let place = Place::new("full").await;
    let source = support::volume("spare-6").join("magika.onnx");
    std::fs::copy(support::variable("LITHE_MODEL"), &source).unwrap();
    place.apply(&FULL.replace("IMAGE", &support::variable("LITHE_REGISTRY_IMAGE"))).await;
    let store = format!("oci://full.{}.svc:5000/lithe", place.namespace);
    let _operator = Operator::start_with_store(&place, &store).await;
    place.create("large", json!({"model": {"uri": "pvc://model/magika.onnx"}})).await;
    let model = place
        .until("large", "NoSpace", |m| {
            condition(m, "Compressed").is_some_and(|c| c.reason == reason::NO_SPACE)
        })
        .await;
    let words = condition(&model, "Compressed").unwrap().message;
    assert!(words.contains("no space left") && words.contains(&place.namespace), "{words}");
    assert_eq!(condition(&model, "Ready").unwrap().status, "False");
    place.end().await;
}
