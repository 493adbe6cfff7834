//! Common-subexpression elimination: of nodes that do the same to the same inputs, the first serves
//! all readers. Within one graph; what draws random numbers or has a body stays.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::scope::Scope;
use crate::onnx::{AttributeProto, GraphProto, NodeProto, Refusal, graph, operators, walk};

/// Operators whose answer differs from one time to the next.
const RANDOM: [&str; 7] = [
    "Bernoulli",
    "Dropout",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
];

/// Merges equal nodes; returns how many went.
pub fn merge(scope: &mut Scope<'_>) -> Result<u64, Refusal> {
    Ok(of_graph(scope.graph))
}

fn of_graph(graph: &mut GraphProto) -> u64 {
    let outputs: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let mut first: HashMap<Vec<u8>, Vec<String>> = HashMap::new();
    let mut renames: HashMap<String, String> = HashMap::new();
    let before = graph.node.len();
    graph.node.retain(|node| {
        let signature = node.output.iter().any(|name| outputs.contains(name));
        if !mergeable(node) {
            return true;
        }
        let key = key(node, &renames);
        let Some(earlier) = first.get(&key) else {
            first.insert(key, node.output.clone());
            return true;
        };
        let serves = |(at, name): (usize, &String)| {
            name.is_empty() || earlier.get(at).is_some_and(|name| !name.is_empty())
        };
        if signature || !node.output.iter().enumerate().all(serves) {
            return true;
        }
        let pairs = node.output.iter().zip(earlier).filter(|(name, _)| !name.is_empty());
        renames.extend(pairs.map(|(name, earlier)| (name.clone(), earlier.clone())));
        false
    });
    graph::redirect(graph, &renames);
    (before - graph.node.len()) as u64
}

fn mergeable(node: &NodeProto) -> bool {
    operators::canonical(&node.domain).is_empty()
        && !RANDOM.contains(&node.op_type.as_str())
        && walk::bodies(node).next().is_none()
}

/// Equal for nodes that compute the same: operator, inputs after `renames`, attributes by name.
fn key(node: &NodeProto, renames: &HashMap<String, String>) -> Vec<u8> {
    let renamed = |name: &String| renames.get(name).unwrap_or(name).clone();
    let bare = |attribute: &AttributeProto| AttributeProto {
        doc_string: String::new(),
        ..attribute.clone()
    };
    let mut attribute: Vec<AttributeProto> = node.attribute.iter().map(bare).collect();
    attribute.sort_by(|a, b| a.name.cmp(&b.name));
    let same = NodeProto {
        op_type: node.op_type.clone(),
        input: node.input.iter().map(renamed).collect(),
        attribute,
        ..NodeProto::default()
    };
    same.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::ValueInfoProto;
    use crate::onnx::graph::{int, node};

    fn graph(nodes: Vec<NodeProto>, outputs: &[&str]) -> GraphProto {
        let value = |name: &&str| ValueInfoProto { name: (*name).into(), ..Default::default() };
        GraphProto {
            node: nodes,
            output: outputs.iter().map(value).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn chains_of_equal_nodes_become_one_chain() {
        let mut graph = graph(
            vec![
                node("Relu", "a", &["x"], &["a"]),
                node("Relu", "b", &["x"], &["b"]),
                node("Exp", "c", &["a"], &["c"]),
                node("Exp", "d", &["b"], &["d"]),
                node("Add", "e", &["c", "d"], &["y"]),
            ],
            &["y"],
        );
        assert_eq!(of_graph(&mut graph), 2);
        assert_eq!(graph.node.last().unwrap().input, ["c", "c"]);
    }

    #[test]
    fn attributes_outputs_and_chance_keep_nodes_apart() {
        let with = |name: &str, value: i64| {
            let mut made = node("Softmax", name, &["x"], &[name]);
            made.attribute.push(int("axis", value));
            made
        };
        let chance = |name: &str| node("RandomNormalLike", name, &["x"], &[name]);
        let mut graph = graph(
            vec![with("a", 1), with("b", 2), with("c", 1), chance("d"), chance("e")],
            &["a", "b", "c", "d", "e"],
        );
        assert_eq!(of_graph(&mut graph), 0);
    }
}
