//! MatMul and Gemm with a constant matrix, read as one form: x · W with W as [in, out], alpha folded
//! into W, beta into the bias. Must not decide how W is stored.

use crate::onnx::graph::{Constants, Names, float_of, input, int_of, output};
use crate::onnx::{DataType, NodeProto, TensorProto, operators, weights};

/// How a product reads its operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Form {
    /// Whether it is a Gemm, which may have a bias.
    pub gemm: bool,
    /// Whether x is transposed before the product.
    pub transposed_input: bool,
    /// Whether W is stored as [out, in].
    pub transposed_weight: bool,
    /// The factor of the product.
    pub alpha: f32,
}

impl Form {
    /// Nodes with equal keys read `weight` alike, so that one stored form serves them all.
    pub fn key(self, weight: &TensorProto) -> (String, bool, u32) {
        (weight.name.clone(), self.transposed_weight, self.alpha.to_bits())
    }
}

/// Whether `node` is a MatMul or a Gemm of the default operator set.
pub fn is_product(node: &NodeProto) -> bool {
    operators::is(node, "MatMul") || operators::is(node, "Gemm")
}

/// The form of the product `node`.
pub fn form(node: &NodeProto) -> Form {
    let gemm = node.op_type == "Gemm";
    Form {
        gemm,
        transposed_input: gemm && int_of(node, "transA", 0) != 0,
        transposed_weight: gemm && int_of(node, "transB", 0) != 0,
        alpha: if gemm { float_of(node, "alpha", 1.0) } else { 1.0 },
    }
}

/// The constant float matrix of the product `node` that can be stored with fewer bits, or why it cannot.
pub fn weight<'c>(
    node: &NodeProto,
    seen: &'c Constants,
    excluded: bool,
) -> Result<&'c TensorProto, &'static str> {
    if excluded {
        return Err("excluded by the recipe");
    }
    let weight = seen.get(input(node, 1)).ok_or("both inputs are computed")?;
    if weight.data_type != DataType::Float as i32 {
        return Err("its weights are not 32-bit floats");
    }
    if weight.dims.len() < 2 || weights::count(weight) == 0 {
        return Err("its weights are no matrix");
    }
    if seen.contains_key(input(node, 0)) {
        return Err("both inputs are constant");
    }
    let bias = input(node, 2);
    let scaled = float_of(node, "beta", 1.0) != 1.0 && !bias.is_empty();
    if node.op_type == "Gemm" && scaled && seen.get(bias).and_then(weights::to_f32).is_none() {
        return Err("its bias is computed and scaled");
    }
    Ok(weight)
}

/// The numbers of `weight` and its dimensions [.., in, out], with alpha folded in.
pub fn matrix(weight: &TensorProto, form: Form) -> (Vec<f32>, Vec<i64>) {
    let mut dims = weight.dims.clone();
    let mut values = weights::to_f32(weight).unwrap_or_default();
    if form.transposed_weight {
        values = transpose(&values, last(&dims));
        dims.reverse();
    }
    if form.alpha != 1.0 {
        values.iter_mut().for_each(|value| *value *= form.alpha);
    }
    (values, dims)
}

/// The name of a Gemm's bias times its beta, a new tensor where beta is not 1; `None` without bias.
pub fn bias(
    node: &NodeProto,
    seen: &Constants,
    names: &mut Names,
    tensors: &mut Vec<TensorProto>,
) -> Option<String> {
    let bias = input(node, 2);
    if node.op_type != "Gemm" || bias.is_empty() {
        return None;
    }
    let beta = float_of(node, "beta", 1.0);
    let constant = seen.get(bias).and_then(|tensor| Some((tensor, weights::to_f32(tensor)?)));
    match constant {
        Some((tensor, values)) if beta != 1.0 => {
            let scaled: Vec<f32> = values.iter().map(|value| value * beta).collect();
            let name = names.fresh(&format!("{bias}_beta"));
            tensors.push(weights::from_f32(&name, &tensor.dims, &scaled));
            Some(name)
        }
        _ => Some(bias.to_owned()),
    }
}

/// What new nodes in the place of `node` are named after: its name, else its first output's.
pub fn label(node: &NodeProto) -> &str {
    if node.name.is_empty() { output(node, 0) } else { &node.name }
}

/// The last of `dims`; 1 for a scalar.
pub fn last(dims: &[i64]) -> usize {
    dims.last().and_then(|dim| usize::try_from(*dim).ok()).unwrap_or(1)
}

/// A row-major matrix with rows of `width` numbers, transposed.
fn transpose(values: &[f32], width: usize) -> Vec<f32> {
    let width = width.max(1);
    (0..width).flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{int, node};

    #[test]
    fn a_stored_transpose_and_alpha_are_undone() {
        let mut gemm = node("Gemm", "g", &["x", "w"], &["y"]);
        gemm.attribute.push(int("transB", 1));
        let form = Form { alpha: 2.0, ..form(&gemm) };
        let weight = weights::from_f32("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let (values, dims) = matrix(&weight, form);
        assert_eq!((values, dims), (vec![2.0, 8.0, 4.0, 10.0, 6.0, 12.0], vec![3, 2]));
    }
}
