//! AdaRound (Nagel and others, "Up or down? Adaptive rounding", 2020): chooses for each weight between the
//! integer below and the one above by minimising the layer's output error. Deterministic: it starts from
//! the weights themselves, and the data come in only as second moments.

use crate::compress::int8::Layout;
use crate::compress::moments::{self, Moments};

/// Steps of the optimiser.
const STEPS: u32 = 400;
/// The first of them in which weights are not yet pushed to an integer.
const WARM: u32 = STEPS / 5;
/// What a weight between two integers costs beside the error; the reference's.
const PUSH: f32 = 0.01;
/// The exponent of that cost falls from the first to the second.
const EXPONENT: (f32, f32) = (20.0, 2.0);
/// Adam's step, and its two averages.
const STEP: f32 = 1e-2;
const AVERAGES: (f32, f32) = (0.9, 0.999);
/// The sigmoid is stretched to these ends and clipped, so that it reaches 0 and 1.
const ENDS: (f32, f32) = (-0.1, 1.1);

/// Integers for `values`, rows of which are output channels whose inputs have `moments`: row r is of
/// group r / (rows / groups). `scales` has one number per row or one for all. A row keeps its nearest
/// integers where those make the smaller error. Returns the integers and how many rows are better.
pub fn round(values: &[f32], scales: &[f32], moments: &Moments) -> (Vec<i8>, u64) {
    let width = moments.width.max(1);
    let rows = values.len() / width;
    let per_group = rows.div_ceil(moments.groups.len().max(1)).max(1);
    let (mut integers, mut better) = (Vec::with_capacity(values.len()), 0);
    for (at, row) in values.chunks_exact(width).enumerate() {
        let scale = scales.get(at).or(scales.first()).copied().unwrap_or(1.0);
        let nearest: Vec<i8> =
            row.iter().map(|value| clamp((value / scale).round_ties_even())).collect();
        let Some(moments) = moments.groups.get(at / per_group) else { continue };
        let chosen = choose(row, scale, moments);
        let error = |integers: &[i8]| {
            let change: Vec<f32> =
                row.iter().zip(integers).map(|(w, q)| w - f32::from(*q) * scale).collect();
            moments::error(&change, moments)
        };
        if error(&chosen) < error(&nearest) {
            better += 1;
            integers.extend(chosen);
        } else {
            integers.extend(nearest);
        }
    }
    (integers, better)
}

fn clamp(integer: f32) -> i8 {
    integer.clamp(-128.0, 127.0) as i8
}

/// The rectified sigmoid and its slope.
fn gate(v: f32) -> (f32, f32) {
    let sigmoid = 1.0 / (1.0 + (-v).exp());
    let stretched = sigmoid * (ENDS.1 - ENDS.0) + ENDS.0;
    let inside = stretched > 0.0 && stretched < 1.0;
    let slope = if inside { (ENDS.1 - ENDS.0) * sigmoid * (1.0 - sigmoid) } else { 0.0 };
    (stretched.clamp(0.0, 1.0), slope)
}

