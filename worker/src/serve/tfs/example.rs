//! Examples to inputs: each input takes the feature of its own name, one row for each example.
//!
//! A feature's values fill the input's row: the dimensions after the first, of which one may be
//! open. An example lacks no feature, since there is no default to put in its place. Features that
//! the model does not know are passed over, as a parsed tf.Example's are.

use lithe::artifact::TensorSignature;
use lithe::tensorflow::feature::Kind;
use lithe::tensorflow::serving::{self, input};
use lithe::tensorflow::{Example, Feature};

use crate::serve::element::{self, Scalar};
use crate::serve::error::InferError;
use crate::serve::model::Signature;
use crate::tensor::{Datatype, Tensor};

/// Samples, and the features that all of them have.
#[derive(Debug, Default)]
pub struct Examples {
    /// The samples.
    pub rows: Vec<Example>,
    /// What each has that does not say otherwise.
    pub context: Option<Example>,
}

impl From<Option<serving::Input>> for Examples {
    fn from(input: Option<serving::Input>) -> Self {
        match input.and_then(|input| input.kind) {
            None => Self::default(),
            Some(input::Kind::ExampleList(list)) => Self { rows: list.examples, context: None },
            Some(input::Kind::ExampleListWithContext(list)) => {
                Self { rows: list.examples, context: list.context }
            }
        }
    }
}

impl Examples {
    /// The model's inputs, one row for each example and at most `limit` bytes in all: features of
    /// the context are repeated, so a small message may ask for a large tensor.
    ///
    /// # Errors
    /// [`InferError::Invalid`] naming the example and the feature, [`InferError::TooLarge`].
    pub fn inputs(
        &self,
        signature: &Signature,
        limit: usize,
    ) -> Result<Vec<(String, Tensor)>, InferError> {
        if self.rows.is_empty() {
            return Err(InferError::Invalid("Input is empty: there are no examples".into()));
        }
        let mut left = limit;
        let mut inputs = Vec::with_capacity(signature.inputs.len());
        for known in &signature.inputs {
            let tensor = self.input(known, left)?;
            left = left.saturating_sub(tensor.data().len());
            inputs.push((known.name.clone(), tensor));
        }
        Ok(inputs)
    }

    fn input(&self, known: &TensorSignature, limit: usize) -> Result<Tensor, InferError> {
        let name = &known.name;
        let invalid = |text: String| InferError::Invalid(format!("feature {name:?}: {text}"));
        let datatype = Datatype::from_name(&known.datatype)
            .ok_or_else(|| invalid(format!("the model's type {} is unknown", known.datatype)))?;
        let mut data = Vec::new();
        let mut width = None;
        for (index, example) in self.rows.iter().enumerate() {
            let feature = feature(example, name)
                .or_else(|| self.context.as_ref().and_then(|context| feature(context, name)))
                .ok_or_else(|| invalid(format!("example {index} does not have it")))?;
            let count = append(&mut data, datatype, feature)
                .map_err(|error| invalid(format!("example {index}: {error}")))?;
            if data.len() > limit {
                return Err(InferError::TooLarge(format!(
                    "feature {name:?}: the examples take more than the {limit} bytes that are left of a request"
                )));
            }
            if *width.get_or_insert(count) != count {
                return Err(invalid(format!(
                    "example {index} has {count} values, the first has {}",
                    width.unwrap_or_default()
                )));
            }
        }
        let mut shape = vec![self.rows.len()];
        shape.extend(row(&known.shape, width.unwrap_or_default()).map_err(invalid)?);
        Tensor::new(datatype, shape, data.into()).map_err(|error| invalid(error.to_string()))
    }
}

fn feature<'a>(example: &'a Example, name: &str) -> Option<&'a Feature> {
    example.features.as_ref()?.feature.get(name)
}

/// Appends the values of `feature` and returns their number.
fn append(out: &mut Vec<u8>, datatype: Datatype, feature: &Feature) -> Result<usize, String> {
    match &feature.kind {
        None => Ok(0),
        Some(Kind::BytesList(list)) => {
            for item in &list.value {
                element::push(out, datatype, Scalar::Binary(item))
                    .map_err(|_| format!("bytes are no elements of {datatype}"))?;
            }
            Ok(list.value.len())
        }
        Some(Kind::FloatList(list)) => {
            for item in &list.value {
                float(out, datatype, *item)?;
            }
            Ok(list.value.len())
        }
        Some(Kind::Int64List(list)) => {
            for item in &list.value {
                // A tf.Example has no booleans of its own.
                let scalar = match (datatype, *item) {
                    (Datatype::Bool, 0 | 1) => Scalar::Bool(*item == 1),
                    _ => Scalar::Whole((*item).into()),
                };
                element::push(out, datatype, scalar)?;
            }
            Ok(list.value.len())
        }
    }
}

fn float(out: &mut Vec<u8>, datatype: Datatype, value: f32) -> Result<(), String> {
    if value.is_finite() {
        return element::push(out, datatype, Scalar::Float(value.into()));
    }
    let word = if value.is_nan() {
        "\0NaN"
    } else if value > 0.0 {
        "\0Infinity"
    } else {
        "\0-Infinity"
    };
    element::push(out, datatype, Scalar::Text(word))
}

