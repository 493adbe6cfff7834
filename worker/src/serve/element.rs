//! One element of a tensor as JSON writes it, read into bytes and written from them, for every
//! protocol that speaks JSON. NaN and the infinities are words that JSON lacks; Python, Triton and
//! TensorFlow Serving write them nevertheless, so they are read and written here too.

use std::borrow::Cow;

use bytes::Bytes;

use crate::tensor::{Datatype, Tensor};

/// A JSON scalar.
#[derive(Clone, Copy, Debug)]
pub enum Scalar<'a> {
    /// `true` or `false`.
    Bool(bool),
    /// A number without a fraction.
    Whole(i128),
    /// A number with one.
    Float(f64),
    /// A string.
    Text(&'a str),
    /// A string's bytes, which came as base64.
    Binary(&'a [u8]),
}

/// What marks a word that JSON lacks after [`words`]: no text of a client that may be an element
/// holds it.
const MARK: char = '\0';

/// Appends `scalar` to `out` as an element of `datatype`.
///
/// # Errors
/// When it is none, in one sentence.
pub fn push(out: &mut Vec<u8>, datatype: Datatype, scalar: Scalar<'_>) -> Result<(), String> {
    match scalar {
        Scalar::Bool(value) if datatype == Datatype::Bool => out.push(u8::from(value)),
        Scalar::Bool(value) => return Err(format!("{value} is not an element of {datatype}")),
        Scalar::Whole(value) => return whole(out, datatype, value),
        Scalar::Float(value) => return float(out, datatype, value),
        Scalar::Text(text) => match text.strip_prefix(MARK) {
            Some(word) => return special(out, datatype, word),
            None if datatype == Datatype::Bytes => return string(out, text.as_bytes()),
            None => return Err(format!("a string is not an element of {datatype}")),
        },
        Scalar::Binary(bytes) if datatype == Datatype::Bytes => return string(out, bytes),
        Scalar::Binary(_) => return Err(format!("base64 is not an element of {datatype}")),
    }
    Ok(())
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), String> {
    let length = u32::try_from(bytes.len()).map_err(|_| "the string is too long".to_owned())?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn whole(out: &mut Vec<u8>, datatype: Datatype, value: i128) -> Result<(), String> {
    macro_rules! fit {
        ($kind:ty) => {
            match <$kind>::try_from(value) {
                Ok(value) => out.extend_from_slice(&value.to_le_bytes()),
                Err(_) => return Err(format!("{value} does not fit into {datatype}")),
            }
        };
    }
    match datatype {
        Datatype::Uint8 => fit!(u8),
        Datatype::Uint16 => fit!(u16),
        Datatype::Uint32 => fit!(u32),
        Datatype::Uint64 => fit!(u64),
        Datatype::Int8 => fit!(i8),
        Datatype::Int16 => fit!(i16),
        Datatype::Int32 => fit!(i32),
        Datatype::Int64 => fit!(i64),
        // Not by way of 64 bits: that would round twice.
        Datatype::Fp32 => out.extend_from_slice(&(value as f32).to_le_bytes()),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp64 => {
            return float(out, datatype, value as f64);
        }
        other => return Err(format!("{value} is not an element of {other}")),
    }
    Ok(())
}

fn float(out: &mut Vec<u8>, datatype: Datatype, value: f64) -> Result<(), String> {
    let fits = match datatype {
        Datatype::Fp64 => true,
        Datatype::Fp32 => (value as f32).is_finite(),
        Datatype::Fp16 => half::f16::from_f64(value).is_finite(),
        Datatype::Bf16 => half::bf16::from_f64(value).is_finite(),
        _ => false,
    };
    if !fits {
        return Err(format!("{value} is not an element of {datatype}"));
    }
    bits(out, datatype, value);
    Ok(())
}

fn special(out: &mut Vec<u8>, datatype: Datatype, word: &str) -> Result<(), String> {
    let value = match word {
        "NaN" => f64::NAN,
        "Infinity" => f64::INFINITY,
        "-Infinity" => f64::NEG_INFINITY,
        _ => return Err("a string that begins with NUL is no element".into()),
    };
    match datatype {
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => {
            bits(out, datatype, value);
            Ok(())
        }
        other => Err(format!("{word} is not an element of {other}")),
    }
}

fn bits(out: &mut Vec<u8>, datatype: Datatype, value: f64) {
    match datatype {
        Datatype::Fp64 => out.extend_from_slice(&value.to_le_bytes()),
        Datatype::Fp16 => out.extend_from_slice(&half::f16::from_f64(value).to_le_bytes()),
        Datatype::Bf16 => out.extend_from_slice(&half::bf16::from_f64(value).to_le_bytes()),
        _ => out.extend_from_slice(&(value as f32).to_le_bytes()),
    }
}

/// `json` with the words that JSON lacks marked as strings, which [`push`] takes for numbers; as it
/// is when it has none. Grows it fourfold at most.
pub fn words(json: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let (mut rest, mut copied) = (0, 0);
    let mut inside = false;
    while let Some(byte) = json.get(rest) {
        match byte {
            b'\\' if inside => rest += 1,
            b'"' => inside = !inside,
            b'N' | b'I' | b'-' if !inside => {
                let tail = json.get(rest..).unwrap_or_default();
                let found = ["NaN", "Infinity", "-Infinity"];
                if let Some(word) = found.iter().find(|word| tail.starts_with(word.as_bytes())) {
                    out.extend_from_slice(json.get(copied..rest).unwrap_or_default());
                    out.extend_from_slice(format!("\"\\u0000{word}\"").as_bytes());
                    rest += word.len();
                    copied = rest;
                    continue;
                }
            }
            _ => {}
        }
        rest += 1;
    }
    if copied == 0 {
        return json.into();
    }
    out.extend_from_slice(json.get(copied..).unwrap_or_default());
    out.into()
}

/// The elements of a tensor, to be written as JSON one by one.
pub struct Writer<'a> {
    tensor: &'a Tensor,
    strings: Vec<Bytes>,
}

impl<'a> Writer<'a> {
    /// A writer of the elements of `tensor`.
    pub fn new(tensor: &'a Tensor) -> Self {
        Self { tensor, strings: tensor.strings() }
    }

    /// Appends the element at `index` in row-major order; nothing when there is none.
    ///
    /// # Errors
    /// When a string is no UTF-8, or `out` cannot grow.
    pub fn write(&self, out: &mut Vec<u8>, index: usize) -> Result<(), String> {
        macro_rules! number {
            ($kind:ty) => {
                if let Some(value) = self.chunk(index).map(<$kind>::from_le_bytes) {
                    serde_json::to_writer(out, &value).map_err(|error| error.to_string())?;
                }
            };
        }
        match self.tensor.datatype() {
            Datatype::Bool => {
                let set = self.chunk::<1>(index).is_some_and(|[byte]| byte != 0);
                out.extend_from_slice(if set { b"true" } else { b"false" });
            }
            Datatype::Uint8 => number!(u8),
            Datatype::Uint16 => number!(u16),
            Datatype::Uint32 => number!(u32),
            Datatype::Uint64 => number!(u64),
            Datatype::Int8 => number!(i8),
            Datatype::Int16 => number!(i16),
            Datatype::Int32 => number!(i32),
            Datatype::Int64 => number!(i64),
            Datatype::Fp16 => {
                let value = self.chunk(index).map(half::f16::from_le_bytes);
                single(out, value.map(half::f16::to_f32))?;
            }
            Datatype::Bf16 => {
                let value = self.chunk(index).map(half::bf16::from_le_bytes);
                single(out, value.map(half::bf16::to_f32))?;
            }
            Datatype::Fp32 => single(out, self.chunk(index).map(f32::from_le_bytes))?,
            Datatype::Fp64 => {
                if let Some(value) = self.chunk(index).map(f64::from_le_bytes) {
                    if value.is_finite() {
                        serde_json::to_writer(out, &value).map_err(|error| error.to_string())?;
                    } else {
                        out.extend_from_slice(word(value));
                    }
                }
            }
            Datatype::Bytes => {
                if let Some(item) = self.strings.get(index) {
                    let text = std::str::from_utf8(item).map_err(|error| error.to_string())?;
                    serde_json::to_writer(out, text).map_err(|error| error.to_string())?;
                }
            }
        }
        Ok(())
    }

    /// The bytes of the string at `index`.
    pub fn string(&self, index: usize) -> Option<&Bytes> {
        self.strings.get(index)
    }

    fn chunk<const N: usize>(&self, index: usize) -> Option<[u8; N]> {
        let start = index.checked_mul(N)?;
        self.tensor.data().get(start..start.checked_add(N)?)?.try_into().ok()
    }
}

fn single(out: &mut Vec<u8>, value: Option<f32>) -> Result<(), String> {
    match value {
        Some(value) if value.is_finite() => {
            serde_json::to_writer(out, &value).map_err(|error| error.to_string())
        }
        Some(value) => {
            out.extend_from_slice(word(f64::from(value)));
            Ok(())
        }
        None => Ok(()),
    }
}

fn word(value: f64) -> &'static [u8] {
    if value.is_nan() {
        b"NaN"
    } else if value > 0.0 {
        b"Infinity"
    } else {
        b"-Infinity"
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_words_outside_strings_are_marked() {
        let json = br#"{"a":[NaN,-Infinity,Infinity,-1],"NaN":"-Infinity \" NaN"}"#;
        let marked = words(json);
        assert_eq!(
            std::str::from_utf8(&marked).unwrap(),
            r#"{"a":["\u0000NaN","\u0000-Infinity","\u0000Infinity",-1],"NaN":"-Infinity \" NaN"}"#
        );
        assert!(matches!(words(b"[1,2,\"NaN\"]"), Cow::Borrowed(_)));
        for odd in [&b"\"\\"[..], b"N", b"-", b"\"", b"", b"NaN"] {
            words(odd);
        }
    }

    #[test]
    fn numbers_that_json_lacks_are_elements_of_floats_only() {
        for datatype in [Datatype::Fp16, Datatype::Bf16, Datatype::Fp32, Datatype::Fp64] {
            let mut out = Vec::new();
            push(&mut out, datatype, Scalar::Text("\0NaN")).unwrap();
            push(&mut out, datatype, Scalar::Text("\0-Infinity")).unwrap();
            let tensor = Tensor::new(datatype, vec![2], out.into()).unwrap();
            let values = tensor.to_f64().unwrap();
            assert!(values.first().unwrap().is_nan() && values.get(1) == Some(&f64::NEG_INFINITY));
            let mut json = Vec::new();
            Writer::new(&tensor).write(&mut json, 1).unwrap();
            assert_eq!(json, b"-Infinity");
        }
        let mut out = Vec::new();
        assert!(push(&mut out, Datatype::Int32, Scalar::Text("\0NaN")).is_err());
        assert!(push(&mut out, Datatype::Bytes, Scalar::Text("\0NaN")).is_err());
        assert!(push(&mut out, Datatype::Fp32, Scalar::Text("\0a")).is_err());
        assert!(push(&mut out, Datatype::Fp16, Scalar::Float(1e6)).is_err());
        assert!(out.is_empty());
    }
}
