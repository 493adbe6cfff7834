//! Rows: requests joined along the first axis into one inference, and its outputs cut up again.

use bytes::{Bytes, BytesMut};

use crate::serve::model::Signature;
use crate::tensor::{Datatype, Tensor};

use super::Work;

/// Why the model of `signature` cannot run several requests at once.
///
/// # Errors
/// Names the input or output without an open first dimension.
pub fn batchable(signature: &Signature) -> Result<(), String> {
    let sides = [("input", &signature.inputs), ("output", &signature.outputs)];
    for (what, tensors) in sides {
        for known in tensors {
            if known.shape.first().is_none_or(|dim| *dim >= 0) {
                return Err(format!(
                    "{what} {:?} has shape {:?}: batching needs an open first dimension everywhere",
                    known.name, known.shape
                ));
            }
        }
    }
    Ok(())
}

/// The rows of `work`: the first dimension that all inputs share. `None` when they do not, or have
/// none: such a request runs alone.
pub fn rows(work: &Work) -> Option<usize> {
    let mut all = work.inputs.iter().map(|(_, tensor)| tensor.shape().first().copied());
    let rows = all.next()??;
    (rows > 0 && all.all(|other| other == Some(rows))).then_some(rows)
}

/// Whether `a` and `b` may be one inference: the same inputs in order, the same shapes but for the
/// first dimension, the same outputs.
pub fn alike(a: &Work, b: &Work) -> bool {
    a.inputs.len() == b.inputs.len()
        && a.wanted == b.wanted
        && a.inputs.iter().zip(&b.inputs).all(|((a_name, a), (b_name, b))| {
            a_name == b_name
                && a.datatype() == b.datatype()
                && a.shape().get(1..) == b.shape().get(1..)
        })
}

/// The tensor of the rows of all `parts`, which are alike but for their first dimension.
pub fn join(parts: &[&Tensor]) -> Option<Tensor> {
    let first = parts.first()?;
    let mut shape = first.shape().to_vec();
    *shape.first_mut()? = parts.iter().filter_map(|part| part.shape().first()).sum();
    let mut data = BytesMut::with_capacity(parts.iter().map(|part| part.data().len()).sum());
    for part in parts {
        data.extend_from_slice(part.data());
    }
    Tensor::new(first.datatype(), shape, data.freeze()).ok()
}

/// The tensors of `rows[0]`, `rows[1]`, … rows of `tensor`, which share its memory. `None` when its
/// first dimension is not their sum.
pub fn cut(tensor: &Tensor, rows: &[usize]) -> Option<Vec<Tensor>> {
    let (all, tail) = tensor.shape().split_first()?;
    if *all == 0 || *all != rows.iter().sum::<usize>() {
        return None;
    }
    let mut rest = tensor.data().clone();
    let each: usize = tail.iter().product();
    let width = tensor.data().len() / all;
    let part = |rows: &usize| {
        let length = match tensor.datatype() {
            Datatype::Bytes => strings_length(&rest, rows * each)?,
            _ => rows * width,
        };
        if length > rest.len() {
            return None;
        }
        let shape = std::iter::once(*rows).chain(tail.iter().copied()).collect();
        Tensor::new(tensor.datatype(), shape, rest.split_to(length)).ok()
    };
    rows.iter().map(part).collect()
}

/// The bytes that the first `count` strings of `data` take, with their lengths.
fn strings_length(data: &Bytes, count: usize) -> Option<usize> {
    let mut length = 0_usize;
    for _ in 0..count {
        let head = data.get(length..)?.first_chunk::<4>()?;
        length = length.checked_add(4)?.checked_add(u32::from_le_bytes(*head) as usize)?;
    }
    Some(length)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use lithe::artifact::TensorSignature;

    fn work(shape: &[usize]) -> Work {
        let count = shape.iter().product();
        let tensor = Tensor::from_f32(shape.to_vec(), &vec![0.0; count]).unwrap();
        Work {
            inputs: vec![("x".into(), tensor)],
            wanted: vec!["y".into()],
            deadline: None,
            priority: 0,
        }
    }

    #[test]
    fn what_is_joined_comes_apart_again() {
        let numbers = [
            Tensor::from_f32(vec![1, 2], &[1.0, 2.0]).unwrap(),
            Tensor::from_f32(vec![2, 2], &[3.0, 4.0, 5.0, 6.0]).unwrap(),
        ];
        let words = [
            Tensor::from_strings(vec![2], &["a", ""]).unwrap(),
            Tensor::from_strings(vec![1], &["longer"]).unwrap(),
        ];
        for (parts, rows) in [(&numbers, [1, 2]), (&words, [2, 1])] {
            let joined = join(&[&parts[0], &parts[1]]).unwrap();
            assert_eq!(joined.shape()[0], 3);
            assert_eq!(cut(&joined, &rows).unwrap(), parts);
            assert_eq!(cut(&joined, &[1, 1]), None, "rows are missing");
            assert_eq!(cut(&joined, &[2, 2]), None, "rows are too many");
        }
    }

    #[test]
    fn only_requests_that_are_alike_join() {
        assert!(alike(&work(&[1, 4]), &work(&[3, 4])));
        assert!(!alike(&work(&[1, 4]), &work(&[1, 5])));
        assert!(!alike(&work(&[1, 4]), &Work { wanted: vec![], ..work(&[1, 4]) }));
        assert_eq!(
            (rows(&work(&[3, 4])), rows(&work(&[0, 4])), rows(&work(&[]))),
            (Some(3), None, None)
        );
    }

    #[test]
    fn a_closed_first_dimension_cannot_be_batched() {
        let tensor = |shape: &[i64]| TensorSignature {
            name: "t".into(),
            datatype: "FP32".into(),
            shape: shape.into(),
        };
        let of = |input: &[i64], output: &[i64]| {
            batchable(&Signature { inputs: vec![tensor(input)], outputs: vec![tensor(output)] })
        };
        assert_eq!(of(&[-1, 2], &[-1]), Ok(()));
        assert!(of(&[1, 2], &[-1]).unwrap_err().contains("input \"t\" has shape [1, 2]"));
        assert!(of(&[-1], &[]).unwrap_err().contains("output \"t\" has shape []"));
    }
}
