//! TensorFlow Serving, over gRPC and REST, and KServe v1, whose URLs are the same. Here is what
//! both transports share: which model, version and signature a request means, and its inputs'
//! names. Nothing here knows a wire format.

mod column;
mod example;
pub mod grpc;
mod json_example;
mod metadata;
mod path;
pub mod rest;
mod result;
mod tensor;

use std::collections::BTreeSet;
use std::time::Instant;

use super::error::InferError;
use super::model::{Signature, VERSION};
use super::server::{Request, Response, Server};
use crate::tensor::Tensor;

/// The one signature of a model, in TensorFlow's words.
const SIGNATURE: &str = "serving_default";

/// The version that a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Version {
    /// The newest.
    #[default]
    Latest,
    /// One by its number.
    Number(i64),
    /// One by its label.
    Label(String),
}

/// The model that a request means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Asked {
    model: String,
    version: Version,
    /// Empty for the default.
    signature: String,
}

impl Asked {
    /// Refuses another model or version than the served one, in TensorFlow Serving's words.
    fn is_here(&self, server: &Server) -> Result<(), InferError> {
        if self.model.is_empty() {
            return Err(InferError::Invalid("ModelSpec has no name specified.".into()));
        }
        let here = self.model == server.name();
        let request = match &self.version {
            Version::Latest if here => return Ok(()),
            Version::Latest => format!("Latest({})", self.model),
            Version::Number(number) if here && number.to_string() == VERSION => return Ok(()),
            Version::Number(number) => format!("Specific({}, {number})", self.model),
            Version::Label(label) if here => {
                return Err(InferError::NotFound(format!(
                    "Unrecognized servable version label: {label}; the only version is {VERSION}, without a label"
                )));
            }
            Version::Label(label) => format!("Label({}, {label})", self.model),
        };
        Err(InferError::NotFound(format!(
            "Servable not found for request: {request}; this server has {:?} in version {VERSION}",
            server.name()
        )))
    }

    /// The signature of the loaded model.
    fn signature<'a>(&self, server: &'a Server) -> Result<&'a Signature, InferError> {
        self.is_here(server)?;
        if !self.signature.is_empty() && self.signature != SIGNATURE {
            return Err(InferError::Invalid(format!(
                "Serving signature name: {:?} not found in signature def; the only one is {SIGNATURE:?}",
                self.signature
            )));
        }
        server.signature(&self.model, VERSION)
    }
}

/// Runs the model; neither protocol has priorities.
async fn infer(
    server: &Server,
    inputs: Vec<(String, Tensor)>,
    outputs: Vec<String>,
    deadline: Option<Instant>,
) -> Result<Response, InferError> {
    let (model, version) = (server.name().to_owned(), VERSION.to_owned());
    server.infer(Request { model, version, inputs, outputs, deadline, priority: 0 }).await
}

/// Refuses inputs that are not exactly the model's, in TensorFlow Serving's words.
fn inputs_match(signature: &Signature, given: &BTreeSet<&str>) -> Result<(), InferError> {
    let known: BTreeSet<_> = signature.inputs.iter().map(|input| input.name.as_str()).collect();
    if *given == known {
        return Ok(());
    }
    let list = |names: &mut dyn Iterator<Item = &&str>| {
        names.take(64).copied().collect::<Vec<_>>().join(",")
    };
    Err(InferError::Invalid(format!(
        "input size does not match signature: {}!={} len({{{}}}) != len({{{}}}). Sent extra: {{{}}}. Missing but required: {{{}}}.",
        given.len(),
        known.len(),
        list(&mut given.iter()),
        list(&mut known.iter()),
        list(&mut given.difference(&known)),
        list(&mut known.difference(given)),
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lithe::artifact::TensorSignature;

    use super::*;
    use crate::serve::queue::{Limits, Policy};

    #[test]
    fn a_model_version_or_label_that_is_not_here_is_not_found() {
        let server =
            Server::new("m".into(), 1, Policy::default(), Limits { requests: 1, bytes: 1 });
        let ask = |model: &str, version: Version| {
            Asked { model: model.into(), version, signature: String::new() }.is_here(&server)
        };
        assert_eq!(ask("m", Version::Latest), Ok(()));
        assert_eq!(ask("m", Version::Number(1)), Ok(()));
        for (model, version, words) in [
            ("z", Version::Latest, "Latest(z)"),
            ("m", Version::Number(2), "Specific(m, 2)"),
            ("m", Version::Number(-1), "Specific(m, -1)"),
            ("m", Version::Label("stable".into()), "Unrecognized servable version label: stable"),
            ("z", Version::Label("a".into()), "Label(z, a)"),
        ] {
            let error = ask(model, version).unwrap_err();
            assert!(
                matches!(&error, InferError::NotFound(text) if text.contains(words)),
                "{error}"
            );
        }
        assert!(matches!(ask("", Version::Latest), Err(InferError::Invalid(_))));
    }

    #[test]
    fn other_inputs_are_refused_with_both_lists() {
        let tensor = |name: &str| TensorSignature {
            name: name.into(),
            datatype: "FP32".into(),
            shape: vec![-1],
        };
        let signature = Signature { inputs: vec![tensor("a"), tensor("b")], outputs: Vec::new() };
        assert_eq!(inputs_match(&signature, &["b", "a"].into()), Ok(()));
        let error = inputs_match(&signature, &["b", "c", "d"].into()).unwrap_err().to_string();
        assert!(error.starts_with("input size does not match signature: 3!=2"), "{error}");
        assert!(error.contains("Sent extra: {c,d}. Missing but required: {a}."), "{error}");
    }
}
