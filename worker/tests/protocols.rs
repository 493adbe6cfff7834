//! TensorFlow Serving and KServe v1 over real sockets, the extensions of OIP v2, and that all
//! protocols give the same numbers.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use bytes::Bytes;
use lithe::inference::infer_parameter::ParameterChoice;
use lithe::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use lithe::inference::{
    InferParameter, LogSettingsRequest, ModelInferRequest, RepositoryModelLoadRequest,
    RepositoryModelUnloadRequest, TraceSettingRequest, trace_setting_request,
};
use lithe::tensorflow::feature::Kind;
use lithe::tensorflow::serving::inference_result::Result as TaskResult;
use lithe::tensorflow::serving::model_service_client::ModelServiceClient;
use lithe::tensorflow::serving::model_spec::VersionChoice;
use lithe::tensorflow::serving::model_version_status::State;
use lithe::tensorflow::serving::prediction_service_client::PredictionServiceClient;
use lithe::tensorflow::serving::*;
use lithe::tensorflow::tensor_shape_proto::Dim;
use lithe::tensorflow::{
    DataType, Example, Feature, Features, FloatList, TensorProto, TensorShapeProto,
};
use lithe_worker::serve::{Curve, Policy, Running, Served, Settings, start};
use prost::Message as _;
use serde_json::{Value, json};
use support::*;
use tonic::Code;
use tonic::transport::Channel;

const DATA: [f32; 6] = [1.5, 2.25, 3.125, 4.0, 5.0, 6.0];

fn little_endian(items: &[f32]) -> Bytes {
    items.iter().flat_map(|item| item.to_le_bytes()).collect::<Vec<_>>().into()
}

async fn channel(running: &Running) -> Channel {
    let channel = Channel::from_shared(format!("http://{}", running.grpc)).unwrap();
    channel.connect().await.unwrap()
}

async fn tensorflow(running: &Running) -> PredictionServiceClient<Channel> {
    PredictionServiceClient::new(channel(running).await)
}

async fn post(running: &Running, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    answer(client().post(format!("http://{}{path}", running.http)).body(body)).await
}

fn spec() -> Option<ModelSpec> {
    Some(ModelSpec { name: "m".into(), ..Default::default() })
}

fn tensor(dims: &[i64], items: &[f32]) -> TensorProto {
    let dim = dims.iter().map(|size| Dim { size: *size, name: String::new() }).collect();
    TensorProto {
        dtype: DataType::DtFloat.into(),
        tensor_shape: Some(TensorShapeProto { dim, unknown_rank: false }),
        float_val: items.to_vec(),
        ..Default::default()
    }
}

fn predict(name: &str, tensor: TensorProto) -> PredictRequest {
    PredictRequest {
        model_spec: spec(),
        inputs: [(name.to_owned(), tensor)].into(),
        output_filter: Vec::new(),
    }
}

