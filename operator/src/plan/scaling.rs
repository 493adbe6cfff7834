//! How many pods serve, and what is told of it. Pure; what the measurements mean is decided in
//! `plan/scale.rs`, and this file puts that between what the spec allows and what there is.

use lithe::spec::ScalingMode;
use lithe::status::{ArtifactStatus, LatencyStatus, Verdict};

use crate::config::Config;
use crate::observe::Observed;

/// What the measurements say about one model, as it is told: it changes only when something
/// material does, so that an object at rest is not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scaled {
    /// Pods that are needed.
    pub desired: u32,
    /// Why, with the figures.
    pub why: String,
    /// The condition ScalingActive.
    pub verdict: Verdict,
    /// Latency in the last window; `None` when no request was answered in it.
    pub latency: Option<LatencyStatus>,
    /// UIDs of pods that are to be replaced.
    pub replace: Vec<String>,
}

/// A change of the number of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// From how many.
    pub from: i32,
    /// To how many.
    pub to: i32,
    /// Why.
    pub reason: String,
}

/// How many pods serve.
///
/// | spec accepted | who scales | measured | Deployment | served before | pods |
/// |---|---|---|---|---|---|
/// | no | - | - | there | - | as many as it has |
/// | yes | spec, or another by the scale subresource | - | - | - | `minReplicas` |
/// | yes | latency | not yet | there | - | as many as it has, within the range |
/// | yes | latency | not yet | none | - | `minReplicas` |
/// | yes | latency | yes | - | - | what is needed, within the range |
/// | yes | - | - | - | no | as above, but at least one: what never served is not known to serve |
pub fn replicas(
    observed: &Observed,
    artifact: Option<&ArtifactStatus>,
    config: &Config,
    leave: bool,
) -> i32 {
    let running =
        observed.deployment.as_ref().and_then(|deployment| deployment.spec.as_ref()?.replicas);
    match running {
        Some(running) if leave => return running,
        _ if config.bench_skip_compression => return 0,
        _ => {}
    }
    let scaling = &observed.model.spec.scaling;
    let needed = match (scaling.mode(), &observed.scaled, running) {
        (ScalingMode::Fixed | ScalingMode::External, ..) => scaling.min_replicas,
        (ScalingMode::Latency, Some(scaled), _) => scaled.desired,
        (ScalingMode::Latency, None, Some(running)) => u32::try_from(running).unwrap_or(0),
        (ScalingMode::Latency, None, None) => scaling.min_replicas,
    };
    let least = scaling.min_replicas.max(u32::from(!served_before(observed, artifact)));
    let within = needed.clamp(least, scaling.most().max(least));
    i32::try_from(within).unwrap_or(i32::MAX)
}

/// Whether all pods of `artifact` were ready once.
pub fn served_before(observed: &Observed, artifact: Option<&ArtifactStatus>) -> bool {
    let told = observed.model.status.as_ref().and_then(|status| status.artifact.as_ref());
    told.zip(artifact).is_some_and(|(told, artifact)| {
        told.request == artifact.request && told.rolled_out.is_some()
    })
}

