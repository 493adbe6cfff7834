//! TensorFlow Serving over gRPC: its two services, on the one way to the model.

use std::sync::Arc;
use std::time::Instant;

use lithe::tensorflow::serving::inference_result::Result as TaskResult;
use lithe::tensorflow::serving::model_server_config::Config;
use lithe::tensorflow::serving::model_service_server::ModelService;
use lithe::tensorflow::serving::model_spec::VersionChoice;
use lithe::tensorflow::serving::prediction_service_server::PredictionService;
use lithe::tensorflow::serving::*;
use prost::{Message as _, Name as _};
use tonic::{Request, Response, Status};

use super::example::Examples;
use super::result::{self, Classifier};
use super::{Asked, SIGNATURE, Version, infer, inputs_match, metadata, tensor};
use crate::serve::error::InferError;
use crate::serve::grpc::deadline;
use crate::serve::metrics::Protocol;
use crate::serve::model::{Signature, VERSION};
use crate::serve::server::Server;
use crate::tensor::Tensor;

/// The one piece of metadata there is.
const SIGNATURE_DEF: &str = "signature_def";
const CLASSIFY: &str = "tensorflow/serving/classify";
const REGRESS: &str = "tensorflow/serving/regress";

/// Both services on one server.
#[derive(Clone)]
pub struct Service {
    server: Arc<Server>,
}

type Answer<T> = Result<Response<T>, Status>;

impl From<Option<ModelSpec>> for Asked {
    fn from(spec: Option<ModelSpec>) -> Self {
        let spec = spec.unwrap_or_default();
        let version = match spec.version_choice {
            None => Version::Latest,
            Some(VersionChoice::Version(number)) => Version::Number(number),
            Some(VersionChoice::VersionLabel(label)) => Version::Label(label),
        };
        Self { model: spec.name, version, signature: spec.signature_name }
    }
}

impl Service {
    /// The services on `server`.
    pub fn new(server: Arc<Server>) -> Self {
        Self { server }
    }

    /// What an answer says of the model: version and signature are resolved.
    fn spec(&self) -> ModelSpec {
        ModelSpec {
            name: self.server.name().into(),
            version_choice: VERSION.parse().ok().map(VersionChoice::Version),
            signature_name: SIGNATURE.into(),
        }
    }

    /// Runs the model on tensors.
    async fn run(
        &self,
        request: PredictRequest,
        deadline: Option<Instant>,
    ) -> Result<PredictResponse, InferError> {
        let asked = Asked::from(request.model_spec);
        let signature = asked.signature(&self.server)?;
        let inputs = inputs(signature, request.inputs, self.server.max_request_bytes)?;
        let response = infer(&self.server, inputs, request.output_filter, deadline).await?;
        let encode = |(name, tensor): (String, Tensor)| (name, tensor::encode(&tensor));
        Ok(PredictResponse {
            outputs: response.outputs.into_iter().map(encode).collect(),
            model_spec: Some(self.spec()),
        })
    }

    async fn classes(
        &self,
        spec: Option<ModelSpec>,
        input: Option<Input>,
        deadline: Option<Instant>,
    ) -> Result<ClassificationResult, InferError> {
        let asked = Asked::from(spec);
        let signature = asked.signature(&self.server)?;
        let classifier = Classifier::of(signature)?;
        let examples = Examples::from(input);
        let inputs = examples.inputs(signature, self.server.max_request_bytes)?;
        let response = infer(&self.server, inputs, classifier.outputs(), deadline).await?;
        classifier.read(&response, examples.rows.len())
    }

    async fn numbers(
        &self,
        spec: Option<ModelSpec>,
        input: Option<Input>,
        deadline: Option<Instant>,
    ) -> Result<RegressionResult, InferError> {
        let asked = Asked::from(spec);
        let signature = asked.signature(&self.server)?;
        let output = result::regression(signature)?;
        let examples = Examples::from(input);
        let inputs = examples.inputs(signature, self.server.max_request_bytes)?;
        let response = infer(&self.server, inputs, vec![output.clone()], deadline).await?;
        result::regressions(&response, &output, examples.rows.len())
    }

    /// One run of the model for all tasks, which are one of each method at most.
    async fn tasks(
        &self,
        request: MultiInferenceRequest,
        deadline: Option<Instant>,
    ) -> Result<MultiInferenceResponse, InferError> {
        let invalid = |text: &str| InferError::Invalid(text.to_owned());
        let first =
            request.tasks.first().ok_or_else(|| invalid("Inference request has no tasks"))?;
        let asked = Asked::from(first.model_spec.clone());
        let signature = asked.signature(&self.server)?;
        let (mut classifier, mut regression) = (None, None);
        for task in &request.tasks {
            if Asked::from(task.model_spec.clone()) != asked {
                return Err(invalid("all tasks must be of one model, version and signature"));
            }
            let doubled = match task.method_name.as_str() {
                CLASSIFY => classifier.replace(Classifier::of(signature)?).is_some(),
                REGRESS => regression.replace(result::regression(signature)?).is_some(),
                other => {
                    return Err(InferError::Unsupported(format!(
                        "Unsupported signature method_name: {other:?}; use {CLASSIFY} or {REGRESS}"
                    )));
                }
            };
            if doubled {
                return Err(invalid("Duplicate evaluation of signature: one task for each method"));
            }
        }
        let examples = Examples::from(request.input);
        let inputs = examples.inputs(signature, self.server.max_request_bytes)?;
        let mut outputs = classifier.as_ref().map(Classifier::outputs).unwrap_or_default();
        outputs.extend(
            regression.iter().filter(|name| !outputs.contains(name)).cloned().collect::<Vec<_>>(),
        );
        let response = infer(&self.server, inputs, outputs, deadline).await?;
        let rows = examples.rows.len();
        let mut results = Vec::with_capacity(request.tasks.len());
        for task in &request.tasks {
            let result = match (&classifier, &regression) {
                (Some(classifier), _) if task.method_name == CLASSIFY => {
                    TaskResult::ClassificationResult(classifier.read(&response, rows)?)
                }
                (_, Some(output)) => {
                    TaskResult::RegressionResult(result::regressions(&response, output, rows)?)
                }
                _ => continue,
            };
            results.push(InferenceResult { model_spec: Some(self.spec()), result: Some(result) });
        }
        Ok(MultiInferenceResponse { results })
    }
}

