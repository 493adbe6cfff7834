//! The `data` of a JSON tensor, flat or nested, read straight into bytes and written from them:
//! no tree of values in between, and never more elements than the shape has.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use crate::serve::element::{self, Scalar, Writer};
use crate::tensor::{Datatype, Tensor, elements};

/// The elements of `json`, which must be exactly `count` of `datatype`.
///
/// # Errors
/// What is wrong, in one sentence.
pub fn read(datatype: Datatype, count: usize, json: &str) -> Result<Vec<u8>, String> {
    if matches!(datatype, Datatype::Fp16 | Datatype::Bf16) {
        return Err(format!("{datatype} does not travel as JSON: send it as binary data"));
    }
    let mut elements = Elements { datatype, left: count, data: Vec::new() };
    let mut json = serde_json::Deserializer::from_str(json);
    elements.deserialize(&mut json).map_err(|error| error.to_string())?;
    if elements.left > 0 {
        return Err(format!("the shape has {count} elements, data has {}", count - elements.left));
    }
    Ok(elements.data)
}

struct Elements {
    datatype: Datatype,
    left: usize,
    data: Vec<u8>,
}

impl Elements {
    fn push<E: Error>(&mut self, scalar: Scalar<'_>) -> Result<(), E> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| E::custom("data has more elements than the shape"))?;
        element::push(&mut self.data, self.datatype, scalar).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for &mut Elements {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Elements {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "elements of {}", self.datatype)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.push(Scalar::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.push(Scalar::Whole(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.push(Scalar::Whole(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.push(Scalar::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.push(Scalar::Text(value))
    }
}

/// Writes the elements of `tensor` as a flat JSON array. NaN and infinities are written as Python
/// and Triton write them, since JSON has no word for them.
///
/// # Errors
/// When the type does not travel as JSON.
pub fn write(out: &mut Vec<u8>, tensor: &Tensor) -> Result<(), String> {
    let datatype = tensor.datatype();
    if matches!(datatype, Datatype::Fp16 | Datatype::Bf16) {
        return Err(format!("{datatype} does not travel as JSON: ask for binary data"));
    }
    let writer = Writer::new(tensor);
    out.push(b'[');
    for index in 0..elements(tensor.shape()).unwrap_or_default() {
        if index > 0 {
            out.push(b',');
        }
        writer.write(out, index)?;
    }
    out.push(b']');
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn flat_and_nested_data_are_the_same_elements() {
        let flat = read(Datatype::Int16, 4, "[1,-2,3,4]").unwrap();
        assert_eq!(read(Datatype::Int16, 4, "[[1,-2],[3,4]]").unwrap(), flat);
        assert_eq!(read(Datatype::Fp64, 1, "7").unwrap(), 7.0_f64.to_le_bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (datatype, count, json, words) in [
            (Datatype::Int8, 1, "[300]", "300 does not fit into INT8"),
            (Datatype::Uint64, 1, "[-1]", "-1 does not fit into UINT64"),
            (Datatype::Int32, 1, "[1.5]", "1.5 is not an element of INT32"),
            (Datatype::Fp32, 1, "[1e300]", "not an element of FP32"),
            (Datatype::Fp32, 1, "[\"a\"]", "a string is not"),
            (Datatype::Fp32, 1, "[null]", "expected elements of FP32"),
            (Datatype::Fp32, 1, "[{}]", "expected elements of FP32"),
            (Datatype::Bool, 1, "[1]", "not an element of BOOL"),
            (Datatype::Fp32, 1, "[1,2]", "more elements than the shape"),
            (Datatype::Fp32, 3, "[1,2]", "the shape has 3 elements, data has 2"),
            (Datatype::Fp16, 1, "[1]", "binary data"),
        ] {
            let error = read(datatype, count, json).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
        assert!(read(Datatype::Fp32, 1, &"[".repeat(100_000)).is_err());
    }

    #[test]
    fn numbers_come_back_as_they_went() {
        let data: Vec<u8> = [0.1_f32, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-45]
            .iter()
            .flat_map(|item| item.to_le_bytes())
            .collect();
        let tensor = Tensor::new(Datatype::Fp32, vec![5], data.clone().into()).unwrap();
        let mut json = Vec::new();
        write(&mut json, &tensor).unwrap();
        let json = String::from_utf8(json).unwrap();
        assert_eq!(read(Datatype::Fp32, 5, &json).unwrap(), data, "{json}");
    }

    #[test]
    fn numbers_that_json_lacks_are_written_as_python_reads_them() {
        let tensor =
            Tensor::from_f32(vec![3], &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]).unwrap();
        let mut json = Vec::new();
        write(&mut json, &tensor).unwrap();
        assert_eq!(json, b"[NaN,Infinity,-Infinity]");
    }
}
