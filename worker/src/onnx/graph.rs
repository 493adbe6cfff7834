//! What every pass needs of a graph: constants in scope, readers, fresh names, renaming, sweeping.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::order::{captured, reads};
use super::{AttributeProto, AttributeType, GraphProto, ModelProto, NodeProto, TensorProto};
use super::{walk, weights};

/// Constants by name. Raw data are shared, so a copy costs no weights.
pub type Constants = HashMap<String, TensorProto>;

/// The initializers of `graph` by name.
pub fn constants(graph: &GraphProto) -> Constants {
    graph.initializer.iter().map(|tensor| (tensor.name.clone(), tensor.clone())).collect()
}

/// Visits the graphs inside `graph` and then `graph` itself, each with the constants it can see.
pub fn scopes<E>(
    graph: &mut GraphProto,
    outer: &Constants,
    visit: &mut dyn FnMut(&mut GraphProto, &Constants) -> Result<(), E>,
) -> Result<(), E> {
    scope(graph, &mut outer.clone(), visit)
}

/// What a graph hides and adds is put back afterwards: a copy of the outer scope for each of
/// thousands of bodies would take time and memory that grow with the square of their number.
fn scope<E>(
    graph: &mut GraphProto,
    seen: &mut Constants,
    visit: &mut dyn FnMut(&mut GraphProto, &Constants) -> Result<(), E>,
) -> Result<(), E> {
    let mut before: Vec<(String, Option<TensorProto>)> = Vec::new();
    // A local name hides an outer one.
    let inputs = graph.input.iter().map(|input| &input.name);
    for name in inputs.chain(graph.node.iter().flat_map(|node| &node.output)) {
        if let Some(hidden) = seen.remove(name) {
            before.push((name.clone(), Some(hidden)));
        }
    }
    for tensor in &graph.initializer {
        let hidden = seen.insert(tensor.name.clone(), tensor.clone());
        before.push((tensor.name.clone(), hidden));
    }
    for body in graph.node.iter_mut().flat_map(walk::bodies_mut) {
        scope(body, seen, visit)?;
    }
    visit(graph, seen)?;
    for (name, hidden) in before.into_iter().rev() {
        match hidden {
            Some(tensor) => seen.insert(name, tensor),
            None => seen.remove(&name),
        };
    }
    Ok(())
}

/// How often each name is read in `graph`, by nodes, by bodies and as an output.
pub fn readers(graph: &GraphProto) -> HashMap<String, usize> {
    let mut count: HashMap<String, usize> = HashMap::new();
    let outputs = graph.output.iter().map(|output| output.name.as_str());
    for name in graph.node.iter().flat_map(reads).chain(outputs) {
        *count.entry(name.to_owned()).or_default() += 1;
    }
    count
}

/// The node that produces each name.
pub fn producers(graph: &GraphProto) -> HashMap<&str, usize> {
    graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(at, node)| node.output.iter().map(move |output| (output.as_str(), at)))
        .collect()
}

/// Names that are taken, so that new ones are new.
#[derive(Default)]
pub struct Names {
    taken: HashSet<String>,
    /// The number that is tried next for a name that is taken.
    next: HashMap<String, u64>,
}

impl Names {
    /// Every name in `graph` and in the graphs inside it.
    pub fn of(graph: &GraphProto) -> Self {
        let mut taken = HashSet::new();
        collect(graph, &mut taken);
        Self { taken, next: HashMap::new() }
    }

    /// `wanted` where it is free, else `wanted_2`, `wanted_3`, ….
    pub fn fresh(&mut self, wanted: &str) -> String {
        // Names have at most 1 KiB in what `load` accepts; a derived one must not grow past it.
        let wanted: String = wanted.chars().take(200).collect();
        if self.taken.insert(wanted.clone()) {
            return wanted;
        }
        let next = self.next.entry(wanted.clone()).or_insert(2);
        loop {
            let name = format!("{wanted}_{next}");
            *next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

fn collect(graph: &GraphProto, taken: &mut HashSet<String>) {
    taken.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
    taken.extend(graph.input.iter().chain(&graph.output).map(|value| value.name.clone()));
    for node in &graph.node {
        taken.extend(node.output.iter().chain(&node.input).cloned());
        taken.insert(node.name.clone());
        walk::bodies(node).for_each(|body| collect(body, taken));
    }
}

/// Makes every reader in `graph` and its bodies read `renames[name]` in place of `name`, along chains.
pub fn redirect(graph: &mut GraphProto, renames: &HashMap<String, String>) {
    if !renames.is_empty() {
        let ends = ends(renames);
        rename(graph, &ends);
    }
}

/// `renames` with every chain followed to its end, each link once.
fn ends(renames: &HashMap<String, String>) -> HashMap<&str, &str> {
    let mut ends: HashMap<&str, &str> = HashMap::with_capacity(renames.len());
    for start in renames.keys() {
        let (mut path, mut current) = (Vec::new(), start.as_str());
        // No chain is longer than the map.
        while path.len() <= renames.len() {
            if let Some(end) = ends.get(current) {
                current = end;
                break;
            }
            let Some(next) = renames.get(current) else { break };
            path.push(current);
            current = next;
        }
        ends.extend(path.into_iter().map(|name| (name, current)));
    }
    ends
}

fn rename(graph: &mut GraphProto, ends: &HashMap<&str, &str>) {
    for node in &mut graph.node {
        for input in &mut node.input {
            if let Some(name) = ends.get(input.as_str()) {
                (*name).clone_into(input);
            }
        }
        for body in walk::bodies_mut(node) {
            let inner: HashMap<String, &str> = captured(body)
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), *ends.get(name)?)))
                .collect();
            let inner = inner.iter().map(|(name, end)| (name.as_str(), *end)).collect();
            rename(body, &inner);
            for output in &mut body.output {
                if let Some(name) = inner.get(output.name.as_str()) {
                    (*name).clone_into(&mut output.name);
                }
            }
        }
    }
}

