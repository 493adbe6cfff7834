//! Triton's classification extension: instead of an output's numbers, the highest of them as
//! strings `value:index`. Knows no transport.

use super::error::InferError;
use super::server::Response;
use crate::tensor::{Datatype, Tensor};

/// The outputs that are wanted as classes, with the number of classes of each.
pub type Classes = Vec<(String, u64)>;

/// `response` with the outputs of `classes` replaced by their highest classes.
///
/// # Errors
/// [`InferError::Invalid`] naming the output that has no classes.
pub fn apply(classes: &Classes, mut response: Response) -> Result<Response, InferError> {
    for (name, tensor) in &mut response.outputs {
        if let Some((_, count)) = classes.iter().find(|(known, _)| known == name) {
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            *tensor = top(tensor, count)
                .map_err(|error| InferError::Invalid(format!("output {name:?}: {error}")))?;
        }
    }
    Ok(response)
}

/// The `count` highest elements of each row, highest first and never more than there are: BYTES of
/// [rows, count], or of [count] for a tensor with one dimension or none.
fn top(tensor: &Tensor, count: usize) -> Result<Tensor, String> {
    if count == 0 {
        return Err("classification is 0: ask for one class at least".into());
    }
    let values = tensor.to_f64().ok_or("strings have no classes")?;
    let (rows, mut shape) = match tensor.shape() {
        [] | [_] => (1, Vec::new()),
        [rows, ..] => (*rows, vec![*rows]),
    };
    let width = values.len().checked_div(rows).unwrap_or_default();
    let count = count.min(width);
    shape.push(count);
    let mut items = Vec::with_capacity(rows.min(values.len()) * count);
    for row in values.chunks(width.max(1)).take(rows) {
        let mut order: Vec<_> = row.iter().copied().enumerate().collect();
        // No number is lower than any; equal ones keep their order.
        let key = |value: f64| if value.is_nan() { f64::NEG_INFINITY } else { value };
        order.sort_by(|(_, a), (_, b)| key(*b).total_cmp(&key(*a)));
        let best = order.iter().take(count);
        items.extend(best.map(|(index, value)| format!("{}:{index}", text(tensor, *value))));
    }
    Tensor::from_strings(shape, &items).map_err(|error| error.to_string())
}

/// A number as C++ prints it, and so Triton: six digits after the point for what has one.
fn text(tensor: &Tensor, value: f64) -> String {
    match tensor.datatype() {
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => format!("{value:.6}"),
        _ => format!("{value}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn classes(shape: &[usize], values: &[f32], count: usize) -> (Vec<usize>, Vec<String>) {
        let tensor = Tensor::from_f32(shape.to_vec(), values).unwrap();
        let top = top(&tensor, count).unwrap();
        let items = top.strings().into_iter().map(|item| String::from_utf8(item.to_vec()).unwrap());
        (top.shape().to_vec(), items.collect())
    }

    #[test]
    fn the_highest_of_each_row_come_first() {
        let (shape, items) = classes(&[2, 3], &[0.1, 0.7, 0.2, 3.0, f32::NAN, 3.0], 2);
        assert_eq!(shape, [2, 2]);
        assert_eq!(items, ["0.700000:1", "0.200000:2", "3.000000:0", "3.000000:2"]);
        let (shape, items) = classes(&[2], &[1.0, 2.0], 9);
        assert_eq!((shape, items), (vec![2], vec!["2.000000:1".into(), "1.000000:0".into()]));
        assert_eq!(classes(&[], &[5.0], 1).1, ["5.000000:0"]);
        assert_eq!(classes(&[0, 3], &[], 2).0, [0, 0]);
        assert_eq!(classes(&[2, 0], &[], 2).0, [2, 0]);
    }

    #[test]
    fn what_has_no_classes_is_refused_by_output() {
        let strings = Tensor::from_strings(vec![1], &["a"]).unwrap();
        let numbers = Tensor::from_f32(vec![1], &[1.0]).unwrap();
        for (tensor, count, words) in [(strings, 1, "strings have no"), (numbers, 0, "one class")] {
            let response = Response { outputs: vec![("y".into(), tensor)] };
            let error = apply(&vec![("y".into(), count)], response).unwrap_err().to_string();
            assert!(error.contains("\"y\"") && error.contains(words), "{error}");
        }
    }
}
