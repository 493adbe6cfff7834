//! The server over real sockets: both protocols, every refusal, overload, deadlines and the drain.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lithe::inference::infer_parameter::ParameterChoice;
use lithe::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use lithe::inference::*;
use lithe_worker::serve::{Curve, Drain, Limits, Running};
use serde_json::json;
use support::*;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

fn input(datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: "x".into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        ..Default::default()
    }
}

fn request(inputs: Vec<InferInputTensor>, raw: Vec<Bytes>) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "m".into(),
        inputs,
        raw_input_contents: raw,
        ..Default::default()
    }
}

fn floats(items: &[f32]) -> Bytes {
    items.iter().flat_map(|item| item.to_le_bytes()).collect::<Vec<_>>().into()
}

async fn infer(running: &Running, body: impl Into<reqwest::Body>) -> Answer {
    let url = format!("http://{}/v2/models/m/infer", running.http);
    answer(client().post(url).body(body)).await
}

/// A request with the binary extension: the JSON part's length in the header is `length`.
async fn infer_binary(running: &Running, json: &str, binary: &[u8], length: &str) -> Answer {
    let url = format!("http://{}/v2/models/m/infer", running.http);
    let body = [json.as_bytes(), binary].concat();
    answer(client().post(url).header("Inference-Header-Content-Length", length).body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_and_grpc_give_the_runtimes_numbers() {
    let running = serving(&std::fs::read(packaged_model("mul_1.onnx")).unwrap()).await;
    let data = [1.5_f32, 2.25, 3.125, 4.0, 5.0, 6.0];
    let want = floats(&[1.5, 4.5, 9.375, 16.0, 25.0, 36.0]);

    let named = InferInputTensor { name: "X".into(), ..input("FP32", &[3, 2]) };
    let contents = InferTensorContents { fp32_contents: data.to_vec(), ..Default::default() };
    let typed = InferInputTensor { contents: Some(contents), ..named.clone() };
    let mut client = grpc(&running).await;
    for message in [request(vec![named], vec![floats(&data)]), request(vec![typed], vec![])] {
        let message = ModelInferRequest { id: "7".into(), ..message };
        let answer = client.model_infer(message).await.unwrap().into_inner();
        assert_eq!(answer.raw_output_contents, std::slice::from_ref(&want));
        assert_eq!((answer.id.as_str(), answer.model_name.as_str()), ("7", "m"));
        assert_eq!(answer.outputs[0].shape, [3, 2]);
    }

    let flat = json!({"id": "7", "inputs": [
        {"name": "X", "datatype": "FP32", "shape": [3, 2], "data": data}]});
    let nested = json!({"inputs": [{"name": "X", "datatype": "FP32", "shape": [3, 2],
        "data": [[1.5, 2.25], [3.125, 4], [5, 6]]}], "outputs": [{"name": "Y"}]});
    for body in [&flat, &nested] {
        let answer = infer(&running, body.to_string()).await;
        assert_eq!(answer.headers["content-type"], "application/json");
        let outputs = &answer.json()["outputs"];
        assert_eq!(
            *outputs,
            json!([{"name": "Y", "datatype": "FP32", "shape": [3, 2],
            "data": [1.5, 4.5, 9.375, 16.0, 25.0, 36.0]}])
        );
        assert_eq!(answer.json().get("id"), body.get("id"));
    }

    let head = json!({"parameters": {"binary_data_output": true}, "inputs": [{"name": "X",
        "datatype": "FP32", "shape": [3, 2], "parameters": {"binary_data_size": 24}}]})
    .to_string();
    let answer = infer_binary(&running, &head, &floats(&data), &head.len().to_string()).await;
    let length: usize =
        answer.headers["inference-header-content-length"].to_str().unwrap().parse().unwrap();
    assert_eq!(answer.body.slice(length..), want);

    let whole = infer_binary(&running, "", &floats(&data), "0").await;
    assert!(whole.body.ends_with(&want), "a body without JSON is the only input");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_datatype_passes_unchanged() {
    let strings = [b"\x02\0\0\0".as_slice(), "é".as_bytes(), b"\0\0\0\0"].concat();
    // ONNX element type, OIP name, two elements, their JSON where they travel as JSON
    let cases: [(u8, &str, &[u8], Option<serde_json::Value>); 14] = [
        (9, "BOOL", &[1, 0], Some(json!([true, false]))),
        (2, "UINT8", &[255, 1], Some(json!([255, 1]))),
        (4, "UINT16", &[255, 255, 1, 0], Some(json!([65535, 1]))),
        (12, "UINT32", &[255, 255, 255, 255, 1, 0, 0, 0], Some(json!([4294967295_u32, 1]))),
        (13, "UINT64", &[255; 16], Some(json!([u64::MAX, u64::MAX]))),
        (3, "INT8", &[128, 1], Some(json!([-128, 1]))),
        (5, "INT16", &[0, 128, 1, 0], Some(json!([-32768, 1]))),
        (6, "INT32", &[0, 0, 0, 128, 1, 0, 0, 0], Some(json!([i32::MIN, 1]))),
        (
            7,
            "INT64",
            &[0, 0, 0, 0, 0, 0, 0, 128, 1, 0, 0, 0, 0, 0, 0, 0],
            Some(json!([i64::MIN, 1])),
        ),
        (10, "FP16", &[0, 60, 0, 188], None),
        (16, "BF16", &[128, 63, 128, 191], None),
        (1, "FP32", &[0, 0, 128, 63, 0, 0, 128, 191], Some(json!([1.0, -1.0]))),
        (
            11,
            "FP64",
            &[0, 0, 0, 0, 0, 0, 240, 63, 0, 0, 0, 0, 0, 0, 240, 191],
            Some(json!([1.0, -1.0])),
        ),
        (8, "BYTES", &strings, Some(json!(["é", ""]))),
    ];
    for (element, datatype, raw, json) in cases {
        let running = serving(&identity(element, &["n"])).await;
        let message = request(vec![input(datatype, &[2])], vec![raw.to_vec().into()]);
        let answer = grpc(&running).await.model_infer(message).await.unwrap().into_inner();
        assert_eq!(answer.raw_output_contents, [Bytes::from(raw.to_vec())], "{datatype}");
        assert_eq!(answer.outputs[0].datatype, datatype);

        let head = json!({"inputs": [{"name": "x", "datatype": datatype, "shape": [2],
            "parameters": {"binary_data_size": raw.len()}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": true}}]})
        .to_string();
        let answer = infer_binary(&running, &head, raw, &head.len().to_string()).await;
        assert!(answer.status == 200 && answer.body.ends_with(raw), "{datatype}");

        let data = json.clone().unwrap_or(json!([1, 1]));
        let body =
            json!({"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": data}]});
        let answer = infer(&running, body.to_string()).await;
        match json {
            Some(json) => assert_eq!(answer.json()["outputs"][0]["data"], json, "{datatype}"),
            None => assert_eq!(answer.status, 400, "{datatype} does not travel as JSON"),
        }
        let none = request(vec![input(datatype, &[0])], vec![Bytes::new()]);
        let answer = grpc(&running).await.model_infer(none).await.unwrap().into_inner();
        assert_eq!(answer.outputs[0].shape, [0], "an empty tensor of {datatype}");
    }
    let running = serving(&identity(1, &[])).await;
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [], "data": 7}]});
    let answer = infer(&running, body.to_string()).await;
    assert_eq!(answer.json()["outputs"][0]["data"], json!([7.0]), "a scalar");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code_in_grpc() {
    let running = serving(&identity(1, &["n", "2"])).await;
    let mut client = grpc(&running).await;
    let good = || request(vec![input("FP32", &[1, 2])], vec![floats(&[1.0, 2.0])]);
    assert!(client.model_infer(good()).await.is_ok());
    let output =
        |name: &str| InferRequestedOutputTensor { name: name.into(), ..Default::default() };
    let parameter = |name: &str, value: ParameterChoice| {
        (name.to_owned(), InferParameter { parameter_choice: Some(value) })
    };
    let classified = InferRequestedOutputTensor {
        parameters: [parameter("classification", ParameterChoice::Int64Param(0))].into(),
        ..output("y")
    };
    let other = |inputs, raw| request(inputs, raw);
    let cases = [
        (ModelInferRequest { model_name: "z".into(), ..good() }, Code::NotFound, "unknown model"),
        (ModelInferRequest { model_version: "2".into(), ..good() }, Code::NotFound, "version 2"),
        (other(vec![], vec![]), Code::InvalidArgument, "\"x\" is missing"),
        (
            other(vec![input("FP64", &[1, 2])], vec![vec![0; 16].into()]),
            Code::InvalidArgument,
            "is FP32, got FP64",
        ),
        (
            other(vec![input("FP32", &[1, 3])], vec![vec![0; 12].into()]),
            Code::InvalidArgument,
            "has shape [-1, 2]",
        ),
        (
            other(vec![input("FP32", &[-1, 2])], vec![vec![0; 8].into()]),
            Code::InvalidArgument,
            "negative",
        ),
        (
            other(vec![input("FP32", &[1 << 31, 2])], vec![vec![0; 4].into()]),
            Code::InvalidArgument,
            "got 4",
        ),
        (
            other(vec![input("FP32", &[1 << 62, 1 << 62])], vec![vec![0; 4].into()]),
            Code::InvalidArgument,
            "too many elements",
        ),
        (
            other(vec![input("FP32", &[1, 2]); 2], vec![floats(&[1.0, 2.0]); 2]),
            Code::InvalidArgument,
            "twice",
        ),
        (
            ModelInferRequest { outputs: vec![output("z")], ..good() },
            Code::InvalidArgument,
            "unexpected output \"z\"",
        ),
        (
            ModelInferRequest { outputs: vec![output("y"); 2], ..good() },
            Code::InvalidArgument,
            "requested twice",
        ),
        (
            ModelInferRequest { outputs: vec![output("y"); 1000], ..good() },
            Code::InvalidArgument,
            "requested twice",
        ),
        (
            ModelInferRequest { outputs: vec![classified], ..good() },
            Code::InvalidArgument,
            "ask for one class at least",
        ),
        (
            other(vec![InferInputTensor::default(); 100_000], vec![]),
            Code::InvalidArgument,
            "more than 4096 items",
        ),
    ];
    for (message, code, words) in cases {
        let status = client.model_infer(message).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status} does not say {words}");
    }
    let load = client.repository_model_load(RepositoryModelLoadRequest::default()).await;
    assert_eq!(load.unwrap_err().code(), Code::NotFound);
    // The connection outlived all of it.
    assert!(client.model_infer(good()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code_in_rest() {
    let running = serving(&identity(1, &["n", "2"])).await;
    let tensor = |name: &str, datatype: &str, shape: &str, rest: &str| {
        format!(
            r#"{{"inputs":[{{"name":"{name}","datatype":"{datatype}","shape":{shape},{rest}}}]}}"#
        )
    };
    let many = format!(
        r#"{{"inputs":[{}{{}}]}}"#,
        r#"{"name":"x","datatype":"FP32","shape":[1]},"#.repeat(100_000)
    );
    let cases = [
        ("not json".to_owned(), 400, "is not what it should be"),
        (String::new(), 400, "is not what it should be"),
        ("{\"inputs\":[]}".to_owned(), 400, "\"x\" is missing"),
        ("[".repeat(200_000), 400, "is not what it should be"),
        (
            tensor("x", "FP32", "[1,2]", r#""data":[1]"#),
            400,
            "the shape has 2 elements, data has 1",
        ),
        (tensor("x", "FP32", "[1,2]", r#""data":[1,2,3]"#), 400, "more elements"),
        (tensor("x", "FP32", "[1,2]", r#""data":["a","b"]"#), 400, "a string is not"),
        (tensor("x", "FP32", "[-1,2]", r#""data":[1,2]"#), 400, "negative"),
        (
            tensor("x", "FP32", "[4611686018427387904,4]", r#""data":[1,2]"#),
            400,
            "too many elements",
        ),
        (tensor("x", "FP32", "[1152921504606846976]", r#""data":[1,2]"#), 400, "data has 2"),
        (tensor("x", "FP3", "[1,2]", r#""data":[1,2]"#), 400, "unknown"),
        (tensor("x", "INT32", "[1,2]", r#""data":[1,2]"#), 400, "is FP32, got INT32"),
        (tensor("z", "FP32", "[1,2]", r#""data":[1,2]"#), 400, "unexpected input"),
        (tensor("x", "FP32", "[1,2]", r#""parameters":{}"#), 400, "neither data nor"),
        (
            tensor("x", "FP32", "[1,2]", r#""parameters":{"shared_memory_region":"r"}"#),
            501,
            "shared_memory_region",
        ),
        (many, 400, "more than 1024 tensors"),
    ];
    for (body, status, words) in cases {
        let shown = body.chars().take(120).collect::<String>();
        let answer = infer(&running, body).await;
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, status, "{shown}: {error}");
        assert_eq!(answer.headers["content-type"], "application/json");
        assert!(error.contains(words), "{shown}: {error} does not say {words}");
    }
    for (path, status) in [
        ("/v2/models/z", 404),
        ("/v2/models/m/versions/9/ready", 404),
        ("/v2/nothing", 404),
        ("/v2/systemsharedmemory/status", 501),
        ("/v2/models/m/infer", 405),
    ] {
        let answer = get(running.http, path).await;
        assert_eq!((path, answer.status), (path, status));
        assert!(answer.json()["error"].is_string(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_about_binary_lengths_are_refused() {
    let running = serving(&identity(1, &["n"])).await;
    let head = |size: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[2],"parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    let data = floats(&[1.0, 2.0]);
    // size in the JSON, length in the header (of the JSON when empty), binary data, words
    let cases: [(&str, &str, &[u8], &str); 9] = [
        ("8", "", &data[..4], "4 bytes are left"),
        ("4", "", &data[..4], "takes 8 bytes, got 4"),
        ("4", "", &data, "takes 8 bytes, got 4"),
        ("8", "", &[&data[..], &data[..]].concat(), "8 bytes of binary data belong to no input"),
        ("-8", "", &data, "is not what it should be"),
        ("18446744073709551615", "", &data, "bytes are left"),
        ("8", "-1", &data, "Inference-Header-Content-Length"),
        ("8", "999999999999", &data, "Inference-Header-Content-Length"),
        ("8", "10", &data, "is not what it should be"),
    ];
    for (size, length, binary, words) in cases {
        let json = head(size);
        let length = if length.is_empty() { json.len().to_string() } else { length.to_owned() };
        let answer = infer_binary(&running, &json, binary, &length).await;
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, 400, "{size} {length}: {error}");
        assert!(error.contains(words), "{size} {length}: {error} does not say {words}");
    }
    let running = serving(&identity(8, &["n"])).await;
    for lie in [&[255, 255, 255, 255, 1][..], &[1, 0, 0, 0, 0], &[2, 0, 0, 0, 0xff, 0xfe]] {
        let message = request(vec![input("BYTES", &[1])], vec![lie.to_vec().into()]);
        let status = grpc(&running).await.model_infer(message).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_pass_and_too_large_ones_are_refused() {
    let running = empty(LIMITS, 8 << 20).await;
    running.load(Gate::new(true), Curve::default()).await.unwrap();
    let message = |count: usize| {
        request(vec![input("FP32", &[count as i64])], vec![vec![0; count * 4].into()])
    };
    let mut client = grpc(&running).await.max_encoding_message_size(usize::MAX);
    let answer = client.model_infer(message(1_500_000)).await.unwrap().into_inner();
    assert_eq!(answer.raw_output_contents[0].len(), 6_000_000);
    let status = client.model_infer(message(3_000_000)).await.unwrap_err();
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
    let answer = infer(&running, vec![b' '; 9 << 20]).await;
    assert_eq!(answer.status, 413);
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn deflate(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_bodies_are_read_and_bombs_are_not() {
    let running = empty(LIMITS, 8 << 20).await;
    running.load(Gate::new(true), Curve::default()).await.unwrap();
    let url = format!("http://{}/v2/models/m/infer", running.http);
    let data = vec![0.5; 2000];
    let body =
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2000], "data": data}]})
            .to_string();
    let send = |coding: &'static str, body: Vec<u8>| {
        let request = client().post(&url).header("Content-Encoding", coding).body(body);
        answer(request.header("Accept-Encoding", "deflate;q=0, gzip"))
    };
    for (coding, packed) in [("gzip", gzip(body.as_bytes())), ("deflate", deflate(body.as_bytes()))]
    {
        let answer = send(coding, packed).await;
        assert_eq!(answer.status, 200, "{coding}");
        assert_eq!(answer.headers["content-encoding"], "gzip");
        let mut plain = String::new();
        let mut decoder = flate2::read::GzDecoder::new(&answer.body[..]);
        std::io::Read::read_to_string(&mut decoder, &mut plain).unwrap();
        assert!(plain.starts_with("{\"model_name\":\"m\""), "{plain}");
    }
    assert_eq!(send("gzip", gzip(&vec![b' '; 200 << 20])).await.status, 413);
    assert_eq!(send("gzip", b"no gzip".to_vec()).await.status, 400);
    assert_eq!(send("br", b"x".to_vec()).await.status, 400);
    let metadata =
        client().get(format!("http://{}/v2", running.http)).header("Accept-Encoding", "gzip");
    assert!(!answer(metadata).await.headers.contains_key("content-encoding"));
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_health_and_metadata_follow_the_model() {
    let running = empty(LIMITS, 1 << 20).await;
    let channel =
        tonic::transport::Channel::from_shared(format!("http://{}", running.grpc)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let mut serving = async |service: &str| {
        let asked = HealthCheckRequest { service: service.into() };
        health.check(asked).await.map(|answer| answer.into_inner().status == 1)
    };
    let loading = get(running.http, "/v2/health/ready").await;
    assert_eq!((loading.status, loading.json()), (503, json!({"ready": false})));
    assert_eq!(get(running.http, "/v2/health/live").await.json(), json!({"live": true}));
    assert_eq!(get(running.admin, "/readyz").await.status, 503);
    assert_eq!(get(running.admin, "/livez").await.status, 200);
    assert_eq!(get(running.http, "/v2/models/m").await.status, 503);
    assert!(!serving("").await.unwrap() && !serving("m").await.unwrap());

    running.load(Gate::new(true), Curve::default()).await.unwrap();
    assert!(serving("").await.unwrap() && serving("m").await.unwrap());
    assert_eq!(serving("other").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get(running.admin, "/readyz").await.status, 200);
    assert_eq!(get(running.http, "/v2/health/ready").await.json(), json!({"ready": true}));
    let ready = get(running.http, "/v2/models/m/versions/1/ready").await;
    assert_eq!(ready.json(), json!({"name": "m", "ready": true}));
    assert_eq!(get(running.http, "/v2").await.json()["name"], "lithe");
    assert_eq!(get(running.http, "/v2/models").await.json(), json!({"models": ["m"]}));
    let metadata = get(running.http, "/v2/models/m").await.json();
    assert_eq!(metadata["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [-1]}]));
    assert_eq!(metadata["versions"], json!(["1"]));
    let config = get(running.http, "/v2/models/m/config").await.json();
    assert_eq!(config["input"], json!([{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}]));
    let index = client().post(format!("http://{}/v2/repository/index", running.http));
    assert_eq!(
        answer(index).await.json(),
        json!([{"name": "m", "version": "1", "state": "READY"}])
    );

    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]});
    assert_eq!(infer(&running, body.to_string()).await.status, 200);
    let statistics = get(running.http, "/v2/models/m/stats").await.json();
    assert_eq!(statistics["model_stats"][0]["inference_count"], 1);
    let metrics = get(running.admin, "/metrics").await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(
        text.contains("lithe_request_duration_seconds_count{protocol=\"http\",outcome=\"ok\"} 1"),
        "{text}"
    );
    assert!(text.contains("nv_inference_request_success{model=\"m\",version=\"1\"} 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_names_the_service_in_both_versions() {
    use tokio_stream::StreamExt as _;
    let running = empty(LIMITS, 1 << 20).await;
    let url = format!("http://{}", running.grpc);
    let channel = tonic::transport::Channel::from_shared(url).unwrap().connect().await.unwrap();
    macro_rules! services {
        ($version:ident) => {{
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::{
                ServerReflectionRequest, server_reflection_response::MessageResponse,
            };
            let ask = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::ListServices(String::new())),
            };
            let mut client = ServerReflectionClient::new(channel.clone());
            let stream = client.server_reflection_info(tokio_stream::once(ask)).await.unwrap();
            let first = stream.into_inner().next().await.unwrap().unwrap();
            let Some(MessageResponse::ListServicesResponse(list)) = first.message_response else {
                panic!("{first:?}");
            };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }};
    }
    for services in [services!(v1), services!(v1alpha)] {
        assert!(services.contains(&"inference.GRPCInferenceService".to_owned()), "{services:?}");
        assert!(services.contains(&"grpc.health.v1.Health".to_owned()), "{services:?}");
    }
}

fn one() -> ModelInferRequest {
    request(vec![input("FP32", &[1])], vec![floats(&[1.0])])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_serves_what_it_took() {
    let gate = Gate::new(false);
    let running = empty(Limits { requests: 4, bytes: 1 << 20 }, 1 << 20).await;
    running.load(gate.clone(), Curve::default()).await.unwrap();
    let client = grpc(&running).await;
    let send = || {
        let mut client = client.clone();
        tokio::spawn(async move { client.model_infer(one()).await })
    };
    let running_one = send();
    until("the first run", || gate.runs.load(Ordering::SeqCst) == 1).await;
    let taken: Vec<_> = (0..4).map(|_| send()).collect();
    let waiting = || async {
        let text = get(running.admin, "/metrics").await.body;
        String::from_utf8(text.to_vec()).unwrap().contains("lithe_requests_in_flight 5\n")
    };
    while !waiting().await {}
    for _ in 0..20 {
        let status = send().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
    }
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]});
    let refused = infer(&running, body.to_string()).await;
    assert_eq!((refused.status, &refused.headers["retry-after"]), (429, &"1".parse().unwrap()));
    gate.set(true);
    for task in std::iter::once(running_one).chain(taken) {
        assert!(task.await.unwrap().is_ok());
    }
    assert_eq!(gate.runs.load(Ordering::SeqCst), 5, "a refused request ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_or_abandoned_request_runs_no_kernel() {
    let gate = Gate::new(false);
    let running = empty(LIMITS, 1 << 20).await;
    running.load(gate.clone(), Curve::default()).await.unwrap();
    let client = grpc(&running).await;
    let first = tokio::spawn({
        let mut client = client.clone();
        async move { client.model_infer(one()).await }
    });
    until("the first run", || gate.runs.load(Ordering::SeqCst) == 1).await;
    // By the header that gRPC clients send.
    let mut late = tonic::Request::new(one());
    late.set_timeout(Duration::from_millis(20));
    let status = client.clone().model_infer(late).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    // By the protocol's own parameter, in microseconds.
    let timeout = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(20_000)) };
    let late = ModelInferRequest { parameters: [("timeout".to_owned(), timeout)].into(), ..one() };
    let status = client.clone().model_infer(late).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    let body = json!({"parameters": {"timeout": 20_000},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]});
    assert_eq!(infer(&running, body.to_string()).await.status, 504);
    // A client that goes away.
    let gone = tokio::spawn({
        let mut client = client.clone();
        async move { client.model_infer(one()).await }
    });
    let in_flight = |count: usize| {
        let admin = running.admin;
        async move {
            let text = get(admin, "/metrics").await.body;
            let line = format!("lithe_requests_in_flight {count}\n");
            String::from_utf8(text.to_vec()).unwrap().contains(&line)
        }
    };
    while !in_flight(2).await {}
    gone.abort();
    while !in_flight(1).await {}
    gate.set(true);
    assert!(first.await.unwrap().is_ok());
    assert!(client.clone().model_infer(one()).await.is_ok());
    assert_eq!(gate.runs.load(Ordering::SeqCst), 2, "a late or abandoned request ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_at_the_end_are_answered() {
    let gate = Gate::new(false);
    let running = empty(LIMITS, 1 << 20).await;
    running.load(gate.clone(), Curve::default()).await.unwrap();
    let (http, admin) = (running.http, running.admin);
    let client = grpc(&running).await;
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]});
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let (mut grpc, body) = (client.clone(), body.to_string());
        waiting.push(tokio::spawn(async move { grpc.model_infer(one()).await.is_ok() }));
        waiting.push(tokio::spawn(async move {
            let url = format!("http://{http}/v2/models/m/infer");
            answer(support::client().post(url).body(body)).await.status == 200
        }));
    }
    let in_flight = || async {
        let text = get(admin, "/metrics").await.body;
        String::from_utf8(text.to_vec()).unwrap().contains("lithe_requests_in_flight 8\n")
    };
    while !in_flight().await {}
    let drain = Drain { delay: Duration::ZERO, deadline: Duration::from_secs(60) };
    let draining = tokio::spawn(running.drain(drain));
    while tokio::net::TcpStream::connect(http).await.is_ok() {}
    gate.set(true);
    for waiting in waiting {
        assert!(waiting.await.unwrap(), "a request was lost");
    }
    assert!(draining.await.unwrap(), "the drain was not clean");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_ends_does_not_hold_up_the_end() {
    let gate = Gate::new(false);
    let running = empty(LIMITS, 1 << 20).await;
    running.load(gate.clone(), Curve::default()).await.unwrap();
    let mut client = grpc(&running).await;
    let stuck = tokio::spawn(async move { client.model_infer(one()).await });
    until("the first run", || gate.runs.load(Ordering::SeqCst) == 1).await;
    let drain = Drain { delay: Duration::ZERO, deadline: Duration::from_millis(100) };
    assert!(!running.drain(drain).await, "the drain says it was clean");
    assert!(stuck.await.unwrap().is_err());
    gate.set(true);
}

/// The program itself, which ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn program(ports: [u16; 3], delay: &str) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lithe-worker"));
    command.args([
        "serve",
        "--name",
        "m",
        "--drain-delay",
        delay,
        "--drain-deadline",
        "10s",
        "--model",
    ]);
    command.arg(packaged_model("mul_1.onnx"));
    for (flag, port) in ["--http", "--grpc", "--admin"].iter().zip(ports) {
        command.args([*flag, &format!("127.0.0.1:{port}")]);
    }
    let process = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let url = format!("http://127.0.0.1:{}/readyz", ports[2]);
    for _ in 0..1000 {
        let ready = client().get(&url).send().await;
        if ready.is_ok_and(|answer| answer.status().is_success()) {
            return process;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the program did not get ready");
}

fn terminate(process: &Process) {
    let id = nix::unistd::Pid::from_raw(process.0.id().try_into().unwrap());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
}

async fn exit_code(process: &mut Process) -> Option<i32> {
    for _ in 0..1500 {
        if let Some(status) = process.0.try_wait().unwrap() {
            return status.code();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the program did not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_loses_no_request() {
    let ports = [free_port(), free_port(), free_port()];
    let mut process = program(ports, "5s").await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let channel = tonic::transport::Channel::from_shared(format!("http://127.0.0.1:{}", ports[1]));
    let channel = channel.unwrap().connect().await.unwrap();
    let mut clients = Vec::new();
    for worker in 0..8 {
        let (stop, done) = (stop.clone(), done.clone());
        let mut grpc =
            grpc_inference_service_client::GrpcInferenceServiceClient::new(channel.clone());
        let (http, url) = (client(), format!("http://127.0.0.1:{}/v2/models/m/infer", ports[0]));
        clients.push(tokio::spawn(async move {
            let named = InferInputTensor { name: "X".into(), ..input("FP32", &[3, 2]) };
            let body = json!({"inputs": [{"name": "X", "datatype": "FP32", "shape": [3, 2], "data": [1, 2, 3, 4, 5, 6]}]});
            while !stop.load(Ordering::SeqCst) {
                let result = if worker % 2 == 0 {
                    let message = request(vec![named.clone()], vec![floats(&[1.0; 6])]);
                    grpc.model_infer(message).await.map(|_| ()).map_err(|error| error.to_string())
                } else {
                    let answer = http.post(&url).body(body.to_string()).send().await;
                    answer.and_then(reqwest::Response::error_for_status).map(|_| ()).map_err(|error| format!("{error:?}"))
                };
                result.unwrap();
                done.fetch_add(1, Ordering::SeqCst);
            }
        }));
    }
    until("load", || done.load(Ordering::SeqCst) > 200).await;
    terminate(&process);
    // Ready is taken back while requests are still answered.
    let url = format!("http://127.0.0.1:{}/readyz", ports[2]);
    while client().get(&url).send().await.unwrap().status().is_success() {}
    let before = done.load(Ordering::SeqCst);
    until("requests in the drain", || done.load(Ordering::SeqCst) > before + 50).await;
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(exit_code(&mut process).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_the_drain() {
    let ports = [free_port(), free_port(), free_port()];
    let mut process = program(ports, "1h").await;
    terminate(&process);
    let url = format!("http://127.0.0.1:{}/readyz", ports[2]);
    while client().get(&url).send().await.unwrap().status().is_success() {}
    terminate(&process);
    assert_eq!(exit_code(&mut process).await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_ends_the_program_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.onnx");
    std::fs::write(&path, "<html>not found</html>").unwrap();
    packaged_model("mul_1.onnx");
    let output = Command::new(env!("CARGO_BIN_EXE_lithe-worker"))
        .args([
            "serve",
            "--http",
            "127.0.0.1:0",
            "--grpc",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--model",
        ])
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.lines().last().unwrap().starts_with("lithe-worker: "), "{said}");
}
