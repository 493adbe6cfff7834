//! Typed views of a tensor in the file format, whichever of its fields holds the elements.

use bytes::Bytes;

use super::facts;
use super::{DataType, TensorProto};
use crate::tensor::{Datatype, Tensor};

/// Moves the elements of `tensor` into `raw_data`, so that there is one form from here on. Strings
/// stay where they are.
pub fn to_raw(tensor: &mut TensorProto) {
    let bits = facts::bits(tensor.data_type).unwrap_or(0);
    let raw: Vec<u8> = if !tensor.float_data.is_empty() {
        tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect()
    } else if !tensor.double_data.is_empty() {
        tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect()
    } else if !tensor.int64_data.is_empty() {
        tensor.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect()
    } else if !tensor.uint64_data.is_empty() {
        let width = if bits == 32 { 4 } else { 8 };
        tensor.uint64_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(width)).collect()
    } else if !tensor.int32_data.is_empty() {
        // Elements of less than a byte are packed into the low byte of each number.
        let width = (bits / 8).clamp(1, 4) as usize;
        tensor.int32_data.iter().flat_map(|v| v.to_le_bytes().into_iter().take(width)).collect()
    } else {
        return;
    };
    tensor.raw_data = raw.into();
    tensor.float_data = Vec::new();
    tensor.double_data = Vec::new();
    tensor.int64_data = Vec::new();
    tensor.uint64_data = Vec::new();
    tensor.int32_data = Vec::new();
}

/// The elements of a tensor of 32-bit floats, row-major; `None` for other types.
pub fn to_f32(tensor: &TensorProto) -> Option<Vec<f32>> {
    if tensor.data_type != DataType::Float as i32 {
        return None;
    }
    if !tensor.float_data.is_empty() {
        return Some(tensor.float_data.clone());
    }
    let (chunks, _) = tensor.raw_data.as_chunks::<4>();
    Some(chunks.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect())
}

/// The elements of a tensor of 32- or 64-bit integers, row-major; `None` for other types.
pub fn to_i64(tensor: &TensorProto) -> Option<Vec<i64>> {
    if tensor.data_type == DataType::Int64 as i32 {
        if !tensor.int64_data.is_empty() {
            return Some(tensor.int64_data.clone());
        }
        let (chunks, _) = tensor.raw_data.as_chunks::<8>();
        return Some(chunks.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect());
    }
    if tensor.data_type == DataType::Int32 as i32 {
        if !tensor.int32_data.is_empty() {
            return Some(tensor.int32_data.iter().map(|v| i64::from(*v)).collect());
        }
        let (chunks, _) = tensor.raw_data.as_chunks::<4>();
        return Some(chunks.iter().map(|chunk| i64::from(i32::from_le_bytes(*chunk))).collect());
    }
    None
}

/// The only element of a boolean tensor.
pub fn to_bool(tensor: &TensorProto) -> Option<bool> {
    if tensor.data_type != DataType::Bool as i32 {
        return None;
    }
    let typed = tensor.int32_data.first().map(|v| *v != 0);
    typed.or_else(|| tensor.raw_data.first().map(|v| *v != 0))
}

fn raw(name: &str, dims: &[i64], data_type: DataType, data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: data_type as i32,
        raw_data: data.into(),
        ..TensorProto::default()
    }
}

/// A tensor of 32-bit floats.
pub fn from_f32(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    raw(name, dims, DataType::Float, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor of 64-bit integers.
pub fn from_i64(name: &str, dims: &[i64], values: &[i64]) -> TensorProto {
    raw(name, dims, DataType::Int64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor of 32-bit integers.
pub fn from_i32(name: &str, dims: &[i64], values: &[i32]) -> TensorProto {
    raw(name, dims, DataType::Int32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor of unsigned 8-bit integers.
pub fn from_u8(name: &str, dims: &[i64], values: &[u8]) -> TensorProto {
    raw(name, dims, DataType::Uint8, values.to_vec())
}

/// A tensor of 8-bit integers.
pub fn from_i8(name: &str, dims: &[i64], values: &[i8]) -> TensorProto {
    raw(name, dims, DataType::Int8, values.iter().map(|v| v.cast_unsigned()).collect())
}

/// A tensor of unsigned 8-bit integers, each of `values` plus 128.
pub fn from_i8_unsigned(name: &str, dims: &[i64], values: &[i8]) -> TensorProto {
    let shifted = values.iter().map(|v| v.cast_unsigned() ^ 0x80).collect();
    raw(name, dims, DataType::Uint8, shifted)
}

/// The runtime's `tensor` under `name`.
pub fn from_tensor(name: &str, tensor: &Tensor) -> TensorProto {
    let data_type = match tensor.datatype() {
        Datatype::Bool => DataType::Bool,
        Datatype::Uint8 => DataType::Uint8,
        Datatype::Uint16 => DataType::Uint16,
        Datatype::Uint32 => DataType::Uint32,
        Datatype::Uint64 => DataType::Uint64,
        Datatype::Int8 => DataType::Int8,
        Datatype::Int16 => DataType::Int16,
        Datatype::Int32 => DataType::Int32,
        Datatype::Int64 => DataType::Int64,
        Datatype::Fp16 => DataType::Float16,
        Datatype::Bf16 => DataType::Bfloat16,
        Datatype::Fp32 => DataType::Float,
        Datatype::Fp64 => DataType::Double,
        Datatype::Bytes => DataType::String,
    };
    let strings = tensor.strings();
    TensorProto {
        name: name.to_owned(),
        dims: tensor.shape().iter().map(|dim| *dim as i64).collect(),
        data_type: data_type as i32,
        string_data: strings.iter().map(|item| item.to_vec()).collect(),
        raw_data: if data_type == DataType::String { Bytes::new() } else { tensor.data().clone() },
        ..TensorProto::default()
    }
}

/// The number of elements.
pub fn count(tensor: &TensorProto) -> u64 {
    facts::elements(&tensor.name, &tensor.dims).unwrap_or(0)
}

/// Bytes of the elements.
pub fn size(tensor: &TensorProto) -> u64 {
    match facts::bits(tensor.data_type) {
        Some(bits) => count(tensor).saturating_mul(bits).div_ceil(8),
        None => tensor.string_data.iter().map(|item| item.len() as u64).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_typed_field_becomes_the_raw_form_of_its_type() {
        let mut half = TensorProto {
            data_type: DataType::Float16 as i32,
            dims: vec![2],
            int32_data: vec![0x3c00, 0x4000],
            ..TensorProto::default()
        };
        to_raw(&mut half);
        assert_eq!(&half.raw_data[..], [0x00, 0x3c, 0x00, 0x40]);
        let mut small = TensorProto {
            data_type: DataType::Int8 as i32,
            dims: vec![1],
            int32_data: vec![-2],
            ..TensorProto::default()
        };
        to_raw(&mut small);
        assert_eq!(&small.raw_data[..], [0xfe]);
        let mut unsigned = TensorProto {
            data_type: DataType::Uint32 as i32,
            dims: vec![1],
            uint64_data: vec![7],
            ..TensorProto::default()
        };
        to_raw(&mut unsigned);
        assert_eq!(&unsigned.raw_data[..], [7, 0, 0, 0]);
    }
}
