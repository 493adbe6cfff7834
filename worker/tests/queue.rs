//! Waiting, batching and refusing over real sockets, and what autoscaling is told of it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use lithe::artifact::TensorSignature;
use lithe::inference::infer_parameter::ParameterChoice;
use lithe::inference::model_infer_request::InferInputTensor;
use lithe::inference::*;
use lithe::latency::Signals;
use lithe_worker::runtime::RuntimeError;
use lithe_worker::serve::{Backend, Batching, Curve, Limits, Policy, Running};
use lithe_worker::tensor::Tensor;
use serde_json::json;
use support::*;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// A model `y = x` of rows of one number that runs while its gate is open, remembers what it ran,
/// and fails on a number below zero.
struct Model {
    signature: [TensorSignature; 1],
    open: Mutex<bool>,
    opened: Condvar,
    runs: Mutex<Vec<Vec<f32>>>,
}

impl Model {
    fn new() -> Arc<Self> {
        let (name, datatype) = ("x".into(), "FP32".into());
        Arc::new(Self {
            signature: [TensorSignature { name, datatype, shape: vec![-1] }],
            open: Mutex::new(false),
            opened: Condvar::new(),
            runs: Mutex::default(),
        })
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn runs(&self) -> Vec<Vec<f32>> {
        self.runs.lock().unwrap().clone()
    }
}

impl Backend for Model {
    fn inputs(&self) -> &[TensorSignature] {
        &self.signature
    }

    fn outputs(&self) -> &[TensorSignature] {
        &self.signature
    }

    fn run(&self, inputs: &[(&str, &Tensor)], _: &[&str]) -> Result<Vec<Tensor>, RuntimeError> {
        let items: Vec<f32> =
            inputs[0].1.to_f64().unwrap().into_iter().map(|item| item as f32).collect();
        self.runs.lock().unwrap().push(items.clone());
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
        if items.iter().any(|item| *item < 0.0) {
            return Err(RuntimeError::Run("poison".into()));
        }
        Ok(inputs.iter().map(|(_, tensor)| (*tensor).clone()).collect())
    }
}

/// A server of `model` that already runs the number 100, so that all else waits.
async fn busy(model: &Arc<Model>, policy: Policy, curve: Curve) -> (Running, JoinHandle<Given>) {
    let running = with_policy(Limits { requests: 4, bytes: 1 << 20 }, 1 << 20, policy).await;
    running.load(model.clone(), curve).await.unwrap();
    let first = send(&running, &[100.0], 0).await;
    until("the first run", || model.runs().len() == 1).await;
    (running, first)
}

fn batching() -> Policy {
    let batching = Batching { max: 8, delay: Some(Duration::ZERO), preferred: vec![] };
    Policy { batching: Some(batching), ..Policy::default() }
}

type Given = Result<Vec<f32>, Status>;

fn message(items: &[f32], priority: u64) -> ModelInferRequest {
    let priority =
        InferParameter { parameter_choice: Some(ParameterChoice::Uint64Param(priority)) };
    let data: Vec<u8> = items.iter().flat_map(|item| item.to_le_bytes()).collect();
    ModelInferRequest {
        model_name: "m".into(),
        parameters: [("priority".to_owned(), priority)].into(),
        inputs: vec![InferInputTensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![items.len() as i64],
            ..Default::default()
        }],
        raw_input_contents: vec![data.into()],
        ..Default::default()
    }
}

async fn send(running: &Running, items: &[f32], priority: u64) -> JoinHandle<Given> {
    let (mut client, message) = (grpc(running).await, message(items, priority));
    tokio::spawn(async move {
        let answer = client.model_infer(message).await?.into_inner();
        let floats = answer.raw_output_contents[0].chunks(4);
        Ok(floats.map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect())
    })
}

async fn signals(running: &Running) -> Signals {
    Signals::parse(&get(running.admin, "/signals").await.body).unwrap()
}

