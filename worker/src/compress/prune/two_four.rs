//! `structure: TwoFour`: of every four weights along the input axis the two of smaller magnitude
//! become zero, the pattern that sparse tensor cores read.

use lithe::recipe::Prune;

use crate::compress::change::Change;
use crate::compress::prune::magnitude::{floats, tensor};
use crate::compress::prune::weight::{self, Weight};
use crate::onnx::{GraphProto, ModelProto, NodeProto, Refusal};

/// Weights of which two stay.
const BLOCK: usize = 4;

/// Prunes every weight of `model` whose input axis is a multiple of four.
pub fn prune(model: &mut ModelProto, step: &Prune, change: &mut Change) -> Result<(), Refusal> {
    let Some(graph) = &mut model.graph else { return Ok(()) };
    let mut users = Vec::new();
    for weight in weight::find(graph, step, change) {
        if zero_pairs(graph, &weight)? {
            for (op, count) in &weight.users {
                weight::count(&mut users, op, *count);
            }
            continue;
        }
        let reads = |node: &&NodeProto| node.input.contains(&weight.name);
        for node in graph.node.iter().filter(reads) {
            change.skip(node, "its input width is no multiple of 4");
        }
    }
    if users.is_empty() {
        return Ok(());
    }
    change.matched = users.iter().map(|(_, count)| count).sum();
    change.done.push(format!("2 of every 4 weights of {} made zero", weight::counted(&users)));
    change.done.push("faster only on GPUs with sparse tensor cores".to_owned());
    Ok(())
}

/// Zeroes two of every four of `weight` along its axis; false when its length does not allow it.
fn zero_pairs(graph: &mut GraphProto, weight: &Weight) -> Result<bool, Refusal> {
    let Some(tensor) = tensor(graph, weight) else { return Ok(false) };
    let size = |dim: &i64| usize::try_from(*dim).unwrap_or(0);
    let length = tensor.dims.get(weight.axis).map_or(0, size);
    let stride: usize = tensor.dims.iter().skip(weight.axis + 1).map(size).product();
    if length == 0 || !length.is_multiple_of(BLOCK) {
        return Ok(false);
    }
    let mut values: Vec<f32> = floats(&tensor.raw_data).collect();
    if values.iter().any(|value| value.is_nan()) {
        return Err(weight::not_a_number(&weight.name));
    }
    // Four steps of the axis with all that lies inside each: the blocks of one offset are apart by it.
    for block in values.chunks_mut(BLOCK * stride) {
        for offset in 0..stride {
            let mut four: Vec<&mut f32> = block.iter_mut().skip(offset).step_by(stride).collect();
            // The sort is stable: of equal ones the first become zero.
            four.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
            four.into_iter().take(BLOCK / 2).for_each(|value| *value = 0.0);
        }
    }
    tensor.raw_data =
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into();
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::onnx::weights;

    fn pruned(dims: &[i64], axis: usize, values: &[f32]) -> Option<Vec<f32>> {
        let mut graph = GraphProto {
            initializer: vec![weights::from_f32("w", dims, values)],
            ..GraphProto::default()
        };
        let weight = Weight { name: "w".into(), axis, users: Vec::new() };
        zero_pairs(&mut graph, &weight)
            .unwrap()
            .then(|| weights::to_f32(graph.initializer.first().unwrap()).unwrap())
    }

    #[test]
    fn the_two_largest_of_four_along_the_axis_stay() {
        let columns = [1.0, 8.0, -2.0, 7.0, 3.0, 6.0, -4.0, 5.0];
        assert_eq!(
            pruned(&[4, 2], 0, &columns).unwrap(),
            [0.0, 8.0, 0.0, 7.0, 3.0, 0.0, -4.0, 0.0]
        );
        assert_eq!(pruned(&[2, 4], 1, &columns).unwrap(), [0.0, 8.0, 0.0, 7.0, 0.0, 6.0, 0.0, 5.0]);
    }

    #[test]
    fn a_width_that_four_does_not_divide_stays() {
        assert_eq!(pruned(&[2, 3], 1, &[1.0; 6]), None);
    }
}
