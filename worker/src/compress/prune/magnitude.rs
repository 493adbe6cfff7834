//! `structure: Unstructured`: zeroes the weights of smallest magnitude, as
//! `torch.nn.utils.prune.global_unstructured` and `l1_unstructured` do. The graph stays as it is:
//! zeros pack well, they do not compute faster.

use lithe::recipe::{Prune, PruneScope};

use crate::compress::change::Change;
use crate::compress::prune::weight::{self, Weight};
use crate::onnx::{GraphProto, ModelProto, Refusal, TensorProto, weights};

/// Zeroes k = round-half-even(sparsity * N) weights: over the model, or in each tensor by itself.
/// A weight that is zero already counts, so the share is that of the result.
pub fn prune(model: &mut ModelProto, step: &Prune, change: &mut Change) -> Result<(), Refusal> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let found = weight::find(graph, step, change);
    let sets: Vec<&[Weight]> = match step.scope {
        PruneScope::Global => vec![found.as_slice()],
        PruneScope::Local => found.chunks(1).collect(),
    };
    let (mut zeroed, mut all, mut users) = (0, 0, Vec::new());
    for set in sets {
        let (zeros, count) = zero_smallest(graph, set, step.sparsity)?;
        all += count;
        if zeros == 0 {
            continue;
        }
        zeroed += zeros;
        for (op, count) in set.iter().flat_map(|weight| &weight.users) {
            weight::count(&mut users, op, *count);
        }
    }
    if zeroed == 0 {
        return Ok(());
    }
    change.matched = users.iter().map(|(_, count)| count).sum();
    change.done.push(format!("{zeroed} of {all} weights of {} made zero", weight::counted(&users)));
    change.done.push("zeros save registry and transfer bytes, not time".to_owned());
    Ok(())
}

/// Zeroes the share of `set` that is smallest in magnitude; of equal ones, the first in order.
/// Returns how many were zeroed, of how many.
fn zero_smallest(
    graph: &mut GraphProto,
    set: &[Weight],
    share: f64,
) -> Result<(usize, usize), Refusal> {
    let mut magnitudes = Vec::new();
    for weight in set {
        let Some(tensor) = tensor(graph, weight) else { continue };
        let before = magnitudes.len();
        magnitudes.extend(floats(&tensor.raw_data).map(f32::abs));
        if magnitudes.iter().skip(before).any(|value| value.is_nan()) {
            return Err(weight::not_a_number(&weight.name));
        }
    }
    let all = magnitudes.len();
    let zeroed = (share * all as f64).round_ties_even() as usize;
    let Some(last) = zeroed.checked_sub(1) else { return Ok((0, all)) };
    let (smaller, bound, _) = magnitudes.select_nth_unstable_by(last, f32::total_cmp);
    let bound = *bound;
    let mut ties = zeroed - smaller.iter().filter(|value| **value < bound).count();
    drop(magnitudes);
    for weight in set {
        let Some(tensor) = tensor(graph, weight) else { continue };
        let kept = floats(&tensor.raw_data).flat_map(|value| {
            let tied = value.abs() == bound && ties > 0;
            ties -= usize::from(tied);
            if tied || value.abs() < bound { 0.0 } else { value }.to_le_bytes()
        });
        tensor.raw_data = kept.collect::<Vec<u8>>().into();
    }
    Ok((zeroed, all))
}

/// The tensor of `weight` in raw form.
pub fn tensor<'a>(graph: &'a mut GraphProto, weight: &Weight) -> Option<&'a mut TensorProto> {
    let tensor = graph.initializer.iter_mut().find(|tensor| tensor.name == weight.name)?;
    weights::to_raw(tensor);
    Some(tensor)
}

/// The floats in little-endian `raw` bytes.
pub fn floats(raw: &[u8]) -> impl Iterator<Item = f32> + '_ {
    raw.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn zeroed(values: &[f32], share: f64) -> Vec<f32> {
        let mut graph = GraphProto {
            initializer: vec![weights::from_f32("w", &[values.len() as i64], values)],
            ..GraphProto::default()
        };
        let weight = Weight { name: "w".into(), axis: 0, users: Vec::new() };
        zero_smallest(&mut graph, &[weight], share).unwrap();
        weights::to_f32(graph.initializer.first().unwrap()).unwrap()
    }

    #[test]
    fn of_equal_magnitudes_the_first_are_zeroed() {
        assert_eq!(zeroed(&[1.0, -1.0, 1.0, 0.5], 0.5), [0.0, -1.0, 1.0, 0.0]);
    }

    #[test]
    fn half_a_weight_rounds_to_even() {
        assert_eq!(zeroed(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.5), [0.0, 0.0, 3.0, 4.0, 5.0]);
        assert_eq!(zeroed(&[1.0, 2.0, 3.0], 0.5), [0.0, 0.0, 3.0]);
        assert_eq!(zeroed(&[1.0], 0.5), [1.0]);
    }

    #[test]
    fn zeros_of_before_count() {
        assert_eq!(zeroed(&[0.0, 3.0, 0.0, 1.0], 0.5), [0.0, 3.0, 0.0, 1.0]);
    }

    #[test]
    fn a_weight_that_is_nan_is_refused() {
        let mut graph = GraphProto {
            initializer: vec![weights::from_f32("w", &[2], &[1.0, f32::NAN])],
            ..GraphProto::default()
        };
        let weight = Weight { name: "w".into(), axis: 0, users: Vec::new() };
        let error = zero_smallest(&mut graph, &[weight], 0.5).unwrap_err();
        assert!(error.to_string().contains("NaN"), "{error}");
    }
}
