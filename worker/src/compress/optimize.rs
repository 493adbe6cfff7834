//! The step `optimize`: BatchNormalization and constants folded, Dropout and dead nodes removed.
//! Outputs stay equal up to rounding; no weight loses bits.

use lithe::recipe::Optimize;

use crate::compress::change::{Change, Runner};
use crate::compress::{batch_norm, fold, normalise};
use crate::onnx::graph::{self, Constants, Names};
use crate::onnx::{ModelProto, Refusal};

/// Rounds after which the graph is taken as it is; each round needs a chain of foldable nodes.
const ROUNDS: usize = 4;

/// Optimises `model`. Matching nothing is no error: an exporter may have done it all.
///
/// # Errors
/// `NotFinite` where folding would write a number that is not finite.
pub fn optimize(
    mut model: ModelProto,
    _step: &Optimize,
    run: Runner<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    let mut change = Change::default();
    normalise::normalise(&mut model, &mut change);
    let (mut norms, mut dropouts, mut constants) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let Some(mut graph) = model.graph.take() else { break };
        let mut names = Names::of(&graph);
        let before = (norms, dropouts, constants);
        change.skipped.clear();
        graph::scopes(&mut graph, &Constants::new(), &mut |graph, seen| {
            let readers = graph::readers(graph);
            let idle = |node: &_| normalise::is_idle_dropout(node, &readers, seen);
            dropouts += normalise::remove_nodes(graph, idle);
            norms += batch_norm::fold(graph, seen, &mut names, &mut change)?;
            constants += fold::fold(graph, seen, &model, run);
            Ok::<_, Refusal>(())
        })?;
        model.graph = Some(graph);
        if before == (norms, dropouts, constants) {
            break;
        }
    }
    change.did(norms, "BatchNormalization folded");
    change.did(dropouts, "Dropout removed");
    change.did(constants, "constant nodes computed");
    let (nodes, _) = model.graph.as_mut().map_or((0, 0), graph::sweep);
    change.did(nodes, "dead nodes removed");
    Ok((model, change))
}
