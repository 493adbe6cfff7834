//! A namespace and an operator for one test. Waiting is on watches and bounded; on a time-out the
//! state of the namespace is printed.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod load;

use std::fmt::Debug;
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use lithe::spec::ModelDeployment;
use lithe::status::ModelDeploymentStatus;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// Longer than anything on a busy machine; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(180);

pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo e2e test`"))
}

async fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(variable("LITHE_E2E_KUBECONFIG")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.unwrap()).unwrap()
}

pub struct Place {
    pub namespace: String,
    pub client: Client,
}

impl Place {
    /// A namespace that others made.
    pub async fn existing(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), client: client().await }
    }

    /// A new namespace.
    pub async fn new(name: &str) -> Self {
        let client = client().await;
        let namespace = format!("lithe-{name}-{}", std::process::id());
        let mut object = Namespace::default();
        object.metadata.name = Some(namespace.clone());
        let restricted = "pod-security.kubernetes.io/enforce".to_owned();
        object.metadata.labels = Some([(restricted, "restricted".to_owned())].into());
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .unwrap();
        Self { namespace, client }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn models(&self) -> Api<ModelDeployment> {
        self.api()
    }

    pub async fn create(&self, name: &str, spec: serde_json::Value) {
        self.raw().create(&PostParams::default(), &self.untyped(name, &spec)).await.unwrap();
    }

    /// Like [`Place::create`], in a namespace where an earlier run may have left one.
    pub async fn create_anew(&self, name: &str, spec: serde_json::Value) {
        let models = self.models();
        if models.get_opt(name).await.unwrap().is_some() {
            models.delete(name, &DeleteParams::default()).await.unwrap();
        }
        self.eventually("no model of the name", || async {
            models.get_opt(name).await.unwrap().is_none()
        })
        .await;
        self.create(name, spec).await;
    }

    /// The models without their type: a wrong value must reach the API server as it is.
    pub fn raw(&self) -> Api<DynamicObject> {
        let kind = ApiResource::erase::<ModelDeployment>(&());
        Api::namespaced_with(self.client.clone(), &self.namespace, &kind)
    }

    pub fn untyped(&self, name: &str, spec: &serde_json::Value) -> DynamicObject {
        let kind = ApiResource::erase::<ModelDeployment>(&());
        DynamicObject::new(name, &kind).data(serde_json::json!({"spec": spec}))
    }

    /// Applies `manifest` (YAML) in the namespace with kubectl.
    pub async fn apply(&self, manifest: &str) {
        let mut child = tokio::process::Command::new(variable("LITHE_KUBECTL"))
            .env("KUBECONFIG", variable("LITHE_E2E_KUBECONFIG"))
            .args(["apply", "--namespace", &self.namespace, "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(manifest.as_bytes()).await.unwrap();
        drop(input);
        assert!(child.wait().await.unwrap().success());
    }

    /// Objects of a kind that carry our label.
    pub async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=lithe");
        let mut items = self.api::<K>().list(&ours).await.unwrap().items;
        items.retain(|item| item.meta().deletion_timestamp.is_none());
        items
    }

    pub async fn count<K>(&self) -> usize
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.list::<K>().await.len()
    }

    pub async fn until(
        &self,
        name: &str,
        what: &str,
        holds: impl Fn(&ModelDeployment) -> bool,
    ) -> ModelDeployment {
        let condition = |model: Option<&ModelDeployment>| model.is_some_and(&holds);
        let waiting = await_condition(self.models(), name, condition);
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found.unwrap().unwrap(),
            Err(_) => {
                panic!("{what} did not come: {:#?}", self.models().get(name).await.unwrap().status)
            }
        }
    }

    pub async fn until_exists<K>(&self, count: usize) -> Vec<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.eventually(&format!("{count} {}", K::kind(&())), || async {
            self.count::<K>().await == count
        })
        .await;
        self.list::<K>().await
    }

    pub async fn eventually<F: Future<Output = bool>>(
        &self,
        what: &str,
        mut holds: impl FnMut() -> F,
    ) {
        let waiting = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            loop {
                ticks.tick().await;
                if holds().await {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{what} did not come in {}", self.namespace);
        }
    }

    /// The resource versions of the model and its children.
    pub async fn versions(&self) -> Vec<(String, Option<String>)> {
        let mut versions = Vec::new();
        let mut note =
            |kind: &str, name: String, version| versions.push((format!("{kind}/{name}"), version));
        for model in self.models().list(&ListParams::default()).await.unwrap() {
            note("ModelDeployment", model.name_any(), model.resource_version());
        }
        macro_rules! children {
            ($($kind:ty),*) => {$(
                for child in self.list::<$kind>().await {
                    note(stringify!($kind), child.name_any(), child.resource_version());
                }
            )*};
        }
        children!(Deployment, Service, ServiceAccount, PodDisruptionBudget, NetworkPolicy);
        versions
    }

    /// The versions once two looks in a row see the same.
    pub async fn settled(&self, name: &str) -> Vec<(String, Option<String>)> {
        self.until(name, "a status", |model| model.status.is_some()).await;
        let mut last = Vec::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(700));
        for _ in 0..60 {
            ticks.tick().await;
            let now = self.versions().await;
            if now == last {
                return now;
            }
            last = now;
        }
        panic!("{} never came to rest", self.namespace);
    }

    pub async fn end(self) {
        let all = Api::<Namespace>::all(self.client.clone());
        all.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }
}

/// A folder of the cluster's volume `name`.
pub fn volume(name: &str) -> std::path::PathBuf {
    std::path::Path::new(&variable("LITHE_VOLUMES")).join(name)
}

/// An ONNX file with one node of type `operator`, from `x` to `y`, in the operator set `opset`.
pub fn onnx(operator: &str, opset: u8) -> Vec<u8> {
    // A field of a protobuf message: its number, and bytes or a small number.
    let bytes = |number: u8, content: &[u8]| {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    };
    let number = |field: u8, value: u8| vec![field << 3, value];
    let shape = bytes(2, &bytes(1, &number(1, 2)));
    let tensor = bytes(2, &bytes(1, &[number(1, 1), shape].concat()));
    let value = |name: &str| [bytes(1, name.as_bytes()), tensor.clone()].concat();
    let node = [bytes(1, b"x"), bytes(2, b"y"), bytes(4, operator.as_bytes())].concat();
    let graph = [bytes(1, &node), bytes(2, b"g"), bytes(11, &value("x")), bytes(12, &value("y"))];
    let import = [bytes(1, b""), number(2, opset)].concat();
    [number(1, 8), bytes(7, &graph.concat()), bytes(8, &import)].concat()
}

pub fn condition(model: &ModelDeployment, kind: &str) -> Option<Condition> {
    model.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind).cloned()
}

pub fn ready_condition(status: &ModelDeploymentStatus) -> Condition {
    status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap().clone()
}

#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    /// Jobs are made; the worker's image does not exist.
    Real,
    /// Artifacts are taken to exist, pods are left out.
    WithoutJobs,
}

pub struct Operator {
    child: tokio::process::Child,
    admin: String,
}

impl Operator {
    pub async fn start(place: &Place, mode: Mode) -> Self {
        let store = "oci://registry.invalid/lithe";
        let mut command = Self::command(place, store, "registry.invalid/lithe-worker:none");
        if mode == Mode::WithoutJobs {
            command.arg("--bench-skip-compression");
        }
        Self::run(command).await
    }

    /// One that works with the real worker, and keeps artifacts in `store` without TLS.
    pub async fn start_with_store(place: &Place, store: &str) -> Self {
        let mut command = Self::command(place, store, &variable("LITHE_WORKER_IMAGE"));
        command.arg("--store-plain-http");
        Self::run(command).await
    }

    fn command(place: &Place, store: &str, image: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(variable("LITHE_OPERATOR"));
        command
            .env("KUBECONFIG", variable("LITHE_E2E_KUBECONFIG"))
            .args(["--namespace", &place.namespace, "--lease-namespace", &place.namespace])
            .args(["--store", store, "--worker-image", image, "--network-policy"]);
        command
    }

    async fn run(mut command: tokio::process::Command) -> Self {
        let admin = {
            let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            probe.local_addr().unwrap().to_string()
        };
        command.args(["--listen", &admin]).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let led = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("\"leads\":true") {
                    return;
                }
                println!("{line}");
            }
            panic!("the operator ended before it led");
        };
        tokio::time::timeout(PATIENCE, led).await.expect("the operator leads");
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                println!("{line}")
            }
        });
        Self { child, admin }
    }

    async fn metrics(&self) -> String {
        let mut stream = tokio::net::TcpStream::connect(&self.admin).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// The sum of a metric over the label sets that `wanted` takes.
    pub async fn sum(&self, name: &str, wanted: impl Fn(&str) -> bool) -> f64 {
        let text = self.metrics().await;
        let lines = text.lines().filter(|line| line.starts_with(name) && wanted(line));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Writes to anything but the lease.
    pub async fn writes(&self) -> f64 {
        self.sum("lithe_api_requests_total", |labels| {
            !labels.contains("leases")
                && ["POST", "PUT", "PATCH", "DELETE"].iter().any(|verb| labels.contains(verb))
        })
        .await
    }

    pub async fn until_reconciled(&self) {
        let waiting = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(50));
            while self.sum("lithe_reconciles_total", |_| true).await < 1.0 {
                ticks.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the operator reconciles");
    }

    /// SIGTERM, and a clean end.
    pub async fn end(mut self) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)
            .unwrap();
        let status = tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await;
        assert!(status.expect("the operator ends in time").unwrap().success());
    }

    /// SIGKILL.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}
