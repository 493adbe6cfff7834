//! Runs a model over calibration samples, one batch after another, and hands on what comes out.
//!
//! Keeps no output. One sample at a time, as a request is, unless the model takes a fixed number.

use lithe::names::reason;

use crate::compress::calibrate::Visitor;
use crate::compress::data::Samples;
use crate::onnx::refusal::quoted;
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
        let inputs = samples.inputs(start, batch).map_err(|error| invalid(&error.to_string()))?;
        for (name, tensor) in &inputs {
            finite(name, tensor, start)?;
        }
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
    invalid(&format!("the model does not run on the calibration data: {error}"))
}

fn invalid(text: &str) -> Refusal {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Refusal::new(reason::DATA_INVALID, text)
}

/// Refuses NaN and infinities, which would make every range infinite.
fn finite(name: &str, tensor: &Tensor, start: usize) -> Result<(), Refusal> {
    use crate::tensor::Datatype::{Bf16, Fp16, Fp32, Fp64};
    if !matches!(tensor.datatype(), Fp16 | Bf16 | Fp32 | Fp64) {
        return Ok(());
    }
    let values = tensor.to_f64().unwrap_or_default();
    let Some(at) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let value = values.get(at).copied().unwrap_or_default();
    let per = values.len() / tensor.shape().first().copied().unwrap_or(1).max(1);
    let message = format!(
        "array {} of the calibration samples holds {value} at sample {}; remove the sample or mend it",
        quoted(name),
        start + at / per.max(1)
    );
    Err(Refusal::new(reason::DATA_INVALID, message))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_refused_with_its_sample() {
        let good = Tensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        finite("x", &good, 0).unwrap();
        let bad = Tensor::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, f32::NAN]).unwrap();
        let words = finite("x", &bad, 16).unwrap_err().message;
        assert!(words.contains("holds NaN at sample 17"), "{words}");
    }
}
