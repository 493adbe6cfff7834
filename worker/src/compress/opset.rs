//! Moves a model from operator set 7 to 12 up to 13, where 8-bit operators have their present form.
//!
//! Only operators whose signature or meaning changed are rewritten (ONNX `Changelog.md`); a model
//! with one that has no rewrite here is left as it was.

use std::collections::HashMap;

use crate::onnx::graph::{self, Constants, Names, attribute, input, int, int_of, output, text};
use crate::onnx::proto::type_proto::Value;
use crate::onnx::{
    AttributeProto, DataType, GraphProto, ModelProto, NodeProto, TensorProto, operators, weights,
};

/// Operators of the first sets that were withdrawn without a successor.
const WITHDRAWN: [&str; 10] = [
    "ATen",
    "Affine",
    "Crop",
    "DynamicSlice",
    "GRUUnit",
    "GivenTensorFill",
    "ImageScaler",
    "ParametricSoftplus",
    "Scale",
    "ScaledTanh",
];

/// Upgrades `model` to operator set `to`, which is 13.
///
/// # Errors
/// The operator that cannot be rewritten; the model is unchanged then.
pub fn upgrade(model: &mut ModelProto, to: i64) -> Result<(), String> {
    let from = operators::opset(model);
    if from < 7 {
        return Err(format!("operator set {from} is older than 7"));
    }
    if !model.functions.is_empty() {
        return Err("it has functions of its own".into());
    }
    let Some(mut main) = model.graph.clone() else { return Ok(()) };
    let mut upgrade =
        Upgrade { from, names: Names::of(&main), tensors: Vec::new(), nodes: Vec::new() };
    graph::scopes(&mut main, &Constants::new(), &mut |graph, seen| upgrade.graph(graph, seen))?;
    model.graph = Some(main);
    // Version 7 of the format came with operator set 13.
    model.ir_version = model.ir_version.max(7);
    for import in &mut model.opset_import {
        if operators::canonical(&import.domain).is_empty() {
            import.version = to;
        }
    }
    Ok(())
}

struct Upgrade {
    from: i64,
    names: Names,
    tensors: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
}

impl Upgrade {
    fn graph(&mut self, graph: &mut GraphProto, seen: &Constants) -> Result<(), String> {
        let ranks = ranks(graph, seen);
        let read = graph::readers(graph);
        for node in std::mem::take(&mut graph.node) {
            let is_default = operators::canonical(&node.domain).is_empty();
            match node.op_type.as_str() {
                _ if !is_default => self.nodes.push(node),
                "Softmax" | "LogSoftmax" | "Hardmax" => self.softmax(node, &ranks),
                "Dropout" => self.dropout(node, &read)?,
                _ => {
                    let node = self.adapt(node)?;
                    self.nodes.push(node);
                }
            }
        }
        graph.node = std::mem::take(&mut self.nodes);
        graph.initializer.append(&mut self.tensors);
        Ok(())
    }

    fn adapt(&mut self, mut node: NodeProto) -> Result<NodeProto, String> {
        let op = node.op_type.clone();
        match op.as_str() {
            "Squeeze" | "Unsqueeze" | "ReduceSum" => self.move_ints(&mut node, "axes", 1),
            "Split" => self.move_ints(&mut node, "split", 1),
            "Clip" if self.from < 11 => {
                let low = attribute(&node, "min").map(|a| a.f);
                let high = attribute(&node, "max").map(|a| a.f);
                self.move_floats(&mut node, &[("min", low), ("max", high)])?;
            }
            "Pad" if self.from < 11 => {
                self.move_ints(&mut node, "pads", 1);
                let value = attribute(&node, "value").map(|a| a.f).filter(|value| *value != 0.0);
                self.move_floats(&mut node, &[("value", value)])?;
            }
            "Slice" if self.from < 10 => {
                self.move_ints(&mut node, "starts", 1);
                self.move_ints(&mut node, "ends", 2);
                self.move_ints(&mut node, "axes", 3);
            }
            "TopK" if self.from < 10 => {
                let k = int_of(&node, "k", 1);
                self.append(&mut node, "k", 1, |name| weights::from_i64(name, &[1], &[k]));
                drop_attribute(&mut node, "k");
            }
            "Upsample" => self.upsample(&mut node)?,
            "Resize" if self.from == 10 => self.resize(&mut node),
            "Scatter" => node.op_type = "ScatterElements".into(),
            "BatchNormalization" if int_of(&node, "spatial", 1) != 1 => {
                return Err("BatchNormalization with spatial=0 has no successor".into());
            }
            "BatchNormalization" => drop_attribute(&mut node, "spatial"),
            "Scan" if self.from < 9 => return Err("Scan of operator set 8 has no rewrite".into()),
            _ if WITHDRAWN.contains(&op.as_str()) => return Err(format!("{op} was withdrawn")),
            _ => {}
        }
        Ok(node)
    }

