//! Follows channels through a main graph, node by node in order: which indices of which constants
//! belong to which channel. Whatever is not understood freezes the channels that reach it.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::compress::prune::atoms::{Atoms, Axes, Labels};
use crate::compress::prune::numbers::Number;
use crate::onnx::graph::{input, output};
use crate::onnx::order::reads;
use crate::onnx::{GraphProto, NodeProto, TensorProto, operators};

/// A layer whose output channels may go.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its place among the nodes.
    pub node: usize,
    /// Its output channels.
    pub labels: Labels,
}

/// Weights by which channels are judged: those of one index of `axis` are one channel's.
#[derive(Clone, Debug)]
pub struct Norm {
    /// The constant.
    pub weight: String,
    /// Its axis.
    pub axis: usize,
    /// The labels along it.
    pub labels: Labels,
}

/// What must be written anew in a node.
#[derive(Clone, Debug)]
pub enum Edit {
    /// The number of groups of a depthwise convolution: as many as its input has channels.
    Group {
        /// The node's place.
        node: usize,
        /// Its input channels.
        labels: Labels,
    },
    /// The sizes of the parts of a Split.
    Split {
        /// The node's place.
        node: usize,
        /// The parts.
        parts: Vec<Labels>,
    },
}

/// What was found out about a graph.
pub struct Trace<'a> {
    /// Channels, joined as the graph demands.
    pub atoms: Atoms,
    /// Whether a Reshape that splits an axis in two makes whole heads of it.
    pub heads: bool,
    /// The atoms of axes that were split into heads.
    pub split: Vec<Labels>,
    /// The operator set.
    pub opset: i64,
    /// The initializers of the graph.
    pub constants: HashMap<&'a str, &'a TensorProto>,
    /// The axes of values that have labels.
    pub values: HashMap<String, Axes>,
    /// Integers computed from shapes.
    pub numbers: HashMap<String, Vec<Number>>,
    /// The axes of constants; `None` for an axis that stays.
    pub slices: BTreeMap<String, Axes>,
    /// Elements of integer constants that hold the length of an axis.
    pub targets: BTreeMap<(String, usize), Option<Labels>>,
    /// How many readers of each constant were understood.
    pub uses: HashMap<String, usize>,
    /// Layers in order.
    pub layers: Vec<Layer>,
    /// What judges channels.
    pub norms: Vec<Norm>,
    /// What must be written anew.
    pub edits: Vec<Edit>,
    shapes: &'a HashMap<String, Vec<i64>>,
    /// Nodes and constants that stay, by name.
    pub excluded: HashSet<&'a str>,
}

const ELEMENTWISE: [&str; 35] = [
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Erf",
    "Exp",
    "Log",
    "Sqrt",
    "Abs",
    "Neg",
    "Softplus",
    "Softsign",
    "Clip",
    "Cast",
    "Identity",
    "Dropout",
    "Gelu",
    "Mish",
    "Swish",
    "ThresholdedRelu",
    "Reciprocal",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Sin",
    "Cos",
    "Not",
    "Shrink",
    "QuickGelu",
];
const BROADCAST: [&str; 19] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Min",
    "Max",
    "Sum",
    "Mean",
    "PRelu",
    "Where",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Less",
    "Greater",
    "LessOrEqual",
    "GreaterOrEqual",
];