/// Optimises one row.
fn choose(row: &[f32], scale: f32, moments: &[f64]) -> Vec<i8> {
    let floors: Vec<f32> = row.iter().map(|value| (value / scale).floor()).collect();
    let matrix: Vec<f32> = moments.iter().map(|value| *value as f32).collect();
    // The gate of the start is the fraction that flooring loses.
    let start = |(value, floor): (&f32, &f32)| {
        let rest = (value / scale - floor).clamp(0.0, 1.0);
        -((ENDS.1 - ENDS.0) / (rest - ENDS.0) - 1.0).ln()
    };
    let mut v: Vec<f32> = row.iter().zip(&floors).map(start).collect();
    let (mut mean, mut square) = (vec![0.0_f32; row.len()], vec![0.0_f32; row.len()]);
    // Errors are measured in steps of the weight, so that the push weighs the same in every layer.
    let unit = matrix.iter().step_by(row.len() + 1).sum::<f32>() / row.len() as f32;
    let mut gradient = vec![0.0_f32; row.len()];
    for step in 0..STEPS {
        let change: Vec<f32> = row
            .iter()
            .zip(&floors)
            .zip(&v)
            .map(|((value, floor), v)| value / scale - floor - gate(*v).0)
            .collect();
        gradient.fill(0.0);
        for (line, own) in matrix.chunks_exact(row.len()).zip(&change) {
            gradient.iter_mut().zip(line).for_each(|(sum, m)| *sum += own * m);
        }
        let exponent = exponent(step);
        for at in 0..row.len() {
            let (Some(v), Some(mean), Some(square), Some(error)) =
                (v.get_mut(at), mean.get_mut(at), square.get_mut(at), gradient.get(at))
            else {
                break;
            };
            let (gate, slope) = gate(*v);
            let push = exponent.map_or(0.0, |exponent| {
                let away = 2.0 * gate - 1.0;
                -2.0 * PUSH * exponent * away.abs().powf(exponent - 1.0) * away.signum()
            });
            let gradient = slope * (-2.0 * error / unit.max(f32::MIN_POSITIVE) + push);
            *mean = AVERAGES.0 * *mean + (1.0 - AVERAGES.0) * gradient;
            *square = AVERAGES.1 * *square + (1.0 - AVERAGES.1) * gradient * gradient;
            let (first, second) =
                (1.0 - AVERAGES.0.powi(step as i32 + 1), 1.0 - AVERAGES.1.powi(step as i32 + 1));
            *v -= STEP * (*mean / first) / ((*square / second).sqrt() + 1e-8);
        }
    }
    floors
        .iter()
        .zip(&v)
        .map(|(floor, v)| clamp(floor + f32::from(u8::from(gate(*v).0 >= 0.5))))
        .collect()
}

/// The exponent of the push at `step`: half a cosine from the first to the last; `None` while warming.
fn exponent(step: u32) -> Option<f32> {
    let share = step.checked_sub(WARM)? as f32 / (STEPS - WARM) as f32;
    let fall = 0.5 * (1.0 + (share * std::f32::consts::PI).cos());
    Some(EXPONENT.1 + (EXPONENT.0 - EXPONENT.1) * fall)
}

/// `values` with the numbers of each channel side by side, and back with `back`.
pub fn by_channel<T: Copy>(values: &[T], layout: Layout, back: bool) -> Vec<T> {
    let (channels, inner) = (layout.channels.max(1), layout.inner.max(1));
    let outer = values.len() / (channels * inner);
    let place =
        |outer_at: usize, channel: usize, at: usize| (outer_at * channels + channel) * inner + at;
    let turned =
        |outer_at: usize, channel: usize, at: usize| (channel * outer + outer_at) * inner + at;
    let mut result = values.to_vec();
    for outer_at in 0..outer {
        for channel in 0..channels {
            for at in 0..inner {
                let (from, to) = (place(outer_at, channel, at), turned(outer_at, channel, at));
                let (from, to) = if back { (to, from) } else { (from, to) };
                if let (Some(value), Some(slot)) = (values.get(from), result.get_mut(to)) {
                    *slot = *value;
                }
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_share_an_input_round_against_each_other() {
        // Nearest rounds all four down; together they lose 1.6 of what the input needs.
        let moments = Moments::of(4, vec![vec![1.0; 16]]);
        let (integers, better) = round(&[0.45, 1.35, -0.58, 2.38], &[1.0], &moments);
        let sum: i32 = integers.iter().map(|value| i32::from(*value)).sum();
        assert!((3..=4).contains(&sum) && better == 1, "{integers:?}");
    }

    #[test]
    fn inputs_that_say_nothing_leave_the_nearest_integers() {
        let moments = Moments::of(2, vec![vec![0.0; 4]]);
        assert_eq!(round(&[0.4, 1.6, -127.6, -200.0], &[1.0], &moments).0, [0, 2, -128, -128]);
    }

    #[test]
    fn channels_come_together_and_go_back() {
        let layout = Layout { channels: 2, inner: 1 };
        let turned = by_channel(&[1, 2, 3, 4, 5, 6], layout, false);
        assert_eq!(turned, [1, 3, 5, 2, 4, 6]);
        assert_eq!(by_channel(&turned, layout, true), [1, 2, 3, 4, 5, 6]);
    }
}
