//! The step `prune`: zeroes single weights, or removes whole channels or attention heads with all
//! that depends on them. Must not run the model: the shapes of its values are handed in.

pub mod atoms;
pub mod channels;
pub mod cut;
pub mod elementwise;
pub mod layers;
pub mod magnitude;
pub mod numbers;
pub mod reshape;
pub mod select;
pub mod trace;
pub mod two_four;
pub mod weight;

use std::collections::{HashMap, HashSet};

use lithe::recipe::{Prune, Structure};

use crate::compress::change::{Change, Runner, recipe_invalid};
use crate::compress::{fold, normalise};
use crate::onnx::graph::{self, Constants};
use crate::onnx::refusal::quoted;
use crate::onnx::{ModelProto, Refusal, walk};

/// The shapes of all values in a main graph, learnt by running the model once; see `steps::shapes`.
pub type Shapes<'a> = &'a dyn Fn(&ModelProto) -> Result<HashMap<String, Vec<i64>>, String>;

/// Prunes `model`.
///
/// # Errors
/// `RecipeInvalid` when nothing can be removed or `exclude` names nothing; `NotFinite` for a weight
/// that is NaN.
pub fn prune(
    mut model: ModelProto,
    step: &Prune,
    shapes: Shapes<'_>,
    run: Runner<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    normalise::normalise(&mut model, &mut Change::default());
    check_excluded(&model, &step.exclude)?;
    compute_weights(&mut model, step, run);
    let mut change = Change::default();
    match step.structure {
        Structure::Unstructured => magnitude::prune(&mut model, step, &mut change)?,
        Structure::TwoFour => two_four::prune(&mut model, step, &mut change)?,
        Structure::Channels | Structure::Heads => {
            channels::prune(&mut model, step, shapes, &mut change)?;
        }
    }
    Ok((model, change))
}

/// Computes what is constant, such as the Unsqueeze of a bias or the Transpose of a weight, so that
/// weights are seen as such. Left out where the recipe names a constant, which must keep its name.
fn compute_weights(model: &mut ModelProto, step: &Prune, run: Runner<'_>) {
    let Some(mut graph) = model.graph.take() else { return };
    if !graph.initializer.iter().any(|tensor| step.exclude.contains(&tensor.name)) {
        let seen = graph.initializer.iter().map(|tensor| (tensor.name.clone(), tensor.clone()));
        let seen: Constants = seen.collect();
        fold::fold(&mut graph, &seen, model, run);
        graph::sweep(&mut graph);
    }
    model.graph = Some(graph);
}

/// The refusal of a step that found nothing to do, with why.
pub fn nothing(step: &Prune, change: &Change) -> Refusal {
    let all: u64 = change.skipped.iter().map(|skipped| skipped.count).sum();
    let why = if all == 0 {
        "it has no Conv, ConvTranspose, Gemm or MatMul with constant weights".to_owned()
    } else {
        change.skipped_line()
    };
    let name = format!("{:?}", step.structure).to_lowercase();
    recipe_invalid(format!("prune.{name} matched 0 of {all} nodes: {why}"))
}

/// Refuses names in `exclude` that nothing has: a misspelt name must not prune the node.
fn check_excluded(model: &ModelProto, exclude: &[String]) -> Result<(), Refusal> {
    let mut names = HashSet::new();
    if let Some(graph) = &model.graph {
        walk::nodes(graph, &mut |node| {
            names.insert(node.name.as_str());
        });
        names.extend(graph.initializer.iter().map(|tensor| tensor.name.as_str()));
    }
    match exclude.iter().find(|name| !names.contains(name.as_str())) {
        Some(name) => Err(recipe_invalid(format!(
            "exclude names {}, and no node or initializer is called so (of equal initializers one name is kept)",
            quoted(name)
        ))),
        None => Ok(()),
    }
}
