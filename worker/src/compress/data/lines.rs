//! JSON lines: one sample per line, `{"input": [[1, 2]], "label": 3}`, and `"split": "calibration"`
//! where the samples are divided by hand.
//!
//! Types are those of the model's inputs. A line is parsed, written to a file without a name, and
//! forgotten.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::sync::Arc;

use lithe::artifact::TensorSignature;
use serde_json::Value;

use crate::compress::data::column::Column;
use crate::compress::data::{DataError, LABEL, SPLITS};
use crate::onnx::refusal::quoted;
use crate::tensor::Datatype;

/// The longest line.
const MOST_LINE: u64 = 8 << 20;
/// The most names, splits counted apart: each has a file.
const MOST_NAMES: usize = 256;
/// The key that says to which split a line belongs.
const SPLIT: &str = "split";

/// One array that grows line by line.
struct Growing {
    file: BufWriter<File>,
    datatype: Datatype,
    row: Vec<usize>,
    count: usize,
    written: u64,
    offsets: Vec<u64>,
}

/// All arrays of the file, for a model with `inputs`.
///
/// # Errors
/// The line and what is wrong with it.
pub fn open(file: File, inputs: &[TensorSignature]) -> Result<Vec<(String, Column)>, DataError> {
    let mut reader = BufReader::new(file);
    let mut arrays = BTreeMap::<String, Growing>::new();
    let mut line = Vec::new();
    for number in 1_usize.. {
        line.clear();
        let mut bounded = reader.by_ref().take(MOST_LINE + 1);
        let seen = bounded.read_until(b'\n', &mut line).map_err(DataError::Read)?;
        if seen == 0 {
            break;
        }
        if seen as u64 > MOST_LINE {
            return at(number, format!("it has more than {MOST_LINE} bytes"));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let sample: serde_json::Map<String, Value> = match serde_json::from_slice(&line) {
            Ok(sample) => sample,
            Err(error) => return at(number, format!("it is no JSON object: {error}")),
        };
        add(&mut arrays, sample, inputs).or_else(|fault| match fault {
            Fault::Line(what) => at(number, what),
            Fault::Spool(source) => Err(DataError::Spool(source)),
        })?;
    }
    arrays.into_iter().map(|(name, array)| Ok((name, array.column()?))).collect()
}

fn at<T>(number: usize, what: String) -> Result<T, DataError> {
    Err(DataError::Fit(format!("line {number}: {what}")))
}

enum Fault {
    Line(String),
    Spool(std::io::Error),
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self::Line(what)
    }
}

/// Adds one line's values to `arrays`.
fn add(
    arrays: &mut BTreeMap<String, Growing>,
    mut sample: serde_json::Map<String, Value>,
    inputs: &[TensorSignature],
) -> Result<(), Fault> {
    let named = inputs.iter().any(|input| input.name == SPLIT);
    let prefix = match sample.remove(SPLIT).filter(|_| !named) {
        None => "",
        Some(value) => {
            let text = value.as_str().map(|text| format!("{text}/")).unwrap_or_default();
            let known = SPLITS.iter().find(|split| **split == text);
            known.copied().ok_or_else(|| {
                format!("split is {value}; write train, calibration or evaluation")
            })?
        }
    };
    for input in inputs {
        if !sample.contains_key(&input.name) {
            return Err(Fault::Line(format!("it has no {}", quoted(&input.name))));
        }
    }
    for (name, value) in sample {
        let datatype = match inputs.iter().find(|input| input.name == name) {
            Some(input) => Datatype::from_name(&input.datatype),
            None if name == LABEL => Some(Datatype::Fp64),
            None => None,
        };
        let Some(datatype) = datatype else {
            let names: Vec<String> = inputs.iter().map(|input| quoted(&input.name)).collect();
            let what = format!("{} is no input of the model ({})", quoted(&name), names.join(", "));
            return Err(Fault::Line(what));
        };
        let (mut row, mut data) = (Vec::new(), Vec::new());
        shape(&value, &mut row);
        write(&value, &row, datatype, &mut data)
            .map_err(|what| format!("{}: {what}", quoted(&name)))?;
        let full = arrays.len() >= MOST_NAMES;
        let array = match arrays.entry(format!("{prefix}{name}")) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(_) if full => {
                return Err(Fault::Line(format!("there are more than {MOST_NAMES} names")));
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Growing::new(datatype, row.clone()).map_err(Fault::Spool)?)
            }
        };
        if array.row != row {
            return Err(Fault::Line(format!(
                "{} has shape {row:?}, on earlier lines {:?}; pad all samples to one shape",
                quoted(&name),
                array.row
            )));
        }
        array.push(&data).map_err(Fault::Spool)?;
    }
    Ok(())
}

