//! One named array on disk: rows are read when they are wanted, so that memory does not depend on how
//! many samples there are.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;

use crate::compress::data::DataError;
use crate::tensor::{self, Datatype, Tensor};

/// An array of one row per sample, in a file.
#[derive(Clone, Debug)]
pub struct Column {
    file: Arc<File>,
    datatype: Datatype,
    shape: Vec<usize>,
    layout: Layout,
}

/// How the elements lie in the file.
#[derive(Clone, Debug)]
enum Layout {
    /// Little-endian and row-major from this offset.
    Plain(u64),
    /// Strings of one width, padded with zeros, from this offset.
    Fixed { offset: u64, text: Text },
    /// Strings as a [`Tensor`] holds them; each row begins at its offset, and the last one is the end.
    Varying(Arc<Vec<u64>>),
}

/// Strings of one width as NumPy writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// Bytes of one string.
    pub width: usize,
    /// Whether they are UTF-32 (`U`) and not bytes (`S`).
    pub wide: bool,
}

impl Column {
    /// `shape` elements of `datatype` from `offset` of `file`; the caller checked that they are there.
    pub fn plain(file: Arc<File>, offset: u64, datatype: Datatype, shape: Vec<usize>) -> Self {
        Self { file, datatype, shape, layout: Layout::Plain(offset) }
    }

    /// The same for strings of one width.
    pub fn fixed(file: Arc<File>, offset: u64, text: Text, shape: Vec<usize>) -> Self {
        let layout = Layout::Fixed { offset, text };
        Self { file, datatype: Datatype::Bytes, shape, layout }
    }

    /// Strings of any length: row `n` lies between the offsets `n` and `n + 1`.
    pub fn varying(file: Arc<File>, offsets: Vec<u64>, shape: Vec<usize>) -> Self {
        let layout = Layout::Varying(Arc::new(offsets));
        Self { file, datatype: Datatype::Bytes, shape, layout }
    }

    /// The element type.
    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// The dimensions, samples first; none where one value is for every sample.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The rows from `start`, `length` of them; an array without dimensions whole.
    ///
    /// # Errors
    /// When the file cannot be read, or became shorter than it was.
    pub fn rows(&self, start: usize, length: usize) -> Result<Tensor, DataError> {
        let (count, rest) = self.shape.split_first().map_or((1, [].as_slice()), |(c, r)| (*c, r));
        let start = start.min(count);
        let length = length.min(count - start);
        let per = tensor::elements(rest).unwrap_or(0);
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = length;
        }
        let read = |offset: u64, bytes: usize| {
            let mut data = vec![0; bytes];
            self.file.read_exact_at(&mut data, offset).map_err(DataError::Read)?;
            Ok::<_, DataError>(data)
        };
        let data = match &self.layout {
            Layout::Plain(offset) => {
                let row = per * self.datatype.size().unwrap_or(0);
                read(offset + (start * row) as u64, length * row)?
            }
            Layout::Fixed { offset, text } => {
                let row = per * text.width;
                let data = read(offset + (start * row) as u64, length * row)?;
                text.lengthen(&data, length * per)
            }
            Layout::Varying(offsets) => {
                let at = |row: usize| offsets.get(row).copied().unwrap_or_default();
                let (from, to) = (at(start), at(start + length));
                read(from, usize::try_from(to.saturating_sub(from)).unwrap_or(0))?
            }
        };
        Tensor::new(self.datatype, shape, Bytes::from(data))
            .map_err(|error| DataError::Fit(error.to_string()))
    }
}

impl Text {
    /// `count` strings of one width as a [`Tensor`] holds them, without their padding of zeros.
    fn lengthen(self, data: &[u8], count: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut push = |item: &[u8]| {
            out.extend_from_slice(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(item);
        };
        if self.width == 0 {
            (0..count).for_each(|_| push(&[]));
        }
        for item in data.chunks_exact(self.width.max(1)) {
            if self.wide {
                let (chunks, _) = item.as_chunks::<4>();
                let letters = chunks
                    .iter()
                    .map(|c| char::from_u32(u32::from_le_bytes(*c)).unwrap_or('\u{fffd}'));
                push(letters.collect::<String>().trim_end_matches('\0').as_bytes());
            } else {
                let end = item.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
                push(item.get(..end).unwrap_or_default());
            }
        }
        out
    }
}
