//! The data that judge a model: one array per input, and `label` where there are labels.
//!
//! Names with `evaluation/` before them are the evaluation split, `train/` and `calibration/` the
//! others. In an archive without any prefix every sample judges, as long as no step learns from
//! data: for those that do, the recipe's seed draws a share that then judges nothing.

use std::collections::HashSet;
use std::path::Path;

use lithe::artifact::TensorSignature;

use crate::compress::npz::{self, NpzError};
use crate::onnx::refusal::quoted;
use crate::tensor::{Datatype, Tensor};

/// The array with the labels.
pub const LABEL: &str = "label";
const SPLITS: [&str; 3] = ["train/", "calibration/", "evaluation/"];

/// The most samples that calibration draws from an archive without splits: ranges settle long before.
const MOST_DRAWN: usize = 512;

/// The samples of one compression.
#[derive(Clone, Debug)]
pub struct Splits {
    /// What judges the result.
    pub evaluation: Samples,
    /// What ranges are measured on, where a step needs it.
    pub calibration: Option<Samples>,
}

impl Splits {
    /// Reads the archive at `path` for a model with `inputs`: at most `most` samples judge, and with
    /// a `seed` there are samples for calibration too.
    ///
    /// # Errors
    /// Which split is missing or empty, and what [`Samples::fit`] says.
    pub fn read(
        path: &Path,
        inputs: &[TensorSignature],
        most: Option<u64>,
        seed: Option<u64>,
    ) -> Result<Self, DataError> {
        Self::of(npz::read(path)?, inputs, most, seed)
    }

    /// The same for the arrays of an archive.
    pub fn of(
        arrays: Vec<(String, Tensor)>,
        inputs: &[TensorSignature],
        most: Option<u64>,
        seed: Option<u64>,
    ) -> Result<Self, DataError> {
        let Some(seed) = seed else {
            let evaluation = Samples::fit(split(arrays, "evaluation/")?, inputs, most)?;
            return Ok(Self { evaluation, calibration: None });
        };
        let (calibration, evaluation) = if arrays.iter().any(|(name, _)| prefix(name).is_some()) {
            (split(arrays.clone(), "calibration/")?, split(arrays, "evaluation/")?)
        } else {
            draw(arrays, inputs, seed)?
        };
        let named = |error| match error {
            DataError::Fit(message) => DataError::Fit(format!("calibration split: {message}")),
            other => other,
        };
        let calibration = Samples::fit(calibration, inputs, None).map_err(named)?;
        Ok(Self {
            evaluation: Samples::fit(evaluation, inputs, most)?,
            calibration: Some(calibration),
        })
    }
}

/// What is wrong with the data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] NpzError),
    /// The arrays do not fit the model or each other.
    #[error("{0}")]
    Fit(String),
}

fn misfit<T>(message: String) -> Result<T, DataError> {
    Err(DataError::Fit(message))
}

/// Samples that fit a model's inputs.
#[derive(Clone, Debug)]
pub struct Samples {
    inputs: Vec<(String, Tensor)>,
    label: Option<Tensor>,
    count: usize,
    fixed: Option<usize>,
}

