//! What the running version cannot do: each field by its path, with the value seen and the mend.
//!
//! A field that is not honoured is never ignored: KServe's silence about such fields is the
//! complaint this file answers.

use lithe::recipe::Target;
use lithe::spec::{
    Compression, Engine, ModelDeploymentSpec, ModelFormat, RolloutStrategy, TrafficMode,
};

/// One field that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The field's path.
    pub path: String,
    /// The value seen, and what works instead.
    pub message: String,
}

/// All fields of `spec` that this version, in an installation with a `gateway` or without, cannot
/// honour.
pub fn refused(spec: &ModelDeploymentSpec, gateway: bool) -> Vec<Refused> {
    let mut found = Vec::new();
    let mut refuse = |path: &str, message: String| {
        found.push(Refused { path: path.to_owned(), message });
    };
    source("spec.model.uri", &spec.model.uri, &mut refuse);
    if spec.model.format != ModelFormat::ONNX {
        let seen = format!("{:?} cannot be read yet; export the model to ONNX", spec.model.format);
        refuse("spec.model.format", seen);
    }
    if let Some(compression) = &spec.compression {
        steps(compression, spec.target(), &mut refuse);
        if let Some(fault) = spec.recipe().and_then(|recipe| recipe.objective_fault()) {
            refuse("spec.compression.gates", fault.into());
        }
        if compression.objective.is_some() && compression.data.is_none() {
            refuse(
                "spec.compression.data",
                "a search judges its candidates by data; say where they are".into(),
            );
        }
    }
    serving(spec, &mut refuse);
    if !gateway {
        direct(spec, &mut refuse);
    }
    found
}

fn source(path: &str, uri: &str, refuse: &mut impl FnMut(&str, String)) {
    let scheme = uri.split("://").next().unwrap_or_default();
    if matches!(scheme, "hf" | "gs" | "az") {
        refuse(
            path,
            format!("{scheme}:// cannot be fetched yet; use s3://, https://, oci:// or pvc://"),
        );
    }
}

fn steps(compression: &Compression, target: Target, refuse: &mut impl FnMut(&str, String)) {
    if let Some(data) = &compression.data {
        source("spec.compression.data.uri", &data.uri, refuse);
    }
    for (field, what) in compression.gates.iter().flat_map(|gates| gates.faults()) {
        refuse(&format!("spec.compression.gates.{field}"), what);
    }
    for (index, step) in compression.steps.iter().enumerate() {
        let path = |field: &str| format!("spec.compression.steps[{index}].{field}");
        if step.finetune.is_some() {
            refuse(&path("finetune"), "fine-tuning is not there yet; remove the step".into());
        }
        for (field, what) in step.faults(target) {
            refuse(&path(&field), what);
        }
        if step.calibrates() && compression.data.is_none() {
            let seen = "a step measures ranges or layers on data; say where they are";
            refuse("spec.compression.data", seen.into());
        }
    }
}

fn serving(spec: &ModelDeploymentSpec, refuse: &mut impl FnMut(&str, String)) {
    let runtime = &spec.runtime;
    let accelerated = spec.placement.accelerator.is_some();
    if runtime.engine == Engine::TensorRT || (runtime.engine == Engine::Auto && accelerated) {
        let seen =
            format!("{:?} cannot build TensorRT engines yet; use ONNXRuntime", runtime.engine);
        refuse("spec.runtime.engine", seen);
    }
    if runtime.tls.is_some() && spec.traffic_mode() == TrafficMode::Gateway {
        let seen = "the gateway asks its pods without TLS; set traffic.mode: Direct";
        refuse("spec.runtime.tls", seen.into());
    }
    if spec.rollout.strategy == RolloutStrategy::Canary {
        refuse("spec.rollout.strategy", "Canary is not there yet; use RollingUpdate".into());
    }
    if spec.rollout.analysis.is_some() {
        refuse(
            "spec.rollout.analysis",
            "belongs to Canary, which is not there yet; remove it".into(),
        );
    }
}

