//! Which nodes compute in 8 bits, and which tensors therefore pass through QuantizeLinear and
//! DequantizeLinear: only patterns that ONNX Runtime's CPU provider fuses into 8-bit kernels
//! (`qdq_selector_action_transformer.cc`). Changes nothing.

use std::collections::{HashMap, HashSet};

use lithe::recipe::Quantize;

use crate::compress::change::Change;
use crate::onnx::graph::{self, Constants, attribute, float_of, input, int_of, output};
use crate::onnx::{DataType, GraphProto, NodeProto, TensorProto, operators, walk, weights};

/// What becomes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A convolution: 8 bits in and out.
    Conv,
    /// MatMul or Gemm: 8 bits in; 8 bits out where a reader wants them.
    Product,
    /// Has an 8-bit kernel of its own, worth it only between others: all inputs and the output.
    Joint,
    /// Moves or picks elements: the output has the input's scale, and the pair around it vanishes.
    Through,
    /// Relu or Clip that the clipping of the quantized output does for free.
    Removed,
}

/// Operators with an 8-bit kernel of their own.
const JOINT: [&str; 7] =
    ["Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"];
/// Operators that move or pick elements.
const THROUGH: [&str; 9] = [
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Split",
    "MaxPool",
    "Resize",
];
/// Operators that are worth a word in the report, since they compute much.
const NO_KERNEL: [&str; 5] = ["ConvTranspose", "LSTM", "GRU", "RNN", "Attention"];

/// A tensor that passes through 8 bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The tensor.
    pub tensor: String,
    /// Whether an 8-bit kernel makes it; then whoever reads it reads the 8-bit form.
    pub made: bool,
    /// The tensor whose scale and zero point it shares; itself when it has its own.
    pub like: String,
}

/// What [`place`] decided.
#[derive(Debug)]
pub struct Placement {
    /// The role of each node, in the graph's order; `None` for nodes that stay in floats.
    pub roles: Vec<Option<Role>>,
    /// The tensors that pass through 8 bits, inputs of the graph first, then in the order of nodes.
    pub pairs: Vec<Pair>,
}

/// Decides for every node of `graph`; what could be quantized and is not is noted in `change`.
pub fn place(
    graph: &GraphProto,
    seen: &Constants,
    step: &Quantize,
    change: &mut Change,
) -> Placement {
    let mut graph = Flow::of(graph, seen);
    let verdicts: Vec<_> = graph.nodes.iter().map(|node| graph.candidate(node, step)).collect();
    graph.roles = verdicts.iter().map(|verdict| verdict.unwrap_or_default()).collect();
    graph.settle();
    for ((node, verdict), role) in graph.nodes.iter().zip(&verdicts).zip(&graph.roles) {
        match (verdict, role) {
            (Err(why), _) => change.skip(node, why),
            (Ok(Some(Role::Joint)), None) => {
                change.skip(node, "what it reads or who reads it stays in floats");
            }
            _ => {}
        }
        note_bodies(node, change);
    }
    let pairs = graph.pairs();
    Placement { roles: graph.roles, pairs }
}

/// Notes what lies in the bodies of `node` and could be quantized in the main graph.
pub fn note_bodies(node: &NodeProto, change: &mut Change) {
    for body in walk::bodies(node) {
        walk::nodes(body, &mut |inner| {
            if ["MatMul", "Gemm", "Conv"].iter().any(|op| operators::is(inner, op)) {
                change.skip(inner, "it lies in the body of an If, Loop or Scan");
            }
        });
    }
}

/// The inputs of a node with `role` that are read in 8 bits, by their number.
pub fn data_inputs(node: &NodeProto, role: Role) -> std::ops::Range<usize> {
    if role == Role::Joint { 0..node.input.len() } else { 0..node.input.len().min(1) }
}

/// Who makes and who reads what in one graph.
struct Flow<'a> {
    nodes: &'a [NodeProto],
    inputs: Vec<&'a str>,
    outputs: HashSet<&'a str>,
    seen: &'a Constants,
    roles: Vec<Option<Role>>,
    producers: HashMap<&'a str, usize>,
    /// Reading nodes of this graph and the number of the input; bodies are not among them.
    consumers: HashMap<&'a str, Vec<(usize, usize)>>,
    /// All readers, bodies and outputs included.
    readers: HashMap<String, usize>,
}

