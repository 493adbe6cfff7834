//! Between TensorFlow's tensors and ours. A shape may claim more elements than came, since the last
//! value stands for the rest; what that makes is bounded by the size that one request may have.

use lithe::artifact::TensorSignature;
use lithe::tensorflow::tensor_shape_proto::Dim;
use lithe::tensorflow::{DataType, TensorProto, TensorShapeProto};

use crate::serve::error::InferError;
use crate::tensor::{Datatype, Tensor, elements};

const TYPES: [(Datatype, DataType); 14] = [
    (Datatype::Bool, DataType::DtBool),
    (Datatype::Uint8, DataType::DtUint8),
    (Datatype::Uint16, DataType::DtUint16),
    (Datatype::Uint32, DataType::DtUint32),
    (Datatype::Uint64, DataType::DtUint64),
    (Datatype::Int8, DataType::DtInt8),
    (Datatype::Int16, DataType::DtInt16),
    (Datatype::Int32, DataType::DtInt32),
    (Datatype::Int64, DataType::DtInt64),
    (Datatype::Fp16, DataType::DtHalf),
    (Datatype::Bf16, DataType::DtBfloat16),
    (Datatype::Fp32, DataType::DtFloat),
    (Datatype::Fp64, DataType::DtDouble),
    (Datatype::Bytes, DataType::DtString),
];

/// TensorFlow's type for the Open Inference Protocol's `name`.
pub fn data_type(name: &str) -> DataType {
    let datatype = Datatype::from_name(name);
    let known = TYPES.iter().find(|(known, _)| Some(*known) == datatype);
    known.map_or(DataType::DtInvalid, |(_, data_type)| *data_type)
}

/// The tensor in `proto` for the input `known`, of at most `limit` bytes.
///
/// # Errors
/// [`InferError::Invalid`] naming the input, [`InferError::TooLarge`].
pub fn decode(
    known: &TensorSignature,
    proto: TensorProto,
    limit: usize,
) -> Result<Tensor, InferError> {
    let name = &known.name;
    let invalid = |text: String| InferError::Invalid(format!("input {name:?}: {text}"));
    let seen = DataType::try_from(proto.dtype)
        .map_or_else(|_| format!("type {}", proto.dtype), |seen| seen.as_str_name().to_owned());
    let want = data_type(&known.datatype);
    let datatype = Datatype::from_name(&known.datatype)
        .filter(|_| proto.dtype == i32::from(want))
        .ok_or_else(|| invalid(format!("expects {}, got {seen}", want.as_str_name())))?;
    let shape = shape(proto.tensor_shape.as_ref()).map_err(invalid)?;
    let count = elements(&shape)
        .ok_or_else(|| invalid(format!("shape {shape:?} has too many elements")))?;
    let data = if proto.tensor_content.is_empty() {
        let values = Values { datatype, count, limit };
        values.read(&proto).map_err(|error| match error {
            Excess::TooLarge => InferError::TooLarge(format!(
                "input {name:?}: shape {shape:?} of {datatype} takes more than the {limit} bytes that are left of a request"
            )),
            Excess::Invalid(text) => invalid(text),
        })?
    } else if datatype == Datatype::Bytes {
        return Err(invalid("strings travel in string_val, not in tensor_content".into()));
    } else {
        proto.tensor_content
    };
    Tensor::new(datatype, shape, data).map_err(|error| invalid(error.to_string()))
}

fn shape(shape: Option<&TensorShapeProto>) -> Result<Vec<usize>, String> {
    let Some(shape) = shape else { return Ok(Vec::new()) };
    if shape.unknown_rank {
        return Err("the shape has no rank".into());
    }
    let dim = |dim: &Dim| {
        usize::try_from(dim.size).map_err(|_| format!("dimension {} is negative", dim.size))
    };
    shape.dim.iter().map(dim).collect()
}

enum Excess {
    TooLarge,
    Invalid(String),
}

/// What is read from the fields of values.
struct Values {
    datatype: Datatype,
    count: usize,
    limit: usize,
}

