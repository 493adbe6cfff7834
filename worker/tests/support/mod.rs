//! What the socket tests share: small models, a server in this process, a model that waits.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use lithe::artifact::TensorSignature;
use lithe::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use lithe_worker::runtime::{Options, RuntimeError, Session};
use lithe_worker::serve::{
    Backend, Curve, Folders, Limits, Policy, Running, Served, Settings, start,
};
use lithe_worker::tensor::Tensor;
use tonic::transport::Channel;

/// A model that the runtime's Python package ships; the library must come from that package.
pub fn packaged_model(name: &str) -> PathBuf {
    let library = std::env::var("ORT_DYLIB_PATH")
        .expect("set ORT_DYLIB_PATH to libonnxruntime.so 1.31 of the onnxruntime wheel");
    let package = PathBuf::from(library).parent().unwrap().parent().unwrap().to_owned();
    let path = package.join("datasets").join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// One protobuf field with a length before its content.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        out.push(length as u8 & 0x7f | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(content);
    out
}

fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

/// An ONNX model `y = Identity(x)` of the ONNX element type `element`; dimensions are a number, or
/// a name where any size fits.
pub fn identity(element: u8, shape: &[&str]) -> Vec<u8> {
    let dims: Vec<u8> = shape
        .iter()
        .flat_map(|dim| match dim.parse::<u8>() {
            Ok(size) => field(1, &number(1, size)),
            Err(_) => field(1, &field(2, dim.as_bytes())),
        })
        .collect();
    let tensor = [number(1, element), field(2, &dims)].concat();
    let value = |name: &str| [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat();
    let node = [field(1, b"x"), field(2, b"y"), field(4, b"Identity")].concat();
    let graph =
        [field(1, &node), field(2, b"g"), field(11, &value("x")), field(12, &value("y"))].concat();
    [number(1, 8), field(7, &graph), field(8, &number(2, 16))].concat()
}

/// A server without a model, on ports of its own.
pub async fn empty(limits: Limits, max_request_bytes: usize) -> Running {
    with_policy(limits, max_request_bytes, Policy::default()).await
}

/// A server without a model whose requests wait as `policy` says.
pub async fn with_policy(limits: Limits, max_request_bytes: usize, policy: Policy) -> Running {
    start(settings(limits, max_request_bytes, policy, None)).await.unwrap()
}

/// Ports of its own.
pub fn settings(
    limits: Limits,
    max_request_bytes: usize,
    policy: Policy,
    connection_age: Option<std::time::Duration>,
) -> Settings {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Settings {
        name: "m".into(),
        http: any,
        grpc: any,
        admin: any,
        protocols: vec![Served::OpenInference, Served::TensorFlowServing, Served::KServeV1],
        security: Folders::default(),
        max_request_bytes,
        limits,
        policy,
        connection_age,
    }
}

pub const LIMITS: Limits = Limits { requests: 256, bytes: 256 << 20 };

/// A server of the ONNX bytes `model` under the name `m`.
pub async fn serving(model: &[u8]) -> Running {
    let running = empty(LIMITS, 64 << 20).await;
    let session = Session::load(model, Options::default()).unwrap();
    running.load(Arc::new(session), Curve::default()).await.unwrap();
    running
}

pub async fn grpc(running: &Running) -> GrpcInferenceServiceClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", running.grpc)).unwrap();
    GrpcInferenceServiceClient::new(channel.connect().await.unwrap())
        .max_decoding_message_size(usize::MAX)
}

/// What came back over HTTP.
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: bytes::Bytes,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("{error}: {}", String::from_utf8_lossy(&self.body));
        })
    }
}

pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    answer(client().get(format!("http://{address}{path}"))).await
}

pub async fn answer(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.bytes().await.unwrap(),
    }
}

/// A model `y = x` that answers only while its gate is open, and counts its runs.
pub struct Gate {
    inputs: Vec<TensorSignature>,
    outputs: Vec<TensorSignature>,
    open: Mutex<bool>,
    opened: Condvar,
    pub runs: AtomicUsize,
}

impl Gate {
    pub fn new(open: bool) -> Arc<Self> {
        let tensor = |name: &str| TensorSignature {
            name: name.into(),
            datatype: "FP32".into(),
            shape: vec![-1],
        };
        Arc::new(Self {
            inputs: vec![tensor("x")],
            outputs: vec![tensor("y")],
            open: Mutex::new(open),
            opened: Condvar::new(),
            runs: AtomicUsize::new(0),
        })
    }

    pub fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
        self.opened.notify_all();
    }
}

impl Backend for Gate {
    fn inputs(&self) -> &[TensorSignature] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorSignature] {
        &self.outputs
    }

    fn run(&self, inputs: &[(&str, &Tensor)], _: &[&str]) -> Result<Vec<Tensor>, RuntimeError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
        Ok(inputs.iter().map(|(_, tensor)| (*tensor).clone()).collect())
    }
}

/// Waits until `seen` is true; fails after ten seconds.
pub async fn until(what: &str, seen: impl Fn() -> bool) {
    for _ in 0..1000 {
        if seen() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen within ten seconds");
}
