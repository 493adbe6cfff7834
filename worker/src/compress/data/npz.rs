//! NumPy archives (.npz: a zip of .npy): where each array lies.
//!
//! Zip entries stored or deflated, zip64 included. Sizes are checked before anything is written or
//! allocated, checksums while everything is read once.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write as _};
use std::sync::Arc;

use flate2::read::DeflateDecoder;

use crate::compress::data::DataError;
use crate::compress::data::column::Column;
use crate::compress::data::npy::Header;
use crate::onnx::refusal::{quoted, quoted_bytes};

/// The most arrays of an archive.
const MOST_ARRAYS: usize = 4096;
/// The most bytes of the zip's directory.
const MOST_DIRECTORY: u64 = 4 << 20;
/// The most bytes of all arrays together.
pub const MOST_BYTES: u64 = 8 << 30;
/// The most that deflate can shrink anything.
const MOST_RATIO: u64 = 1032;

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

/// All arrays of the archive, in its order, without their `.npy`. What is stored stays where it is;
/// what is packed is unpacked once into a file that has no name.
///
/// # Errors
/// What is wrong with the archive or with one of its arrays.
pub fn open(file: File) -> Result<Vec<(String, Column)>, DataError> {
    let whole = Arc::new(file);
    let mut file = BufReader::new(whole.as_ref());
    let length = file.seek(SeekFrom::End(0)).map_err(DataError::Read)?;
    let entries = directory(&mut file, length)?;
    let spool = Arc::new(tempfile::tempfile().map_err(DataError::Spool)?);
    let mut total = 0_u64;
    let mut arrays: Vec<(String, Column)> = Vec::new();
    for entry in entries {
        let Some(name) = entry.name.strip_suffix(".npy") else {
            let what = format!("it holds {}, which is no array", quoted(&entry.name));
            return Err(DataError::Archive(what));
        };
        let wrong = |what: String| DataError::Array { name: name.to_owned(), what };
        total = total.saturating_add(entry.size);
        if total > MOST_BYTES || entry.size / MOST_RATIO > entry.packed.saturating_add(1024) {
            return Err(wrong(format!("{} bytes are more than allowed", entry.size)));
        }
        if arrays.iter().any(|(earlier, _)| earlier == name) {
            return Err(wrong("it is there twice".into()));
        }
        let at = begin(&mut file, &entry).map_err(wrong)?;
        let column = match entry.method {
            0 => stored(&mut file, &entry, at).map(|(head, at)| head.column(whole.clone(), at)),
            8 => {
                let offset = (&*spool).stream_position().map_err(DataError::Spool)?;
                let head = unpack(&mut file, &entry, &spool).map_err(|fault| match fault {
                    Fault::Array(what) => wrong(what),
                    Fault::Spool(source) => DataError::Spool(source),
                })?;
                Ok(head.column(spool.clone(), offset))
            }
            method => Err(format!("it is packed with the unknown method {method}")),
        };
        arrays.push((name.to_owned(), column.map_err(wrong)?));
    }
    Ok(arrays)
}

/// The entries of the zip's central directory.
fn directory(file: &mut (impl Read + Seek), length: u64) -> Result<Vec<Entry>, DataError> {
    let broken = |what: &str| DataError::Archive(what.to_owned());
    // The end record is 22 bytes and a comment of at most 64 KiB.
    let tail_at = length.saturating_sub(22 + (1 << 16) + 20);
    file.seek(SeekFrom::Start(tail_at)).map_err(DataError::Read)?;
    let mut tail = Vec::new();
    file.take(1 << 17).read_to_end(&mut tail).map_err(DataError::Read)?;
    let end = tail.windows(4).rposition(|window| window == b"PK\x05\x06").ok_or_else(|| {
        DataError::Archive(format!("it begins with {}", quoted_bytes(head(&tail))))
    })?;
    let record = tail.get(end..).unwrap_or_default();
    let field = |at| u32_at(record, at).map(u64::from).ok_or_else(|| broken("it is truncated"));
    let mut count = u16_at(record, 10).map(u64::from).ok_or_else(|| broken("it is truncated"))?;
    let (mut size, mut offset) = (field(12)?, field(16)?);
    let locator = end.checked_sub(20).and_then(|at| tail.get(at..end));
    if let Some(locator) = locator.filter(|locator| locator.starts_with(b"PK\x06\x07")) {
        let at = u64_at(locator, 8).ok_or_else(|| broken("it is truncated"))?;
        let mut record = [0; 56];
        file.seek(SeekFrom::Start(at)).map_err(DataError::Read)?;
        file.read_exact(&mut record).map_err(DataError::Read)?;
        let long = |at| u64_at(&record, at).ok_or_else(|| broken("it is truncated"));
        (count, size, offset) = (long(32)?, long(40)?, long(48)?);
    }
    if size > MOST_DIRECTORY || count > MOST_ARRAYS as u64 {
        return Err(broken("it has too many arrays"));
    }
    file.seek(SeekFrom::Start(offset)).map_err(DataError::Read)?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes).map_err(DataError::Read)?;
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

