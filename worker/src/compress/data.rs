//! The data that judge a model: one array per input, and `label` where there are labels.
//!
//! Names with `evaluation/` before them are the evaluation split, `train/` and `calibration/` the
//! others. In data without any prefix every sample judges, as long as no step learns from data: for
//! those that do, the recipe's seed draws a share that then judges nothing. Samples stay on disk.

pub mod column;
pub mod lines;
pub mod npy;
pub mod npz;
pub mod safetensors;
pub mod source;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use lithe::artifact::TensorSignature;

use crate::onnx::refusal::quoted;
use crate::tensor::{Datatype, Tensor};
use column::Column;

/// The array with the labels.
pub const LABEL: &str = "label";
/// The splits that names may carry.
pub const SPLITS: [&str; 3] = ["train/", "calibration/", "evaluation/"];

/// The most samples that calibration draws from data without splits: ranges settle long before.
const MOST_DRAWN: usize = 512;

/// Arrays by name.
type Arrays = Vec<(String, Column)>;

/// What is wrong with the data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The data cannot be read.
    #[error("read the data: {0}")]
    Read(std::io::Error),
    /// What is unpacked cannot be kept on disk.
    #[error("unpack the data: {0}")]
    Spool(std::io::Error),
    /// The data are of no known format, or damaged.
    #[error("the data cannot be used: {0}")]
    Archive(String),
    /// One array cannot be used.
    #[error("array {name}: {what}", name = quoted(.name))]
    Array {
        /// The array.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The arrays do not fit the model or each other.
    #[error("{0}")]
    Fit(String),
}

/// The samples of one compression.
#[derive(Clone, Debug)]
pub struct Splits {
    /// What judges the result.
    pub evaluation: Samples,
    /// What ranges are measured on, where a step needs it.
    pub calibration: Option<Samples>,
}

impl Splits {
    /// Opens the data at `path` for a model with `inputs`: at most `most` samples judge, and with a
    /// `seed` there are samples for calibration too.
    ///
    /// # Errors
    /// Which split is missing or empty, and what [`Samples::fit`] says.
    pub fn read(
        path: &Path,
        inputs: &[TensorSignature],
        most: Option<u64>,
        seed: Option<u64>,
    ) -> Result<Self, DataError> {
        Self::of(source::open(path, inputs)?, inputs, most, seed)
    }

    /// The same for the arrays of a file.
    pub fn of(
        arrays: Arrays,
        inputs: &[TensorSignature],
        most: Option<u64>,
        seed: Option<u64>,
    ) -> Result<Self, DataError> {
        let Some(seed) = seed else {
            let evaluation = Samples::fit(split(arrays, "evaluation/")?, inputs, most)?;
            return Ok(Self { evaluation, calibration: None });
        };
        let named = |error| match error {
            DataError::Fit(message) => DataError::Fit(format!("calibration split: {message}")),
            other => other,
        };
        if arrays.iter().any(|(name, _)| prefix(name).is_some()) {
            let calibration = split(arrays.clone(), "calibration/")?;
            let calibration = Samples::fit(calibration, inputs, None).map_err(named)?;
            let evaluation = Samples::fit(split(arrays, "evaluation/")?, inputs, most)?;
            return Ok(Self { evaluation, calibration: Some(calibration) });
        }
        let (calibration, evaluation) = draw(Samples::fit(arrays, inputs, None)?, seed)?;
        Ok(Self { evaluation: evaluation.at_most(most)?, calibration: Some(calibration) })
    }
}

fn misfit<T>(message: String) -> Result<T, DataError> {
    Err(DataError::Fit(message))
}

/// Which rows of the arrays the samples are.
#[derive(Clone, Debug)]
enum Selection {
    /// All of them.
    All,
    /// These, ascending.
    Only(Arc<[usize]>),
    /// All but these, ascending.
    Except(Arc<[usize]>),
}

impl Selection {
    /// The row of the sample `index`.
    fn row(&self, index: usize) -> usize {
        match self {
            Self::All => index,
            Self::Only(rows) => rows.get(index).copied().unwrap_or(usize::MAX),
            Self::Except(rows) => {
                // As many of them stand before the row as leave at most `index` others before them.
                let (mut low, mut high) = (0, rows.len());
                while low < high {
                    let middle = low.midpoint(high);
                    let row = rows.get(middle).copied().unwrap_or(usize::MAX);
                    if row.saturating_sub(middle) <= index {
                        low = middle + 1
                    } else {
                        high = middle
                    }
                }
                index + low
            }
        }
    }
}

