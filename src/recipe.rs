//! What to do to a model, in order, and what the result must satisfy.
//!
//! The same types stand in `spec.compression` and in the recipe file that `lithe-worker compress`
//! reads, so a recipe tried on a laptop is pasted into a manifest unchanged.

mod equalize;
mod finetune;
mod gates;
mod prune;
mod quantize;
mod target;

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::units::Duration;

pub use equalize::{Equalize, EqualizeMethod};
pub use finetune::{
    BatchNormalization, Finetune, LearningRate, Loss, Optimizer, OptimizerKind, Schedule, Teacher,
};
pub use gates::{Evaluation, Gates, Metric, OnFailure, WhenUndecided};
pub use prune::{Prune, PruneScope, Structure};
pub use quantize::{
    Calibration, Convolutions, Embeddings, Fallback, Granularity, Quantize, QuantizeMode,
    ReduceRange, Rounding, WeightType,
};
pub use target::Target;

/// One whole compression: the steps, the gates and the seed of everything random.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipe {
    /// The steps, in the order in which they run.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What the result must satisfy to be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
    /// Which part of the data judges the result, and how much of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// Search for the steps instead of naming them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// Where the artifact will run; X64 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The seed of every random choice (split, shuffling). The same seed gives the same bytes.
    #[serde(default)]
    pub seed: u64,
}

impl Recipe {
    /// The content address of the recipe in canonical JSON. A field that a later version adds must be
    /// left out of the JSON while it has its default, so that recipes of before keep their address.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }
}

impl Recipe {
    /// What an objective lacks: without a bound on the metric the smallest model would be the worst one.
    pub fn objective_fault(&self) -> Option<&'static str> {
        let bounds = |gates: &Gates| {
            gates.max_drop.is_some() || gates.minimum.is_some() || gates.maximum.is_some()
        };
        let bounded = self.gates.as_ref().is_some_and(bounds);
        (self.objective.is_some() && !bounded)
            .then_some("an objective needs gates.maxDrop, gates.minimum or gates.maximum: nothing else keeps the smallest model from being the worst")
    }
}

/// The content address under which an artifact is kept: the same source, recipe and worker give
/// the same key, and a key that exists is never made again. `data` is the digest of the evaluation
/// data, since other data may let another model pass.
pub fn artifact_key(
    source: &Digest,
    data: Option<&Digest>,
    recipe: &Digest,
    worker: &str,
) -> Digest {
    Digest::of_json(&serde_json::json!({
        "source": source, "data": data, "recipe": recipe, "worker": worker,
    }))
}

/// One step; exactly one of its fields is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::KubeSchema), x_kube(validation = Rule::new("(has(self.optimize) ? 1 : 0) + (has(self.equalize) ? 1 : 0) + (has(self.prune) ? 1 : 0) + (has(self.finetune) ? 1 : 0) + (has(self.quantize) ? 1 : 0) == 1").message("a step is exactly one of optimize, equalize, prune, finetune, quantize; write one list item per step")))]
pub struct Step {
    /// Fold constants and BatchNormalization, drop dropout and identities, remove dead nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimize: Option<Optimize>,
    /// Move numbers between layers before they are quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equalize: Option<Equalize>,
    /// Remove weights, channels or attention heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<Prune>,
    /// Train the model for a while, with its own original as teacher if wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<Finetune>,
    /// Store and compute with fewer bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
}

impl Step {
    /// The step's name as it stands in the report, such as `quantize.dynamic`.
    pub fn name(&self) -> String {
        if let Some(equalize) = &self.equalize {
            return format!("equalize.{:?}", equalize.method).to_lowercase();
        }
        match (&self.optimize, &self.prune, &self.finetune, &self.quantize) {
            (Some(_), ..) => "optimize".into(),
            (_, Some(p), ..) => format!("prune.{:?}", p.structure).to_lowercase(),
            (_, _, Some(_), _) => "finetune".into(),
            (.., Some(q)) => format!("quantize.{:?}", q.mode).to_lowercase(),
            _ => "empty".into(),
        }
    }

    /// The step as a user would write it: JSON without what has its default.
    pub fn written(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let default = serde_json::to_value(Quantize::default()).unwrap_or_default();
        if let Some(fields) = value.get_mut("quantize").and_then(serde_json::Value::as_object_mut) {
            fields.retain(|name, value| name == "mode" || default.get(name) != Some(value));
        }
        value
    }

    /// Whether the step measures something on calibration data.
    pub fn calibrates(&self) -> bool {
        let smooths = |step: &Equalize| step.method == EqualizeMethod::SmoothQuant;
        self.quantize.as_ref().is_some_and(Quantize::calibrates)
            || self.equalize.as_ref().is_some_and(smooths)
    }

    /// What no model could mend: the path of each field within the step, the value seen and what to
    /// do on `target`. Both the operator and the worker refuse it.
    pub fn faults(&self, target: Target) -> Vec<(String, String)> {
        let prune = self.prune.iter().flat_map(Prune::faults).map(|fault| ("prune", fault));
        let equalize = self.equalize.iter().flat_map(Equalize::faults);
        let prune = prune.chain(equalize.map(|fault| ("equalize", fault)));
        let quantize = self.quantize.iter();
        let quantize = quantize.flat_map(|q| q.faults().into_iter().chain(q.faults_on(target)));
        let all = prune.chain(quantize.map(|fault| ("quantize", fault)));
        all.map(|(step, (field, what))| (format!("{step}.{field}"), what)).collect()
    }
}

/// Which graph clean-ups run; all by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Optimize {}

/// What a search makes as small as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Goal {
    /// The median time of one inference.
    Latency,
    /// The bytes of the artifact.
    Size,
    /// The peak memory while serving.
    Memory,
}

/// Search for the best steps instead of naming them; the gates bound the search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Objective {
    /// What the search makes as small as it can.
    pub minimise: Goal,
    /// How long the search may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "
steps:
- optimize: {}
- quantize: {mode: Dynamic}
gates: {metric: Agreement, maxDrop: 1%, minSpeedup: 1.0}
";

    #[test]
    fn a_recipe_file_reads_as_it_is_documented() {
        let recipe: Recipe = serde_yaml::from_str(RECIPE).unwrap();
        let names: Vec<_> = recipe.steps.iter().map(Step::name).collect();
        assert_eq!(names, ["optimize", "quantize.dynamic"]);
    }

    #[test]
    fn a_step_is_written_without_defaults_and_reads_back() {
        let step: Step = serde_yaml::from_str("quantize: {mode: Static, bits: 4}").unwrap();
        let text = step.written().to_string();
        assert_eq!(text, r#"{"quantize":{"bits":4,"mode":"Static"}}"#);
        assert_eq!(serde_yaml::from_str::<Step>(&text).unwrap(), step);
    }

    #[test]
    fn a_misspelt_field_is_refused_by_name() {
        let error = serde_yaml::from_str::<Recipe>("steps:\n- quantise: {}\n").unwrap_err();
        assert!(error.to_string().contains("quantise"), "{error}");
    }

    #[test]
    fn every_part_of_the_key_changes_it() {
        let [a, b] = [Digest::of("a"), Digest::of("b")];
        let key = artifact_key(&a, None, &a, "1");
        for other in [
            artifact_key(&b, None, &a, "1"),
            artifact_key(&a, Some(&a), &a, "1"),
            artifact_key(&a, None, &b, "1"),
            artifact_key(&a, None, &a, "2"),
        ] {
            assert_ne!(key, other);
        }
    }
}
