//! The warm-up: made-up inputs, so that the first client does not wait for memory to be planned,
//! and so that what an inference of each size takes is known before there is traffic.

use std::time::{Duration, Instant};

use super::model::{Backend, Signature};
use super::queue::{Batching, Curve, batchable, cut};
use crate::tensor::{Datatype, Tensor};

/// The most bytes of a made-up request: a larger one would cost more than a cold first answer.
const EXAMPLE_BYTES: usize = 64 << 20;
/// Inferences of each size: the first plans memory, the second runs as planned.
const RUNS: usize = 2;
/// The time in which sizes above one row are measured: a start may not wait for a large batch.
const BUDGET: Duration = Duration::from_millis(300);

/// Warms `backend` up for `batching` and measures its curve. Some models refuse made-up inputs;
/// that is no reason not to serve them.
///
/// # Errors
/// Why the model cannot run several requests as one.
pub fn warm(backend: &dyn Backend, batching: Option<&Batching>) -> Result<Curve, String> {
    let signature = Signature::of(backend);
    if batching.is_some() {
        batchable(&signature)?;
    }
    let mut points = Vec::new();
    let Some((alone, time)) = measure(backend, &signature, 1) else {
        return Ok(Curve::default());
    };
    points.push((1, time));
    let begun = Instant::now();
    for rows in batching.into_iter().flat_map(|batching| sizes(batching.max)) {
        let Some((together, time)) = measure(backend, &signature, rows) else { break };
        independent(&signature, &alone, &together, rows)?;
        points.push((rows, time));
        if begun.elapsed() + time * 4 > BUDGET {
            break;
        }
    }
    Ok(Curve::measured(&points))
}

/// 2, 4, 8, … below `max`, and `max`.
fn sizes(max: usize) -> impl Iterator<Item = usize> {
    let powers = std::iter::successors(Some(2_usize), |size| size.checked_mul(2));
    powers.take_while(move |size| *size < max).chain((max > 1).then_some(max))
}

/// The outputs of made-up inputs with `rows` rows, and the time of the last run.
fn measure(
    backend: &dyn Backend,
    signature: &Signature,
    rows: usize,
) -> Option<(Vec<Tensor>, Duration)> {
    let Some(example) = signature.example(rows, EXAMPLE_BYTES) else {
        tracing::warn!(rows, "the model's inputs are too large to warm it up");
        return None;
    };
    let inputs: Vec<_> = example.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut last = None;
    for _ in 0..RUNS {
        let start = Instant::now();
        match backend.run(&inputs, &[]) {
            Ok(outputs) => last = Some((outputs, start.elapsed())),
            Err(error) => {
                tracing::warn!(%error, rows, "the model does not take made-up inputs, so it is not warm");
                return None;
            }
        }
    }
    last
}

/// Whether each of `rows` equal rows gave what the row gave alone: the first axis of some models
/// is time or a vocabulary, and joining requests along it would mix them.
fn independent(
    signature: &Signature,
    alone: &[Tensor],
    together: &[Tensor],
    rows: usize,
) -> Result<(), String> {
    for ((known, alone), together) in signature.outputs.iter().zip(alone).zip(together) {
        let parts = cut(together, &vec![1; rows]).ok_or_else(|| {
            format!("output {:?} has shape {:?} for {rows} rows", known.name, together.shape())
        })?;
        if !parts.iter().all(|part| close(alone, part)) {
            return Err(format!(
                "output {:?} of one row depends on the other rows: the first axis is no batch",
                known.name
            ));
        }
    }
    Ok(())
}

/// Whether floats agree but for rounding, which may differ with the size; other types by shape:
/// a rounding may turn an index.
fn close(a: &Tensor, b: &Tensor) -> bool {
    if a.shape() != b.shape() {
        return false;
    }
    if !matches!(a.datatype(), Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64) {
        return true;
    }
    let (Some(a), Some(b)) = (a.to_f64(), b.to_f64()) else { return true };
    let most =
        a.iter().filter(|item| item.is_finite()).fold(0.0, |most, item| item.abs().max(most));
    a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-2 * most + 1e-3 || !(a - b).is_finite())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::runtime::RuntimeError;
    use lithe::artifact::TensorSignature;

    /// `y` from the rows of `x`.
    struct Model([TensorSignature; 1], fn(&Tensor) -> Tensor);

    impl Backend for Model {
        fn inputs(&self) -> &[TensorSignature] {
            &self.0
        }

        fn outputs(&self) -> &[TensorSignature] {
            &self.0
        }

        fn run(&self, inputs: &[(&str, &Tensor)], _: &[&str]) -> Result<Vec<Tensor>, RuntimeError> {
            Ok(inputs.iter().map(|(_, tensor)| self.1(tensor)).collect())
        }
    }

    fn judged(run: fn(&Tensor) -> Tensor) -> Result<Curve, String> {
        let tensor =
            TensorSignature { name: "x".into(), datatype: "FP32".into(), shape: vec![-1, 2] };
        let batching = Batching { max: 8, delay: None, preferred: vec![] };
        warm(&Model([tensor], run), Some(&batching))
    }

    #[test]
    fn a_model_whose_rows_stand_alone_is_measured() {
        assert!(judged(Tensor::clone).unwrap().known());
    }

    #[test]
    fn rows_that_depend_on_each_other_are_no_batch() {
        // A running sum, as a recurrent model has along time.
        let sums = |x: &Tensor| {
            let items = x.to_f64().unwrap();
            let items = items.iter().scan(0.0, |sum, item| {
                *sum += *item as f32;
                Some(*sum)
            });
            Tensor::from_f32(x.shape().to_vec(), &items.collect::<Vec<_>>()).unwrap()
        };
        assert!(judged(sums).unwrap_err().contains("depends on the other rows"));
        let one = |_: &Tensor| Tensor::from_f32(vec![1, 2], &[1.0, 1.0]).unwrap();
        assert!(judged(one).unwrap_err().contains("has shape [1, 2] for 2 rows"));
    }

    #[test]
    fn sizes_grow_to_the_largest() {
        let all = |max| sizes(max).collect::<Vec<_>>();
        assert_eq!((all(1), all(2), all(12)), (vec![], vec![2], vec![2, 4, 8, 12]));
    }
}