impl Values {
    fn read(&self, proto: &TensorProto) -> Result<bytes::Bytes, Excess> {
        macro_rules! same {
            ($values:expr) => {
                self.fill($values.len(), &mut $values.iter().map(|value| Ok(value.to_le_bytes())))
            };
        }
        macro_rules! narrow {
            ($values:expr, $kind:ty) => {
                self.fill(
                    $values.len(),
                    &mut $values.iter().map(|value| {
                        let narrow = <$kind>::try_from(*value).map(<$kind>::to_le_bytes);
                        narrow.map_err(|_| format!("{value} does not fit into {}", self.datatype))
                    }),
                )
            };
        }
        match self.datatype {
            Datatype::Bool => self.fill(
                proto.bool_val.len(),
                &mut proto.bool_val.iter().map(|value| Ok([u8::from(*value)])),
            ),
            Datatype::Uint8 => narrow!(proto.int_val, u8),
            Datatype::Uint16 => narrow!(proto.int_val, u16),
            Datatype::Int8 => narrow!(proto.int_val, i8),
            Datatype::Int16 => narrow!(proto.int_val, i16),
            Datatype::Int32 => same!(proto.int_val),
            Datatype::Uint32 => same!(proto.uint32_val),
            Datatype::Uint64 => same!(proto.uint64_val),
            Datatype::Int64 => same!(proto.int64_val),
            Datatype::Fp16 | Datatype::Bf16 => narrow!(proto.half_val, u16),
            Datatype::Fp32 => same!(proto.float_val),
            Datatype::Fp64 => same!(proto.double_val),
            Datatype::Bytes => self.strings(&proto.string_val),
        }
    }

    /// `count` elements: the given ones, and the last of them, or zero, for those that are missing.
    fn fill<const N: usize>(
        &self,
        given: usize,
        values: &mut dyn Iterator<Item = Result<[u8; N], String>>,
    ) -> Result<bytes::Bytes, Excess> {
        self.given(given)?;
        let bytes = self.count.checked_mul(N).filter(|bytes| *bytes <= self.limit);
        let bytes = bytes.ok_or(Excess::TooLarge)?;
        let mut out = Vec::with_capacity(bytes);
        let mut last = [0; N];
        for value in values {
            last = value.map_err(Excess::Invalid)?;
            out.extend_from_slice(&last);
        }
        while out.len() < bytes {
            out.extend_from_slice(&last);
        }
        Ok(out.into())
    }