/// The step from what the Deployment has to `replicas`.
pub fn step(observed: &Observed, replicas: i32) -> Option<Step> {
    let from = observed.deployment.as_ref()?.spec.as_ref()?.replicas?;
    let scaling = &observed.model.spec.scaling;
    let reason = match (scaling.mode(), &observed.scaled) {
        (ScalingMode::Latency, Some(scaled)) => {
            let needed = i32::try_from(scaled.desired).unwrap_or(i32::MAX);
            let range = format!("{} to {}", scaling.min_replicas, scaling.most());
            if needed == replicas {
                scaled.why.clone()
            } else {
                format!("{}; spec.scaling allows {range}", scaled.why)
            }
        }
        (ScalingMode::Latency, None) => {
            format!("spec.scaling allows {} to {}", scaling.min_replicas, scaling.most())
        }
        (ScalingMode::Fixed, _) => {
            format!("spec.scaling.minReplicas asks for {}", scaling.min_replicas)
        }
        (ScalingMode::External, _) => {
            format!("the scale subresource asks for {}", scaling.min_replicas)
        }
    };
    (from != replicas).then_some(Step { from, to: replicas, reason })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use clap::Parser as _;
    use lithe::names::reason;
    use serde_json::{Value, json};

    use super::*;
    use crate::observe::{Caches, observe};

    fn observed(scaling: Value, running: Option<i32>, desired: Option<u32>) -> Observed {
        let digest = format!("sha256:{}", "a".repeat(64));
        let artifact = json!({
            "request": digest, "uri": "oci://s/a", "digest": digest, "shortDigest": "a",
            "manifest": digest, "source": digest, "size": 1, "originalSize": 1, "sizes": "1 -> 1",
            "made": "2026-01-01T00:00:00Z", "rolledOut": "2026-01-01T00:00:00Z",
        });
        let model = json!({
            "metadata": {"name": "magika", "uid": "u"},
            "spec": {"model": {"uri": "pvc://m/a.onnx"}, "scaling": scaling},
            "status": {"artifact": artifact},
        });
        let observed =
            observe(&Caches::default(), Arc::new(serde_json::from_value(model).unwrap()));
        let deployment = running.map(|replicas| {
            let spec = json!({"spec": {"replicas": replicas, "selector": {}, "template": {}}});
            Arc::new(serde_json::from_value(spec).unwrap())
        });
        let scaled = desired.map(|desired| {
            Arc::new(Scaled {
                desired,
                why: "12 requests per second".into(),
                verdict: Verdict::new(true, reason::READY, ""),
                latency: None,
                replace: Vec::new(),
            })
        });
        Observed { deployment, scaled, ..observed }
    }

    fn config() -> Config {
        Config::parse_from(["op", "--store", "oci://s/l", "--worker-image", "w"])
    }

    #[test]
    fn the_number_of_pods_is_what_is_needed_within_what_is_allowed() {
        let latency = json!({"minReplicas": 2, "maxReplicas": 5, "latency": {"target": "50ms"}});
        let zero = json!({"minReplicas": 0, "maxReplicas": 5, "latency": {"target": "50ms"}});
        let external = json!({"mode": "External", "minReplicas": 3, "maxReplicas": 9});
        let rows = [
            (&latency, None, None, 2),
            (&latency, Some(4), None, 4),
            (&latency, Some(9), None, 5),
            (&latency, Some(4), Some(3), 3),
            (&latency, Some(4), Some(0), 2),
            (&latency, Some(4), Some(40), 5),
            (&zero, Some(1), Some(0), 0),
            (&zero, Some(0), None, 0),
            (&zero, Some(0), Some(1), 1),
            // Figures of Lithe's own never count where another sets the number.
            (&external, Some(4), Some(8), 3),
        ];
        for (scaling, running, desired, wanted) in rows {
            let seen = observed(scaling.clone(), running, desired);
            let artifact = seen.model.status.as_ref().unwrap().artifact.clone();
            let pods = replicas(&seen, artifact.as_ref(), &config(), false);
            assert_eq!(pods, wanted, "{scaling} {running:?} {desired:?}");
            // A spec that is not accepted leaves what serves as it is.
            let left = replicas(&seen, artifact.as_ref(), &config(), true);
            assert_eq!(left, running.unwrap_or(wanted), "{scaling} {running:?}");
        }
    }

    #[test]
    fn what_never_served_gets_a_pod_even_where_none_is_needed() {
        let zero = json!({"minReplicas": 0, "latency": {"target": "50ms"}});
        let seen = observed(zero, Some(0), Some(0));
        assert_eq!(replicas(&seen, None, &config(), false), 1);
    }

    #[test]
    fn a_step_says_from_where_to_where_and_why() {
        let latency = json!({"minReplicas": 1, "maxReplicas": 5, "latency": {"target": "50ms"}});
        let up = step(&observed(latency.clone(), Some(2), Some(4)), 4).unwrap();
        assert_eq!((up.from, up.to, up.reason.as_str()), (2, 4, "12 requests per second"));
        let cut = step(&observed(latency.clone(), Some(2), Some(9)), 5).unwrap();
        assert_eq!(cut.reason, "12 requests per second; spec.scaling allows 1 to 5");
        assert_eq!(step(&observed(latency, Some(4), Some(4)), 4), None);
        let fixed = step(&observed(json!({"minReplicas": 3}), Some(1), None), 3).unwrap();
        assert_eq!(fixed.reason, "spec.scaling.minReplicas asks for 3");
    }
}
