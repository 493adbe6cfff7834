//! Puts nodes into an order in which each comes after what it reads, or says why there is none.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use lithe::names::reason;

use super::refusal::{Refusal, quoted};
use super::{GraphProto, ModelProto, NodeProto, walk};

/// Orders the main graph, every graph inside it and every function body of `model`.
///
/// An order that is right already is kept.
///
/// # Errors
/// [`reason::CYCLE`]; [`reason::CORRUPT`] for a name that nothing or two nodes produce.
pub fn order(model: &mut ModelProto) -> Result<(), Refusal> {
    if let Some(graph) = &mut model.graph {
        order_graph(graph, &mut HashSet::new())?;
    }
    for function in &mut model.functions {
        let mut given: HashSet<String> = function.input.iter().cloned().collect();
        order_nodes(&mut function.node, &mut given)?;
    }
    Ok(())
}

/// Orders `graph`, around which the names in `scope` are defined. `scope` is as before afterwards:
/// one set serves all bodies, since a copy for each would grow with the square of their number.
fn order_graph(graph: &mut GraphProto, scope: &mut HashSet<String>) -> Result<(), Refusal> {
    let own: Vec<String> = own_names(graph)
        .filter(|name| scope.insert((*name).to_owned()))
        .map(str::to_owned)
        .collect();
    order_nodes(&mut graph.node, scope)?;
    let made: HashSet<&str> =
        graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)).collect();
    for output in &graph.output {
        if !scope.contains(&output.name) && !made.contains(output.name.as_str()) {
            let message =
                format!("the graph's output {} is produced by nothing", quoted(&output.name));
            return Err(Refusal::corrupt(message));
        }
    }
    for name in own {
        scope.remove(&name);
    }
    Ok(())
}

/// Names that `graph` defines without a node.
fn own_names(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
    let inputs = graph.input.iter().map(|input| input.name.as_str());
    inputs.chain(graph.initializer.iter().chain(sparse).map(|tensor| tensor.name.as_str()))
}

/// Names that `graph` reads from the graphs around it.
pub fn captured(graph: &GraphProto) -> HashSet<&str> {
    let mut defined: HashSet<&str> = own_names(graph).collect();
    defined.extend(graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str)));
    let mut read: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    for node in &graph.node {
        read.extend(reads(node));
    }
    read.retain(|name| !name.is_empty() && !defined.contains(name));
    read
}

/// Names that `node` reads, those captured by its bodies included.
pub fn reads(node: &NodeProto) -> Vec<&str> {
    let direct = node.input.iter().map(String::as_str).filter(|name| !name.is_empty());
    direct.chain(walk::bodies(node).flat_map(captured)).collect()
}

fn order_nodes(nodes: &mut Vec<NodeProto>, scope: &mut HashSet<String>) -> Result<(), Refusal> {
    let order = sorted(nodes, scope)?;
    if order.iter().enumerate().any(|(at, from)| at != *from) {
        let mut slots: Vec<Option<NodeProto>> = nodes.drain(..).map(Some).collect();
        nodes.extend(order.iter().filter_map(|from| slots.get_mut(*from).and_then(Option::take)));
    }
    if nodes.iter().all(|node| walk::bodies(node).next().is_none()) {
        return Ok(());
    }
    let mut added = Vec::new();
    for node in nodes {
        for body in walk::bodies_mut(node) {
            order_graph(body, scope)?;
        }
        added.extend(node.output.iter().filter(|name| scope.insert((*name).clone())).cloned());
    }
    for name in added {
        scope.remove(&name);
    }
    Ok(())
}

/// The nodes' indices in order; the earliest node first where there is a choice.
fn sorted(nodes: &[NodeProto], given: &HashSet<String>) -> Result<Vec<usize>, Refusal> {
    let mut producer: HashMap<&str, usize> = HashMap::new();
    for (at, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|name| !name.is_empty()) {
            if given.contains(output) || producer.insert(output, at).is_some() {
                return Err(Refusal::corrupt(format!("{} is produced twice", quoted(output))));
            }
        }
    }
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut waiting = vec![0_usize; nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        for name in reads(node) {
            match producer.get(name) {
                Some(from) => {
                    if let (Some(list), Some(count)) = (readers.get_mut(*from), waiting.get_mut(at))
                    {
                        list.push(at);
                        *count += 1;
                    }
                }
                None if given.contains(name) => {}
                None => {
                    let message = format!(
                        "node {} ({}) reads {}, which nothing produces",
                        quoted(&node.name),
                        quoted(&node.op_type),
                        quoted(name)
                    );
                    return Err(Refusal::corrupt(message));
                }
            }
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> =
        waiting.iter().enumerate().filter(|(_, n)| **n == 0).map(|(at, _)| Reverse(at)).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(Reverse(at)) = ready.pop() {
        order.push(at);
        for reader in readers.get(at).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(*reader) {
                *count -= 1;
                if *count == 0 {
                    ready.push(Reverse(*reader));
                }
            }
        }
    }
    if order.len() == nodes.len() {
        return Ok(order);
    }
    let stuck = waiting.iter().position(|count| *count > 0).and_then(|at| nodes.get(at));
    let (name, op) = stuck.map_or(("", ""), |node| (node.name.as_str(), node.op_type.as_str()));
    let message = format!("the graph has a cycle through node {} ({})", quoted(name), quoted(op));
    Err(Refusal::new(reason::CYCLE, message))
}
