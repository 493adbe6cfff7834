//! GPTQ (Frantar and others, 2022): rounds the rows of a matrix one after another, and lets the rows that
//! are still floats take up the error that each rounding makes in the layer's output. Scales and storage
//! are those of [`nbits`].

use crate::compress::moments;
use crate::compress::nbits::{self, Layout, Quantized};

/// The share of the mean diagonal that is added to it, so that the matrix can be inverted; the
/// reference's `percdamp`.
const DAMPING: f64 = 0.01;

/// Quantizes `weights`, a row-major [in, out] matrix with rows of `columns` numbers, for inputs with the
/// second moments `moments`, [in, in]. A column keeps its nearest integers where those make the smaller
/// error.
///
/// Returns `None` when a number is not finite.
pub fn quantize(
    weights: &[f32],
    columns: usize,
    layout: Layout,
    moments: &[f64],
) -> Option<Quantized> {
    let nearest = nbits::quantize(weights, columns, layout)?;
    let rows = weights.len() / columns.max(1);
    let Some(inverse) = inverse(moments, rows) else { return Some(nearest) };
    let rounded = round(weights, columns.max(1), layout, &inverse);
    let plain = nbits::round(weights, columns, layout);
    Some(better(weights, (columns.max(1), layout), [plain, rounded], moments))
}

/// Integers [in, out] and scales [blocks, out].
type Rounded = (Vec<u8>, Vec<f32>);

/// The greedy rounding, row by row.
fn round(weights: &[f32], columns: usize, layout: Layout, inverse: &[f64]) -> Rounded {
    let mut left = weights.to_vec();
    let rows = weights.len() / columns;
    let (mut integers, mut scales) = (Vec::with_capacity(weights.len()), Vec::new());
    let mut errors = vec![0.0_f32; columns];
    for row in 0..rows {
        let (before, after) = left.split_at_mut((row + 1) * columns);
        let Some(own) = before.get(row * columns..) else { break };
        if row % layout.block == 0 {
            let end = (layout.block - 1).min(rows - row - 1) * columns;
            let rest = after.get(..end).unwrap_or_default();
            let block = (0..columns).map(|at| {
                let column = own.iter().chain(rest).skip(at).step_by(columns);
                nbits::scale(column, layout)
            });
            scales.extend(block);
        }
        let line = inverse.get(row * rows..(row + 1) * rows).unwrap_or_default();
        let pivot = line.get(row).copied().unwrap_or(1.0) as f32;
        let start = row / layout.block * columns;
        let used = scales.get(start..).unwrap_or_default();
        for ((error, weight), scale) in errors.iter_mut().zip(own).zip(used) {
            let integer = nbits::integer(*weight, *scale, layout);
            integers.push(integer);
            *error = (weight - nbits::float(integer, *scale, layout)) / pivot;
        }
        let lower = after.chunks_exact_mut(columns).zip(line.iter().skip(row + 1));
        for (target, factor) in lower {
            let factor = *factor as f32;
            if factor != 0.0 {
                target.iter_mut().zip(&errors).for_each(|(w, error)| *w -= factor * error);
            }
        }
    }
    (integers, scales)
}

/// Of two ways to round, for each column the one with the smaller error; the first of equals.
fn better(
    weights: &[f32],
    (columns, layout): (usize, Layout),
    ways: [Rounded; 2],
    moments: &[f64],
) -> Quantized {
    let rows = weights.len() / columns;
    let change = |(integers, scales): &Rounded, at: usize| -> Vec<f32> {
        let number = |row: usize| {
            let place = row * columns + at;
            let scale = scales.get(row / layout.block * columns + at).copied().unwrap_or(0.0);
            let integer = integers.get(place).copied().unwrap_or(0);
            weights.get(place).copied().unwrap_or(0.0) - nbits::float(integer, scale, layout)
        };
        (0..rows).map(number).collect()
    };
    let mut packed = Vec::new();
    let mut scales = Vec::new();
    for at in 0..columns {
        let errors = ways.each_ref().map(|way| moments::error(&change(way, at), moments));
        let [plain, rounded] = &ways;
        let (integers, own) = if errors[1] < errors[0] { rounded } else { plain };
        let column: Vec<u8> = integers.iter().skip(at).step_by(columns).copied().collect();
        nbits::pack(column, layout, &mut packed);
        scales.extend(own.iter().skip(at).step_by(columns));
    }
    Quantized { packed, scales }
}

/// The upper triangular U with Uᵀ U = (M + damping)⁻¹, row-major; `None` where M says nothing.
fn inverse(moments: &[f64], width: usize) -> Option<Vec<f64>> {
    let mean = (0..width).filter_map(|at| moments.get(at * width + at)).sum::<f64>() / width as f64;
    if !(mean > 0.0 && mean.is_finite()) || moments.len() != width * width {
        return None;
    }
    // M = R Rᵀ with R upper triangular is a Cholesky factorisation read from the end; U = R⁻¹.
    let mut lower: Vec<f64> = moments.iter().rev().copied().collect();
    for at in 0..width {
        let diagonal = lower.get_mut(at * width + at)?;
        *diagonal += DAMPING * mean;
    }
    factor(&mut lower, width)?;
    let inverse = invert(&lower, width);
    Some(inverse.into_iter().rev().collect())
}

