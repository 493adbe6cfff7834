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

use std::collections::HashMap;

use lithe::recipe::{Prune, Structure};

use crate::compress::change::{Change, Runner};
use crate::compress::{exclude, fold, normalise};
use crate::onnx::graph;
use crate::onnx::{ModelProto, Refusal};

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
    exclude::check_with_initializers(&model, &step.exclude)?;
    compute_weights(&mut model, step, run);
    let mut change = Change::default();
    match step.structure {
        Structure::Unstructured => magnitude::prune(&mut model, step, &mut change)?,
        Structure::TwoFour => two_four::prune(&mut model, step, &mut change)?,
        Structure::Channels | Structure::Heads => {
            channels::prune(&mut model, step, shapes, &mut change)?;
        }
    }
    let name = format!("prune.{:?}", step.structure).to_lowercase();
    change.matched_something(&name, "Conv, ConvTranspose, Gemm or MatMul with constant weights")?;
    Ok((model, change))
}

/// Computes what is constant, such as the Unsqueeze of a bias or the Transpose of a weight, so that
/// weights are seen as such. Left out where the recipe names a constant, which must keep its name.
fn compute_weights(model: &mut ModelProto, step: &Prune, run: Runner<'_>) {
    let Some(mut graph) = model.graph.take() else { return };
    if !graph.initializer.iter().any(|tensor| step.exclude.contains(&tensor.name)) {
        let seen = graph::constants(&graph);
        fold::fold(&mut graph, &seen, model, run);
        graph::sweep(&mut graph);
    }
    model.graph = Some(graph);
}
