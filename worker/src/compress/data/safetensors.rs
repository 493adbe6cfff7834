//! safetensors: a JSON header with type, shape and place of each array, and the arrays.
//!
//! Source: github.com/huggingface/safetensors, README "Format". Every claim of the header is checked
//! against the file before it is used.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use serde::Deserialize;

use crate::compress::data::DataError;
use crate::compress::data::column::Column;
use crate::tensor::{self, Datatype, Tensor};

/// The longest header.
const MOST_HEADER: u64 = 4 << 20;

const TYPES: [(&str, Datatype); 13] = [
    ("BOOL", Datatype::Bool),
    ("U8", Datatype::Uint8),
    ("I8", Datatype::Int8),
    ("U16", Datatype::Uint16),
    ("I16", Datatype::Int16),
    ("U32", Datatype::Uint32),
    ("I32", Datatype::Int32),
    ("U64", Datatype::Uint64),
    ("I64", Datatype::Int64),
    ("F16", Datatype::Fp16),
    ("BF16", Datatype::Bf16),
    ("F32", Datatype::Fp32),
    ("F64", Datatype::Fp64),
];

/// What the header says of one array.
#[derive(Deserialize)]
struct Claim {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Whether a file of `size` bytes that begins with `head` is one: the header's length, then its brace.
pub fn recognised(head: &[u8], size: u64) -> bool {
    let length = head.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    head.get(8) == Some(&b'{') && length.is_some_and(|length| length > 1 && length <= size)
}

/// All arrays of the file, by name.
///
/// # Errors
/// What is wrong with the header, or with what it says of an array.
pub fn open(file: File) -> Result<Vec<(String, Column)>, DataError> {
    let size = file.metadata().map_err(DataError::Read)?.len();
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).map_err(DataError::Read)?;
    let length = u64::from_le_bytes(length);
    if length > MOST_HEADER {
        return Err(DataError::Archive(format!("its safetensors header has {length} bytes")));
    }
    let mut header = Vec::new();
    let rest = &file;
    rest.take(8 + length).read_to_end(&mut header).map_err(DataError::Read)?;
    let broken = |what: String| DataError::Archive(format!("its safetensors header: {what}"));
    let claims: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header.get(8..).unwrap_or_default())
            .map_err(|error| broken(error.to_string()))?;
    let file = Arc::new(file);
    let mut arrays = Vec::new();
    for (name, claim) in claims.into_iter().filter(|(name, _)| name != "__metadata__") {
        let wrong = |what: String| DataError::Array { name: name.clone(), what };
        let claim: Claim =
            serde_json::from_value(claim).map_err(|error| wrong(error.to_string()))?;
        let (datatype, begin) = check(&claim, 8 + length, size).map_err(wrong)?;
        arrays.push((name, Column::plain(file.clone(), begin, datatype, claim.shape)));
    }
    Ok(arrays)
}

/// The type of an array and where it begins in a file of `size` bytes, whose arrays begin at `from`.
fn check(claim: &Claim, from: u64, size: u64) -> Result<(Datatype, u64), String> {
    let known = TYPES.iter().find(|(name, _)| *name == claim.dtype);
    let (_, datatype) = known.ok_or_else(|| {
        let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
        let seen = crate::onnx::refusal::quoted(&claim.dtype);
        format!("its dtype {seen} cannot be used ({} can)", names.join(" "))
    })?;
    let count = tensor::elements(&claim.shape).ok_or("its shape overflows")?;
    let want = count.checked_mul(datatype.size().unwrap_or(0)).ok_or("its shape overflows")?;
    let (begin, end) = claim.data_offsets;
    if end.checked_sub(begin) != Some(want as u64) {
        return Err(format!("its shape takes {want} bytes, its offsets are {begin} and {end}"));
    }
    match from.checked_add(end).filter(|end| *end <= size) {
        Some(_) => Ok((*datatype, from + begin)),
        None => Err(format!("it ends at {end}, beyond the file's {size} bytes")),
    }
}

/// The bytes of a file with `arrays`; arrays of strings have no form there and are left out.
pub fn write<'a>(arrays: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, array) in arrays {
        let known = TYPES.iter().find(|(_, datatype)| *datatype == array.datatype());
        let Some((dtype, _)) = known else { continue };
        let begin = data.len();
        data.extend_from_slice(array.data());
        let claim = serde_json::json!({
            "dtype": dtype, "shape": array.shape(), "data_offsets": [begin, data.len()],
        });
        header.insert(name.to_owned(), claim);
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}