/// The inputs of a request, which together take at most `limit` bytes.
///
/// # Errors
/// [`InferError::Invalid`] naming the input, [`InferError::TooLarge`].
pub fn inputs(
    signature: &Signature,
    mut given: std::collections::HashMap<String, lithe::tensorflow::TensorProto>,
    limit: usize,
) -> Result<Vec<(String, Tensor)>, InferError> {
    inputs_match(signature, &given.keys().map(String::as_str).collect())?;
    let mut left = limit;
    let mut inputs = Vec::with_capacity(signature.inputs.len());
    for known in &signature.inputs {
        let Some(proto) = given.remove(&known.name) else { continue };
        let tensor = tensor::decode(known, proto, left)?;
        left = left.saturating_sub(tensor.data().len());
        inputs.push((known.name.clone(), tensor));
    }
    Ok(inputs)
}

/// Runs `$act` as one counted request.
macro_rules! counted {
    ($service:ident, $request:ident, |$message:ident, $deadline:ident| $act:expr) => {{
        let call = $service.server.metrics.begin(Protocol::TensorflowGrpc);
        let $deadline = deadline($request.metadata(), Instant::now());
        let $message = $request.into_inner();
        let result = $act.await;
        call.end(&result);
        Ok(Response::new(result?))
    }};
}

#[tonic::async_trait]
impl PredictionService for Service {
    async fn predict(&self, request: Request<PredictRequest>) -> Answer<PredictResponse> {
        counted!(self, request, |message, deadline| self.run(message, deadline))
    }

    async fn classify(
        &self,
        request: Request<ClassificationRequest>,
    ) -> Answer<ClassificationResponse> {
        counted!(self, request, |message, deadline| async {
            let result = self.classes(message.model_spec, message.input, deadline).await?;
            let model_spec = Some(self.spec());
            Ok::<_, InferError>(ClassificationResponse { result: Some(result), model_spec })
        })
    }

    async fn regress(&self, request: Request<RegressionRequest>) -> Answer<RegressionResponse> {
        counted!(self, request, |message, deadline| async {
            let result = self.numbers(message.model_spec, message.input, deadline).await?;
            let model_spec = Some(self.spec());
            Ok::<_, InferError>(RegressionResponse { result: Some(result), model_spec })
        })
    }

    async fn multi_inference(
        &self,
        request: Request<MultiInferenceRequest>,
    ) -> Answer<MultiInferenceResponse> {
        counted!(self, request, |message, deadline| self.tasks(message, deadline))
    }

    async fn get_model_metadata(
        &self,
        request: Request<GetModelMetadataRequest>,
    ) -> Answer<GetModelMetadataResponse> {
        let request = request.into_inner();
        match request.metadata_field.as_slice() {
            [field] if field == SIGNATURE_DEF => {}
            [] => {
                return Err(Status::invalid_argument(
                    "GetModelMetadataRequest must specify at least one metadata_field: signature_def",
                ));
            }
            fields => {
                let seen: Vec<_> = fields.iter().take(8).collect();
                return Err(Status::invalid_argument(format!(
                    "Metadata field {seen:?} is not supported: ask for {SIGNATURE_DEF:?} alone"
                )));
            }
        }
        let asked = Asked::from(request.model_spec);
        let signature = metadata::signature_def(asked.signature(&self.server)?);
        let map = SignatureDefMap { signature_def: [(SIGNATURE.to_owned(), signature)].into() };
        let any = prost_types::Any {
            type_url: format!("type.googleapis.com/{}", SignatureDefMap::full_name()),
            value: map.encode_to_vec(),
        };
        Ok(Response::new(GetModelMetadataResponse {
            model_spec: Some(ModelSpec { signature_name: String::new(), ..self.spec() }),
            metadata: [(SIGNATURE_DEF.to_owned(), any)].into(),
        }))
    }
}

#[tonic::async_trait]
impl ModelService for Service {
    async fn get_model_status(
        &self,
        request: Request<GetModelStatusRequest>,
    ) -> Answer<GetModelStatusResponse> {
        Asked::from(request.into_inner().model_spec).is_here(&self.server)?;
        let model_version_status = vec![metadata::status(&self.server)];
        Ok(Response::new(GetModelStatusResponse { model_version_status }))
    }

    async fn handle_reload_config_request(
        &self,
        request: Request<ReloadConfigRequest>,
    ) -> Answer<ReloadConfigResponse> {
        let config = request.into_inner().config.and_then(|config| config.config);
        let models = match config {
            Some(Config::ModelConfigList(list)) => list.config.len(),
            _ => 0,
        };
        Err(InferError::Unsupported(format!(
            "a list of {models} models cannot be loaded: a process serves {:?} for its life; change spec.model of its ModelDeployment",
            self.server.name()
        ))
        .into())
    }
}