impl Samples {
    /// Checks `arrays` against `inputs`.
    pub fn fit(
        arrays: Vec<(String, Tensor)>,
        inputs: &[TensorSignature],
        most: Option<u64>,
    ) -> Result<Self, DataError> {
        let mut samples = Self { inputs: Vec::new(), label: None, count: 0, fixed: None };
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
        if let Some(most) = most {
            samples.count = samples.count.min(usize::try_from(most).unwrap_or(usize::MAX));
        }
        if samples.count == 0 {
            return misfit("there are no samples".into());
        }
        match samples.fixed {
            Some(fixed) if !samples.count.is_multiple_of(fixed) => misfit(format!(
                "the model takes exactly {fixed} samples at a time, and {} are no multiple of it",
                samples.count
            )),
            _ => Ok(samples),
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

    /// The labels, when there are any: `[samples]`, or `[samples, …]` for regressions.
    pub fn label(&self) -> Option<&Tensor> {
        self.label.as_ref()
    }

    /// The batch size to use where `wanted` were fine: a model may take only one size.
    pub fn batch(&self, wanted: usize) -> usize {
        self.fixed.unwrap_or(wanted).clamp(1, self.count)
    }

    /// The inputs of the samples from `start`, `length` of them.
    pub fn inputs(&self, start: usize, length: usize) -> Vec<(&str, Tensor)> {
        self.inputs
            .iter()
            .map(|(name, array)| (name.as_str(), rows(array, start, length)))
            .collect()
    }
}

/// The rows of `array` from `start`, `length` of them; an array without dimensions is for every sample.
fn rows(array: &Tensor, start: usize, length: usize) -> Tensor {
    let Some((count, rest)) = array.shape().split_first() else { return array.clone() };
    let (start, end) = (start.min(*count), start.saturating_add(length).min(*count));
    let mut shape = vec![end - start];
    shape.extend_from_slice(rest);
    let data = match array.datatype().size() {
        Some(size) => {
            let row = size * rest.iter().product::<usize>();
            array.data().slice(start * row..end * row)
        }
        None => {
            let per = rest.iter().product::<usize>();
            let items = array.strings();
            let chosen = items.get(start * per..end * per).unwrap_or_default();
            return Tensor::from_strings(shape, chosen).unwrap_or_else(|_| array.clone());
        }
    };
    Tensor::new(array.datatype(), shape, data).unwrap_or_else(|_| array.clone())
}

/// The split that the array `name` belongs to.
fn prefix(name: &str) -> Option<&'static str> {
    SPLITS.iter().find(|split| name.starts_with(**split)).copied()
}

/// The arrays of the split `wanted`, without its prefix; all arrays where none has a prefix.
fn split(arrays: Vec<(String, Tensor)>, wanted: &str) -> Result<Vec<(String, Tensor)>, DataError> {
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
    let chosen: Vec<(String, Tensor)> = arrays
        .into_iter()
        .filter_map(|(name, array)| Some((name.strip_prefix(wanted)?.to_owned(), array)))
        .collect();
    if chosen.is_empty() { misfit(format!("there is no {wanted} split")) } else { Ok(chosen) }
}

/// Arrays by name.
type Arrays = Vec<(String, Tensor)>;

/// Divides arrays without splits: at most half of the samples and [`MOST_DRAWN`], drawn by `seed`,
/// calibrate; the rest judge.
fn draw(
    arrays: Arrays,
    inputs: &[TensorSignature],
    seed: u64,
) -> Result<(Arrays, Arrays), DataError> {
    // What is wrong with the arrays is said of them as they are in the file.
    let all = Samples::fit(arrays.clone(), inputs, None)?;
    let fixed = all.fixed.unwrap_or(1);
    let share = (all.count / 2).min(MOST_DRAWN) / fixed * fixed;
    if share == 0 {
        return misfit(format!(
            "{} samples cannot be divided between calibration and evaluation; add more, or name the splits calibration/ and evaluation/",
            all.count
        ));
    }
    let drawn = choose(all.count, share, seed);
    let (calibration, evaluation): (Vec<usize>, Vec<usize>) =
        (0..all.count).partition(|index| drawn.contains(index));
    let apply = |chosen: &[usize]| -> Arrays {
        arrays.iter().map(|(name, array)| (name.clone(), pick(array, chosen))).collect()
    };
    Ok((apply(&calibration), apply(&evaluation)))
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

/// The samples of `array` with the numbers `chosen`, in that order.
fn pick(array: &Tensor, chosen: &[usize]) -> Tensor {
    let Some((_, rest)) = array.shape().split_first() else { return array.clone() };
    let mut shape = vec![chosen.len()];
    shape.extend_from_slice(rest);
    let per = rest.iter().product::<usize>();
    let picked = match array.datatype().size() {
        Some(size) => {
            let row = |index: &usize| {
                array.data().get(index * per * size..(index + 1) * per * size).unwrap_or_default()
            };
            let data: Vec<u8> = chosen.iter().flat_map(row).copied().collect();
            Tensor::new(array.datatype(), shape, data.into())
        }
        None => {
            let items = array.strings();
            let row = |index: &usize| items.get(index * per..(index + 1) * per).unwrap_or_default();
            let picked: Vec<bytes::Bytes> = chosen.iter().flat_map(row).cloned().collect();
            Tensor::from_strings(shape, &picked)
        }
    };
    picked.unwrap_or_else(|_| array.clone())
}

fn check(input: &TensorSignature, array: &Tensor) -> Result<(), DataError> {
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

    fn column(name: &str, count: usize) -> (String, Tensor) {
        let values: Vec<f32> = (0..count).map(|value| value as f32).collect();
        (name.to_owned(), Tensor::from_f32(vec![count, 1], &values).unwrap())
    }

    fn numbers(samples: &Samples) -> Vec<u64> {
        let inputs = samples.inputs(0, samples.count());
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
