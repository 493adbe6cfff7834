//! The header of a NumPy array: its type and shape, nothing that would have to be run.
//!
//! Little-endian in C order: floats, integers, booleans, fixed-width strings. Objects are Python's
//! pickles and are refused.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use crate::compress::data::column::{Column, Text};
use crate::onnx::refusal::quoted;
use crate::tensor::{self, Datatype};

/// The first bytes of an array.
pub const MAGIC: &[u8] = b"\x93NUMPY";
/// The longest header.
const MOST_HEADER: u32 = 1 << 16;

/// A header that was read.
#[derive(Clone, Debug)]
pub struct Header {
    datatype: Datatype,
    text: Option<Text>,
    shape: Vec<usize>,
    /// Bytes of all elements.
    pub bytes: u64,
    /// Bytes of the header itself.
    pub length: u64,
}

impl Header {
    /// Reads the header that `stream` begins with.
    ///
    /// # Errors
    /// What is wrong, in words that follow the array's name.
    pub fn read(stream: &mut impl Read) -> Result<Self, String> {
        let damaged = |error: std::io::Error| format!("it is damaged: {error}");
        let mut magic = [0; 8];
        stream.read_exact(&mut magic).map_err(damaged)?;
        let [.., major, _] = magic;
        if !magic.starts_with(MAGIC) || !(1..=3).contains(&major) {
            return Err("it is no .npy array".into());
        }
        let mut length = [0; 4];
        let width = if major == 1 { 2 } else { 4 };
        stream.read_exact(length.get_mut(..width).unwrap_or_default()).map_err(damaged)?;
        let length = u32::from_le_bytes(length);
        if length > MOST_HEADER {
            return Err(format!("its header has {length} bytes"));
        }
        let mut header = vec![0; length as usize];
        stream.read_exact(&mut header).map_err(damaged)?;
        let header = String::from_utf8(header).map_err(|_| "its header is no text")?;
        let (kind, shape) = parse(&header)?;
        let count = tensor::elements(&shape).ok_or("its shape overflows")?;
        let bytes = count.checked_mul(kind.width).ok_or("its shape overflows")?;
        // Strings without any byte claim rows that take no room.
        if kind.width == 0 && count > MOST_HEADER as usize {
            return Err(format!("it claims {count} empty strings"));
        }
        Ok(Self {
            datatype: kind.datatype,
            text: (kind.datatype == Datatype::Bytes)
                .then_some(Text { width: kind.width, wide: kind.wide }),
            shape,
            bytes: bytes as u64,
            length: 8 + width as u64 + u64::from(length),
        })
    }

    /// The array whose elements begin at `offset` of `file`.
    pub fn column(self, file: Arc<File>, offset: u64) -> Column {
        match self.text {
            Some(text) => Column::fixed(file, offset, text, self.shape),
            None => Column::plain(file, offset, self.datatype, self.shape),
        }
    }
}

/// The array that is all of `file`.
///
/// # Errors
/// What is wrong, in words that follow the array's name.
pub fn open(file: File) -> Result<Column, String> {
    let damaged = |error: std::io::Error| format!("it is damaged: {error}");
    let header = Header::read(&mut &file)?;
    let room = file.metadata().map_err(damaged)?.len().saturating_sub(header.length);
    if header.bytes != room {
        return Err(format!("its shape takes {} bytes, the file holds {room}", header.bytes));
    }
    let offset = header.length;
    Ok(header.column(Arc::new(file), offset))
}

/// The element type of an array.
struct Kind {
    datatype: Datatype,
    /// Bytes of one element in the array.
    width: usize,
    /// Whether strings are UTF-32 (`U`) and not bytes (`S`).
    wide: bool,
}

impl Kind {
    fn parse(text: &str) -> Option<Self> {
        use Datatype as D;
        let (order, rest) = text.split_at_checked(1)?;
        let (letter, width) = rest.split_at_checked(1)?;
        let width: usize = width.parse().ok()?;
        let datatype = match (letter, width) {
            ("f", 2) => D::Fp16,
            ("f", 4) => D::Fp32,
            ("f", 8) => D::Fp64,
            ("i", 1) => D::Int8,
            ("i", 2) => D::Int16,
            ("i", 4) => D::Int32,
            ("i", 8) => D::Int64,
            ("u", 1) => D::Uint8,
            ("u", 2) => D::Uint16,
            ("u", 4) => D::Uint32,
            ("u", 8) => D::Uint64,
            ("b", 1) => D::Bool,
            ("S" | "U", _) => D::Bytes,
            _ => return None,
        };
        let one = letter == "S" || datatype.size() == Some(1);
        let little = order == "<" || (one && order == "|");
        let width = if letter == "U" { width.checked_mul(4)? } else { width };
        little.then_some(Self { datatype, width, wide: letter == "U" })
    }
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse(header: &str) -> Result<(Kind, Vec<usize>), String> {
    let after = |key: &str| {
        let at = header.find(&format!("'{key}'"))?;
        header.get(at + key.len() + 2..)?.trim_start().strip_prefix(':').map(str::trim_start)
    };
    let descr = after("descr").ok_or("its header has no type")?;
    let descr = descr.strip_prefix('\'').and_then(|rest| rest.split('\'').next());
    let descr = descr.ok_or("it is a structured array; one plain type is needed")?;
    if descr.ends_with('O') {
        let what = "it holds Python objects (pickle), which could run anything and are never read; save an array of numbers or strings";
        return Err(what.into());
    }
    let kind = Kind::parse(descr).ok_or_else(|| {
        format!(
            "its type {} cannot be used (little-endian f2 f4 f8 i1-i8 u1-u8 bool S U can)",
            quoted(descr)
        )
    })?;
    if !after("fortran_order").is_some_and(|order| order.starts_with("False")) {
        return Err("it is in Fortran order; save np.ascontiguousarray of it".into());
    }
    let shape = after("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next());
    let shape = shape.ok_or("its header has no shape")?;
    let dims = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let dims: Result<Vec<usize>, _> = dims.map(str::parse).collect();
    Ok((kind, dims.map_err(|_| format!("its shape ({shape}) cannot be read"))?))
}
