//! Second moments of what layers read: for each layer the mean of x xᵀ over calibration data, where x is
//! one row of a matrix product's input, or what one position of a convolution's kernel covers. The mean
//! squared error that a change D of a weight row makes in the layer's output is D M Dᵀ, which is all
//! that GPTQ and AdaRound need of the data.

use std::collections::HashMap;

use crate::compress::calibrate::{self, Feed};
use crate::onnx::graph::{attribute, input, int_of};
use crate::onnx::{ModelProto, NodeProto, Refusal, operators};
use crate::tensor::Tensor;

/// Rows that one sample gives at most, evenly spread: neighbours tell the same.
const ROWS: usize = 64;
/// Bytes of the moments that are gathered in one pass over the data.
const MOST_BYTES: usize = 256 << 20;

/// The moments of one layer's input: a symmetric matrix for each group.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Numbers in x.
    pub width: usize,
    /// One row-major `width` x `width` matrix for each group; only j >= i is filled while gathering.
    pub groups: Vec<Vec<f64>>,
    rows: u64,
}

/// How a layer reads its input.
#[derive(Clone, Debug)]
pub enum Reading {
    /// Rows of this many numbers.
    Rows(usize),
    /// A convolution's kernel.
    Patches(Kernel),
}

/// The geometry of a convolution.
#[derive(Clone, Debug)]
pub struct Kernel {
    channels: usize,
    groups: usize,
    size: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    before: Vec<usize>,
    after: Vec<usize>,
}

impl Reading {
    fn width(&self) -> usize {
        match self {
            Self::Rows(width) => *width,
            Self::Patches(kernel) => {
                kernel.channels / kernel.groups.max(1) * kernel.size.iter().product::<usize>()
            }
        }
    }

    fn groups(&self) -> usize {
        match self {
            Self::Rows(_) => 1,
            Self::Patches(kernel) => kernel.groups,
        }
    }

    /// Bytes of the moments; `None` when they are more than one pass may take.
    pub fn bytes(&self) -> Option<usize> {
        let width = self.width();
        let bytes = width.checked_mul(width)?.checked_mul(self.groups())?.checked_mul(8)?;
        (bytes <= MOST_BYTES).then_some(bytes)
    }
}

/// The geometry of the Conv `node` with a weight of `dims`; `None` for padding that depends on the
/// input's size.
pub fn kernel(node: &NodeProto, dims: &[i64]) -> Option<Kernel> {
    let automatic =
        attribute(node, "auto_pad").is_some_and(|a| !matches!(&a.s[..], b"NOTSET" | b""));
    if !operators::is(node, "Conv") || automatic {
        return None;
    }
    let size = |dim: &i64| usize::try_from(*dim).ok();
    let spatial: Vec<usize> = dims.get(2..)?.iter().map(size).collect::<Option<_>>()?;
    let list = |name: &str, length: usize, default: usize| -> Option<Vec<usize>> {
        match attribute(node, name) {
            Some(found) => {
                let list: Option<Vec<usize>> = found.ints.iter().map(size).collect();
                list.filter(|list| list.len() == length)
            }
            None => Some(vec![default; length]),
        }
    };
    let rank = spatial.len();
    let mut before = list("pads", 2 * rank, 0)?;
    let after = before.split_off(rank);
    let groups = usize::try_from(int_of(node, "group", 1)).ok().filter(|groups| *groups > 0)?;
    let channels = size(dims.get(1)?)?.checked_mul(groups)?;
    let (strides, dilations) = (list("strides", rank, 1)?, list("dilations", rank, 1)?);
    let zero = |list: &[usize]| list.contains(&0);
    if zero(&strides) || zero(&dilations) || zero(&spatial) || channels == 0 {
        return None;
    }
    Some(Kernel { channels, groups, size: spatial, strides, dilations, before, after })
}

