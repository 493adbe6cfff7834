//! Where an artifact will run, since processors multiply different 8-bit numbers. Declared, or read
//! off the declared placement; never guessed from the machine that compresses.

use serde::{Deserialize, Serialize};

use super::{Quantize, QuantizeMode, ReduceRange, WeightType};

/// Where the artifact will run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Target {
    /// Any x64 processor. Those without VNNI saturate where signed weights are multiplied, so weights
    /// are unsigned, or signed with one bit less.
    #[default]
    X64,
    /// x64 processors with VNNI or AMX (from Ice Lake and Zen 4 on): signed weights of 8 bits.
    X64Vnni,
    /// 64-bit ARM: signed weights and activations.
    Arm64,
    /// NVIDIA GPUs through TensorRT: signed and symmetric throughout, biases in floats.
    TensorRT,
}

impl Quantize {
    /// This step with what it leaves open decided for `target`.
    pub fn decided_for(&self, target: Target) -> Self {
        let weights = self.weights.unwrap_or(match target {
            Target::X64 => WeightType::Unsigned,
            Target::X64Vnni | Target::Arm64 | Target::TensorRT => WeightType::Signed,
        });
        let saturates = target == Target::X64 && weights == WeightType::Signed;
        let reduce = self.reduce_range.unwrap_or(if saturates {
            ReduceRange::Always
        } else {
            ReduceRange::Never
        });
        Self { weights: Some(weights), reduce_range: Some(reduce), ..self.clone() }
    }

    /// What `target` cannot run: the field, the value seen and what to do.
    pub(super) fn faults_on(&self, target: Target) -> Option<(&'static str, String)> {
        if target != Target::TensorRT {
            return None;
        }
        if matches!(self.mode, QuantizeMode::Dynamic | QuantizeMode::WeightOnly) {
            let what = format!(
                "is {:?}, whose nodes TensorRT does not know; write Static or Float16",
                self.mode
            );
            return Some(("mode", what));
        }
        let unsigned =
            self.mode == QuantizeMode::Static && self.weights == Some(WeightType::Unsigned);
        unsigned
            .then(|| ("weights", "is Unsigned, and TensorRT takes Signed; remove it".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_give_up_a_bit_only_where_they_would_saturate() {
        use ReduceRange::{Always, Never};
        use WeightType::{Signed, Unsigned};
        let open = Quantize::default();
        let signed = Quantize { weights: Some(Signed), ..Quantize::default() };
        for (step, target, weights, reduce) in [
            (&open, Target::X64, Unsigned, Never),
            (&open, Target::X64Vnni, Signed, Never),
            (&open, Target::Arm64, Signed, Never),
            (&open, Target::TensorRT, Signed, Never),
            (&signed, Target::X64, Signed, Always),
            (&signed, Target::X64Vnni, Signed, Never),
        ] {
            let decided = step.decided_for(target);
            assert_eq!((decided.weights, decided.reduce_range), (Some(weights), Some(reduce)));
        }
        let declared = Quantize { reduce_range: Some(Never), ..signed };
        assert_eq!(declared.decided_for(Target::X64), declared);
    }
}