/// Where the bytes of `entry` begin; the file is there afterwards.
fn begin(file: &mut BufReader<&File>, entry: &Entry) -> Result<u64, String> {
    let damaged = |error: std::io::Error| format!("it is damaged: {error}");
    let mut local = [0; 30];
    file.seek(SeekFrom::Start(entry.offset)).map_err(damaged)?;
    file.read_exact(&mut local).map_err(damaged)?;
    let skip =
        u16_at(&local, 26).zip(u16_at(&local, 28)).filter(|_| local.starts_with(b"PK\x03\x04"));
    let (name, extra) = skip.ok_or("it is damaged: no local header")?;
    file.seek_relative(i64::from(name) + i64::from(extra)).map_err(damaged)?;
    Ok(entry.offset + 30 + u64::from(name) + u64::from(extra))
}

/// Reads at most the announced bytes and sums them.
struct Checked<R> {
    reader: std::io::Take<R>,
    crc: flate2::Crc,
}

impl<R: Read> Checked<R> {
    fn new(reader: R, size: u64) -> Self {
        Self { reader: reader.take(size), crc: flate2::Crc::new() }
    }

    fn header(&mut self) -> Result<Header, String> {
        let header = Header::read(self)?;
        let (wanted, room) = (header.bytes, self.reader.limit());
        if wanted != room {
            return Err(format!("its shape takes {wanted} bytes, the archive holds {room}"));
        }
        Ok(header)
    }

    /// Whether all of `entry` came and is what it was.
    fn finish(&self, entry: &Entry, seen: u64, header: &Header) -> Result<(), String> {
        if seen != header.bytes {
            let wanted = header.bytes;
            return Err(format!("its shape takes {wanted} bytes, the archive holds {seen}"));
        }
        if self.crc.sum() == entry.crc { Ok(()) } else { Err("its checksum is wrong".into()) }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let seen = self.reader.read(buffer)?;
        self.crc.update(buffer.get(..seen).unwrap_or_default());
        Ok(seen)
    }
}

/// Checks an array that is stored as it is, at `at`; returns where its elements begin.
fn stored(file: &mut BufReader<&File>, entry: &Entry, at: u64) -> Result<(Header, u64), String> {
    let mut stream = Checked::new(file.take(entry.packed), entry.size);
    let header = stream.header()?;
    let seen = std::io::copy(&mut stream, &mut std::io::sink())
        .map_err(|error| format!("it is damaged: {error}"))?;
    stream.finish(entry, seen, &header)?;
    let at = at + header.length;
    Ok((header, at))
}

/// What went wrong while unpacking.
enum Fault {
    /// The array.
    Array(String),
    /// The disk.
    Spool(std::io::Error),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::Array(what)
    }
}

/// Unpacks the elements of a deflated array to the end of `spool`.
fn unpack(file: &mut BufReader<&File>, entry: &Entry, spool: &File) -> Result<Header, Fault> {
    let mut stream = Checked::new(DeflateDecoder::new(file.take(entry.packed)), entry.size);
    let header = stream.header()?;
    let (mut buffer, mut spool) = (vec![0; 1 << 16], spool);
    let mut seen = 0;
    loop {
        let count = stream
            .read(&mut buffer)
            .map_err(|error| Fault::Array(format!("it is damaged: {error}")))?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
        spool.write_all(piece).map_err(Fault::Spool)?;
        seen += count as u64;
    }
    stream.finish(entry, seen, &header)?;
    Ok(header)
}