/// What needs a gateway where there is none.
fn direct(spec: &ModelDeploymentSpec, refuse: &mut impl FnMut(&str, String)) {
    let install = "this installation has no gateway: install the chart with gateway.enabled=true";
    let zero = spec.scaling.min_replicas == 0;
    match (spec.traffic_mode(), spec.traffic.mode) {
        (TrafficMode::Direct, _) => {}
        (TrafficMode::Gateway, Some(_)) => {
            let also = if zero { " and minReplicas: 1" } else { "" };
            refuse("spec.traffic.mode", format!("{install}, or use Direct{also}"));
        }
        (TrafficMode::Gateway, None) if zero => {
            refuse("spec.scaling.minReplicas", format!("{install}, or use 1 instead of 0"));
        }
        (TrafficMode::Gateway, None) => {
            let seen = format!(
                "{install}, or set Direct (what scales on latency goes through the gateway by default)"
            );
            refuse("spec.traffic.mode", seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(spec: &str) -> Vec<String> {
        let spec: ModelDeploymentSpec = serde_yaml::from_str(spec).unwrap();
        refused(&spec, true).into_iter().map(|refused| refused.path).collect()
    }

    #[test]
    fn what_needs_a_gateway_is_refused_where_there_is_none_with_the_mend() {
        let rows = [
            ("{}", "", ""),
            (
                "{scaling: {maxReplicas: 3, latency: {target: 50ms}}}",
                "spec.traffic.mode",
                "set Direct",
            ),
            (
                "{scaling: {minReplicas: 0, latency: {target: 50ms}}}",
                "spec.scaling.minReplicas",
                "use 1",
            ),
            (
                "{traffic: {mode: Gateway}}",
                "spec.traffic.mode",
                "gateway.enabled=true, or use Direct",
            ),
            (
                "{scaling: {maxReplicas: 3, latency: {target: 50ms}}, traffic: {mode: Direct}}",
                "",
                "",
            ),
            ("{scaling: {latency: {target: 50ms}}}", "", ""),
        ];
        for (fields, path, mend) in rows {
            let mut value: serde_yaml::Value = serde_yaml::from_str(fields).unwrap();
            let model = serde_yaml::from_str("{uri: 'pvc://m/a.onnx'}").unwrap();
            value.as_mapping_mut().unwrap().insert("model".into(), model);
            let spec: ModelDeploymentSpec = serde_yaml::from_value(value).unwrap();
            assert_eq!(refused(&spec, true), [], "{fields}");
            let found = refused(&spec, false);
            let found = found.first();
            assert_eq!(found.map(|f| f.path.as_str()).unwrap_or_default(), path, "{fields}");
            let said = found.map(|f| f.message.as_str()).unwrap_or_default();
            assert!(said.contains(mend), "{fields}: {said}");
        }
    }

    #[test]
    fn what_works_is_accepted() {
        let spec = "
model: {uri: pvc://models/a.onnx}
compression:
  data: {uri: pvc://models/a.npz}
  steps:
  - optimize: {}
  - prune: {sparsity: 0.5}
  - quantize: {mode: Dynamic}
  - quantize: {mode: Static, calibration: Entropy}
  - quantize: {mode: WeightOnly, bits: 4, blockSize: 64}
  - quantize: {mode: Float16}
  gates: {metric: Agreement, minimum: 0.99}
runtime:
  protocols: [OpenInference, TensorFlowServing, KServeV1]
  tls: {secretName: a, clientCaSecretName: b}
  auth: {tokenSecretName: c}
  batching: {maxBatchSize: 8}
scaling: {minReplicas: 2}
traffic: {mode: Direct}
";
        assert_eq!(paths(spec), Vec::<String>::new());
    }

    #[test]
    fn each_field_that_is_not_honoured_is_named() {
        let spec = "
model: {uri: 'hf://a/b', format: SavedModel}
compression:
  data: {uri: 'gs://a/b'}
  steps:
  - prune: {structure: TwoFour, sparsity: 0.6}
  - finetune: {epochs: 1, batchSize: 1, learningRate: {initial: 0.1}}
  - quantize: {mode: Float16, calibration: Entropy, bits: 4, blockSize: 32}
  - quantize: {mode: Static, calibration: Entropy, convolutions: Keep}
  - quantize: {mode: WeightOnly, bits: 5, blockSize: 48}
  objective: {minimise: Size}
  gates: {metric: Cosine, topK: 3, confidence: 2}
runtime: {engine: TensorRT, tls: {secretName: a}}
scaling: {minReplicas: 0, maxReplicas: 3, latency: {target: 50ms}}
traffic: {mode: Gateway}
rollout: {strategy: Canary, analysis: {}}
";
        assert_eq!(
            paths(spec),
            [
                "spec.model.uri",
                "spec.model.format",
                "spec.compression.data.uri",
                "spec.compression.gates.topK",
                "spec.compression.gates.confidence",
                "spec.compression.steps[0].prune.sparsity",
                "spec.compression.steps[1].finetune",
                "spec.compression.steps[2].quantize.calibration",
                "spec.compression.steps[2].quantize.bits",
                "spec.compression.steps[2].quantize.blockSize",
                "spec.compression.steps[3].quantize.convolutions",
                "spec.compression.steps[4].quantize.bits",
                "spec.compression.steps[4].quantize.blockSize",
                "spec.compression.steps[4].quantize.mode",
                "spec.compression.gates",
                "spec.runtime.engine",
                "spec.runtime.tls",
                "spec.rollout.strategy",
                "spec.rollout.analysis",
            ]
        );
    }
}