async fn queued(running: &Running, count: u64) {
    while signals(running).await.queued != count {}
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_together_run_as_one_inference_over_every_protocol() {
    let model = Model::new();
    let (running, first) = busy(&model, batching(), Curve::default()).await;
    let one = send(&running, &[1.0], 0).await;
    queued(&running, 1).await;
    let two = send(&running, &[2.0, 3.0], 0).await;
    queued(&running, 2).await;
    let url = format!("http://{}/v2/models/m/infer", running.http);
    let rest = tokio::spawn(async move {
        let body =
            json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [4]}]});
        answer(client().post(url).body(body.to_string())).await.json()["outputs"][0]["data"].clone()
    });
    queued(&running, 3).await;
    model.open();
    assert_eq!(first.await.unwrap().unwrap(), [100.0]);
    assert_eq!(one.await.unwrap().unwrap(), [1.0]);
    assert_eq!(two.await.unwrap().unwrap(), [2.0, 3.0]);
    assert_eq!(rest.await.unwrap(), json!([4.0]));
    assert_eq!(model.runs(), [vec![100.0], vec![1.0, 2.0, 3.0, 4.0]]);
    let metrics = get(running.admin, "/metrics").await.body;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for line in [
        "nv_inference_count{model=\"m\",version=\"1\"} 4\n",
        "nv_inference_exec_count{model=\"m\",version=\"1\"} 2\n",
        "lithe_batch_rows_count 2\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_request_does_not_fail_its_neighbours() {
    let model = Model::new();
    let (running, _first) = busy(&model, batching(), Curve::default()).await;
    let mut answers = Vec::new();
    for (count, item) in [1.0, -2.0, 3.0].into_iter().enumerate() {
        answers.push(send(&running, &[item], 0).await);
        queued(&running, count as u64 + 1).await;
    }
    model.open();
    let mut given = Vec::new();
    for answer in answers {
        given.push(answer.await.unwrap());
    }
    assert_eq!(given[0].as_deref().unwrap(), [1.0]);
    assert_eq!(given[1].as_ref().unwrap_err().code(), Code::Internal);
    assert_eq!(given[2].as_deref().unwrap(), [3.0]);
    assert_eq!(
        model.runs()[1..],
        [vec![1.0, -2.0, 3.0], vec![1.0], vec![-2.0], vec![3.0]],
        "the batch, then each"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_urgent_overtake_and_the_least_urgent_are_refused_first() {
    let model = Model::new();
    let policy = Policy { levels: 3, ..Policy::default() };
    let (running, _first) = busy(&model, policy, Curve::default()).await;
    let mut taken = Vec::new();
    for (count, (item, priority)) in
        [(3.0, 3), (2.0, 0), (1.0, 1), (4.0, 3)].into_iter().enumerate()
    {
        taken.push(send(&running, &[item], priority).await);
        queued(&running, count as u64 + 1).await;
    }
    let urgent = send(&running, &[0.0], 1).await;
    let refused = taken.pop().unwrap().await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    model.open();
    assert!(urgent.await.unwrap().is_ok());
    for answer in taken {
        assert!(answer.await.unwrap().is_ok());
    }
    let order: Vec<_> = model.runs().into_iter().flatten().collect();
    assert_eq!(order, [100.0, 1.0, 0.0, 2.0, 3.0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_late_is_refused_with_a_hint_and_the_signals_count_it() {
    let model = Model::new();
    let policy = Policy { target: Some(Duration::from_secs(100)), ..Policy::default() };
    // Three inferences fit into twice the target.
    let curve = Curve::measured(&[(1, Duration::from_secs(60))]);
    let (running, first) = busy(&model, policy, curve).await;
    let second = send(&running, &[2.0], 0).await;
    queued(&running, 1).await;
    let third = send(&running, &[3.0], 0).await;
    queued(&running, 2).await;
    let refused = send(&running, &[4.0], 0).await.await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.metadata().contains_key("grpc-retry-pushback-ms"));
    let url = format!("http://{}/v2/models/m/infer", running.http);
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [4]}]});
    let refused = answer(client().post(url).body(body.to_string())).await;
    assert_eq!((refused.status, refused.headers["retry-after"].to_str().unwrap()), (429, "60"));

    let now = signals(&running).await;
    assert_eq!(
        (now.ready, now.in_flight, now.queued, now.streams, now.max_batch),
        (true, 3, 2, 1, 1)
    );
    assert_eq!((now.counters.arrivals, now.counters.refused.deadline), (5, 2));
    assert!(now.oldest_queued > 0.0);
    model.open();
    for answer in [first, second, third] {
        assert!(answer.await.unwrap().is_ok());
    }
    let after = signals(&running).await;
    assert_eq!((after.boot.as_str(), after.in_flight), (now.boot.as_str(), 0));
    let counters = after.counters;
    assert_eq!((counters.completions, counters.failures, counters.missed), (3, 0, 2));
    assert_eq!((counters.latency.count(), counters.queue_time.count()), (3, 3));
    assert_eq!((counters.batches.n, counters.batches.b), (3.0, 3.0));
    assert_eq!(model.runs().len(), 3, "a refused request ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_batched_is_refused_with_the_reason() {
    let running = with_policy(LIMITS, 1 << 20, batching()).await;
    let mut model = Arc::into_inner(Model::new()).unwrap();
    model.signature[0].shape = vec![1];
    let refused = running.load(Arc::new(model), Curve::default()).await.unwrap_err().to_string();
    assert!(refused.contains("\"x\" has shape [1]"), "{refused}");
    assert_eq!(get(running.admin, "/readyz").await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_connection_is_asked_to_come_anew_and_loses_no_request() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let age = Some(Duration::from_millis(100));
    let running = lithe_worker::serve::start(settings(LIMITS, 1 << 20, Policy::default(), age));
    let running = running.await.unwrap();
    let mut stream = tokio::net::TcpStream::connect(running.http).await.unwrap();
    let mut last = String::new();
    // HTTP/1: the server ends the connection only with an answer that says so.
    while !last.contains("connection: close") {
        stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: m\r\n\r\n").await.unwrap();
        last.clear();
        while !last.ends_with('}') {
            let mut part = [0; 1024];
            let length = stream.read(&mut part).await.unwrap();
            assert!(length > 0, "closed without a word after {last:?}");
            last.push_str(std::str::from_utf8(&part[..length]).unwrap());
        }
    }
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    // HTTP/2: a GOAWAY, which tonic's channel answers by connecting anew.
    let mut stream = tokio::net::TcpStream::connect(running.grpc).await.unwrap();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    // GET / on stream 1, which ends at once.
    let headers = b"\0\0\x03\x01\x05\0\0\0\x01\x82\x84\x86";
    stream.write_all(&[&preface[..], headers].concat()).await.unwrap();
    let (mut all, limit) = (Vec::new(), Duration::from_secs(30));
    // It ends, where without an age it would live on.
    while !all.windows(9).any(|frame| frame[..4] == [0, 0, 8, 7]) {
        let read = tokio::time::timeout(limit, stream.read_buf(&mut all));
        assert!(read.await.unwrap().unwrap() > 0, "closed without a GOAWAY");
    }
}
