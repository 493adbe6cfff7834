//! Element types, shapes and small integer values of a graph's values, as far as they follow for
//! certain from its inputs and constants; all else stays unknown.
//!
//! Shapes that a file declares for intermediate values are not believed: the runtime does not check
//! them. Must not run anything; one rule per operator, in the files beside this one.

mod elementwise;
mod layers;
mod layout;
mod pick;
mod reduce;

use std::collections::HashMap;

use super::graph::{Constants, attribute, input, int_of};
use super::proto::tensor_shape_proto::dimension;
use super::proto::type_proto::Value;
use super::{DataType, GraphProto, NodeProto, TensorProto, ValueInfoProto, operators, weights};

/// The length of an axis; `None` where it is not known.
pub type Dim = Option<i64>;

/// Elements up to which integers are followed; shapes are far shorter.
const LONGEST: usize = 64;

/// What is known of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fact {
    /// The element type, as a [`DataType`]; 0 where it is not known.
    pub data_type: i32,
    /// The length of each axis; `None` where even the rank is not known.
    pub shape: Option<Vec<Dim>>,
    /// The elements of a scalar or vector of 32- or 64-bit integers.
    pub numbers: Option<Vec<Dim>>,
}

/// What is known of values, by name.
pub type Facts = HashMap<String, Fact>;

static UNKNOWN: Fact = Fact { data_type: 0, shape: None, numbers: None };

impl Fact {
    /// A value of `data_type` with `shape`.
    pub fn new(data_type: i32, shape: Option<Vec<Dim>>) -> Self {
        Self { data_type, shape, numbers: None }
    }

    /// The shape, where all of it is known.
    pub fn fixed(&self) -> Option<Vec<i64>> {
        self.shape.as_ref()?.iter().copied().collect()
    }

    /// A vector of 64-bit integers.
    fn vector(numbers: Vec<Dim>) -> Self {
        let shape = Some(vec![Some(numbers.len() as i64)]);
        let numbers = (numbers.len() <= LONGEST).then_some(numbers);
        Self { data_type: DataType::Int64 as i32, shape, numbers }
    }
}

/// The fact of a constant.
pub fn constant(tensor: &TensorProto) -> Fact {
    let short = tensor.dims.len() <= 1 && weights::count(tensor) <= LONGEST as u64;
    let numbers = if short { weights::to_i64(tensor) } else { None };
    Fact {
        data_type: tensor.data_type,
        shape: Some(tensor.dims.iter().map(|dim| Some(*dim)).collect()),
        numbers: numbers.map(|numbers| numbers.into_iter().map(Some).collect()),
    }
}

/// Whether what a graph declares about its inputs holds: for the main graph the runtime checks it
/// with each request, for a body nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Element types and shapes hold.
    Checked,
    /// Only element types hold.
    Unchecked,
}

/// What is known of the values of `graph`, whose constants in scope are `seen`, in operator set
/// `opset`. Constants are left out: `seen` has them.
pub fn infer(graph: &GraphProto, seen: &Constants, opset: i64, inputs: Inputs) -> Facts {
    let mut facts: Facts = graph
        .input
        .iter()
        .filter(|input| !seen.contains_key(&input.name))
        .map(|input| (input.name.clone(), declared(input, inputs)))
        .collect();
    let mut known: Facts = HashMap::new();
    for node in &graph.node {
        if !operators::canonical(&node.domain).is_empty() {
            continue;
        }
        for name in &node.input {
            if let Some(tensor) = seen.get(name).filter(|_| !known.contains_key(name)) {
                known.insert(name.clone(), constant(tensor));
            }
        }
        let fact = |name: &String| facts.get(name).or_else(|| known.get(name)).unwrap_or(&UNKNOWN);
        let call = Call { node, inputs: node.input.iter().map(fact).collect(), seen, opset };
        let Some(made) = rule(&node.op_type).and_then(|rule| rule(&call)) else { continue };
        let named = node.output.iter().zip(made).filter(|(name, _)| !name.is_empty());
        facts.extend(named.map(|(name, fact)| (name.clone(), plausible(fact))));
    }
    facts
}

