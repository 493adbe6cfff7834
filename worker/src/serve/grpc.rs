//! The protocols over gRPC, and OIP v2 of them, with health and reflection. Inputs typed or raw, outputs always raw: Triton's
//! clients cannot read typed ones.

mod codec;
mod settings;
mod stream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use lithe::inference::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer,
};
use lithe::inference::*;
use lithe::tensorflow::serving::model_service_server::ModelServiceServer;
use lithe::tensorflow::serving::prediction_service_server::PredictionServiceServer;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tonic_health::server::HealthReporter;

pub use codec::decode;

use super::error::InferError;
use super::metrics::Protocol;
use super::model::VERSION;
use super::protocols::{self, Served};
use super::server::Server;
use super::{EXTENSIONS, PLATFORM, SERVER_NAME, classification, describe, repository, tfs};

/// A service with the limits and codings that all of them have.
macro_rules! bounded {
    ($service:expr, $limit:expr) => {
        $service
            .max_decoding_message_size($limit)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Deflate)
    };
}

/// The gRPC services of the protocols in `served` on `server`, and the reporter of their health,
/// which begins as not serving.
///
/// # Errors
/// When the compiled descriptors cannot be read.
pub async fn router(
    server: Arc<Server>,
    served: Vec<Served>,
) -> Result<(axum::Router, HealthReporter), tonic_reflection::server::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    report(&health, &server, &served, false).await;
    let oip = served.contains(&Served::OpenInference);
    let tensorflow = served.contains(&Served::TensorFlowServing);
    let reflection = || {
        let mut builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        if oip {
            builder = builder.register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET);
        }
        if tensorflow {
            let descriptors = lithe::tensorflow::FILE_DESCRIPTOR_SET;
            builder = builder.register_encoded_file_descriptor_set(descriptors);
        }
        builder
    };
    let limit = server.max_request_bytes;
    let mut routes = tonic::service::Routes::new(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    if tensorflow {
        let service = tfs::grpc::Service::new(server.clone());
        routes = routes
            .add_service(bounded!(PredictionServiceServer::new(service.clone()), limit))
            .add_service(bounded!(ModelServiceServer::new(service), limit));
    }
    if oip {
        let service = GrpcInferenceServiceServer::new(Service { server });
        routes = routes.add_service(bounded!(service, limit));
    }
    let unknown = move |request: axum::extract::Request| async move {
        Status::from(protocols::no_method(&served, request.uri().path()))
            .into_http::<axum::body::Body>()
    };
    Ok((routes.prepare().into_axum_router().fallback(unknown), health))
}

/// Tells the health service whether requests should come here.
pub async fn report(health: &HealthReporter, server: &Server, served: &[Served], ready: bool) {
    let status = if ready {
        tonic_health::ServingStatus::Serving
    } else {
        tonic_health::ServingStatus::NotServing
    };
    let mut services = vec!["", server.name()];
    for protocol in served {
        services.extend_from_slice(match protocol {
            Served::OpenInference => &["inference.GRPCInferenceService"],
            Served::TensorFlowServing => {
                &["tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"]
            }
            Served::KServeV1 => &[],
        });
    }
    for service in services {
        health.set_service_status(service, status).await;
    }
}

impl From<InferError> for Status {
    fn from(error: InferError) -> Self {
        let text = error.to_string();
        match error {
            InferError::Invalid(_) => Self::invalid_argument(text),
            InferError::NotFound(_) => Self::not_found(text),
            InferError::TooLarge(_) => Self::resource_exhausted(text),
            InferError::Unsupported(_) => Self::unimplemented(text),
            InferError::Deadline(_) => Self::deadline_exceeded(text),
            InferError::Unavailable(_) => Self::unavailable(text),
            InferError::Internal(_) => Self::internal(text),
            InferError::Overloaded { retry, .. } => {
                let mut metadata = MetadataMap::new();
                let wait = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX).max(1);
                metadata.insert("grpc-retry-pushback-ms", wait.into());
                Self::with_metadata(tonic::Code::ResourceExhausted, text, metadata)
            }
        }
    }
}

/// The deadline that the header `grpc-timeout` sets.
pub fn deadline(metadata: &MetadataMap, now: Instant) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let amount: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(amount.checked_mul(3600)?),
        "M" => Duration::from_secs(amount.checked_mul(60)?),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    };
    now.checked_add(timeout)
}

struct Service {
    server: Arc<Server>,
}

type Answer<T> = Result<Response<T>, Status>;

