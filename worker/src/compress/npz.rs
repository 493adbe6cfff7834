//! Reads NumPy archives (.npz: a zip of .npy) with bounded memory.
//!
//! Zip entries stored or deflated, zip64 included; arrays little-endian in C order: floats,
//! integers, booleans, fixed-width strings. Sizes are checked before anything is allocated.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use flate2::read::DeflateDecoder;

use crate::onnx::refusal::{quoted, quoted_bytes};
use crate::tensor::{self, Datatype, Tensor};

/// The most arrays of an archive.
const MOST_ARRAYS: usize = 4096;
/// The most bytes of the zip's directory.
const MOST_DIRECTORY: u64 = 4 << 20;
/// The most bytes of all arrays together.
pub const MOST_BYTES: u64 = 8 << 30;
/// The most that deflate can shrink anything.
const MOST_RATIO: u64 = 1032;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// The file cannot be read.
    #[error("read the data file: {0}")]
    Read(#[from] std::io::Error),
    /// The file is no such archive, or is damaged.
    #[error("the data file is no .npz archive: {0}")]
    Archive(String),
    /// One array cannot be used.
    #[error("array {name}: {what}", name = quoted(.name))]
    Array {
        /// The array.
        name: String,
        /// What is wrong with it.
        what: String,
    },
}

struct Entry {
    name: String,
    method: u16,
    packed: u64,
    size: u64,
    offset: u64,
    crc: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

/// Reads all arrays of the archive at `path`, in the archive's order, without their `.npy`.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>, NpzError> {
    let mut file = BufReader::new(File::open(path)?);
    let length = file.seek(SeekFrom::End(0))?;
    let entries = directory(&mut file, length)?;
    let mut total = 0_u64;
    let mut arrays: Vec<(String, Tensor)> = Vec::new();
    for entry in entries {
        let Some(name) = entry.name.strip_suffix(".npy") else {
            let what = format!("it holds {}, which is no array", quoted(&entry.name));
            return Err(NpzError::Archive(what));
        };
        total = total.saturating_add(entry.size);
        if total > MOST_BYTES || entry.size / MOST_RATIO > entry.packed.saturating_add(1024) {
            let what = format!("{} bytes are more than allowed", entry.size);
            return Err(NpzError::Array { name: name.to_owned(), what });
        }
        if arrays.iter().any(|(earlier, _)| earlier == name) {
            return Err(NpzError::Array {
                name: name.to_owned(),
                what: "it is there twice".into(),
            });
        }
        let tensor = array(&mut file, &entry)
            .map_err(|what| NpzError::Array { name: name.to_owned(), what })?;
        arrays.push((name.to_owned(), tensor));
    }
    Ok(arrays)
}

/// The entries of the zip's central directory.
fn directory(file: &mut (impl Read + Seek), length: u64) -> Result<Vec<Entry>, NpzError> {
    let broken = |what: &str| NpzError::Archive(what.to_owned());
    // The end record is 22 bytes and a comment of at most 64 KiB.
    let tail_at = length.saturating_sub(22 + (1 << 16) + 20);
    file.seek(SeekFrom::Start(tail_at))?;
    let mut tail = Vec::new();
    file.take(1 << 17).read_to_end(&mut tail)?;
    let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06").ok_or_else(|| {
        NpzError::Archive(format!("it begins with {}", quoted_bytes(head(&tail))))
    })?;
    let record = tail.get(end..).unwrap_or_default();
    let field = |at| u32_at(record, at).map(u64::from).ok_or_else(|| broken("it is truncated"));
    let mut count = u16_at(record, 10).map(u64::from).ok_or_else(|| broken("it is truncated"))?;
    let (mut size, mut offset) = (field(12)?, field(16)?);
    let locator = end.checked_sub(20).and_then(|at| tail.get(at..end));
    if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
        let at = u64_at(locator, 8).ok_or_else(|| broken("it is truncated"))?;
        let mut record = [0; 56];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut record)?;
        let long = |at| u64_at(&record, at).ok_or_else(|| broken("it is truncated"));
        (count, size, offset) = (long(32)?, long(40)?, long(48)?);
    }
    if size > MOST_DIRECTORY || count > MOST_ARRAYS as u64 {
        return Err(broken("it has too many arrays"));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    let mut entries = Vec::new();
    for _ in 0..count {
        let (entry, after) = entry(rest).ok_or_else(|| broken("its directory is damaged"))?;
        rest = rest.get(after..).unwrap_or_default();
        entries.push(entry);
    }
    Ok(entries)
}

fn head(bytes: &[u8]) -> &[u8] {
    bytes.get(..bytes.len().min(24)).unwrap_or_default()
}

/// One entry of the central directory, and its length there.
fn entry(bytes: &[u8]) -> Option<(Entry, usize)> {
    if !bytes.starts_with(b"PK\x01\x02") || u16_at(bytes, 8)? & 1 != 0 {
        return None;
    }
    let lengths = [u16_at(bytes, 28)?, u16_at(bytes, 30)?, u16_at(bytes, 32)?].map(usize::from);
    let [name, extra, comment] = lengths;
    let mut entry = Entry {
        name: String::from_utf8_lossy(bytes.get(46..46 + name)?).into_owned(),
        method: u16_at(bytes, 10)?,
        crc: u32_at(bytes, 16)?,
        packed: u64::from(u32_at(bytes, 20)?),
        size: u64::from(u32_at(bytes, 24)?),
        offset: u64::from(u32_at(bytes, 42)?),
    };
    // Zip64: the fields that are all ones above follow here, in this order.
    let mut extras = bytes.get(46 + name..46 + name + extra)?;
    while extras.len() >= 4 {
        let (id, length) = (u16_at(extras, 0)?, usize::from(u16_at(extras, 2)?));
        let body = extras.get(4..4 + length)?;
        if id == 1 {
            let mut at = 0;
            for field in [&mut entry.size, &mut entry.packed, &mut entry.offset] {
                if *field == u64::from(u32::MAX) {
                    *field = u64_at(body, at)?;
                    at += 8;
                }
            }
        }
        extras = extras.get(4 + length..)?;
    }
    Some((entry, 46 + name + extra + comment))
}