    fn strings(&self, given: &[bytes::Bytes]) -> Result<bytes::Bytes, Excess> {
        self.given(given.len())?;
        let size = |item: &[u8]| item.len().saturating_add(4);
        let last: &[u8] = given.last().map_or(&[], |last| last);
        let missing = self.count - given.len();
        let bytes = given.iter().map(|item| size(item)).sum::<usize>();
        let bytes = size(last).checked_mul(missing).and_then(|more| bytes.checked_add(more));
        let bytes = bytes.filter(|bytes| *bytes <= self.limit).ok_or(Excess::TooLarge)?;
        let mut out = Vec::with_capacity(bytes);
        let rest = std::iter::repeat_n(last, missing);
        for item in given.iter().map(|item| &item[..]).chain(rest) {
            out.extend_from_slice(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(item);
        }
        Ok(out.into())
    }

    fn given(&self, given: usize) -> Result<(), Excess> {
        if given > self.count {
            let Self { datatype, count, .. } = self;
            return Err(Excess::Invalid(format!(
                "the shape has {count} elements of {datatype}, {given} values came"
            )));
        }
        Ok(())
    }
}

/// The shape of `tensor` or of a signature in TensorFlow's terms.
pub fn shape_proto(dims: impl Iterator<Item = i64>) -> TensorShapeProto {
    let dim = dims.map(|size| Dim { size, name: String::new() }).collect();
    TensorShapeProto { dim, unknown_rank: false }
}

/// `tensor` with its values in the field of their type, where every client looks for them.
pub fn encode(tensor: &Tensor) -> TensorProto {
    let datatype = tensor.datatype();
    let dims = tensor.shape().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX));
    let mut proto = TensorProto {
        dtype: data_type(datatype.name()).into(),
        tensor_shape: Some(shape_proto(dims)),
        ..Default::default()
    };
    macro_rules! values {
        ($kind:ty) => {
            tensor
                .data()
                .chunks_exact(size_of::<$kind>())
                .map(|chunk| <$kind>::from_le_bytes(chunk.try_into().unwrap_or_default()).into())
                .collect()
        };
    }
    match datatype {
        Datatype::Bool => proto.bool_val = tensor.data().iter().map(|byte| *byte != 0).collect(),
        Datatype::Uint8 => proto.int_val = values!(u8),
        Datatype::Uint16 => proto.int_val = values!(u16),
        Datatype::Int8 => proto.int_val = values!(i8),
        Datatype::Int16 => proto.int_val = values!(i16),
        Datatype::Int32 => proto.int_val = values!(i32),
        Datatype::Uint32 => proto.uint32_val = values!(u32),
        Datatype::Uint64 => proto.uint64_val = values!(u64),
        Datatype::Int64 => proto.int64_val = values!(i64),
        Datatype::Fp16 | Datatype::Bf16 => proto.half_val = values!(u16),
        Datatype::Fp32 => proto.float_val = values!(f32),
        Datatype::Fp64 => proto.double_val = values!(f64),
        Datatype::Bytes => proto.string_val = tensor.strings(),
    }
    proto
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn known(datatype: &str) -> TensorSignature {
        TensorSignature { name: "x".into(), datatype: datatype.into(), shape: vec![-1] }
    }

    fn proto(dtype: DataType, dims: &[i64]) -> TensorProto {
        TensorProto {
            dtype: dtype.into(),
            tensor_shape: Some(shape_proto(dims.iter().copied())),
            ..Default::default()
        }
    }

    #[test]
    fn every_type_comes_back_as_it_went() {
        for (datatype, _) in TYPES {
            let data: Vec<u8> = match datatype {
                Datatype::Bool => vec![1, 0],
                Datatype::Bytes => [b"\x02\0\0\0ab".as_slice(), b"\0\0\0\0"].concat(),
                other => (0..2 * other.size().unwrap()).map(|byte| 200 + byte as u8).collect(),
            };
            let tensor = Tensor::new(datatype, vec![2], data.into()).unwrap();
            let back = decode(&known(datatype.name()), encode(&tensor), 1 << 10).unwrap();
            assert_eq!(back, tensor);
        }
    }

    #[test]
    fn the_last_value_stands_for_the_missing_ones_within_the_limit() {
        let one = TensorProto { float_val: vec![1.0, 2.0], ..proto(DataType::DtFloat, &[4]) };
        let tensor = decode(&known("FP32"), one, 16).unwrap();
        assert_eq!(tensor.to_f64().unwrap(), [1.0, 2.0, 2.0, 2.0]);
        let none = decode(&known("INT16"), proto(DataType::DtInt16, &[3]), 6).unwrap();
        assert_eq!(none.to_f64().unwrap(), [0.0; 3]);
        let text = TensorProto {
            string_val: vec![bytes::Bytes::from_static(b"ab")],
            ..proto(DataType::DtString, &[2])
        };
        assert_eq!(decode(&known("BYTES"), text, 12).unwrap().strings(), ["ab", "ab"]);
        let scalar = TensorProto { double_val: vec![7.0], ..proto(DataType::DtDouble, &[]) };
        assert_eq!(decode(&known("FP64"), scalar, 8).unwrap().shape(), [0_usize; 0]);
        let empty = decode(&known("FP32"), proto(DataType::DtFloat, &[0, 5]), 0).unwrap();
        assert_eq!(empty.shape(), [0, 5]);
    }

    #[test]
    fn lies_are_refused_with_the_inputs_name_and_without_memory() {
        let float = |dims: &[i64], count| TensorProto {
            float_val: vec![1.0; count],
            ..proto(DataType::DtFloat, dims)
        };
        let text = |dims: &[i64]| TensorProto {
            string_val: vec![bytes::Bytes::from_static(b"ab")],
            ..proto(DataType::DtString, dims)
        };
        let unknown = TensorShapeProto { unknown_rank: true, dim: Vec::new() };
        let cases = [
            ("FP32", float(&[1 << 40], 1), "more than the 64 bytes"),
            ("FP32", float(&[17], 0), "more than the 64 bytes"),
            ("FP32", float(&[i64::MAX, 4], 1), "too many elements"),
            ("BYTES", text(&[1 << 60]), "more than the 64 bytes"),
            ("FP32", float(&[-1], 1), "negative"),
            ("FP32", float(&[1], 2), "2 values came"),
            ("BYTES", text(&[0]), "1 values came"),
            ("FP32", proto(DataType::DtInt32, &[1]), "expects DT_FLOAT, got DT_INT32"),
            ("FP32", proto(DataType::DtComplex64, &[1]), "got DT_COMPLEX64"),
            ("FP32", TensorProto { dtype: 999, ..float(&[1], 1) }, "got type 999"),
            ("FP32", TensorProto { tensor_shape: Some(unknown), ..float(&[], 1) }, "no rank"),
            (
                "FP32",
                TensorProto { tensor_content: vec![0; 7].into(), ..proto(DataType::DtFloat, &[2]) },
                "takes 8 bytes, got 7",
            ),
            (
                "BYTES",
                TensorProto {
                    tensor_content: vec![0; 4].into(),
                    ..proto(DataType::DtString, &[1])
                },
                "string_val",
            ),
            (
                "INT8",
                TensorProto { int_val: vec![300], ..proto(DataType::DtInt8, &[1]) },
                "300 does not fit",
            ),
            (
                "FP16",
                TensorProto { half_val: vec![-1], ..proto(DataType::DtHalf, &[1]) },
                "-1 does not fit",
            ),
        ];
        for (datatype, proto, words) in cases {
            let error = decode(&known(datatype), proto, 64).unwrap_err().to_string();
            assert!(error.contains("\"x\"") && error.contains(words), "{error}: {words}");
        }
    }
}
