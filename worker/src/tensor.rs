//! A tensor as it travels between the wire, the data file and the runtime.
//!
//! Elements are little-endian and row-major, exactly the Open Inference Protocol's raw form, so
//! that a tensor moves from a request into a session without being rewritten.

use std::fmt;

use bytes::Bytes;

/// The element types of the Open Inference Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // each is the protocol's own name
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// Strings: each element is a 4-byte little-endian length and that many bytes.
    Bytes,
}

const NAMES: [(Datatype, &str); 14] = [
    (Datatype::Bool, "BOOL"),
    (Datatype::Uint8, "UINT8"),
    (Datatype::Uint16, "UINT16"),
    (Datatype::Uint32, "UINT32"),
    (Datatype::Uint64, "UINT64"),
    (Datatype::Int8, "INT8"),
    (Datatype::Int16, "INT16"),
    (Datatype::Int32, "INT32"),
    (Datatype::Int64, "INT64"),
    (Datatype::Fp16, "FP16"),
    (Datatype::Bf16, "BF16"),
    (Datatype::Fp32, "FP32"),
    (Datatype::Fp64, "FP64"),
    (Datatype::Bytes, "BYTES"),
];

impl Datatype {
    /// The protocol's name, such as `FP32`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(datatype, _)| *datatype == self).map_or("", |(_, name)| name)
    }

    /// The type with the protocol's `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(datatype, _)| *datatype)
    }

    /// Bytes of one element; `None` for strings.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why bytes are not the tensor they claim to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The product of the dimensions does not fit into memory.
    #[error("shape {shape:?} has too many elements")]
    TooLarge {
        /// The claimed shape.
        shape: Vec<usize>,
    },
    /// The shape asks for another number of bytes.
    #[error("shape {shape:?} of {datatype} takes {want} bytes, got {seen}")]
    Length {
        /// The claimed shape.
        shape: Vec<usize>,
        /// The claimed type.
        datatype: Datatype,
        /// Bytes that shape and type take.
        want: usize,
        /// Bytes that came.
        seen: usize,
    },
    /// The strings' lengths lead beyond the data, or there are more or fewer of them than elements.
    #[error(
        "shape {shape:?} of BYTES has {want} elements, the data holds {seen} and {rest} bytes more"
    )]
    Strings {
        /// The claimed shape.
        shape: Vec<usize>,
        /// Elements that the shape has.
        want: usize,
        /// Whole elements in the data.
        seen: usize,
        /// Bytes after the last whole element.
        rest: usize,
    },
}

/// A dense tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    datatype: Datatype,
    shape: Vec<usize>,
    data: Bytes,
}

/// The number of elements of `shape`; `None` when it overflows.
pub fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim))
}

impl Tensor {
    /// A tensor of `data`, after its length was checked against `shape`. Allocates nothing.
    pub fn new(datatype: Datatype, shape: Vec<usize>, data: Bytes) -> Result<Self, TensorError> {
        let Some(count) = elements(&shape) else { return Err(TensorError::TooLarge { shape }) };
        match datatype.size() {
            Some(size) => {
                let Some(want) = count.checked_mul(size) else {
                    return Err(TensorError::TooLarge { shape });
                };
                if want != data.len() {
                    return Err(TensorError::Length { shape, datatype, want, seen: data.len() });
                }
            }
            None => {
                let (seen, rest) = whole_strings(&data, count);
                if seen != count || rest != 0 {
                    return Err(TensorError::Strings { shape, want: count, seen, rest });
                }
            }
        }
        Ok(Self { datatype, shape, data })
    }

    /// A tensor of strings.
    pub fn from_strings<S: AsRef<[u8]>>(
        shape: Vec<usize>,
        items: &[S],
    ) -> Result<Self, TensorError> {
        let mut data = Vec::new();
        for item in items {
            let item = item.as_ref();
            data.extend_from_slice(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes());
            data.extend_from_slice(item);
        }
        Self::new(Datatype::Bytes, shape, data.into())
    }