fn examples(rows: &[&[f32]]) -> Option<Input> {
    let example = |row: &&[f32]| {
        let feature = Feature { kind: Some(Kind::FloatList(FloatList { value: row.to_vec() })) };
        Example { features: Some(Features { feature: [("x".to_owned(), feature)].into() }) }
    };
    let list = ExampleList { examples: rows.iter().map(example).collect() };
    Some(Input { kind: Some(input::Kind::ExampleList(list)) })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_inputs_give_the_same_numbers_over_every_protocol() {
    let running = serving(&std::fs::read(packaged_model("mul_1.onnx")).unwrap()).await;
    // OIP v2 over gRPC is the one that the others are compared with.
    let named = InferInputTensor {
        name: "X".into(),
        datatype: "FP32".into(),
        shape: vec![3, 2],
        ..Default::default()
    };
    let message = ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![named],
        raw_input_contents: vec![little_endian(&DATA)],
        ..Default::default()
    };
    let oip = grpc(&running).await.model_infer(message).await.unwrap().into_inner();
    let want: Vec<f32> = oip.raw_output_contents[0]
        .chunks(4)
        .map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap()))
        .collect();
    assert_eq!(want, [1.5, 4.5, 9.375, 16.0, 25.0, 36.0]);

    let values = |value: &Value| -> Vec<f32> {
        let mut flat = Vec::new();
        let mut open = vec![value];
        while let Some(value) = open.pop() {
            match value {
                Value::Array(items) => open.extend(items.iter().rev()),
                number => flat.push(number.as_f64().unwrap() as f32),
            }
        }
        flat
    };
    let nested = json!([[1.5, 2.25], [3.125, 4.0], [5.0, 6.0]]);
    let body =
        json!({"inputs": [{"name": "X", "datatype": "FP32", "shape": [3, 2], "data": nested}]});
    let rest = post(&running, "/v2/models/m/infer", body.to_string()).await.json();
    assert_eq!(values(&rest["outputs"][0]["data"]), want);

    let content = TensorProto { tensor_content: little_endian(&DATA), ..tensor(&[3, 2], &[]) };
    for proto in [tensor(&[3, 2], &DATA), content] {
        let answer = tensorflow(&running).await.predict(predict("X", proto)).await.unwrap();
        let answer = answer.into_inner();
        assert_eq!(answer.outputs["Y"].float_val, want);
        let resolved = answer.model_spec.unwrap();
        assert_eq!(resolved.version_choice, Some(VersionChoice::Version(1)));
        assert_eq!(resolved.signature_name, "serving_default");
    }

    // KServe v1 and TensorFlow Serving speak alike here.
    for (body, key) in [
        (json!({"instances": nested}), "predictions"),
        (
            json!({"instances": [{"X": [1.5, 2.25]}, {"X": [3.125, 4]}, {"X": [5, 6]}]}),
            "predictions",
        ),
        (json!({"inputs": nested}), "outputs"),
        (json!({"signature_name": "serving_default", "inputs": {"X": nested}}), "outputs"),
    ] {
        for path in ["/v1/models/m:predict", "/v1/models/m/versions/1:Predict"] {
            let answer = post(&running, path, body.to_string()).await;
            assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
            assert_eq!(answer.headers["content-type"], "application/json");
            assert_eq!(values(&answer.json()[key]), want, "{path} {body}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code_in_tensorflow_grpc() {
    let running = serving(&identity(1, &["n", "2"])).await;
    let mut client = tensorflow(&running).await;
    let good = || predict("x", tensor(&[1, 2], &[1.0, 2.0]));
    assert!(client.predict(good()).await.is_ok());
    let of = |spec: ModelSpec| PredictRequest {
        model_spec: Some(ModelSpec { name: "m".into(), ..spec }),
        ..good()
    };
    let version = |choice| of(ModelSpec { version_choice: Some(choice), ..Default::default() });
    let named = |name: &str| {
        let spec = ModelSpec { name: name.into(), ..Default::default() };
        PredictRequest { model_spec: Some(spec), ..good() }
    };
    let typed = TensorProto { dtype: DataType::DtInt32.into(), ..tensor(&[1, 2], &[]) };
    let dims = TensorShapeProto { dim: vec![Dim::default(); 5000], unknown_rank: false };
    let cases = [
        (named("z"), Code::NotFound, "Servable not found for request: Latest(z)"),
        (named(""), Code::InvalidArgument, "no name"),
        (version(VersionChoice::Version(7)), Code::NotFound, "Specific(m, 7)"),
        (version(VersionChoice::VersionLabel("a".into())), Code::NotFound, "label: a"),
        (
            of(ModelSpec { signature_name: "s".into(), ..Default::default() }),
            Code::InvalidArgument,
            "Serving signature name: \"s\" not found in signature def",
        ),
        (
            PredictRequest { inputs: Default::default(), ..good() },
            Code::InvalidArgument,
            "input size does not match signature: 0!=1",
        ),
        (predict("z", tensor(&[1, 2], &[1.0])), Code::InvalidArgument, "Sent extra: {z}"),
        (predict("x", typed), Code::InvalidArgument, "expects DT_FLOAT, got DT_INT32"),
        (predict("x", tensor(&[1, 3], &[1.0])), Code::InvalidArgument, "has shape [-1, 2]"),
        (predict("x", tensor(&[-1, 2], &[1.0])), Code::InvalidArgument, "negative"),
        (predict("x", tensor(&[1 << 40, 2], &[1.0])), Code::ResourceExhausted, "takes more than"),
        (predict("x", tensor(&[1 << 62, 4], &[1.0])), Code::InvalidArgument, "too many elements"),
        (
            PredictRequest { output_filter: vec!["z".into()], ..good() },
            Code::InvalidArgument,
            "unexpected output \"z\"",
        ),
        (
            predict("x", TensorProto { tensor_shape: Some(dims), ..tensor(&[], &[]) }),
            Code::InvalidArgument,
            "more than 4096 items",
        ),
    ];
    for (message, code, words) in cases {
        let status = client.predict(message).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status} does not say {words}");
    }
    let metadata = |fields: &[&str]| GetModelMetadataRequest {
        model_spec: spec(),
        metadata_field: fields.iter().map(|field| (*field).to_owned()).collect(),
    };
    for (fields, words) in [(&[][..], "at least one"), (&["x"], "not supported")] {
        let status = client.get_model_metadata(metadata(fields)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(words), "{status}");
    }
    let answer =
        client.get_model_metadata(metadata(&["signature_def"])).await.unwrap().into_inner();
    let any = &answer.metadata["signature_def"];
    assert_eq!(any.type_url, "type.googleapis.com/tensorflow.serving.SignatureDefMap");
    let map = SignatureDefMap::decode(&any.value[..]).unwrap();
    let signature = &map.signature_def["serving_default"];
    let info = &signature.inputs["x"];
    assert_eq!((info.dtype(), info.name.as_str()), (DataType::DtFloat, "x"));
    let sizes: Vec<_> =
        info.tensor_shape.as_ref().unwrap().dim.iter().map(|dim| dim.size).collect();
    assert_eq!(sizes, [-1, 2]);
    // The connection outlived all of it.
    assert!(client.predict(good()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_are_classified_and_regressed() {
    let running = serving(&identity(1, &["n", "2"])).await;
    let mut client = tensorflow(&running).await;
    let rows: [&[f32]; 2] = [&[0.75, 0.25], &[0.5, 0.5]];
    let request = ClassificationRequest { model_spec: spec(), input: examples(&rows) };
    let result = client.classify(request).await.unwrap().into_inner().result.unwrap();
    let text: Vec<Vec<_>> = result
        .classifications
        .iter()
        .map(|row| row.classes.iter().map(|c| (c.label.as_str(), c.score)).collect())
        .collect();
    assert_eq!(text, [[("0", 0.75), ("1", 0.25)], [("0", 0.5), ("1", 0.5)]]);
    let body = json!({"examples": [{"x": [0.75, 0.25]}], "context": {"other": 1}}).to_string();
    let answer = post(&running, "/v1/models/m:classify", body).await;
    assert_eq!(answer.body, r#"{"results":[[["0",0.75],["1",0.25]]]}"#);
    let regress = RegressionRequest { model_spec: spec(), input: examples(&rows) };
    let status = client.regress(regress).await.unwrap_err();
    assert!(status.message().contains("one number for each"), "{status}");

    let running = serving(&identity(1, &["n", "1"])).await;
    let mut client = tensorflow(&running).await;
    let rows: [&[f32]; 3] = [&[1.0], &[f32::NAN], &[-3.0]];
    let request = RegressionRequest { model_spec: spec(), input: examples(&rows) };
    let result = client.regress(request).await.unwrap().into_inner().result.unwrap();
    let values: Vec<_> = result.regressions.iter().map(|one| one.value).collect();
    assert!(values[0] == 1.0 && values[1].is_nan() && values[2] == -3.0, "{values:?}");
    let body = r#"{"examples": [{"x": 1}, {"x": NaN}, {"x": -Infinity}]}"#;
    let answer = post(&running, "/v1/models/m:regress", body).await;
    assert_eq!(answer.body, r#"{"results":[1.0,NaN,-Infinity]}"#);

    let task = |method: &str| InferenceTask {
        model_spec: spec(),
        method_name: format!("tensorflow/serving/{method}"),
    };
    let both = |tasks| MultiInferenceRequest { tasks, input: examples(&rows[..1]) };
    let answer = client.multi_inference(both(vec![task("regress"), task("classify")])).await;
    let results = answer.unwrap().into_inner().results;
    assert!(matches!(&results[0].result, Some(TaskResult::RegressionResult(result))
        if result.regressions[0].value == 1.0));
    assert!(matches!(&results[1].result, Some(TaskResult::ClassificationResult(result))
        if result.classifications[0].classes[0].score == 1.0));
    let other = InferenceTask {
        model_spec: Some(ModelSpec { name: "z".into(), ..Default::default() }),
        ..task("classify")
    };
    for (tasks, code, words) in [
        (vec![], Code::InvalidArgument, "no tasks"),
        (vec![task("regress"); 2], Code::InvalidArgument, "Duplicate"),
        (vec![task("regress"), other], Code::InvalidArgument, "of one model"),
        (vec![task("paint")], Code::Unimplemented, "Unsupported signature method_name"),
    ] {
        let status = client.multi_inference(both(tasks)).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_code_below_v1() {
    let running = serving(&identity(1, &["n", "2"])).await;
    let good = || json!({"instances": [[1, 2]]}).to_string();
    let cases = [
        ("/v1/models/m:predict", good(), 200, ""),
        ("/v1/models/z:predict", good(), 404, "Latest(z)"),
        ("/v1/models/m/versions/2:predict", good(), 404, "Specific(m, 2)"),
        ("/v1/models/m/labels/stable:predict", good(), 404, "label: stable"),
        ("/v1/models/m:paint", good(), 404, "Malformed request"),
        ("/v1/models/m:explain", good(), 501, "explanations"),
        ("/v1/models/m", good(), 405, "not answered"),
        ("/v1/models/m:predict", String::new(), 400, "not what it should be"),
        ("/v1/models/m:predict", "[".repeat(200_000), 400, "not what it should be"),
        ("/v1/models/m:predict", "{}".into(), 400, "Missing 'inputs' or 'instances'"),
        (
            "/v1/models/m:predict",
            json!({"instances": [[1, 2]], "inputs": [[1, 2]]}).to_string(),
            400,
            "both",
        ),
        (
            "/v1/models/m:predict",
            json!({"signature_name": "s", "instances": [[1, 2]]}).to_string(),
            400,
            "not found in signature def",
        ),
        ("/v1/models/m:predict", json!({"instances": [[1, 2], [3]]}).to_string(), 400, "lengths"),
        ("/v1/models/m:predict", json!({"instances": [[1, 2, 3]]}).to_string(), 400, "[-1, 2]"),
        ("/v1/models/m:predict", json!({"instances": [["a", "b"]]}).to_string(), 400, "a string"),
        ("/v1/models/m:classify", good(), 400, "Missing 'examples'"),
        ("/v1/models/m:classify", json!({"examples": []}).to_string(), 400, "Input is empty"),
        ("/v1/models/m:classify", json!({"examples": [{}]}).to_string(), 400, "does not have it"),
    ];
    for (path, body, status, words) in cases {
        let shown = body.chars().take(80).collect::<String>();
        let answer = post(&running, path, body).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, status, "{path} {shown}: {text}");
        assert_eq!(answer.headers["content-type"], "application/json");
        assert!(status == 200 || answer.json()["error"].is_string(), "{path}: {text}");
        assert!(text.contains(words), "{path} {shown}: {text} does not say {words}");
    }
    let nan = post(&running, "/v1/models/m:predict", r#"{"instances":[[NaN,-Infinity]]}"#).await;
    assert_eq!(nan.body, r#"{"predictions":[[NaN,-Infinity]]}"#);
    let body = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[NaN,Infinity]}]}"#;
    let nan = post(&running, "/v2/models/m/infer", body).await;
    assert!(nan.body.ends_with(b"\"data\":[NaN,Infinity]}]}"), "{:?}", nan.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_follows_the_model_in_a_form_that_both_clients_read() {
    let running = empty(LIMITS, 1 << 20).await;
    let mut models = ModelServiceClient::new(channel(&running).await);
    let ask = || GetModelStatusRequest { model_spec: spec() };
    let state = |answer: GetModelStatusResponse| answer.model_version_status[0].state();
    let loading = models.get_model_status(ask()).await.unwrap().into_inner();
    assert_eq!(state(loading), State::Loading);
    let answer = get(running.http, "/v1/models/m").await;
    assert_eq!((answer.status, &answer.json()["ready"]), (503, &json!(false)));
    let early = post(&running, "/v1/models/m:predict", r#"{"instances":[1]}"#).await;
    assert_eq!(early.status, 503, "the model loads");

    running.load(Gate::new(true), Curve::default()).await.unwrap();
    let there = models.get_model_status(ask()).await.unwrap().into_inner();
    assert_eq!(state(there), State::Available);
    let answer = get(running.http, "/v1/models/m").await;
    let version = json!([{"version": "1", "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""}}]);
    let merged = json!({"name": "m", "ready": true, "model_version_status": version});
    assert_eq!((answer.status, answer.json()), (200, merged));
    assert_eq!(get(running.http, "/v1/models").await.json(), json!({"models": ["m"]}));
    assert_eq!(get(running.http, "/").await.json(), json!({"status": "alive"}));
    assert_eq!(get(running.http, "/v1/models/z").await.status, 404);
    let metadata = get(running.http, "/v1/models/m/versions/1/metadata").await.json();
    let signature = &metadata["metadata"]["signature_def"]["signature_def"]["serving_default"];
    assert_eq!(signature["inputs"]["x"]["dtype"], "DT_FLOAT");
    assert_eq!(signature["inputs"]["x"]["tensor_shape"]["dim"][0]["size"], "-1");
    let other = ModelSpec { name: "z".into(), ..Default::default() };
    let status = models.get_model_status(GetModelStatusRequest { model_spec: Some(other) }).await;
    assert_eq!(status.unwrap_err().code(), Code::NotFound);
    let reload = models.handle_reload_config_request(ReloadConfigRequest::default()).await;
    assert_eq!(reload.unwrap_err().code(), Code::Unimplemented);
    let metrics = get(running.admin, "/metrics").await.body;
    let text = String::from_utf8(metrics.to_vec()).unwrap();
    let line = "lithe_request_duration_seconds_count{protocol=\"tensorflow_http\",outcome=\"unavailable\"} 1";
    assert!(text.contains(line), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_that_is_not_declared_is_refused_with_the_field_to_set() {
    let with = async |protocols: Vec<Served>| {
        let usual = support::settings(LIMITS, 1 << 20, Policy::default(), None);
        let settings = Settings { protocols, ..usual };
        let running = start(settings).await.unwrap();
        running.load(Gate::new(true), Curve::default()).await.unwrap();
        running
    };
    let running = with(vec![Served::OpenInference]).await;
    let refused = post(&running, "/v1/models/m:predict", r#"{"instances":[1]}"#).await;
    assert_eq!(refused.status, 404);
    let error = refused.json()["error"].to_string();
    assert!(error.contains("TensorFlowServing or KServeV1 to spec.runtime.protocols"), "{error}");
    let status = tensorflow(&running).await.predict(predict("x", tensor(&[1], &[1.0]))).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(
        status.message().contains("add TensorFlowServing to spec.runtime.protocols"),
        "{status}"
    );

    let running = with(vec![Served::KServeV1]).await;
    let answer = post(&running, "/v1/models/m:predict", r#"{"instances":[1]}"#).await;
    assert_eq!(answer.body, r#"{"predictions":[1.0]}"#);
    let refused = get(running.http, "/v2/models/m").await;
    assert!(refused.json()["error"].to_string().contains("add OpenInference"));
    let status = grpc(&running).await.model_infer(ModelInferRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("add OpenInference"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_in_order_and_outlives_errors() {
    use tokio_stream::StreamExt as _;
    let running = serving(&identity(1, &["n"])).await;
    let yes = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    let message = |index: usize| {
        let name = if index == 3 { "z" } else { "x" };
        let input = InferInputTensor {
            name: name.into(),
            datatype: "FP32".into(),
            shape: vec![1],
            ..Default::default()
        };
        ModelInferRequest {
            model_name: "m".into(),
            id: index.to_string(),
            parameters: [("triton_enable_empty_final_response".to_owned(), yes.clone())].into(),
            inputs: vec![input],
            raw_input_contents: vec![little_endian(&[index as f32])],
            ..Default::default()
        }
    };
    let messages: Vec<_> = (0..40).map(message).collect();
    let mut client = grpc(&running).await;
    let stream = client.model_stream_infer(tokio_stream::iter(messages)).await.unwrap();
    let answers: Vec<_> = stream.into_inner().collect().await;
    assert_eq!(answers.len(), 40);
    for (index, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        let response = answer.infer_response.unwrap();
        assert_eq!(response.id, index.to_string());
        assert_eq!(response.parameters["triton_final_response"], yes);
        if index == 3 {
            assert!(answer.error_message.contains("unexpected input \"z\""));
        } else {
            assert_eq!(answer.error_message, "");
            assert_eq!(response.raw_output_contents, [little_endian(&[index as f32])]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_answered_as_classes() {
    let running = serving(&identity(1, &["n", "3"])).await;
    let data = [0.1, 0.7, 0.2, 3.0, 1.0, 2.0];
    let count = InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(2)) };
    let input = InferInputTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![2, 3],
        ..Default::default()
    };
    let output = InferRequestedOutputTensor {
        name: "y".into(),
        parameters: [("classification".to_owned(), count)].into(),
    };
    let message = ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![input],
        outputs: vec![output],
        raw_input_contents: vec![little_endian(&data)],
        ..Default::default()
    };
    let answer = grpc(&running).await.model_infer(message).await.unwrap().into_inner();
    assert_eq!(
        (answer.outputs[0].datatype.as_str(), &answer.outputs[0].shape[..]),
        ("BYTES", &[2, 2][..])
    );
    let body = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": data}],
        "outputs": [{"name": "y", "parameters": {"classification": 2}}]});
    let rest = post(&running, "/v2/models/m/infer", body.to_string()).await.json();
    let want = json!(["0.700000:1", "0.200000:2", "3.000000:0", "2.000000:2"]);
    assert_eq!(rest["outputs"][0]["data"], want);
    let raw = &answer.raw_output_contents[0];
    assert_eq!(raw.len(), 4 * (4 + 10), "the same strings with their lengths");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_loaded_by_both_forms_and_never_unloaded() {
    let running = empty(LIMITS, 1 << 20).await;
    running.load(Gate::new(true), Curve::default()).await.unwrap();
    let mut client = grpc(&running).await;
    let triton = RepositoryModelLoadRequest { model_name: "m".into(), ..Default::default() };
    let kserve = RepositoryModelLoadRequest { repository_name: "m".into(), ..Default::default() };
    for request in [triton.clone(), kserve] {
        let answer = client.repository_model_load(request).await.unwrap().into_inner();
        assert_eq!((answer.model_name.as_str(), answer.is_loaded), ("m", true));
    }
    let parameter = lithe::inference::ModelRepositoryParameter { parameter_choice: None };
    let changed = RepositoryModelLoadRequest {
        parameters: [("config".to_owned(), parameter)].into(),
        ..triton
    };
    let status = client.repository_model_load(changed).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    for (name, code) in [("m", Code::Unimplemented), ("z", Code::NotFound)] {
        let request =
            RepositoryModelUnloadRequest { model_name: name.into(), ..Default::default() };
        let status = client.repository_model_unload(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    for (path, body, status) in [
        ("/v2/repository/models/m/load", "", 200),
        ("/v2/repository/models/m/load", "{}", 200),
        ("/v2/repository/models/m/load", r#"{"parameters":{"config":"{}"}}"#, 501),
        ("/v2/repository/models/z/load", "{}", 404),
        ("/v2/repository/models/m/unload", r#"{"parameters":{"unload_dependents":false}}"#, 501),
        ("/v2/repository/models/z/unload", "", 404),
        ("/v2/repository/index", "[", 400),
    ] {
        assert_eq!(post(&running, path, body).await.status, status, "{path} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trace_and_log_settings_are_told_and_kept() {
    let running = empty(LIMITS, 1 << 20).await;
    let mut client = grpc(&running).await;
    let trace = client.trace_setting(TraceSettingRequest::default()).await.unwrap().into_inner();
    assert_eq!(trace.settings["trace_level"].value, ["OFF"]);
    let asked = trace_setting_request::SettingValue { value: vec!["TIMESTAMPS".into()] };
    let change = TraceSettingRequest {
        settings: [("trace_level".to_owned(), asked)].into(),
        model_name: String::new(),
    };
    let status = client.trace_setting(change).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    let log = client.log_settings(LogSettingsRequest::default()).await.unwrap().into_inner();
    assert_eq!(log.settings.len(), 6);
    let trace = get(running.http, "/v2/trace/setting").await.json();
    assert_eq!((&trace["trace_level"], &trace["trace_rate"]), (&json!(["OFF"]), &json!("1000")));
    assert_eq!(get(running.http, "/v2/models/m/trace/setting").await.json(), trace);
    assert_eq!(get(running.http, "/v2/models/z/trace/setting").await.status, 404);
    assert_eq!(get(running.http, "/v2/logging").await.json()["log_file"], "");
    for (path, body, status) in [
        ("/v2/trace/setting", r#"{"trace_level":["OFF"],"trace_rate":null}"#, 200),
        ("/v2/trace/setting", r#"{"trace_level":["TIMESTAMPS"]}"#, 501),
        ("/v2/trace/setting", r#"{"x":1}"#, 400),
        ("/v2/models/m/trace/setting", r#"{"trace_rate":"1"}"#, 501),
        ("/v2/logging", r#"{"log_file":""}"#, 200),
        ("/v2/logging", r#"{"log_file":"/tmp/x"}"#, 501),
    ] {
        assert_eq!(post(&running, path, body).await.status, status, "{path} {body}");
    }
}