/// The Cholesky factor of a symmetric matrix, in its place; `None` where it is not positive definite.
fn factor(matrix: &mut [f64], width: usize) -> Option<()> {
    for row in 0..width {
        let (above, own) = matrix.split_at_mut(row * width);
        let own = own.get_mut(..width)?;
        for column in 0..row {
            let other = above.get(column * width..column * width + column + 1)?;
            let (last, other) = other.split_last()?;
            let value = (*own.get(column)? - dot(own.get(..column)?, other)) / last;
            *own.get_mut(column)? = value;
        }
        let square = *own.get(row)? - dot(own.get(..row)?, own.get(..row)?);
        if !(square > 0.0 && square.is_finite()) {
            return None;
        }
        *own.get_mut(row)? = square.sqrt();
        own.iter_mut().skip(row + 1).for_each(|value| *value = 0.0);
    }
    Some(())
}

/// The inverse of a lower triangular matrix.
fn invert(lower: &[f64], width: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; width * width];
    for row in 0..width {
        let (above, own) = inverse.split_at_mut(row * width);
        let line = lower.get(row * width..(row + 1) * width).unwrap_or_default();
        let Some(own) = own.get_mut(..width) else { break };
        for (factor, other) in line.iter().take(row).zip(above.chunks_exact(width)) {
            own.iter_mut().zip(other).for_each(|(sum, value)| *sum -= factor * value);
        }
        let pivot = line.get(row).copied().unwrap_or(1.0);
        own.iter_mut().for_each(|value| *value /= pivot);
        if let Some(diagonal) = own.get_mut(row) {
            *diagonal = 1.0 / pivot;
        }
    }
    inverse
}

/// The inner product in four sums, which the compiler can keep in one register.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [0.0; 4];
    for (x, y) in a.iter().zip(b) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(x, y)| x * y).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { bits: 4, block: 16 };

    #[test]
    fn the_factor_gives_the_inverse() {
        let moments = [4.0, 1.0, 0.5, 1.0, 3.0, 0.2, 0.5, 0.2, 2.0];
        let u = inverse(&moments, 3).unwrap();
        // (M + d)(Uᵀ U) = 1
        let damped =
            |i: usize, j: usize| moments[i * 3 + j] + if i == j { DAMPING * 3.0 } else { 0.0 };
        let product = |i: usize, j: usize| (0..3).map(|k| u[k * 3 + i] * u[k * 3 + j]).sum::<f64>();
        for i in 0..3 {
            for j in 0..3 {
                let sum: f64 = (0..3).map(|k| damped(i, k) * product(k, j)).sum();
                assert!((sum - f64::from(u8::from(i == j))).abs() < 1e-12, "{i} {j} {sum}");
                assert!(j >= i || u[i * 3 + j] == 0.0);
            }
        }
    }

    #[test]
    fn correlated_inputs_take_up_each_others_errors() {
        // Two inputs that are nearly equal: what one weight loses the other can give.
        let rows = 32;
        let weights: Vec<f32> = (0..rows).map(|at| ((at * 37 % 19) as f32 - 9.0) / 7.0).collect();
        let mut moments = vec![0.9; rows * rows];
        (0..rows).for_each(|at| moments[at * rows + at] = 1.0);
        let error = |quantized: &Quantized| {
            let change: Vec<f32> = (0..rows)
                .map(|at| {
                    let byte = quantized.packed[at / 2];
                    let integer = if at % 2 == 0 { byte & 15 } else { byte >> 4 };
                    weights[at] - nbits::float(integer, quantized.scales[at / 16], LAYOUT)
                })
                .collect();
            moments::error(&change, &moments)
        };
        let nearest = error(&nbits::quantize(&weights, 1, LAYOUT).unwrap());
        let rounded = error(&quantize(&weights, 1, LAYOUT, &moments).unwrap());
        assert!(rounded < 0.6 * nearest, "{rounded} {nearest}");
    }

    #[test]
    fn inputs_that_say_nothing_leave_the_nearest_integers() {
        let weights: Vec<f32> = (0..48).map(|at| at as f32 * 0.37 - 5.0).collect();
        let nearest = nbits::quantize(&weights, 3, LAYOUT);
        assert_eq!(quantize(&weights, 3, LAYOUT, &vec![0.0; 256]), nearest);
        assert_eq!(quantize(&[1.0, f32::NAN], 1, LAYOUT, &[1.0; 4]), None);
    }
}
