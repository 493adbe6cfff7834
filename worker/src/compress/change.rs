//! What a pass did: nodes it changed, nodes it left alone and why.

use lithe::artifact::Skipped;
use lithe::names::reason;

use crate::onnx::refusal::quoted;
use crate::onnx::{ModelProto, NodeProto, Refusal};
use crate::tensor::Tensor;

/// What one pass did to a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Nodes that were changed.
    pub matched: u64,
    /// Nodes that could have been changed and were not.
    pub skipped: Vec<Skipped>,
    /// What was done, such as `14 BatchNormalization folded`, in order.
    pub done: Vec<String>,
}

/// Runs a model without inputs and returns all its outputs. The passes see the runtime only so.
pub type Runner<'a> = &'a dyn Fn(&ModelProto) -> Option<Vec<Tensor>>;

/// A refusal because of the recipe.
pub fn recipe_invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(reason::RECIPE_INVALID, message)
}

/// The refusal of a weight that cannot be quantized.
pub fn not_finite(weight: &str, node: &NodeProto) -> Refusal {
    let message = format!(
        "weight {} of node {} ({}) holds NaN or an infinity, which cannot be quantized",
        quoted(weight),
        quoted(&node.name),
        node.op_type
    );
    Refusal::new(reason::NOT_FINITE, message)
}

impl Change {
    /// Notes `count` of `what`, unless there were none.
    pub fn did(&mut self, count: u64, what: &str) {
        if count > 0 {
            self.matched += count;
            self.done.push(format!("{count} {what}"));
        }
    }

    /// Notes that `node` was left alone because of `reason`.
    pub fn skip(&mut self, node: &NodeProto, reason: &str) {
        let same = |s: &&mut Skipped| s.op == node.op_type && s.reason == reason;
        let skipped = match self.skipped.iter_mut().find(same) {
            Some(skipped) => skipped,
            None => {
                self.skipped.push(Skipped {
                    op: node.op_type.clone(),
                    count: 0,
                    reason: reason.to_owned(),
                    nodes: Vec::new(),
                });
                match self.skipped.last_mut() {
                    Some(skipped) => skipped,
                    None => return,
                }
            }
        };
        skipped.count += 1;
        if skipped.nodes.len() < 3 && !node.name.is_empty() {
            skipped.nodes.push(node.name.chars().take(128).collect());
        }
    }

    /// The nodes that were left alone, in one line.
    pub fn skipped_line(&self) -> String {
        let one = |s: &Skipped| format!("{} {}: {}", s.count, s.op, s.reason);
        self.skipped.iter().map(one).collect::<Vec<_>>().join("; ")
    }

    /// Refuses a step that changed nothing: it would be paid for and do nothing. `wanted` names what it
    /// looks for, such as `MatMul, Gemm or embedding`.
    pub fn matched_something(&self, step: &str, wanted: &str) -> Result<(), Refusal> {
        if self.matched > 0 {
            return Ok(());
        }
        let all: u64 = self.skipped.iter().map(|skipped| skipped.count).sum();
        let why = if all == 0 { format!("it has no {wanted}") } else { self.skipped_line() };
        Err(recipe_invalid(format!("{step} matched 0 of {all} nodes: {why}")))
    }

    /// The whole change in one line.
    pub fn summary(&self) -> String {
        if self.done.is_empty() { "nothing to do".to_owned() } else { self.done.join(", ") }
    }
}
