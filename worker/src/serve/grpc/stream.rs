//! ModelStreamInfer: many requests over one stream, answered in the order in which they came. What
//! is wrong with one is said in its answer, and the stream goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, StreamExt as _};
use lithe::inference::infer_parameter::ParameterChoice;
use lithe::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use tonic::{Status, Streaming};

use crate::serve::metrics::Protocol;
use crate::serve::model::VERSION;
use crate::serve::server::Server;

/// The answers of a stream.
pub type Answers =
    Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send + 'static>>;

/// Requests of one stream that are worked on at a time.
const CONCURRENT: usize = 16;

/// The parameter by which a client asks which answer is the last to its request, and the one that
/// says so.
const ASKS_FINAL: &str = "triton_enable_empty_final_response";
const IS_FINAL: &str = "triton_final_response";

/// The answers to `requests`, each of which must be there before `deadline`.
pub fn answers(
    server: Arc<Server>,
    requests: Streaming<ModelInferRequest>,
    deadline: Option<Instant>,
) -> Answers {
    let answers = requests.map(move |request| {
        let server = server.clone();
        async move { Ok(answer(&server, request?, deadline).await) }
    });
    Box::pin(answers.buffered(CONCURRENT))
}

async fn answer(
    server: &Server,
    request: ModelInferRequest,
    deadline: Option<Instant>,
) -> ModelStreamInferResponse {
    let id = request.id.clone();
    let yes = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    let asks_final = request.parameters.get(ASKS_FINAL) == Some(&yes);
    let call = server.metrics.begin(Protocol::Grpc);
    let result = super::infer(server, request, deadline).await;
    call.end(&result);
    let (error_message, mut response) = match result {
        Ok(response) => (String::new(), response),
        // The name and the id tell the client which request it was.
        Err(error) => {
            let response = ModelInferResponse {
                model_name: server.name().into(),
                model_version: VERSION.into(),
                id,
                ..Default::default()
            };
            (error.to_string(), response)
        }
    };
    if asks_final {
        response.parameters.insert(IS_FINAL.into(), yes);
    }
    ModelStreamInferResponse { error_message, infer_response: Some(response) }
}
