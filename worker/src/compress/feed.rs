//! Runs a model over calibration samples, one batch after another, and hands on what comes out.
//!
//! Keeps no output. One sample at a time, as a request is, unless the model takes a fixed number.

use lithe::names::reason;

use crate::compress::calibrate::Visitor;
use crate::compress::data::Samples;
use crate::onnx::{ModelProto, Refusal, graph};
use crate::runtime::{Options, RuntimeError, Session};
use crate::tensor::Tensor;

/// Runs `model` over all `samples`, on one thread so that no sum depends on their number; returns how many samples there are.
///
/// # Errors
/// `DataInvalid` when the runtime refuses model or samples, and what `visit` says.
pub fn feed(samples: &Samples, model: &ModelProto, visit: Visitor<'_>) -> Result<usize, Refusal> {
    // Fused kernels would hide tensors and round in another way than nodes by themselves.
    let options = Options { threads: 1, optimise: false, spin: false };
    let session = Session::load(&graph::serialise(model), options).map_err(failed)?;
    let names: Vec<&str> = session.outputs().iter().map(|output| output.name.as_str()).collect();
    let batch = samples.batch(1);
    let mut start = 0;
    while start < samples.count() {
        let inputs = samples.inputs(start, batch);
        let read = |name: &str| session.inputs().iter().any(|input| input.name == name);
        let pairs: Vec<(&str, &Tensor)> = inputs
            .iter()
            .filter(|(name, _)| read(name))
            .map(|(name, tensor)| (*name, tensor))
            .collect();
        for (name, tensor) in names.iter().zip(session.run(&pairs, &names).map_err(failed)?) {
            visit(name, &tensor)?;
        }
        start += batch;
    }
    Ok(samples.count())
}

fn failed(error: RuntimeError) -> Refusal {
    let text: String =
        error.to_string().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Refusal::new(
        reason::DATA_INVALID,
        format!("the model does not run on the calibration data: {text}"),
    )
}