/// Reads one array.
fn array(file: &mut BufReader<File>, entry: &Entry) -> Result<Tensor, String> {
    let damaged = |error: std::io::Error| format!("it is damaged: {error}");
    let mut local = [0; 30];
    file.seek(SeekFrom::Start(entry.offset)).map_err(damaged)?;
    file.read_exact(&mut local).map_err(damaged)?;
    let skip =
        u16_at(&local, 26).zip(u16_at(&local, 28)).filter(|_| local.starts_with(b"PK\x03\x04"));
    let (name, extra) = skip.ok_or("it is damaged: no local header")?;
    file.seek_relative(i64::from(name) + i64::from(extra)).map_err(damaged)?;
    let packed = file.take(entry.packed);
    let data = match entry.method {
        0 => npy(Checked::new(packed, entry.size)),
        8 => npy(Checked::new(DeflateDecoder::new(packed), entry.size)),
        method => Err(format!("it is packed with the unknown method {method}")),
    }?;
    let (tensor, crc) = data;
    if crc == entry.crc { Ok(tensor) } else { Err("its checksum is wrong".into()) }
}

/// Reads exactly the announced bytes and sums them.
struct Checked<R> {
    reader: std::io::Take<R>,
    crc: flate2::Crc,
}

impl<R: Read> Checked<R> {
    fn new(reader: R, size: u64) -> Self {
        Self { reader: reader.take(size), crc: flate2::Crc::new() }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let seen = self.reader.read(buffer)?;
        self.crc.update(buffer.get(..seen).unwrap_or_default());
        Ok(seen)
    }
}

/// Reads a .npy stream to its end.
fn npy<R: Read>(mut stream: Checked<R>) -> Result<(Tensor, u32), String> {
    let damaged = |error: std::io::Error| format!("it is damaged: {error}");
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).map_err(damaged)?;
    let [.., major, _] = magic;
    if !magic.starts_with(b"\x93NUMPY") || !(1..=3).contains(&major) {
        return Err("it is no .npy array".into());
    }
    let mut length = [0; 4];
    let width = if major == 1 { 2 } else { 4 };
    stream.read_exact(length.get_mut(..width).unwrap_or_default()).map_err(damaged)?;
    let length = u32::from_le_bytes(length);
    if length > 1 << 16 {
        return Err(format!("its header has {length} bytes"));
    }
    let mut header = vec![0; length as usize];
    stream.read_exact(&mut header).map_err(damaged)?;
    let header = String::from_utf8(header).map_err(|_| "its header is no text")?;
    let (kind, shape) = parse_header(&header)?;
    let count = tensor::elements(&shape).ok_or("its shape overflows")?;
    let bytes = count.checked_mul(kind.width).ok_or("its shape overflows")?;
    let room = stream.reader.limit();
    if bytes as u64 != room {
        return Err(format!("its shape takes {bytes} bytes, the archive holds {room}"));
    }
    let mut data = Vec::new();
    data.try_reserve_exact(bytes).map_err(|_| format!("there is no memory for {bytes} bytes"))?;
    stream.read_to_end(&mut data).map_err(damaged)?;
    if data.len() != bytes {
        return Err(format!("its shape takes {bytes} bytes, the archive holds {}", data.len()));
    }
    let crc = stream.crc.sum();
    Ok((kind.tensor(shape, data)?, crc))
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

    fn tensor(&self, shape: Vec<usize>, data: Vec<u8>) -> Result<Tensor, String> {
        if self.datatype != Datatype::Bytes {
            return Tensor::new(self.datatype, shape, Bytes::from(data)).map_err(|e| e.to_string());
        }
        let count = tensor::elements(&shape).unwrap_or(0);
        let items: Vec<Vec<u8>> = if self.width == 0 {
            vec![Vec::new(); count.min(1 << 24)]
        } else {
            data.chunks_exact(self.width).map(|item| self.text(item)).collect()
        };
        Tensor::from_strings(shape, &items).map_err(|error| error.to_string())
    }

    /// One fixed-width string without its padding of zeros.
    fn text(&self, item: &[u8]) -> Vec<u8> {
        if self.wide {
            let (chunks, _) = item.as_chunks::<4>();
            let letters =
                chunks.iter().map(|c| char::from_u32(u32::from_le_bytes(*c)).unwrap_or('\u{fffd}'));
            let text: String = letters.collect();
            return text.trim_end_matches('\0').as_bytes().to_vec();
        }
        let end = item.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        item.get(..end).unwrap_or_default().to_vec()
    }
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
fn parse_header(header: &str) -> Result<(Kind, Vec<usize>), String> {
    let after = |key: &str| {
        let at = header.find(&format!("'{key}'"))?;
        header.get(at + key.len() + 2..)?.trim_start().strip_prefix(':').map(str::trim_start)
    };
    let descr = after("descr").ok_or("its header has no type")?;
    let descr = descr.strip_prefix('\'').and_then(|rest| rest.split('\'').next());
    let descr = descr.ok_or("it is a structured array; one plain type is needed")?;
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