fn unsupported<T>(what: &str) -> Answer<T> {
    Err(InferError::Unsupported(format!("{what} is not offered by {SERVER_NAME}")).into())
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Answer<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Answer<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: self.server.ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Answer<ModelReadyResponse> {
        let asked = request.into_inner();
        let ready = self.server.model_ready(&asked.name, &asked.version)?;
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Answer<ServerMetadataResponse> {
        Ok(Response::new(ServerMetadataResponse {
            name: SERVER_NAME.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Answer<ModelMetadataResponse> {
        let asked = request.into_inner();
        let signature = self.server.signature(&asked.name, &asked.version)?;
        let tensors = |tensors: &[lithe::artifact::TensorSignature]| {
            let tensor = |known: &lithe::artifact::TensorSignature| {
                model_metadata_response::TensorMetadata {
                    name: known.name.clone(),
                    datatype: known.datatype.clone(),
                    shape: known.shape.clone(),
                }
            };
            tensors.iter().map(tensor).collect()
        };
        Ok(Response::new(ModelMetadataResponse {
            name: self.server.name().into(),
            versions: vec![VERSION.into()],
            platform: PLATFORM.into(),
            inputs: tensors(&signature.inputs),
            outputs: tensors(&signature.outputs),
        }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Answer<ModelInferResponse> {
        let call = self.server.metrics.begin(Protocol::Grpc);
        let deadline = deadline(request.metadata(), Instant::now());
        let result = infer(&self.server, request.into_inner(), deadline).await;
        call.end(&result);
        Ok(Response::new(result?))
    }

    type ModelStreamInferStream = stream::Answers;

    async fn model_stream_infer(
        &self,
        request: Request<tonic::Streaming<ModelInferRequest>>,
    ) -> Answer<Self::ModelStreamInferStream> {
        let deadline = deadline(request.metadata(), Instant::now());
        let answers = stream::answers(self.server.clone(), request.into_inner(), deadline);
        Ok(Response::new(answers))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Answer<ModelConfigResponse> {
        let asked = request.into_inner();
        let signature = self.server.signature(&asked.name, &asked.version)?;
        let config = describe::config(self.server.name(), signature);
        Ok(Response::new(ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Answer<ModelStatisticsResponse> {
        let asked = request.into_inner();
        // Without a name the statistics of all models are asked for.
        if !asked.name.is_empty() {
            self.server.model_ready(&asked.name, &asked.version)?;
        }
        Ok(Response::new(ModelStatisticsResponse {
            model_stats: vec![describe::statistics(&self.server)],
        }))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Answer<RepositoryIndexResponse> {
        let model = repository_index_response::ModelIndex {
            name: self.server.name().into(),
            version: VERSION.into(),
            state: self.server.state().into(),
            reason: String::new(),
        };
        let listed = self.server.ready() || !request.into_inner().ready;
        Ok(Response::new(RepositoryIndexResponse {
            models: listed.then_some(model).into_iter().collect(),
        }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Answer<RepositoryModelLoadResponse> {
        let asked = request.into_inner();
        let model_name = model_of(asked.model_name, asked.repository_name);
        repository::load(&self.server, &model_name, asked.parameters.len())?;
        Ok(Response::new(RepositoryModelLoadResponse { model_name, is_loaded: true }))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Answer<RepositoryModelUnloadResponse> {
        let asked = request.into_inner();
        let model = model_of(asked.model_name, asked.repository_name);
        Err(repository::unload(&self.server, &model).into())
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<SystemSharedMemoryStatusRequest>,
    ) -> Answer<SystemSharedMemoryStatusResponse> {
        unsupported("system shared memory")
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Answer<SystemSharedMemoryRegisterResponse> {
        unsupported("system shared memory")
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Answer<SystemSharedMemoryUnregisterResponse> {
        unsupported("system shared memory")
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<CudaSharedMemoryStatusRequest>,
    ) -> Answer<CudaSharedMemoryStatusResponse> {
        unsupported("CUDA shared memory")
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Answer<CudaSharedMemoryRegisterResponse> {
        unsupported("CUDA shared memory")
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Answer<CudaSharedMemoryUnregisterResponse> {
        unsupported("CUDA shared memory")
    }

    async fn trace_setting(
        &self,
        request: Request<TraceSettingRequest>,
    ) -> Answer<TraceSettingResponse> {
        let asked = request.into_inner();
        if !asked.model_name.is_empty() {
            self.server.model_ready(&asked.model_name, "")?;
        }
        Ok(Response::new(settings::tracing(asked)?))
    }

    async fn log_settings(
        &self,
        request: Request<LogSettingsRequest>,
    ) -> Answer<LogSettingsResponse> {
        Ok(Response::new(settings::logging(request.into_inner())?))
    }
}

/// The model of a request to load or unload one: KServe's clients put its name where Triton's put
/// the repository's.
fn model_of(second: String, first: String) -> String {
    if second.is_empty() { first } else { second }
}

async fn infer(
    server: &Server,
    message: ModelInferRequest,
    deadline: Option<Instant>,
) -> Result<ModelInferResponse, InferError> {
    let id = message.id.clone();
    let (request, classes) = codec::decode(message, deadline)?;
    let response = classification::apply(&classes, server.infer(request).await?)?;
    Ok(codec::encode(server.name(), id, response))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_a_grpc_timeout_is_read() {
        let now = Instant::now();
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline(&metadata, now).map(|deadline| deadline - now)
        };
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read("2M"), Some(Duration::from_secs(120)));
        assert_eq!(read("3S"), Some(Duration::from_secs(3)));
        assert_eq!(read("4m"), Some(Duration::from_millis(4)));
        assert_eq!(read("5u"), Some(Duration::from_micros(5)));
        assert_eq!(read("6n"), Some(Duration::from_nanos(6)));
        for odd in ["", "5", "m", "99999999999999999999S", "1x"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }
}