impl Growing {
    fn new(datatype: Datatype, row: Vec<usize>) -> std::io::Result<Self> {
        let file = BufWriter::new(tempfile::tempfile()?);
        Ok(Self { file, datatype, row, count: 0, written: 0, offsets: vec![0] })
    }

    fn push(&mut self, data: &[u8]) -> std::io::Result<()> {
        self.file.write_all(data)?;
        self.count += 1;
        self.written += data.len() as u64;
        if self.datatype == Datatype::Bytes {
            self.offsets.push(self.written);
        }
        Ok(())
    }

    fn column(self) -> Result<Column, DataError> {
        let file = self.file.into_inner().map_err(|error| DataError::Spool(error.into_error()))?;
        let shape = [&[self.count], self.row.as_slice()].concat();
        Ok(match self.datatype {
            Datatype::Bytes => Column::varying(Arc::new(file), self.offsets, shape),
            datatype => Column::plain(Arc::new(file), 0, datatype, shape),
        })
    }
}

/// The shape of nested lists by their first items.
fn shape(value: &Value, dims: &mut Vec<usize>) {
    if let Value::Array(items) = value {
        dims.push(items.len());
        if let Some(first) = items.first() {
            shape(first, dims);
        }
    }
}

/// Appends the elements of `value`, which must have the shape `dims`.
fn write(
    value: &Value,
    dims: &[usize],
    datatype: Datatype,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    match (value, dims.split_first()) {
        (Value::Array(items), Some((count, rest))) if items.len() == *count => {
            items.iter().try_for_each(|item| write(item, rest, datatype, out))
        }
        (Value::Array(items), Some((count, _))) => {
            Err(format!("a list of {} stands where others have {count}", items.len()))
        }
        (Value::Array(_), None) => Err("a list stands where others have a value".into()),
        (_, Some(_)) => Err(format!("{value} stands where others have a list")),
        (_, None) => scalar(value, datatype, out),
    }
}

/// Appends one element.
fn scalar(value: &Value, datatype: Datatype, out: &mut Vec<u8>) -> Result<(), String> {
    use Datatype as D;
    let cannot = || format!("{value} is no {datatype}");
    let integer = || match value {
        Value::Bool(truth) => Some(i128::from(*truth)),
        Value::Number(number) => {
            number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
        }
        _ => None,
    };
    macro_rules! whole {
        ($kind:ty) => {{
            let number = integer().ok_or_else(cannot)?;
            let number = <$kind>::try_from(number).map_err(|_| cannot())?;
            out.extend_from_slice(&number.to_le_bytes());
        }};
    }
    let float = || value.as_f64().ok_or_else(cannot);
    let finite = |fits: bool| if fits { Ok(()) } else { Err(cannot()) };
    match datatype {
        D::Bool => {
            let truth = integer().filter(|number| (0..=1).contains(number)).ok_or_else(cannot)?;
            out.push(u8::from(truth == 1));
        }
        D::Uint8 => whole!(u8),
        D::Uint16 => whole!(u16),
        D::Uint32 => whole!(u32),
        D::Uint64 => whole!(u64),
        D::Int8 => whole!(i8),
        D::Int16 => whole!(i16),
        D::Int32 => whole!(i32),
        D::Int64 => whole!(i64),
        D::Fp16 => {
            let number = half::f16::from_f64(float()?);
            finite(number.is_finite())?;
            out.extend_from_slice(&number.to_le_bytes());
        }
        D::Bf16 => {
            let number = half::bf16::from_f64(float()?);
            finite(number.is_finite())?;
            out.extend_from_slice(&number.to_le_bytes());
        }
        D::Fp32 => {
            let number = float()? as f32;
            finite(number.is_finite())?;
            out.extend_from_slice(&number.to_le_bytes());
        }
        D::Fp64 => out.extend_from_slice(&float()?.to_le_bytes()),
        D::Bytes => {
            let text = value.as_str().ok_or_else(cannot)?;
            out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }
    Ok(())
}
