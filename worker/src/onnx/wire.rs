//! Reads protobuf's wire form from a stream without decoding it, skipping payloads by seeking.
//!
//! Nothing is allocated by a length that the stream claims.

use std::io::{BufRead, ErrorKind, Seek, SeekFrom};

use super::refusal::Refusal;

/// How a field's value is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireType {
    /// A variable-length integer.
    Varint,
    /// Eight bytes.
    Fixed64,
    /// A length and that many bytes.
    Delimited,
    /// Four bytes.
    Fixed32,
}

/// A position in a protobuf stream.
pub struct Wire<R> {
    reader: R,
    position: u64,
}

impl<R: BufRead + Seek> Wire<R> {
    /// Starts at the reader's beginning.
    pub fn new(reader: R) -> Self {
        Self { reader, position: 0 }
    }

    /// Bytes from the beginning.
    pub fn position(&self) -> u64 {
        self.position
    }

    fn byte(&mut self, end: u64) -> Result<u8, Refusal> {
        if self.position >= end {
            return Err(self.truncated());
        }
        let mut byte = [0];
        self.fill(&mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Refusal> {
        self.reader.read_exact(buffer).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => self.truncated(),
            _ => Refusal::corrupt(format!(
                "the model cannot be read at byte {}: {error}",
                self.position
            )),
        })?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn truncated(&self) -> Refusal {
        Refusal::corrupt(format!(
            "the model is truncated or damaged: a field runs past its end at byte {}",
            self.position
        ))
    }

    /// A variable-length integer that ends before `end`.
    pub fn varint(&mut self, end: u64) -> Result<u64, Refusal> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(end)?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged("an integer of more than 64 bits"))
    }

    /// The next field's number and layout, or `None` at `end`.
    pub fn key(&mut self, end: u64) -> Result<Option<(u32, WireType)>, Refusal> {
        if self.position >= end {
            return Ok(None);
        }
        let key = self.varint(end)?;
        let kind = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::Fixed64,
            2 => WireType::Delimited,
            5 => WireType::Fixed32,
            other => return Err(self.damaged(&format!("a field of wire type {other}"))),
        };
        match u32::try_from(key >> 3) {
            Ok(number) if number > 0 && number < 1 << 29 => Ok(Some((number, kind))),
            _ => Err(self.damaged("a field with an impossible number")),
        }
    }

    /// A refusal that says what stands at the current position.
    pub fn damaged(&self, what: &str) -> Refusal {
        Refusal::corrupt(format!(
            "the file is no ONNX model, or damaged: {what} at byte {}",
            self.position
        ))
    }

    /// The length of a delimited field, which must lie before `end`; returns where it ends.
    pub fn delimited(&mut self, end: u64) -> Result<u64, Refusal> {
        let length = self.varint(end)?;
        match self.position.checked_add(length) {
            Some(stop) if stop <= end => Ok(stop),
            _ => Err(self.truncated()),
        }
    }

    /// Moves to `to`, which lies within the stream.
    pub fn skip_to(&mut self, to: u64) -> Result<(), Refusal> {
        let distance = to.saturating_sub(self.position);
        let offset = i64::try_from(distance).map_err(|_| self.truncated())?;
        // Small steps stay in the buffer; `seek` would drop it.
        if distance <= 4096 {
            let mut rest = distance as usize;
            while rest > 0 {
                let seen = self.reader.fill_buf().map_or(0, <[u8]>::len).min(rest);
                if seen == 0 {
                    return Err(self.truncated());
                }
                self.reader.consume(seen);
                rest -= seen;
            }
        } else {
            self.reader.seek(SeekFrom::Current(offset)).map_err(|_| self.truncated())?;
        }
        self.position = to;
        Ok(())
    }

    /// Skips a value of layout `kind` that must end before `end`.
    pub fn skip(&mut self, kind: WireType, end: u64) -> Result<(), Refusal> {
        let to = match kind {
            WireType::Varint => return self.varint(end).map(|_| ()),
            WireType::Fixed64 => self.position.saturating_add(8),
            WireType::Fixed32 => self.position.saturating_add(4),
            WireType::Delimited => self.delimited(end)?,
        };
        if to > end {
            return Err(self.truncated());
        }
        self.skip_to(to)
    }

    /// The bytes up to `stop`, of which the caller has made sure that they are few.
    pub fn bytes(&mut self, stop: u64) -> Result<Vec<u8>, Refusal> {
        let length =
            usize::try_from(stop.saturating_sub(self.position)).map_err(|_| self.truncated())?;
        let mut buffer = vec![0; length];
        self.fill(&mut buffer)?;
        Ok(buffer)
    }

    /// How many variable-length integers stand between here and `stop`.
    pub fn count_varints(&mut self, stop: u64) -> Result<u64, Refusal> {
        let mut count = 0;
        while self.position < stop {
            let left = usize::try_from(stop - self.position).unwrap_or(usize::MAX);
            let chunk =
                self.reader.fill_buf().map_err(|_| Refusal::corrupt("the model cannot be read"))?;
            let seen = chunk.get(..chunk.len().min(left)).unwrap_or_default();
            count += seen.iter().filter(|byte| **byte & 0x80 == 0).count() as u64;
            let length = seen.len();
            if length == 0 {
                return Err(self.truncated());
            }
            self.reader.consume(length);
            self.position += length as u64;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn wire(bytes: &[u8]) -> Wire<Cursor<&[u8]>> {
        Wire::new(Cursor::new(bytes))
    }

    #[test]
    fn integers_end_where_they_must() {
        assert_eq!(wire(&[0xac, 0x02]).varint(2), Ok(300));
        assert_eq!(wire(&[0xff; 9]).varint(9).map_err(|r| r.reason), Err("Corrupt"));
        let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(wire(&largest).varint(10), Ok(u64::MAX));
        assert!(wire(&[0xff; 11]).varint(11).is_err());
        assert_eq!(wire(&[1, 0x80, 1, 5]).count_varints(4), Ok(3));
    }

    #[test]
    fn a_length_beyond_the_end_is_refused_before_it_is_believed() {
        let lie = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
        assert!(wire(&lie).delimited(9).is_err());
        assert!(wire(&[3, 1, 2]).delimited(3).is_err());
        assert_eq!(wire(&[2, 1, 2]).delimited(3), Ok(3));
    }

    #[test]
    fn groups_and_field_zero_do_not_exist_in_onnx() {
        assert!(wire(&[0x0b]).key(1).is_err());
        assert!(wire(&[0x02]).key(1).is_err());
        assert_eq!(wire(&[0x3a]).key(1), Ok(Some((7, WireType::Delimited))));
    }
}