/// Removes nodes whose outputs nobody reads and initializers that nobody reads, in `graph` and the
/// graphs inside it; returns how many nodes and initializers went.
pub fn sweep(graph: &mut GraphProto) -> (u64, u64) {
    let mut gone = (0, 0);
    for body in graph.node.iter_mut().flat_map(walk::bodies_mut) {
        let (nodes, tensors) = sweep(body);
        gone = (gone.0 + nodes, gone.1 + tensors);
    }
    let mut live: HashSet<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let mut keep = vec![false; graph.node.len()];
    for (node, keep) in graph.node.iter().zip(&mut keep).rev() {
        if node.output.iter().any(|output| live.contains(output)) {
            *keep = true;
            live.extend(reads(node).into_iter().map(str::to_owned));
        }
    }
    let (nodes, tensors) = (graph.node.len(), graph.initializer.len());
    let mut keep = keep.into_iter();
    graph.node.retain(|_| keep.next().unwrap_or(true));
    graph.initializer.retain(|tensor| live.contains(&tensor.name));
    graph
        .sparse_initializer
        .retain(|sparse| sparse.values.as_ref().is_some_and(|values| live.contains(&values.name)));
    let left: HashSet<&str> =
        graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)).collect();
    graph.value_info.retain(|value| left.contains(value.name.as_str()));
    gone.0 += (nodes - graph.node.len()) as u64;
    gone.1 += (tensors - graph.initializer.len()) as u64;
    gone
}

/// A node of the default operator set.
pub fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        name: name.to_owned(),
        input: inputs.iter().map(|input| (*input).to_owned()).collect(),
        output: outputs.iter().map(|output| (*output).to_owned()).collect(),
        ..NodeProto::default()
    }
}

/// An integer attribute.
pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i,
        r#type: AttributeType::Int as i32,
        ..AttributeProto::default()
    }
}

/// An attribute with a list of integers.
pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ints: ints.to_vec(),
        r#type: AttributeType::Ints as i32,
        ..AttributeProto::default()
    }
}

/// A text attribute.
pub fn text(name: &str, text: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        s: text.as_bytes().to_vec(),
        r#type: AttributeType::String as i32,
        ..AttributeProto::default()
    }
}

/// The attribute `name` of `node`.
pub fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

/// The integer attribute `name` of `node`, else `default`.
pub fn int_of(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |attribute| attribute.i)
}

/// The float attribute `name` of `node`, else `default`.
pub fn float_of(node: &NodeProto, name: &str, default: f32) -> f32 {
    attribute(node, name).map_or(default, |attribute| attribute.f)
}

/// The `index`-th input of `node`; empty when it is absent.
pub fn input(node: &NodeProto, index: usize) -> &str {
    node.input.get(index).map_or("", String::as_str)
}

/// The `index`-th output of `node`; empty when it is absent.
pub fn output(node: &NodeProto, index: usize) -> &str {
    node.output.get(index).map_or("", String::as_str)
}

/// Numbers in the initializers of `model`, bodies included.
pub fn parameters(model: &ModelProto) -> u64 {
    fn of(graph: &GraphProto) -> u64 {
        let own: u64 = graph.initializer.iter().map(weights::count).sum();
        own + graph.node.iter().flat_map(walk::bodies).map(of).sum::<u64>()
    }
    model.graph.as_ref().map_or(0, of)
}

/// The model's bytes. The same model gives the same bytes: fields are written in the order of their
/// numbers, lists in their own.
pub fn serialise(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}