/// Samples that fit a model's inputs.
#[derive(Clone, Debug)]
pub struct Samples {
    inputs: Arrays,
    label: Option<Column>,
    selection: Selection,
    count: usize,
    fixed: Option<usize>,
}

impl Samples {
    /// Checks `arrays` against `inputs`.
    pub fn fit(
        arrays: Arrays,
        inputs: &[TensorSignature],
        most: Option<u64>,
    ) -> Result<Self, DataError> {
        let mut samples = Self {
            inputs: Vec::new(),
            label: None,
            selection: Selection::All,
            count: 0,
            fixed: None,
        };
        let mut counted: Option<(String, usize)> = None;
        let mut count = |name: &str, seen: usize| match &counted {
            Some((first, count)) if *count != seen => misfit(format!(
                "array {} has {seen} samples, array {} has {count}",
                quoted(name),
                quoted(first)
            )),
            Some(_) => Ok(()),
            None => {
                counted = Some((name.to_owned(), seen));
                Ok(())
            }
        };
        for input in inputs {
            let Some((_, array)) = arrays.iter().find(|(name, _)| *name == input.name) else {
                let have: Vec<String> =
                    arrays.iter().take(16).map(|(name, _)| quoted(name)).collect();
                return misfit(format!(
                    "there is no array for the model's input {}; the data hold {}",
                    quoted(&input.name),
                    have.join(", ")
                ));
            };
            check(input, array)?;
            if let (Some(seen), false) = (array.shape().first(), input.shape.is_empty()) {
                count(&input.name, *seen)?;
                samples.take_fixed(input)?;
            }
            samples.inputs.push((input.name.clone(), array.clone()));
        }
        for (name, array) in &arrays {
            if name == LABEL && !inputs.iter().any(|input| input.name == LABEL) {
                let seen = array.shape().first().copied().unwrap_or(0);
                count(name, seen)?;
                samples.label = Some(array.clone());
            } else if !inputs.iter().any(|input| input.name == *name) {
                let names: Vec<String> = inputs.iter().map(|input| quoted(&input.name)).collect();
                return misfit(format!(
                    "array {} is no input of the model, whose inputs are {}",
                    quoted(name),
                    names.join(", ")
                ));
            }
        }
        samples.count = counted.map_or(0, |(_, count)| count);
        samples.at_most(most)
    }

    /// The first `most` samples; all of them without a number.
    fn at_most(mut self, most: Option<u64>) -> Result<Self, DataError> {
        if let Some(most) = most {
            self.count = self.count.min(usize::try_from(most).unwrap_or(usize::MAX));
        }
        if self.count == 0 {
            return misfit("there are no samples".into());
        }
        match self.fixed {
            Some(fixed) if !self.count.is_multiple_of(fixed) => misfit(format!(
                "the model takes exactly {fixed} samples at a time, and {} are no multiple of it",
                self.count
            )),
            _ => Ok(self),
        }
    }

