//! The step `optimize`: a table of passes, run over the main graph and all bodies until none of them
//! finds anything. Outputs stay equal up to rounding; no weight loses bits.
//!
//! MatMul and Add are not made a Gemm: the runtime does that itself when it loads the model (Magika's
//! one pair of rank 2; MiniLM's 24 products have rank 3), and the dynamic and weight-only steps would
//! take it apart again.

pub mod common;
pub mod merge;
pub mod no_operation;
pub mod scope;
pub mod sizes;

use lithe::recipe::Optimize;

use crate::compress::change::{Change, Runner};
use crate::compress::{batch_norm, fold, normalise};
use crate::onnx::graph::{self, Constants, Names};
use crate::onnx::infer::Inputs;
use crate::onnx::{ModelProto, Refusal, operators};
use scope::Scope;

/// Rounds after which the graph is taken as it is. Each round but the last shortens a chain of nodes
/// by a pass that waits for another; exporters leave chains of two or three.
const ROUNDS: usize = 8;

/// One pass over one graph.
pub struct Pass {
    /// What it did, after a number: `12 BatchNormalization folded`.
    pub did: &'static str,
    /// Changes the graph; returns how many nodes or initializers it changed.
    pub run: fn(&mut Scope<'_>) -> Result<u64, Refusal>,
}

/// The passes, in the order of each round. What makes graphs smaller comes before what has to look
/// at every node.
pub const PASSES: [Pass; 10] = [
    Pass { did: "Dropout removed", run: dropout },
    Pass { did: "nodes without effect removed", run: no_operation::remove },
    Pass { did: "Identity removed", run: identity },
    Pass { did: "BatchNormalization folded", run: batch_normalization },
    Pass { did: "sizes computed", run: sizes::compute },
    Pass { did: "constant nodes computed", run: constants },
    Pass { did: "casts and moves merged", run: merge::merge },
    Pass { did: "equal nodes merged", run: common::merge },
    Pass { did: "equal initializers merged", run: |scope| Ok(normalise::deduplicate(scope.graph)) },
    Pass { did: "dead nodes removed", run: |scope| Ok(graph::sweep(scope.graph).0) },
];

/// Sees what a pass did: its words, how much it matched, and the model after it.
pub type Observer<'a> = &'a mut dyn FnMut(&'static str, u64, &ModelProto);

/// Optimises `model`. Matching nothing is no error: an exporter may have done it all.
///
/// # Errors
/// `NotFinite` where folding would write a number that is not finite.
pub fn optimize(
    model: ModelProto,
    step: &Optimize,
    run: Runner<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    observed(model, step, run, &mut |_, _, _| {})
}

/// [`optimize`], with every pass that changed something shown to `observe`.
pub fn observed(
    mut model: ModelProto,
    _step: &Optimize,
    run: Runner<'_>,
    observe: Observer<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    let mut change = Change::default();
    normalise::normalise(&mut model, &mut change);
    observe("normalised", change.matched, &model);
    let mut counts = [0_u64; PASSES.len()];
    let mut names = model.graph.as_ref().map_or_else(Names::default, Names::of);
    for _ in 0..ROUNDS {
        let before = counts;
        change.skipped.clear();
        for (pass, count) in PASSES.iter().zip(&mut counts) {
            let matched = over(&mut model, pass, &mut names, &mut change, run)?;
            *count += matched;
            if matched > 0 {
                observe(pass.did, matched, &model);
            }
        }
        if before == counts {
            break;
        }
    }
    for (pass, count) in PASSES.iter().zip(counts) {
        change.did(count, pass.did);
    }
    Ok((model, change))
}

/// Runs `pass` over the bodies of `model` and its main graph.
fn over(
    model: &mut ModelProto,
    pass: &Pass,
    names: &mut Names,
    change: &mut Change,
    run: Runner<'_>,
) -> Result<u64, Refusal> {
    let Some(mut main) = model.graph.take() else { return Ok(0) };
    let place = &raw const main;
    let (around, opset) = (&*model, operators::opset(model));
    let mut matched = 0;
    let result = graph::scopes(&mut main, &Constants::new(), &mut |graph, seen| {
        let is_main = std::ptr::eq(&raw const *graph, place);
        let inputs = if is_main { Inputs::Checked } else { Inputs::Unchecked };
        let (names, change) = (&mut *names, &mut *change);
        let mut scope = Scope { graph, seen, names, model: around, opset, inputs, change, run };
        matched += (pass.run)(&mut scope)?;
        Ok(())
    });
    model.graph = Some(main);
    result.map(|()| matched)
}

fn dropout(scope: &mut Scope<'_>) -> Result<u64, Refusal> {
    let readers = graph::readers(scope.graph);
    let idle = |node: &_| normalise::is_idle_dropout(node, &readers, scope.seen);
    Ok(normalise::remove_nodes(scope.graph, idle))
}

fn identity(scope: &mut Scope<'_>) -> Result<u64, Refusal> {
    Ok(normalise::remove_nodes(scope.graph, |node| operators::is(node, "Identity")))
}

fn batch_normalization(scope: &mut Scope<'_>) -> Result<u64, Refusal> {
    batch_norm::fold(scope.graph, scope.seen, scope.names, scope.change)
}

fn constants(scope: &mut Scope<'_>) -> Result<u64, Refusal> {
    Ok(fold::fold(scope.graph, scope.seen, scope.model, scope.run))
}