    /// Turns the attribute `name` of `node` into its input number `at`.
    fn move_ints(&mut self, node: &mut NodeProto, name: &str, at: usize) {
        let Some(values) = attribute(node, name).map(|attribute| attribute.ints.clone()) else {
            return;
        };
        self.append(node, name, at, |tensor| {
            weights::from_i64(tensor, &[values.len() as i64], &values)
        });
        drop_attribute(node, name);
    }

    /// Turns float attributes into scalar inputs, in order; absent ones stay absent.
    fn move_floats(
        &mut self,
        node: &mut NodeProto,
        values: &[(&str, Option<f32>)],
    ) -> Result<(), String> {
        for (name, value) in values {
            let at = node.input.len();
            match value {
                Some(value) => {
                    self.append(node, name, at, |tensor| weights::from_f32(tensor, &[], &[*value]))
                }
                None => node.input.push(String::new()),
            }
            drop_attribute(node, name);
        }
        while node.input.last().is_some_and(String::is_empty) {
            node.input.pop();
        }
        Ok(())
    }

    fn append(
        &mut self,
        node: &mut NodeProto,
        what: &str,
        at: usize,
        make: impl Fn(&str) -> TensorProto,
    ) {
        let name = self.names.fresh(&format!("{}_{what}", output(node, 0)));
        node.input.resize(node.input.len().max(at), String::new());
        node.input.insert(at, name.clone());
        self.tensors.push(make(&name));
    }

    /// Before 13 these flattened everything from `axis` on; since 13 they work along one axis.
    fn softmax(&mut self, mut node: NodeProto, ranks: &HashMap<String, i64>) {
        let axis = int_of(&node, "axis", 1);
        let last = axis == -1 || ranks.get(input(&node, 0)).is_some_and(|rank| axis == rank - 1);
        drop_attribute(&mut node, "axis");
        node.attribute.push(int("axis", -1));
        if last {
            self.nodes.push(node);
            return;
        }
        let (source, result) = (input(&node, 0).to_owned(), output(&node, 0).to_owned());
        let [shape, flat, soft] =
            ["shape", "flat", "soft"].map(|what| self.names.fresh(&format!("{result}_{what}")));
        let name = |what: &str| {
            format!("{}_{what}", if node.name.is_empty() { &result } else { &node.name })
        };
        let mut flatten = graph::node("Flatten", &name("flatten"), &[&source], &[&flat]);
        flatten.attribute.push(int("axis", axis));
        let before = graph::node("Shape", &name("shape"), &[&source], &[&shape]);
        let after = graph::node("Reshape", &name("reshape"), &[&soft, &shape], &[&result]);
        node.input = vec![flat];
        node.output = vec![soft];
        self.nodes.extend([before, flatten, node, after]);
    }

    /// At inference Dropout hands its input on; what is left to check is that nobody reads the mask.
    fn dropout(
        &mut self,
        mut node: NodeProto,
        read: &HashMap<String, usize>,
    ) -> Result<(), String> {
        if read.contains_key(output(&node, 1)) && !output(&node, 1).is_empty() {
            return Err("Dropout whose mask is read has no rewrite".into());
        }
        if self.from < 12 {
            drop_attribute(&mut node, "ratio");
            node.output.truncate(1);
        }
        self.nodes.push(node);
        Ok(())
    }

