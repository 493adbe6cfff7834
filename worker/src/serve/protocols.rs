//! Which protocols a server speaks, and what it tells clients of the others. The names are those
//! of `spec.runtime.protocols`.

use super::error::InferError;

/// A protocol that may be declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Served {
    /// Open Inference Protocol v2 over gRPC and REST.
    #[value(name = "OpenInference")]
    OpenInference,
    /// TensorFlow Serving over gRPC and REST.
    #[value(name = "TensorFlowServing")]
    TensorFlowServing,
    /// KServe v1 over REST.
    #[value(name = "KServeV1")]
    KServeV1,
}

/// What is said of a protocol that is not declared.
const MEND: &str = "to spec.runtime.protocols of the ModelDeployment, or to --protocols";

/// The refusal of the HTTP path `path`, which no route of `served` takes.
pub fn no_path(served: &[Served], path: &str) -> InferError {
    let below = |root: &str| {
        path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'))
    };
    let off = |protocol: Served| !served.contains(&protocol);
    if below("/v2") && off(Served::OpenInference) {
        return InferError::NotFound(format!("{path} is not served: add OpenInference {MEND}"));
    }
    if below("/v1") && off(Served::TensorFlowServing) && off(Served::KServeV1) {
        return InferError::NotFound(format!(
            "{path} is not served: add TensorFlowServing or KServeV1 {MEND}"
        ));
    }
    InferError::NotFound(format!("there is no {path}"))
}

/// The refusal of the gRPC method at `path`, which no service of `served` has.
pub fn no_method(served: &[Served], path: &str) -> InferError {
    let off = |protocol: Served| !served.contains(&protocol);
    if path.starts_with("/inference.") && off(Served::OpenInference) {
        return InferError::Unsupported(format!("{path} is not served: add OpenInference {MEND}"));
    }
    if path.starts_with("/tensorflow.serving.") && off(Served::TensorFlowServing) {
        return InferError::Unsupported(format!(
            "{path} is not served: add TensorFlowServing {MEND}"
        ));
    }
    InferError::Unsupported(format!("there is no method {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_that_is_not_declared_names_the_field_to_set() {
        let oip = [Served::OpenInference];
        let v1 = [Served::KServeV1];
        for (error, words) in [
            (no_path(&oip, "/v1/models/m:predict"), "TensorFlowServing or KServeV1"),
            (no_path(&v1, "/v2"), "add OpenInference to spec.runtime.protocols"),
            (no_path(&v1, "/v2/models/m"), "add OpenInference to spec.runtime.protocols"),
            (no_path(&oip, "/v2x"), "there is no /v2x"),
            (no_path(&v1, "/v1/nothing"), "there is no"),
            (
                no_method(&oip, "/tensorflow.serving.PredictionService/Predict"),
                "add TensorFlowServing",
            ),
            (no_method(&v1, "/inference.GRPCInferenceService/ModelInfer"), "add OpenInference"),
            (no_method(&oip, "/a.B/C"), "there is no method"),
        ] {
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