/// A negative length comes of a model that cannot run: then nothing is known.
fn plausible(mut fact: Fact) -> Fact {
    if fact.shape.iter().flatten().any(|dim| dim.is_some_and(|dim| dim < 0)) {
        fact.shape = None;
        fact.numbers = None;
    }
    fact
}

fn declared(input: &ValueInfoProto, inputs: Inputs) -> Fact {
    let Some(Value::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Fact::default();
    };
    let length = |dim: &super::proto::tensor_shape_proto::Dimension| match dim.value {
        Some(dimension::Value::DimValue(length)) if length >= 0 => Some(length),
        _ => None,
    };
    let shape = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(length).collect());
    Fact::new(tensor.elem_type, shape.filter(|_| inputs == Inputs::Checked))
}

/// A node with what is known of its inputs.
struct Call<'a> {
    node: &'a NodeProto,
    inputs: Vec<&'a Fact>,
    seen: &'a Constants,
    opset: i64,
}

/// Gives the facts of a node's outputs in order; `None` where nothing is known.
type Rule = fn(&Call<'_>) -> Option<Vec<Fact>>;

impl Call<'_> {
    fn fact(&self, index: usize) -> &Fact {
        self.inputs.get(index).copied().unwrap_or(&UNKNOWN)
    }

    fn given(&self, index: usize) -> bool {
        !input(self.node, index).is_empty()
    }

    fn shape(&self, index: usize) -> Option<&Vec<Dim>> {
        self.fact(index).shape.as_ref()
    }

    fn rank(&self, index: usize) -> Option<usize> {
        self.shape(index).map(Vec::len)
    }

    /// The integers of an input, where all are known.
    fn numbers(&self, index: usize) -> Option<Vec<i64>> {
        self.fact(index).numbers.as_ref()?.iter().copied().collect()
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        int_of(self.node, name, default)
    }

    fn ints(&self, name: &str) -> Option<&[i64]> {
        attribute(self.node, name).map(|attribute| attribute.ints.as_slice())
    }

    fn text(&self, name: &str) -> &str {
        attribute(self.node, name).map_or("", |a| std::str::from_utf8(&a.s).unwrap_or("?"))
    }

    /// Integers that are an attribute in old operator sets and input number `index` in new ones:
    /// `Ok(None)` when the node has neither, `Err` when they are not known.
    fn listed(&self, name: &str, index: usize) -> Result<Option<Vec<i64>>, ()> {
        if let Some(values) = self.ints(name) {
            return Ok(Some(values.to_vec()));
        }
        if !self.given(index) {
            return Ok(None);
        }
        self.numbers(index).map(Some).ok_or(())
    }

    /// A value like input number `index`.
    fn like(&self, index: usize) -> Fact {
        let fact = self.fact(index);
        Fact::new(fact.data_type, fact.shape.clone())
    }
}

/// `axis` counted from the front, where it lies within `rank`.
fn axis(axis: i64, rank: usize) -> Option<usize> {
    let from_front = if axis < 0 { axis.checked_add(rank as i64)? } else { axis };
    usize::try_from(from_front).ok().filter(|axis| *axis < rank)
}

/// The axes counted from the front.
fn axes(list: &[i64], rank: usize) -> Option<Vec<usize>> {
    list.iter().map(|one| axis(*one, rank)).collect()
}

/// The number of elements, where all axes are known.
fn product(shape: &[Dim]) -> Dim {
    shape.iter().try_fold(1_i64, |product, dim| product.checked_mul((*dim)?))
}