    /// Upsample was Resize with the corners of pixels as coordinates.
    fn upsample(&mut self, node: &mut NodeProto) -> Result<(), String> {
        let scales = match attribute(node, "scales") {
            Some(attribute) => {
                let values = attribute.floats.clone();
                let name = self.names.fresh(&format!("{}_scales", output(node, 0)));
                self.tensors.push(weights::from_f32(&name, &[values.len() as i64], &values));
                name
            }
            None if node.input.len() == 2 => input(node, 1).to_owned(),
            None => return Err("Upsample without scales has no rewrite".into()),
        };
        drop_attribute(node, "scales");
        node.input = vec![input(node, 0).to_owned(), scales];
        self.resize(node);
        Ok(())
    }

    fn resize(&mut self, node: &mut NodeProto) {
        node.op_type = "Resize".into();
        let (source, scales) = (input(node, 0).to_owned(), input(node, 1).to_owned());
        node.input = vec![source, String::new(), scales];
        node.attribute.push(text("coordinate_transformation_mode", "asymmetric"));
        node.attribute.push(text("nearest_mode", "floor"));
    }
}

fn drop_attribute(node: &mut NodeProto, name: &str) {
    node.attribute.retain(|attribute: &AttributeProto| attribute.name != name);
}

/// Ranks that the graph states: of its inputs, outputs, annotated values and constants.
fn ranks(graph: &GraphProto, seen: &Constants) -> HashMap<String, i64> {
    let mut ranks: HashMap<String, i64> =
        seen.iter().map(|(name, tensor)| (name.clone(), tensor.dims.len() as i64)).collect();
    for value in graph.input.iter().chain(&graph.value_info).chain(&graph.output) {
        let kind = value.r#type.as_ref().and_then(|kind| kind.value.as_ref());
        if let Some(Value::TensorType(tensor)) = kind
            && let Some(shape) = &tensor.shape
            && tensor.elem_type != DataType::Undefined as i32
        {
            ranks.insert(value.name.clone(), shape.dim.len() as i64);
        }
    }
    ranks
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::onnx::graph::{float_of, ints};
    use crate::onnx::{OperatorSetIdProto, ValueInfoProto};

    fn model(version: i64, node: NodeProto) -> ModelProto {
        let value = |name: &str| ValueInfoProto { name: name.into(), ..ValueInfoProto::default() };
        ModelProto {
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version }],
            graph: Some(GraphProto {
                input: vec![value("x")],
                output: vec![value("y")],
                node: vec![node],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    #[test]
    fn axes_become_an_input() {
        let mut node = graph::node("Unsqueeze", "u", &["x"], &["y"]);
        node.attribute.push(ints("axes", &[0, 2]));
        let mut model = model(11, node);
        upgrade(&mut model, 13).unwrap();
        let graph = model.graph.as_ref().unwrap();
        assert_eq!(graph.node[0].input, ["x", "y_axes"]);
        assert_eq!(weights::to_i64(&graph.initializer[0]), Some(vec![0, 2]));
        assert!(graph.node[0].attribute.is_empty());
        assert_eq!(operators::opset(&model), 13);
    }

    #[test]
    fn softmax_keeps_its_flattening_where_the_axis_is_not_the_last() {
        let mut model = model(9, graph::node("Softmax", "s", &["x"], &["y"]));
        upgrade(&mut model, 13).unwrap();
        let ops: Vec<_> = model.graph.unwrap().node.iter().map(|n| n.op_type.clone()).collect();
        assert_eq!(ops, ["Shape", "Flatten", "Softmax", "Reshape"]);
    }

    #[test]
    fn clip_keeps_an_absent_minimum_absent() {
        let mut node = graph::node("Clip", "c", &["x"], &["y"]);
        node.attribute.push(AttributeProto {
            name: "max".into(),
            f: 6.0,
            ..AttributeProto::default()
        });
        let mut model = model(7, node);
        upgrade(&mut model, 13).unwrap();
        let graph = model.graph.as_ref().unwrap();
        assert_eq!(graph.node[0].input, ["x", "", "y_max"]);
        assert_eq!(float_of(&graph.node[0], "max", -1.0), -1.0);
    }

    #[test]
    fn an_operator_without_rewrite_leaves_the_model_as_it_was() {
        let mut model = model(7, graph::node("Affine", "a", &["x"], &["y"]));
        let before = model.clone();
        assert_eq!(upgrade(&mut model, 13), Err("Affine was withdrawn".into()));
        assert_eq!(model, before);
    }
}