impl<'a> Flow<'a> {
    fn of(graph: &'a GraphProto, seen: &'a Constants) -> Self {
        let mut consumers: HashMap<&str, Vec<(usize, usize)>> = HashMap::new();
        for (at, node) in graph.node.iter().enumerate() {
            for (slot, name) in node.input.iter().enumerate() {
                consumers.entry(name).or_default().push((at, slot));
            }
        }
        Self {
            nodes: &graph.node,
            inputs: graph.input.iter().map(|input| input.name.as_str()).collect(),
            outputs: graph.output.iter().map(|output| output.name.as_str()).collect(),
            seen,
            roles: Vec::new(),
            producers: graph::producers(graph),
            consumers,
            readers: graph::readers(graph),
        }
    }

    /// What `node` could be, by itself; `None` for what this step has nothing to do with.
    fn candidate(&self, node: &NodeProto, step: &Quantize) -> Result<Option<Role>, &'static str> {
        let op = node.op_type.as_str();
        if !operators::canonical(&node.domain).is_empty() {
            return Ok(None);
        }
        let role = match op {
            "Conv" => Role::Conv,
            "MatMul" | "Gemm" => Role::Product,
            "Relu" | "Clip" => Role::Removed,
            _ if JOINT.contains(&op) => Role::Joint,
            _ if THROUGH.contains(&op) => Role::Through,
            _ if NO_KERNEL.contains(&op) => {
                return Err(
                    "it computes in floats: ONNX Runtime has no 8-bit kernel for it on CPUs",
                );
            }
            _ => return Ok(None),
        };
        if step.exclude.contains(&node.name) {
            return Err("excluded by the recipe");
        }
        let fits = match role {
            Role::Conv | Role::Product => {
                weighted(node, self.seen)?;
                true
            }
            Role::Removed => op == "Relu" || self.clips_around_zero(node),
            Role::Joint => {
                let dilated = op == "AveragePool" && attribute(node, "dilations").is_some();
                !dilated && !node.input.iter().any(String::is_empty)
            }
            Role::Through => self.moves_only(node),
        };
        Ok(fits.then_some(role))
    }

    /// Whether a quantized range, which has zero in it, clips no less than the Clip `node`.
    fn clips_around_zero(&self, node: &NodeProto) -> bool {
        let bound = |at: usize| match input(node, at) {
            "" => Some(0.0),
            name => self.seen.get(name).and_then(weights::to_f32)?.first().copied(),
        };
        bound(1).is_some_and(|low| low <= 0.0) && bound(2).is_some_and(|high| high >= 0.0)
    }

    /// Whether elements come out as they go in.
    fn moves_only(&self, node: &NodeProto) -> bool {
        match node.op_type.as_str() {
            // Between pixels the 8-bit kernel rounds in another way than the float one.
            "Resize" => attribute(node, "mode").is_none_or(|mode| mode.s == b"nearest"),
            "MaxPool" => output(node, 1).is_empty(),
            _ => true,
        }
    }

    /// Takes roles away until every one that is left is justified. Roles depend on neighbours that
    /// depend on others in turn, but along a graph without cycles, so this ends.
    fn settle(&mut self) {
        loop {
            let lost: Vec<usize> = (0..self.nodes.len())
                .filter(|at| self.role(*at).is_some() && !self.justified(*at))
                .collect();
            if lost.is_empty() {
                return;
            }
            for at in lost {
                if let Some(role) = self.roles.get_mut(at) {
                    *role = None;
                }
            }
        }
    }

    fn role(&self, at: usize) -> Option<Role> {
        self.roles.get(at).copied().flatten()
    }

    fn justified(&self, at: usize) -> bool {
        let Some(node) = self.nodes.get(at) else { return false };
        match self.role(at) {
            None => false,
            Some(Role::Conv | Role::Product) => true,
            Some(Role::Joint) => {
                let mut computed =
                    node.input.iter().filter(|name| !self.seen.contains_key(*name)).peekable();
                computed.peek().is_some()
                    && computed.all(|name| self.maker(name).is_some())
                    && self.wanted(node)
            }
            Some(Role::Through) => self.maker(input(node, 0)).is_some() && self.wanted(node),
            Some(Role::Removed) => {
                let source = input(node, 0);
                let alone = self.readers.get(source) == Some(&1) && !self.outputs.contains(source);
                match self.maker(source) {
                    Some(Role::Conv) => alone,
                    Some(Role::Product | Role::Joint) => alone && self.wanted(node),
                    _ => false,
                }
            }
        }
    }

    /// The role of the node that makes `name`, where it has one.
    fn maker(&self, name: &str) -> Option<Role> {
        self.producers.get(name).and_then(|at| self.role(*at))
    }

    /// Whether a node with a role reads an output of `node` as its data.
    fn wanted(&self, node: &NodeProto) -> bool {
        node.output.iter().any(|name| self.read_in_8_bits(name))
    }

    fn read_in_8_bits(&self, name: &str) -> bool {
        self.consumers.get(name).is_some_and(|readers| {
            readers.iter().any(|(at, slot)| {
                let data = self.role(*at).zip(self.nodes.get(*at));
                data.is_some_and(|(role, node)| data_inputs(node, role).contains(slot))
            })
        })
    }

    /// Whether Relu or Clip after it takes over the output `name`.
    fn handed_on(&self, name: &str) -> bool {
        let readers = self.consumers.get(name).map(Vec::as_slice);
        matches!(readers, Some([(at, 0)]) if self.role(*at) == Some(Role::Removed))
    }

    fn pairs(&self) -> Vec<Pair> {
        let mut like: HashMap<&str, &str> = HashMap::new();
        let mut pairs = Vec::new();
        let mut pair = |tensor: &str, made: bool, like: &str| {
            pairs.push(Pair { tensor: tensor.to_owned(), made, like: like.to_owned() });
        };
        for name in self.inputs.iter().filter(|name| self.read_in_8_bits(name)) {
            pair(name, false, name);
        }
        for (at, node) in self.nodes.iter().enumerate() {
            let role = self.role(at);
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                let root = match role {
                    Some(Role::Through) => {
                        like.get(input(node, 0)).copied().unwrap_or(input(node, 0))
                    }
                    _ => name,
                };
                like.insert(name, root);
                let placed = match role {
                    None => self.read_in_8_bits(name),
                    Some(Role::Product) => self.read_in_8_bits(name) && !self.handed_on(name),
                    Some(Role::Conv | Role::Joint) => !self.handed_on(name),
                    Some(Role::Through | Role::Removed) => true,
                };
                if placed {
                    pair(name, role.is_some(), root);
                }
            }
        }
        pairs
    }
}