/// Gathers the moments of `layers`, each a node and how it reads its first input, and hands them to
/// `take` one layer after another. Memory is bounded: as many passes over the data as that needs.
///
/// # Errors
/// What `feed` and `take` say; `NotFinite` for NaN or an infinity.
pub fn gather(
    model: &ModelProto,
    layers: &[(NodeProto, Reading)],
    feed: Feed<'_>,
    take: &mut dyn FnMut(&NodeProto, &Moments) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut rest = layers;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|(_, reading)| {
            bytes += reading.bytes().unwrap_or(MOST_BYTES);
            bytes <= MOST_BYTES
        });
        let count = fits.count().max(1);
        let (now, later) = rest.split_at(count);
        for ((node, _), moments) in now.iter().zip(pass(model, now, feed)?) {
            take(node, &moments)?;
        }
        rest = later;
    }
    Ok(())
}

fn pass(
    model: &ModelProto,
    layers: &[(NodeProto, Reading)],
    feed: Feed<'_>,
) -> Result<Vec<Moments>, Refusal> {
    let mut tensors: Vec<String> = Vec::new();
    let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, (node, _)) in layers.iter().enumerate() {
        let places = readers.entry(input(node, 0)).or_default();
        if places.is_empty() {
            tensors.push(input(node, 0).to_owned());
        }
        places.push(at);
    }
    let mut moments: Vec<Moments> =
        layers.iter().map(|(_, reading)| Moments::new(reading)).collect();
    let (watched, names) = calibrate::watch(model, &tensors);
    feed(&watched, &mut |name, tensor| {
        let Some(name) = names.get(name) else { return Ok(()) };
        calibrate::extent(name, tensor)?;
        let values: Vec<f32> = calibrate::floats(tensor).collect();
        for at in readers.get(name.as_str()).into_iter().flatten() {
            if let (Some(moments), Some((_, reading))) = (moments.get_mut(*at), layers.get(*at)) {
                moments.add(reading, tensor, &values);
            }
        }
        Ok(())
    })?;
    moments.iter_mut().for_each(Moments::finish);
    Ok(moments)
}

impl Moments {
    /// Moments that are known, one row-major `width` x `width` matrix for each group.
    #[cfg(test)]
    pub fn of(width: usize, groups: Vec<Vec<f64>>) -> Self {
        Self { width, groups, rows: 1 }
    }

    fn new(reading: &Reading) -> Self {
        let width = reading.width();
        Self { width, groups: vec![vec![0.0; width * width]; reading.groups()], rows: 0 }
    }

    fn add(&mut self, reading: &Reading, tensor: &Tensor, values: &[f32]) {
        match reading {
            Reading::Rows(width) => {
                let count = values.len() / (*width).max(1);
                for row in values.chunks_exact((*width).max(1)).step_by(count.div_ceil(ROWS).max(1))
                {
                    self.row(0, row);
                    self.rows += 1;
                }
            }
            Reading::Patches(kernel) => {
                kernel.visit(tensor.shape(), values, &mut |group, patch| {
                    self.row(group, patch);
                    self.rows += u64::from(group == 0);
                })
            }
        }
    }

    /// Adds x xᵀ to a group, j >= i only.
    fn row(&mut self, group: usize, row: &[f32]) {
        let Some(sums) = self.groups.get_mut(group) else { return };
        for (at, (line, value)) in sums.chunks_exact_mut(self.width.max(1)).zip(row).enumerate() {
            if *value == 0.0 {
                continue;
            }
            let value = f64::from(*value);
            let (line, row) = (line.get_mut(at..), row.get(at..));
            for (sum, other) in line.into_iter().flatten().zip(row.into_iter().flatten()) {
                *sum += value * f64::from(*other);
            }
        }
    }

    /// Divides by the number of rows and fills the other half.
    fn finish(&mut self) {
        let (width, rows) = (self.width, self.rows.max(1) as f64);
        for sums in &mut self.groups {
            for at in 0..width {
                for other in at..width {
                    let Some(sum) = sums.get_mut(at * width + other) else { continue };
                    *sum /= rows;
                    let mean = *sum;
                    if let Some(mirror) = sums.get_mut(other * width + at) {
                        *mirror = mean;
                    }
                }
            }
        }
    }
}