fn rule(op: &str) -> Option<Rule> {
    elementwise::rule(op)
        .or_else(|| layout::rule(op))
        .or_else(|| pick::rule(op))
        .or_else(|| layers::rule(op))
        .or_else(|| reduce::rule(op))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{constants, int, ints, node};
    use crate::onnx::proto::tensor_shape_proto::Dimension;
    use crate::onnx::proto::{TensorShapeProto, TypeProto, type_proto};

    fn input_of(name: &str, dims: &[i64]) -> ValueInfoProto {
        let dim = |length: &i64| Dimension {
            value: Some(if *length < 0 {
                dimension::Value::DimParam("N".into())
            } else {
                dimension::Value::DimValue(*length)
            }),
            ..Dimension::default()
        };
        let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(shape) };
        let value = Some(Value::TensorType(tensor));
        ValueInfoProto {
            name: name.into(),
            r#type: Some(TypeProto { value, ..TypeProto::default() }),
            ..ValueInfoProto::default()
        }
    }

    fn facts(input: &[i64], nodes: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Facts {
        let graph = GraphProto {
            input: vec![input_of("x", input)],
            node: nodes,
            initializer,
            ..GraphProto::default()
        };
        infer(&graph, &constants(&graph), 17, Inputs::Checked)
    }

    #[test]
    fn a_shape_computed_from_a_free_batch_is_known_but_for_the_batch() {
        let mut gather = node("Gather", "", &["s", "zero"], &["n"]);
        gather.attribute.push(int("axis", 0));
        let mut concat = node("Concat", "", &["m", "rest"], &["shape"]);
        concat.attribute.push(int("axis", 0));
        let mut unsqueeze = node("Unsqueeze", "", &["n", "axes"], &["m"]);
        unsqueeze.attribute.push(int("unused", 0));
        let nodes = vec![
            node("Shape", "", &["x"], &["s"]),
            gather,
            unsqueeze,
            concat,
            node("Reshape", "", &["x", "shape"], &["y"]),
        ];
        let made = facts(
            &[-1, 3, 8],
            nodes,
            vec![
                weights::from_i64("zero", &[], &[0]),
                weights::from_i64("axes", &[1], &[0]),
                weights::from_i64("rest", &[1], &[-1]),
            ],
        );
        assert_eq!(made["s"].numbers, Some(vec![None, Some(3), Some(8)]));
        assert_eq!(made["n"].shape, Some(vec![]));
        assert_eq!(made["shape"].numbers, Some(vec![None, Some(-1)]));
        assert_eq!(made["y"].shape, Some(vec![None, None]));
    }

    #[test]
    fn convolutions_and_products_have_their_lengths() {
        let mut conv = node("Conv", "", &["x", "w"], &["c"]);
        conv.attribute = vec![ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])];
        let mut flat = node("Flatten", "", &["c"], &["f"]);
        flat.attribute.push(int("axis", 1));
        let product = node("MatMul", "", &["f", "m"], &["y"]);
        let made = facts(
            &[-1, 3, 9, 9],
            vec![conv, flat, product],
            vec![
                weights::from_f32("w", &[4, 3, 3, 3], &[0.0; 108]),
                weights::from_f32("m", &[100, 7], &[0.0; 700]),
            ],
        );
        assert_eq!(made["c"].shape, Some(vec![None, Some(4), Some(5), Some(5)]));
        assert_eq!(made["f"].shape, Some(vec![None, Some(100)]));
        assert_eq!(made["y"].shape, Some(vec![None, Some(7)]));
    }

    #[test]
    fn lengths_that_cannot_be_and_foreign_operators_are_unknown() {
        let conv = node("Conv", "", &["x", "w"], &["c"]);
        let weight = weights::from_f32("w", &[4, 3, 3, 3], &[0.0; 108]);
        let made = facts(&[1, 3, 2, 2], vec![conv], vec![weight]);
        assert_eq!(made["c"].shape, Some(vec![Some(1), Some(4), None, None]));
        let custom = NodeProto { domain: "else".into(), ..node("Relu", "", &["x"], &["y"]) };
        assert!(!facts(&[1], vec![custom], vec![]).contains_key("y"));
    }
}