/// What the 8-bit kernels need of a Conv, ConvTranspose, MatMul or Gemm; else why it cannot be
/// quantized.
pub fn weighted(node: &NodeProto, seen: &Constants) -> Result<(), &'static str> {
    let weight = match seen.get(input(node, 1)) {
        Some(weight) => weight,
        None if node.op_type == "MatMul" => return Err("both inputs are computed"),
        None => return Err("its weights are computed"),
    };
    if weight.data_type != DataType::Float as i32 {
        return Err("its weights are not 32-bit floats");
    }
    let least = if node.op_type.starts_with("Conv") { 3 } else { 2 };
    if weight.dims.len() < least || weights::count(weight) == 0 {
        return Err("its weights have too few dimensions or are empty");
    }
    if seen.contains_key(input(node, 0)) {
        return Err("both inputs are constant");
    }
    if input(node, 2).is_empty() {
        return Ok(());
    }
    bias(node, weight, seen)
        .map(|_| ())
        .ok_or("its bias is not one constant number per output channel")
}

/// The axis of the output channels of the weight of `node`.
pub fn channel_axis(node: &NodeProto) -> usize {
    match node.op_type.as_str() {
        "Conv" => 0,
        "Gemm" if int_of(node, "transB", 0) != 0 => 0,
        _ => 1,
    }
}

/// The bias of a Conv or Gemm, one number per output channel, times beta; `None` where it has none
/// or is of another form.
pub fn bias(node: &NodeProto, weight: &TensorProto, seen: &Constants) -> Option<Vec<f32>> {
    let tensor = seen.get(input(node, 2))?;
    let mut values = weights::to_f32(tensor)?;
    let channels = usize::try_from(*weight.dims.get(channel_axis(node))?).ok()?;
    let row = tensor.dims.iter().rev().skip(1).all(|dim| *dim == 1);
    if row && values.len() == 1 && operators::is(node, "Gemm") {
        values = vec![*values.first()?; channels];
    }
    if !row || values.len() != channels {
        return None;
    }
    if operators::is(node, "Gemm") {
        let beta = float_of(node, "beta", 1.0);
        values.iter_mut().for_each(|value| *value *= beta);
    }
    Some(values)
}
