//! What a pass sees: one graph, and what is around it.

use crate::compress::change::{Change, Runner};
use crate::onnx::graph::{Constants, Names};
use crate::onnx::infer::{self, Facts, Inputs};
use crate::onnx::{GraphProto, ModelProto};

/// One graph with its surroundings.
pub struct Scope<'a> {
    /// The graph.
    pub graph: &'a mut GraphProto,
    /// The constants that it can see.
    pub seen: &'a Constants,
    /// Names that are taken anywhere in the model.
    pub names: &'a mut Names,
    /// The model without its main graph: operator sets and functions.
    pub model: &'a ModelProto,
    /// The version of the default operator set.
    pub opset: i64,
    /// Whether the declared shapes of the graph's inputs hold.
    pub inputs: Inputs,
    /// Where nodes are noted that were left alone.
    pub change: &'a mut Change,
    /// Computes constants.
    pub run: Runner<'a>,
}

impl Scope<'_> {
    /// What is known of the values in the graph.
    pub fn facts(&self) -> Facts {
        infer::infer(self.graph, self.seen, self.opset, self.inputs)
    }
}