/// The dimensions of a row of `count` values of an input with the shape `declared`.
fn row(declared: &[i64], count: usize) -> Result<Vec<usize>, String> {
    let Some((_, dims)) = declared.split_first() else {
        // Nothing is declared: a number for each example, or a list for each.
        return Ok(if count == 1 { Vec::new() } else { vec![count] });
    };
    let wrong = || format!("{count} values do not fill a row of shape {dims:?}");
    let fixed = dims.iter().filter(|dim| **dim >= 0).try_fold(1_usize, |product, dim| {
        usize::try_from(*dim).ok().and_then(|dim| product.checked_mul(dim))
    });
    let fixed = fixed.ok_or_else(wrong)?;
    let open = dims.iter().filter(|dim| **dim < 0).count();
    let size = match open {
        0 => (fixed == count).then_some(0),
        1 => (fixed > 0 && count.is_multiple_of(fixed)).then(|| count / fixed),
        _ => {
            return Err(format!(
                "a row of shape {dims:?} has more than one open dimension: use Predict"
            ));
        }
    };
    let size = size.ok_or_else(wrong)?;
    Ok(dims.iter().map(|dim| usize::try_from(*dim).unwrap_or(size)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lithe::tensorflow::{BytesList, Features, FloatList, Int64List};

    use super::*;

    fn floats(items: &[f32]) -> Feature {
        Feature { kind: Some(Kind::FloatList(FloatList { value: items.to_vec() })) }
    }

    fn whole(items: &[i64]) -> Feature {
        Feature { kind: Some(Kind::Int64List(Int64List { value: items.to_vec() })) }
    }

    fn text(item: &'static [u8]) -> Feature {
        let value = vec![bytes::Bytes::from_static(item)];
        Feature { kind: Some(Kind::BytesList(BytesList { value })) }
    }

    fn example(features: Vec<(&str, Feature)>) -> Example {
        let feature = features.into_iter().map(|(name, feature)| (name.to_owned(), feature));
        Example { features: Some(Features { feature: feature.collect() }) }
    }

    fn signature(inputs: &[(&str, &str, &[i64])]) -> Signature {
        let tensor = |(name, datatype, shape): &(&str, &str, &[i64])| TensorSignature {
            name: (*name).into(),
            datatype: (*datatype).into(),
            shape: shape.to_vec(),
        };
        Signature { inputs: inputs.iter().map(tensor).collect(), outputs: Vec::new() }
    }

    #[test]
    fn features_become_rows_of_the_inputs_of_their_names() {
        let signature = signature(&[
            ("x", "FP32", &[-1, 2]),
            ("n", "INT32", &[-1]),
            ("s", "BYTES", &[-1, 1]),
            ("c", "FP64", &[-1, -1, 2]),
        ]);
        let row = |x: f32| {
            example(vec![
                ("x", floats(&[x, -x])),
                ("n", whole(&[7])),
                ("s", text(b"a")),
                ("unknown", whole(&[1])),
            ])
        };
        let context = Some(example(vec![("c", floats(&[1.0; 4])), ("n", whole(&[9]))]));
        let examples = Examples { rows: vec![row(1.0), row(f32::NAN), row(3.0)], context };
        let inputs = examples.inputs(&signature, 1 << 10).unwrap();
        let shapes: Vec<_> = inputs.iter().map(|(name, t)| (name.as_str(), t.shape())).collect();
        assert_eq!(shapes, [("x", &[3, 2][..]), ("n", &[3]), ("s", &[3, 1]), ("c", &[3, 2, 2])]);
        let values = |index: usize| inputs.get(index).unwrap().1.to_f64().unwrap();
        assert_eq!(values(1), [7.0; 3], "an example's own feature wins over the context's");
        assert!(values(0).get(2).unwrap().is_nan());
    }

    #[test]
    fn examples_that_do_not_fit_are_refused_by_feature() {
        let cases: [(&str, &[i64], Vec<Feature>, &str); 8] = [
            ("FP32", &[-1, 2], vec![floats(&[1.0])], "do not fill a row of shape [2]"),
            ("FP32", &[-1], vec![floats(&[1.0, 2.0])], "do not fill a row of shape []"),
            ("FP32", &[-1, -1, -1], vec![floats(&[1.0])], "more than one open dimension"),
            ("FP32", &[-1, -1, 0], vec![floats(&[1.0])], "do not fill"),
            ("FP32", &[-1, -1], vec![floats(&[1.0]), floats(&[1.0; 2])], "example 1 has 2 values"),
            ("INT8", &[-1], vec![whole(&[300])], "300 does not fit into INT8"),
            ("INT32", &[-1], vec![floats(&[1.5])], "1.5 is not an element"),
            ("FP32", &[-1], vec![text(b"a")], "bytes are no elements of FP32"),
        ];
        for (datatype, shape, features, words) in cases {
            let rows = features.into_iter().map(|feature| example(vec![("x", feature)])).collect();
            let examples = Examples { rows, context: None };
            let error = examples
                .inputs(&signature(&[("x", datatype, shape)]), 1 << 10)
                .unwrap_err()
                .to_string();
            assert!(error.contains("\"x\"") && error.contains(words), "{error}: {words}");
        }
        let signature = signature(&[("x", "FP32", &[-1])]);
        let none = Examples::default().inputs(&signature, 1 << 10).unwrap_err().to_string();
        assert!(none.contains("Input is empty"), "{none}");
        let context = Some(example(vec![("x", floats(&[1.0; 64]))]));
        let repeated = Examples { rows: vec![Example::default(); 1000], context };
        let error = repeated.inputs(&signature, 1 << 10).unwrap_err();
        assert!(matches!(error, InferError::TooLarge(_)), "{error}");
        let lacks = Examples { rows: vec![example(vec![])], context: None };
        let error = lacks.inputs(&signature, 1 << 10).unwrap_err().to_string();
        assert!(error.contains("example 0 does not have it"), "{error}");
    }
}