impl Kernel {
    /// Hands over what the kernel covers at some positions of each sample, group by group, in the order
    /// of a weight's numbers.
    fn visit(&self, shape: &[usize], values: &[f32], take: &mut dyn FnMut(usize, &[f32])) {
        let rank = self.size.len();
        let Some((&[samples, channels], spatial)) = shape.split_first_chunk::<2>() else { return };
        let Some(steps) = self.steps(spatial).filter(|_| channels == self.channels) else { return };
        let positions: usize = steps.iter().product();
        let plane: usize = spatial.iter().product();
        let covered: usize = self.size.iter().product();
        let per = self.channels / self.groups;
        let mut patch = vec![0.0_f32; per * covered];
        for sample in 0..samples {
            for position in (0..positions).step_by(positions.div_ceil(ROWS).max(1)) {
                let corner = unravel(position, &steps);
                for group in 0..self.groups {
                    for (at, number) in patch.iter_mut().enumerate() {
                        let channel = group * per + at / covered;
                        let inner = unravel(at % covered, &self.size);
                        let place = (0..rank).try_fold(0, |place, axis| {
                            let of = |list: &[usize]| list.get(axis).copied().unwrap_or(0);
                            let along =
                                of(&corner) * of(&self.strides) + of(&inner) * of(&self.dilations);
                            let along = along.checked_sub(of(&self.before))?;
                            (along < of(spatial)).then_some(place * of(spatial) + along)
                        });
                        let start = (sample * channels + channel) * plane;
                        // Padding is zero.
                        *number = place
                            .and_then(|place| values.get(start + place).copied())
                            .unwrap_or(0.0);
                    }
                    take(group, &patch);
                }
            }
        }
    }

    /// Positions of the kernel along each axis of an input.
    fn steps(&self, spatial: &[usize]) -> Option<Vec<usize>> {
        if spatial.len() != self.size.len() {
            return None;
        }
        (0..spatial.len())
            .map(|axis| {
                let of = |list: &[usize]| list.get(axis).copied();
                let span = (of(&self.size)? - 1) * of(&self.dilations)? + 1;
                let padded = of(spatial)? + of(&self.before)? + of(&self.after)?;
                Some(padded.checked_sub(span)? / of(&self.strides)? + 1)
            })
            .collect()
    }
}

/// The coordinates of the `at`-th element of `shape`, row-major.
fn unravel(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinates = vec![0; shape.len()];
    for (coordinate, size) in coordinates.iter_mut().zip(shape).rev() {
        *coordinate = at % size.max(&1);
        at /= size.max(&1);
    }
    coordinates
}

/// The mean squared error in a layer's output when its weight row changes by `change`.
pub fn error(change: &[f32], moments: &[f64]) -> f64 {
    let width = change.len().max(1);
    let lines = moments.chunks_exact(width).zip(change);
    lines
        .map(|(line, own)| {
            let sum: f64 = line.iter().zip(change).map(|(m, other)| m * f64::from(*other)).sum();
            sum * f64::from(*own)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{ints, node};

    #[test]
    fn a_patch_is_what_the_kernel_covers() {
        let mut conv = node("Conv", "c", &["x", "w"], &["y"]);
        conv.attribute = vec![ints("pads", &[1, 0, 0, 0]), ints("strides", &[2, 1])];
        let kernel = kernel(&conv, &[3, 1, 2, 2]).unwrap();
        let values: Vec<f32> = (1..=6).map(|value| value as f32).collect();
        let mut seen = Vec::new();
        kernel.visit(&[1, 1, 2, 3], &values, &mut |_, patch| seen.push(patch.to_vec()));
        assert_eq!(seen, [[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 2.0, 3.0]]);
    }

    #[test]
    fn moments_are_means_of_products_and_give_the_error() {
        let reading = Reading::Rows(2);
        let mut moments = Moments::new(&reading);
        let rows = [1.0_f32, 2.0, 3.0, -1.0];
        moments.add(&reading, &Tensor::from_f32(vec![2, 2], &rows).unwrap(), &rows);
        moments.finish();
        assert_eq!(moments.groups, [vec![5.0, -0.5, -0.5, 2.5]]);
        // ((1 + 2)^2 + (3 - 1)^2) / 2
        assert_eq!(error(&[1.0, 1.0], &moments.groups[0]), 6.5);
    }
}
