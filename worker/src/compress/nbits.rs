//! Weights in 4 or 8 bits with one scale for each block along the input axis: w is about
//! scale * (q - 2^(bits-1)).
//!
//! Bit for bit what ONNX Runtime's `matmul_nbits_quantizer` writes for symmetric weights
//! (`MlasQuantizeBlockwise` in `core/mlas/lib/q4_dq.cpp`): scale = a / -2^(bits-1) for the weight a of
//! largest magnitude, q = round half away of w * (1 / scale) + 2^(bits-1), clipped, all in f32.

/// A quantized matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The integers, [out, blocks, block * bits / 8]; of two in a byte the first is the low one.
    pub packed: Vec<u8>,
    /// One scale per block, [out, blocks].
    pub scales: Vec<f32>,
}

/// Bits of a weight and weights that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// 4 or 8.
    pub bits: u8,
    /// A power of two from 16 on.
    pub block: usize,
}

impl Layout {
    /// Blocks in a column of `rows` weights.
    pub fn blocks(self, rows: usize) -> usize {
        rows.div_ceil(self.block)
    }

    /// Bytes of one packed block.
    pub fn bytes(self) -> usize {
        self.block * usize::from(self.bits) / 8
    }
}

/// Quantizes `weights`, a row-major [in, out] matrix with rows of `columns` numbers.
///
/// Returns `None` when a weight is NaN or infinite.
pub fn quantize(weights: &[f32], columns: usize, layout: Layout) -> Option<Quantized> {
    if weights.iter().any(|weight| !weight.is_finite()) {
        return None;
    }
    let columns = columns.max(1);
    let blocks = layout.blocks(weights.len() / columns);
    let mut packed = Vec::with_capacity(columns * blocks * layout.bytes());
    let mut scales = Vec::with_capacity(columns * blocks);
    let mut numbers = Vec::with_capacity(weights.len() / columns);
    for at in 0..columns {
        numbers.clear();
        numbers.extend(weights.iter().skip(at).step_by(columns));
        column(&numbers, layout, &mut packed, &mut scales);
    }
    Some(Quantized { packed, scales })
}

/// Appends the blocks of one column and their scales.
fn column(column: &[f32], layout: Layout, packed: &mut Vec<u8>, scales: &mut Vec<f32>) {
    let mut integers = Vec::with_capacity(layout.blocks(column.len()) * layout.block);
    for block in column.chunks(layout.block) {
        let scale = scale(block.iter(), layout);
        scales.push(scale);
        integers.extend(block.iter().map(|weight| integer(*weight, scale, layout)));
    }
    pack(integers, layout, packed);
}

/// The integers, [in, out], and scales, [blocks, out], of a row-major [in, out] matrix, not packed.
pub fn round(weights: &[f32], columns: usize, layout: Layout) -> (Vec<u8>, Vec<f32>) {
    let columns = columns.max(1);
    let (mut integers, mut scales) = (Vec::with_capacity(weights.len()), Vec::new());
    for block in weights.chunks(columns * layout.block) {
        let own = (0..columns).map(|at| scale(block.iter().skip(at).step_by(columns), layout));
        let own: Vec<f32> = own.collect();
        let numbers = block.iter().zip(own.iter().cycle());
        integers.extend(numbers.map(|(weight, scale)| integer(*weight, *scale, layout)));
        scales.extend(own);
    }
    (integers, scales)
}

/// 2^(bits-1), the integer that is zero.
fn middle(layout: Layout) -> f32 {
    f32::from(1_u8 << (layout.bits - 1))
}

/// The scale of one block.
pub fn scale<'a>(block: impl Iterator<Item = &'a f32>, layout: Layout) -> f32 {
    extreme(block) / -middle(layout)
}

/// The integer nearest to `weight`.
pub fn integer(weight: f32, scale: f32, layout: Layout) -> u8 {
    let middle = middle(layout);
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    (weight * inverse + middle).round().clamp(0.0, 2.0 * middle - 1.0) as u8
}

/// What `integer` stands for.
pub fn float(integer: u8, scale: f32, layout: Layout) -> f32 {
    (f32::from(integer) - middle(layout)) * scale
}

/// Appends the integers of one column, padded to whole blocks.
pub fn pack(mut integers: Vec<u8>, layout: Layout, packed: &mut Vec<u8>) {
    let count = integers.len();
    let padding = layout.blocks(count) * layout.block - count;
    if layout.bits == 8 {
        packed.append(&mut integers);
        packed.resize(packed.len() + padding, 0);
        return;
    }
    integers.push(beyond(&integers, layout.block));
    integers.resize(count + padding.max(1), 0);
    let (pairs, _) = integers.as_chunks::<2>();
    packed.extend(pairs.iter().map(|[low, high]| low | (high << 4)));
}

/// The integer beside the last one of an odd column. It is multiplied by nothing; the reference leaves
/// there what it last wrote to that half of a byte in the same pair of blocks.
fn beyond(integers: &[u8], block: usize) -> u8 {
    let odd = integers.len() % 2 == 1;
    let begins = integers.len() % (2 * block) == 1;
    if odd && !begins { integers.iter().rev().nth(1).copied().unwrap_or(0) } else { 0 }
}

/// The weight of largest magnitude; of two the smallest one, as the reference has it.
fn extreme<'a>(block: impl Iterator<Item = &'a f32>) -> f32 {
    let (mut low, mut high) = (f32::MAX, f32::MIN);
    for weight in block {
        // Not `min`: of 0.0 and -0.0 the first one counts.
        if *weight < low {
            low = *weight;
        }
        if *weight > high {
            high = *weight;
        }
    }
    if high.abs() > low.abs() { high } else { low }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FOUR: Layout = Layout { bits: 4, block: 16 };

    #[test]
    fn the_largest_magnitude_becomes_the_lowest_integer() {
        let mut column = [0.0; 16];
        column[..4].copy_from_slice(&[-8.0, 7.0, 0.5, -0.5]);
        let quantized = quantize(&column, 1, FOUR).unwrap();
        assert_eq!(quantized.scales, [1.0]);
        // 0.5 + 8 rounds away from zero, -0.5 + 8 too.
        assert_eq!(quantized.packed, [0xf0, 0x89, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88]);
    }

    #[test]
    fn a_block_of_zeros_has_scale_zero_with_the_sign_of_its_first() {
        let zeros = quantize(&[0.0; 16], 1, FOUR).unwrap();
        assert_eq!(
            (zeros.scales[0].to_bits(), zeros.packed),
            ((-0.0_f32).to_bits(), vec![0x88; 8])
        );
        let negative = quantize(&[-0.0; 16], 1, FOUR).unwrap();
        assert_eq!(negative.scales[0].to_bits(), 0);
    }

    #[test]
    fn columns_are_padded_to_whole_blocks() {
        let quantized = quantize(&[1.0; 17 * 3], 3, Layout { bits: 8, block: 16 }).unwrap();
        assert_eq!((quantized.packed.len(), quantized.scales.len()), (3 * 32, 6));
        assert_eq!(quantized.scales, [-1.0 / 128.0; 6]);
        assert_eq!(quantized.packed.get(16..20).unwrap(), [0, 0, 0, 0]);
    }

    #[test]
    fn numbers_that_are_not_finite_are_seen() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(quantize(&[1.0, bad], 1, FOUR), None);
        }
    }
}