    /// A tensor of 32-bit floats.
    pub fn from_f32(shape: Vec<usize>, items: &[f32]) -> Result<Self, TensorError> {
        let data: Vec<u8> = items.iter().flat_map(|item| item.to_le_bytes()).collect();
        Self::new(Datatype::Fp32, shape, data.into())
    }

    /// The element type.
    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements, little-endian and row-major; strings with their lengths before them.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The elements of a tensor of strings, in order; empty for other types.
    pub fn strings(&self) -> Vec<Bytes> {
        let mut items = Vec::new();
        let mut rest = self.data.clone();
        while self.datatype == Datatype::Bytes && rest.len() >= 4 {
            let head = rest.split_to(4);
            let length =
                head.iter().rev().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
            items.push(rest.split_to(length.min(rest.len())));
        }
        items
    }

    /// The elements as 64-bit floats, whatever their numeric type; `None` for strings.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        macro_rules! read {
            ($kind:ty) => {
                self.data
                    .chunks_exact(size_of::<$kind>())
                    .filter_map(|chunk| chunk.try_into().ok().map(<$kind>::from_le_bytes))
                    .map(|value| value as f64)
                    .collect()
            };
        }
        let halves = |to: fn(u16) -> f64| {
            self.data
                .chunks_exact(2)
                .filter_map(|chunk| chunk.try_into().ok().map(u16::from_le_bytes))
                .map(to)
                .collect()
        };
        Some(match self.datatype {
            Datatype::Bool | Datatype::Uint8 => self.data.iter().map(|v| f64::from(*v)).collect(),
            Datatype::Uint16 => read!(u16),
            Datatype::Uint32 => read!(u32),
            Datatype::Uint64 => read!(u64),
            Datatype::Int8 => read!(i8),
            Datatype::Int16 => read!(i16),
            Datatype::Int32 => read!(i32),
            Datatype::Int64 => read!(i64),
            Datatype::Fp32 => read!(f32),
            Datatype::Fp64 => read!(f64),
            Datatype::Fp16 => halves(|bits| half::f16::from_bits(bits).to_f64()),
            Datatype::Bf16 => halves(|bits| half::bf16::from_bits(bits).to_f64()),
            Datatype::Bytes => return None,
        })
    }
}

/// Whole elements at the head of `data`, at most `limit` of them, and the bytes after them.
fn whole_strings(data: &[u8], limit: usize) -> (usize, usize) {
    let (mut count, mut rest) = (0, data);
    while count < limit {
        let Some((head, tail)) = rest.split_first_chunk::<4>() else { break };
        let Some(tail) = tail.get(u32::from_le_bytes(*head) as usize..) else { break };
        (count, rest) = (count + 1, tail);
    }
    (count, rest.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_shape_is_checked_before_anything_is_allocated() {
        let huge = Tensor::new(Datatype::Fp32, vec![usize::MAX, 2], Bytes::new());
        assert!(matches!(huge, Err(TensorError::TooLarge { .. })), "{huge:?}");
        let short = Tensor::new(Datatype::Fp32, vec![1 << 31], Bytes::from_static(&[0; 4]));
        assert!(matches!(short, Err(TensorError::Length { seen: 4, .. })), "{short:?}");
    }

    #[test]
    fn strings_with_lying_lengths_are_refused() {
        let lie = Bytes::from_static(&[255, 0, 0, 0, b'a']);
        let refused = Tensor::new(Datatype::Bytes, vec![1], lie);
        assert!(matches!(refused, Err(TensorError::Strings { seen: 0, .. })), "{refused:?}");
        let two = Tensor::from_strings(vec![2], &["a", ""]).unwrap();
        assert_eq!(two.strings(), [Bytes::from_static(b"a"), Bytes::new()]);
        assert!(Tensor::from_strings(vec![3], &["a", ""]).is_err());
    }

    #[test]
    fn scalars_and_empty_tensors_are_tensors() {
        assert!(Tensor::from_f32(vec![], &[1.0]).is_ok());
        assert!(Tensor::from_f32(vec![0, 7], &[]).is_ok());
    }

    #[test]
    fn every_datatype_keeps_its_name() {
        for (datatype, name) in NAMES {
            assert_eq!((Datatype::from_name(name), datatype.name()), (Some(datatype), name));
        }
    }
}