    fn take_fixed(&mut self, input: &TensorSignature) -> Result<(), DataError> {
        let fixed =
            input.shape.first().and_then(|dim| usize::try_from(*dim).ok()).filter(|dim| *dim > 0);
        match (self.fixed, fixed) {
            (Some(one), Some(other)) if one != other => misfit(format!(
                "input {} takes {other} samples at a time, another input {one}",
                quoted(&input.name)
            )),
            (None, Some(_)) => {
                self.fixed = fixed;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The first `most` of the samples, whole batches of a model that takes a fixed number.
    pub fn first(&self, most: usize) -> Self {
        let fixed = self.fixed.unwrap_or(1);
        let whole = (most / fixed * fixed).max(fixed);
        Self { count: self.count.min(whole), ..self.clone() }
    }

    /// How many samples there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether there are labels.
    pub fn labelled(&self) -> bool {
        self.label.is_some()
    }

    /// The labels of the samples from `start`, `length` of them: `[length]`, or `[length, …]`.
    ///
    /// # Errors
    /// When they cannot be read or are text.
    pub fn labels(&self, start: usize, length: usize) -> Result<Vec<f64>, DataError> {
        let Some(label) = &self.label else { return Ok(Vec::new()) };
        let tensor = self.read(label, start, length)?;
        match tensor.to_f64() {
            Some(values) => Ok(values),
            None => misfit("array \"label\" is text, numbers are needed".into()),
        }
    }

    /// The batch size to use where `wanted` were fine: a model may take only one size.
    pub fn batch(&self, wanted: usize) -> usize {
        self.fixed.unwrap_or(wanted).clamp(1, self.count)
    }

    /// The inputs of the samples from `start`, `length` of them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn inputs(&self, start: usize, length: usize) -> Result<Vec<(&str, Tensor)>, DataError> {
        let read = |(_, column): &(String, Column)| self.read(column, start, length);
        let tensors = self.inputs.iter().map(read).collect::<Result<Vec<Tensor>, DataError>>()?;
        Ok(self.inputs.iter().map(|(name, _)| name.as_str()).zip(tensors).collect())
    }

    /// Rows of `column`, those that lie together in one go.
    fn read(&self, column: &Column, start: usize, length: usize) -> Result<Tensor, DataError> {
        if column.shape().is_empty() {
            return column.rows(0, 1);
        }
        let end = start.saturating_add(length).min(self.count);
        if matches!(self.selection, Selection::All) {
            return column.rows(start, end.saturating_sub(start));
        }
        let mut data = Vec::new();
        let mut at = start;
        while at < end {
            let first = self.selection.row(at);
            let mut run = 1;
            while at + run < end && self.selection.row(at + run) == first + run {
                run += 1;
            }
            data.extend_from_slice(column.rows(first, run)?.data());
            at += run;
        }
        let mut shape = column.shape().to_vec();
        if let Some(first) = shape.first_mut() {
            *first = end.saturating_sub(start);
        }
        Tensor::new(column.datatype(), shape, data.into())
            .map_err(|error| DataError::Fit(error.to_string()))
    }
}

/// The split that the array `name` belongs to.
fn prefix(name: &str) -> Option<&'static str> {
    SPLITS.iter().find(|split| name.starts_with(**split)).copied()
}

/// The arrays of the split `wanted`, without its prefix; all arrays where none has a prefix.
fn split(arrays: Arrays, wanted: &str) -> Result<Arrays, DataError> {
    let prefixed = arrays.iter().filter(|(name, _)| prefix(name).is_some()).count();
    if prefixed == 0 {
        return Ok(arrays);
    }
    if prefixed < arrays.len() {
        let bare =
            arrays.iter().find(|(name, _)| prefix(name).is_none()).map_or("", |(name, _)| name);
        return misfit(format!(
            "array {} has none of the prefixes {}, others have",
            quoted(bare),
            SPLITS.join(", ")
        ));
    }
    let chosen: Arrays = arrays
        .into_iter()
        .filter_map(|(name, array)| Some((name.strip_prefix(wanted)?.to_owned(), array)))
        .collect();
    if chosen.is_empty() { misfit(format!("there is no {wanted} split")) } else { Ok(chosen) }
}

/// Divides samples without splits: at most half of them and [`MOST_DRAWN`], drawn by `seed`,
/// calibrate; the rest judge.
fn draw(all: Samples, seed: u64) -> Result<(Samples, Samples), DataError> {
    let fixed = all.fixed.unwrap_or(1);
    let share = (all.count / 2).min(MOST_DRAWN) / fixed * fixed;
    if share == 0 {
        return misfit(format!(
            "{} samples cannot be divided between calibration and evaluation; add more, or name the splits calibration/ and evaluation/",
            all.count
        ));
    }
    let mut drawn: Vec<usize> = choose(all.count, share, seed).into_iter().collect();
    drawn.sort_unstable();
    let drawn: Arc<[usize]> = drawn.into();
    let part = |selection, count| Samples { selection, count, ..all.clone() };
    let calibration = part(Selection::Only(drawn.clone()), share);
    Ok((calibration, part(Selection::Except(drawn), all.count - share)))
}

/// `share` different numbers below `count`, by the seed (Floyd's algorithm over SplitMix64).
fn choose(count: usize, share: usize, seed: u64) -> HashSet<usize> {
    let mut state = seed;
    let mut chosen = HashSet::new();
    for last in count - share..count {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        let number = (bits % (last as u64 + 1)) as usize;
        if !chosen.insert(number) {
            chosen.insert(last);
        }
    }
    chosen
}

fn check(input: &TensorSignature, array: &Column) -> Result<(), DataError> {
    let want = Datatype::from_name(&input.datatype);
    if want != Some(array.datatype()) {
        return misfit(format!(
            "array {} is {}, the model's input is {}",
            quoted(&input.name),
            array.datatype(),
            input.datatype
        ));
    }
    // The first dimension counts samples; a model that takes a fixed batch is fed several times.
    let fits = input.shape.len() == array.shape().len()
        && input.shape.iter().zip(array.shape()).skip(1).all(|(want, seen)| {
            *want < 0 || usize::try_from(*want).is_ok_and(|want| want == *seen)
        });
    if fits {
        return Ok(());
    }
    let want: Vec<String> =
        input.shape.iter().map(|d| if *d < 0 { "?".into() } else { d.to_string() }).collect();
    misfit(format!(
        "array {} has shape {:?}, the model's input has [{}] (samples first)",
        quoted(&input.name),
        array.shape(),
        want.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(shape: &[i64]) -> Vec<TensorSignature> {
        vec![TensorSignature { name: "x".into(), datatype: "FP32".into(), shape: shape.to_vec() }]
    }

    fn column(name: &str, count: usize) -> (String, Column) {
        let values: Vec<u8> = (0..count).flat_map(|value| (value as f32).to_le_bytes()).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &values).unwrap();
        (name.to_owned(), Column::plain(Arc::new(file), 0, Datatype::Fp32, vec![count, 1]))
    }

    fn numbers(samples: &Samples) -> Vec<u64> {
        let inputs = samples.inputs(0, samples.count()).unwrap();
        inputs[0].1.to_f64().unwrap().into_iter().map(|value| value as u64).collect()
    }

    #[test]
    fn the_seed_divides_samples_without_overlap() {
        let of = |seed| {
            let splits =
                Splits::of(vec![column("x", 100)], &signature(&[-1, 1]), None, Some(seed)).unwrap();
            (numbers(&splits.calibration.unwrap()), numbers(&splits.evaluation))
        };
        let (calibration, evaluation) = of(7);
        assert_eq!((calibration.len(), evaluation.len()), (50, 50));
        let all: HashSet<u64> = calibration.iter().chain(&evaluation).copied().collect();
        assert_eq!(all.len(), 100);
        assert_eq!(of(7), (calibration.clone(), evaluation));
        assert_ne!(of(8).0, calibration);
    }

    #[test]
    fn any_piece_of_a_drawn_split_is_the_same_samples() {
        let splits =
            Splits::of(vec![column("x", 41)], &signature(&[-1, 1]), None, Some(3)).unwrap();
        for samples in [splits.evaluation, splits.calibration.unwrap()] {
            let all = numbers(&samples);
            for (start, length) in [(0, 1), (5, 7), (samples.count() - 3, 9)] {
                let piece = samples.inputs(start, length).unwrap()[0].1.to_f64().unwrap();
                let wanted = all.iter().skip(start).take(length).map(|value| *value as f64);
                assert_eq!(piece, wanted.collect::<Vec<f64>>());
            }
        }
    }

    #[test]
    fn calibration_takes_at_most_512_and_whole_batches() {
        let of = |count, shape: &[i64]| {
            Splits::of(vec![column("x", count)], &signature(shape), Some(3), Some(0)).unwrap()
        };
        assert_eq!(of(5000, &[-1, 1]).calibration.unwrap().count(), 512);
        assert_eq!(of(5000, &[-1, 1]).evaluation.count(), 3);
        assert_eq!(of(21, &[3, 1]).calibration.unwrap().count(), 9);
    }

    #[test]
    fn named_splits_stay_apart_and_none_may_be_missing() {
        let both = vec![column("calibration/x", 3), column("evaluation/x", 5)];
        let splits = Splits::of(both, &signature(&[-1, 1]), None, Some(0)).unwrap();
        assert_eq!((splits.calibration.unwrap().count(), splits.evaluation.count()), (3, 5));
        for (arrays, wanted) in [
            (vec![column("evaluation/x", 5)], "calibration/"),
            (vec![column("calibration/x", 5)], "evaluation/"),
            (vec![column("calibration/x", 0), column("evaluation/x", 5)], "no samples"),
            (vec![column("x", 1)], "cannot be divided"),
            (vec![column("calibration/y", 3), column("evaluation/x", 5)], "calibration split"),
        ] {
            let error =
                Splits::of(arrays, &signature(&[-1, 1]), None, Some(0)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
