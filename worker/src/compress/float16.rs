//! Numbers in half precision, bit for bit as `onnxruntime.transformers.float16` writes them: rounded
//! half to even; what would become zero or infinite is clamped, so that it stays a number.

use half::f16;

use crate::onnx::{DataType, TensorProto, weights};

/// The largest finite number in half precision.
pub const LARGEST: f32 = 65504.0;
/// Below this magnitude a number becomes the smallest one that is not zero. ONNX Runtime's own
/// constant, a little below 2^-24.
const SMALLEST: f32 = 5.96e-8;

/// `value` in half precision. Zeros, infinities and NaN stay what they are.
pub fn round(value: f32) -> f16 {
    let magnitude = value.abs();
    if value == 0.0 || !value.is_finite() {
        f16::from_f32(value)
    } else {
        f16::from_f32(magnitude.clamp(SMALLEST, LARGEST).copysign(value))
    }
}

/// The tensor of 32-bit floats `tensor` in half precision, under `name`.
pub fn tensor(tensor: &TensorProto, name: &str) -> TensorProto {
    let values = weights::to_f32(tensor).unwrap_or_default();
    TensorProto {
        name: name.to_owned(),
        dims: tensor.dims.clone(),
        data_type: DataType::Float16 as i32,
        raw_data: values.iter().flat_map(|value| round(*value).to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

/// Whether a finite number of `tensor` is beyond half precision.
pub fn exceeds(tensor: &TensorProto) -> bool {
    let beyond = |value: f32| value.is_finite() && value.abs() > LARGEST;
    weights::to_f32(tensor).is_some_and(|values| values.into_iter().any(beyond))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_finite_and_keep_their_sign() {
        let cases = [
            (1.0, 0x3c00),
            (-0.0, 0x8000),
            (1e-30, 0x0001),
            (-2e-8, 0x8001),
            (5.96e-8, 0x0001),
            (65519.0, 0x7bff),
            (-1e30, 0xfbff),
            (f32::INFINITY, 0x7c00),
            (2049.0, 0x6800),
        ];
        for (value, bits) in cases {
            assert_eq!(round(value).to_bits(), bits, "{value}");
        }
        assert!(round(f32::NAN).is_nan());
    }

    #[test]
    fn only_finite_numbers_are_too_large() {
        let tensor = |value: f32| weights::from_f32("w", &[1], &[value]);
        assert!(exceeds(&tensor(-65505.0)));
        assert!(!exceeds(&tensor(65504.0)) && !exceeds(&tensor(f32::NEG_INFINITY)));
    }
}
