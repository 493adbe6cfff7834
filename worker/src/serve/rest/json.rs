//! The `data` of a JSON tensor, flat or nested, read straight into bytes and written from them:
//! no tree of values in between, and never more elements than the shape has.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use crate::tensor::{Datatype, Tensor};

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
    fn push<E: Error>(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| E::custom("data has more elements than the shape"))?;
        self.data.extend_from_slice(bytes);
        Ok(())
    }

    fn whole<E: Error>(&mut self, value: i128) -> Result<(), E> {
        macro_rules! fit {
            ($kind:ty) => {
                match <$kind>::try_from(value) {
                    Ok(value) => self.push(&value.to_le_bytes()),
                    Err(_) => {
                        Err(E::custom(format!("{value} does not fit into {}", self.datatype)))
                    }
                }
            };
        }
        match self.datatype {
            Datatype::Uint8 => fit!(u8),
            Datatype::Uint16 => fit!(u16),
            Datatype::Uint32 => fit!(u32),
            Datatype::Uint64 => fit!(u64),
            Datatype::Int8 => fit!(i8),
            Datatype::Int16 => fit!(i16),
            Datatype::Int32 => fit!(i32),
            Datatype::Int64 => fit!(i64),
            Datatype::Fp32 => self.push(&(value as f32).to_le_bytes()),
            Datatype::Fp64 => self.push(&(value as f64).to_le_bytes()),
            other => Err(E::custom(format!("{value} is not an element of {other}"))),
        }
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
        match self.datatype {
            Datatype::Bool => self.push(&[u8::from(value)]),
            other => Err(E::custom(format!("{value} is not an element of {other}"))),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.whole(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.whole(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        match self.datatype {
            Datatype::Fp32 if (value as f32).is_finite() => {
                self.push(&(value as f32).to_le_bytes())
            }
            Datatype::Fp64 => self.push(&value.to_le_bytes()),
            other => Err(E::custom(format!("{value} is not an element of {other}"))),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        if self.datatype != Datatype::Bytes {
            return Err(E::custom(format!("a string is not an element of {}", self.datatype)));
        }
        let length = u32::try_from(value.len()).map_err(|_| E::custom("the string is too long"))?;
        self.push(&length.to_le_bytes())?;
        self.data.extend_from_slice(value.as_bytes());
        Ok(())
    }
}

/// Writes the elements of `tensor` as a flat JSON array. NaN and infinities are written as Python
/// and Triton write them, since JSON has no word for them.
///
/// # Errors
/// When the type does not travel as JSON.
pub fn write(out: &mut Vec<u8>, tensor: &Tensor) -> Result<(), String> {
    out.push(b'[');
    let mut first = true;
    let mut comma = |out: &mut Vec<u8>| {
        if !std::mem::replace(&mut first, false) {
            out.push(b',');
        }
    };
    macro_rules! numbers {
        ($kind:ty) => {
            for chunk in tensor.data().chunks_exact(size_of::<$kind>()) {
                comma(out);
                let number = <$kind>::from_le_bytes(chunk.try_into().unwrap_or_default());
                serde_json::to_writer(&mut *out, &number).map_err(|error| error.to_string())?;
            }
        };
    }
    macro_rules! floats {
        ($kind:ty) => {
            for chunk in tensor.data().chunks_exact(size_of::<$kind>()) {
                comma(out);
                let number = <$kind>::from_le_bytes(chunk.try_into().unwrap_or_default());
                if number.is_nan() {
                    out.extend_from_slice(b"NaN");
                } else if number.is_infinite() {
                    let word: &[u8] = if number > 0.0 { b"Infinity" } else { b"-Infinity" };
                    out.extend_from_slice(word);
                } else {
                    serde_json::to_writer(&mut *out, &number).map_err(|error| error.to_string())?;
                }
            }
        };
    }
    match tensor.datatype() {
        Datatype::Bool => {
            for byte in tensor.data() {
                comma(out);
                let word: &[u8] = if *byte == 0 { b"false" } else { b"true" };
                out.extend_from_slice(word);
            }
        }
        Datatype::Uint8 => numbers!(u8),
        Datatype::Uint16 => numbers!(u16),
        Datatype::Uint32 => numbers!(u32),
        Datatype::Uint64 => numbers!(u64),
        Datatype::Int8 => numbers!(i8),
        Datatype::Int16 => numbers!(i16),
        Datatype::Int32 => numbers!(i32),
        Datatype::Int64 => numbers!(i64),
        Datatype::Fp32 => floats!(f32),
        Datatype::Fp64 => floats!(f64),
        Datatype::Bytes => {
            for item in tensor.strings() {
                comma(out);
                let text = std::str::from_utf8(&item).map_err(|error| error.to_string())?;
                serde_json::to_writer(&mut *out, text).map_err(|error| error.to_string())?;
            }
        }
        other @ (Datatype::Fp16 | Datatype::Bf16) => {
            return Err(format!("{other} does not travel as JSON: ask for binary data"));
        }
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
