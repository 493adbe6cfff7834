//! The data that judge a model: one array per input, and `label` where there are labels.
//!
//! Names with `evaluation/` before them are the evaluation split, `train/` and `calibration/` the
//! others. In an archive without any prefix every sample judges, as long as no step learns from
//! data: the steps that do will draw their share by the recipe's seed.

use std::path::Path;

use lithe::artifact::TensorSignature;

use crate::compress::npz::{self, NpzError};
use crate::onnx::refusal::quoted;
use crate::tensor::{Datatype, Tensor};

/// The array with the labels.
pub const LABEL: &str = "label";
const SPLITS: [&str; 3] = ["train/", "calibration/", "evaluation/"];

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
    /// Reads the evaluation split at `path` for a model with `inputs`; at most `most` samples.
    ///
    /// # Errors
    /// Which array is missing, too much, or of another type or shape than the model's input.
    pub fn read(
        path: &Path,
        inputs: &[TensorSignature],
        most: Option<u64>,
    ) -> Result<Self, DataError> {
        Self::fit(evaluation(npz::read(path)?)?, inputs, most)
    }

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
            return misfit("the evaluation split has no samples".into());
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

/// The arrays of the evaluation split, without its prefix.
fn evaluation(arrays: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, DataError> {
    let split = |name: &str| SPLITS.iter().find(|split| name.starts_with(**split)).copied();
    let prefixed = arrays.iter().filter(|(name, _)| split(name).is_some()).count();
    if prefixed == 0 {
        return Ok(arrays);
    }
    if prefixed < arrays.len() {
        let bare =
            arrays.iter().find(|(name, _)| split(name).is_none()).map_or("", |(name, _)| name);
        return misfit(format!(
            "array {} has none of the prefixes {}, others have",
            quoted(bare),
            SPLITS.join(", ")
        ));
    }
    let chosen: Vec<(String, Tensor)> = arrays
        .into_iter()
        .filter_map(|(name, array)| Some((name.strip_prefix("evaluation/")?.to_owned(), array)))
        .collect();
    if chosen.is_empty() { misfit("there is no evaluation/ split".into()) } else { Ok(chosen) }
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