impl<'a> Trace<'a> {
    /// Follows the channels of `graph`, whose values have `shapes`.
    pub fn of(
        graph: &'a GraphProto,
        shapes: &'a HashMap<String, Vec<i64>>,
        opset: i64,
        heads: bool,
        exclude: &'a [String],
    ) -> Self {
        let constants = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor));
        let mut trace = Trace {
            atoms: Atoms::default(),
            heads,
            split: Vec::new(),
            opset,
            constants: constants.collect(),
            values: HashMap::new(),
            numbers: HashMap::new(),
            slices: BTreeMap::new(),
            targets: BTreeMap::new(),
            uses: HashMap::new(),
            layers: Vec::new(),
            norms: Vec::new(),
            edits: Vec::new(),
            shapes,
            excluded: exclude.iter().map(String::as_str).collect(),
        };
        for (at, node) in graph.node.iter().enumerate() {
            trace.node(at, node);
        }
        for output in &graph.output {
            trace.stop_value(&output.name, "its channels are an output of the model");
        }
        trace.settle(&crate::onnx::graph::readers(graph));
        trace
    }

    fn node(&mut self, at: usize, node: &NodeProto) {
        let op = node.op_type.as_str();
        if !node.name.is_empty() && self.excluded.contains(node.name.as_str()) {
            self.stop(node, "excluded by the recipe");
            return;
        }
        let standard = operators::canonical(&node.domain).is_empty();
        let gelu = node.domain == "com.microsoft" && (op == "Gelu" || op == "QuickGelu");
        if !standard && !gelu {
            return self.unknown(node);
        }
        if self.arithmetic(node) {
            return;
        }
        for (at, name) in node.input.iter().enumerate() {
            // A shape may be any integers that follow the channels; all else calculates with lengths.
            if !matches!((op, at), ("Reshape" | "Expand", 1) | ("Resize", 3)) {
                self.stop_numbers(name, "its length is calculated with");
            }
        }
        match op {
            "Conv" => self.conv(at, node),
            "ConvTranspose" => self.conv_transpose(at, node),
            "Gemm" => self.gemm(at, node),
            "MatMul" => self.matmul(at, node),
            "Shape" => self.shape_of(node),
            _ if ELEMENTWISE.contains(&op) => self.pass(node),
            _ if BROADCAST.contains(&op) => self.broadcast(node),
            // What no channel reaches needs no understanding.
            _ if !reads(node).iter().any(|name| self.tracked(name)) => {}
            "BatchNormalization" | "InstanceNormalization" => self.channel_norm(node),
            "LayerNormalization" => self.layer_norm(node),
            "Softmax" | "LogSoftmax" | "Hardmax" => self.softmax(node),
            "MaxPool" | "AveragePool" | "LpPool" | "GlobalAveragePool" | "GlobalMaxPool"
            | "GlobalLpPool" => self.pool(node),
            "Pad" => self.pad(node),
            "Resize" | "Upsample" => self.resize(node),
            "Reshape" => self.reshape(node),
            "Flatten" | "Squeeze" | "Unsqueeze" => self.refold(node),
            "Transpose" => self.transpose(node),
            "Concat" => self.concat(node),
            "Split" => self.split(at, node),
            "Gather" => self.gather(node),
            "Slice" => self.slice(node),
            "Expand" => self.expand(node),
            _ if op.starts_with("Reduce") => self.reduce(node),
            _ => self.unknown(node),
        }
    }

    fn unknown(&mut self, node: &NodeProto) {
        self.stop(node, &format!("its channels reach {}, which is not followed", node.op_type));
    }

    /// Whether `name` has labelled axes.
    pub fn labelled(&self, name: &str) -> bool {
        self.values.get(name).is_some_and(|axes| axes.iter().any(Option::is_some))
    }

    fn tracked(&self, name: &str) -> bool {
        self.labelled(name) || self.numbers.contains_key(name)
    }

    /// The shape of a constant or value.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        match self.constants.get(name) {
            Some(tensor) => Some(tensor.dims.clone()),
            None => self.shapes.get(name).cloned(),
        }
    }

    /// The axes of `name`, all of them `None` for a value without labels; `None` when even its rank
    /// is unknown.
    pub fn axes(&self, name: &str) -> Option<Axes> {
        match self.values.get(name) {
            Some(axes) => Some(axes.clone()),
            None => self.shape(name).map(|shape| vec![None; shape.len()]),
        }
    }

    /// Sets the axes of the first output of `node`.
    pub fn set(&mut self, node: &NodeProto, axes: Axes) {
        self.set_output(node, 0, axes);
    }

    /// Sets the axes of an output of `node`.
    pub fn set_output(&mut self, node: &NodeProto, index: usize, axes: Axes) {
        let name = output(node, index);
        if !name.is_empty() && axes.iter().any(Option::is_some) {
            self.values.insert(name.to_owned(), axes);
        }
    }

    /// Keeps every channel that reaches `node`.
    pub fn stop(&mut self, node: &NodeProto, reason: &str) {
        for name in reads(node) {
            self.stop_value(name, reason);
        }
    }

    /// Keeps every channel in the value `name`.
    pub fn stop_value(&mut self, name: &str, reason: &str) {
        for labels in self.values.get(name).cloned().into_iter().flatten().flatten() {
            self.atoms.freeze(&labels, reason);
        }
        self.stop_numbers(name, reason);
    }

    /// Keeps the channels of `axes` other than `kept`, whose labels are returned.
    pub fn only(&mut self, axes: &Axes, kept: usize, reason: &str) -> Option<Labels> {
        for labels in
            axes.iter().enumerate().filter(|(at, _)| *at != kept).filter_map(|(_, l)| l.as_ref())
        {
            self.atoms.freeze(labels, reason);
        }
        axes.get(kept).cloned().flatten()
    }

    /// Notes that a node reads the constant `name` with these labels.
    pub fn constant(&mut self, name: &str, axes: Axes) {
        const SHARED: &str = "its weights are shared with another axis";
        self.understands(name);
        let Some(before) = self.slices.get(name).cloned() else {
            self.slices.insert(name.to_owned(), axes);
            return;
        };
        for (old, new) in before.iter().zip(&axes) {
            match (old, new) {
                (Some(a), Some(b)) => self.atoms.join_all(a, b),
                (Some(a), None) | (None, Some(a)) => self.atoms.freeze(a, SHARED),
                (None, None) => {}
            }
        }
    }

    /// Notes that channels are judged by `axis` of `weight`.
    pub fn norm(&mut self, weight: &str, axis: usize, labels: &Labels) {
        self.norms.push(Norm { weight: weight.to_owned(), axis, labels: labels.clone() });
    }

    /// New channels for the output of the node at `at`.
    pub fn layer(&mut self, at: usize, count: usize) -> Labels {
        let labels = self.atoms.layer(count);
        self.layers.push(Layer { node: at, labels: labels.clone() });
        labels
    }

    /// The output axis of `node` of `count` channels, in `groups` that lose the same ones.
    pub fn outputs(&mut self, at: usize, count: usize, groups: usize) -> Labels {
        if groups <= 1 {
            return self.layer(at, count);
        }
        let one = self.layer(at, count / groups);
        one.iter().copied().cycle().take(count).collect()
    }

    /// Keeps what constants with readers that were not understood depend on, and excluded ones.
    fn settle(&mut self, readers: &HashMap<String, usize>) {
        const OTHERS: &str = "its weights are read by other nodes too";
        let fault = |trace: &Self, name: &str| {
            if trace.excluded.contains(name) {
                return Some("excluded by the recipe");
            }
            (trace.uses.get(name) != readers.get(name)).then_some(OTHERS)
        };
        for (name, axes) in self.slices.clone() {
            if let Some(why) = fault(self, &name) {
                axes.iter().flatten().for_each(|labels| self.atoms.freeze(labels, why));
            }
        }
        for ((name, _), labels) in self.targets.clone() {
            if let (Some(why), Some(labels)) = (fault(self, &name), labels) {
                self.atoms.freeze(&labels, why);
            }
        }
    }

    /// The constant that `node` reads at `index`.
    pub fn tensor(&self, node: &NodeProto, index: usize) -> Option<&'a TensorProto> {
        self.constants.get(input(node, index)).copied()
    }
}
