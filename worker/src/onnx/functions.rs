//! Bounds what a model's own functions become when the runtime expands them.
//!
//! The runtime recurses over calls and copies bodies: a chain of 5,000 functions crashes it, and
//! thirty functions that each call the next twice make 10^9 nodes.

use std::collections::HashMap;

use lithe::names::reason;

use super::budget::Budget;
use super::refusal::{Refusal, quoted};
use super::{ModelProto, NodeProto, walk};

type Key<'a> = (&'a str, &'a str, &'a str);

/// Refuses functions that call themselves, nest too deep or expand to too many nodes.
pub fn check(model: &ModelProto, budget: &Budget) -> Result<(), Refusal> {
    if model.functions.is_empty() {
        return Ok(());
    }
    let mut index: HashMap<Key<'_>, usize> = HashMap::new();
    for (at, function) in model.functions.iter().enumerate() {
        let key = (function.domain.as_str(), function.name.as_str(), function.overload.as_str());
        if index.insert(key, at).is_some() {
            return Err(Refusal::corrupt(format!(
                "function {} is defined twice",
                quoted(&function.name)
            )));
        }
    }
    let bodies: Vec<Body> =
        model.functions.iter().map(|function| Body::of(&function.node, &index)).collect();
    let cost = costs(model, &bodies, budget)?;
    let mut main = Body::default();
    if let Some(graph) = &model.graph {
        main = Body::of(&graph.node, &index);
    }
    let total = main.calls.iter().fold(main.own, |sum, callee| {
        sum.saturating_add(cost.get(*callee).copied().unwrap_or_default())
    });
    if total > budget.nodes {
        let message =
            format!("the model's functions expand to {total} nodes, allowed are {}", budget.nodes);
        return Err(Refusal::budget(message));
    }
    Ok(())
}

/// One body: its own nodes and the functions it calls, as often as it calls them.
#[derive(Default)]
struct Body {
    own: u64,
    calls: Vec<usize>,
}

impl Body {
    fn of(nodes: &[NodeProto], index: &HashMap<Key<'_>, usize>) -> Self {
        let mut body = Self::default();
        let mut visit = |node: &NodeProto| {
            let key = (node.domain.as_str(), node.op_type.as_str(), node.overload.as_str());
            match index.get(&key) {
                Some(callee) => body.calls.push(*callee),
                None => body.own += 1,
            }
        };
        for node in nodes {
            visit(node);
            walk::bodies(node).for_each(|inner| walk::nodes(inner, &mut visit));
        }
        body
    }
}

/// Nodes of each function after expansion, computed from the leaves up without recursion.
fn costs(model: &ModelProto, bodies: &[Body], budget: &Budget) -> Result<Vec<u64>, Refusal> {
    let mut callers: Vec<Vec<usize>> = vec![Vec::new(); bodies.len()];
    let mut waiting: Vec<usize> = bodies.iter().map(|body| body.calls.len()).collect();
    for (caller, body) in bodies.iter().enumerate() {
        for callee in &body.calls {
            if let Some(list) = callers.get_mut(*callee) {
                list.push(caller);
            }
        }
    }
    let mut cost: Vec<u64> = bodies.iter().map(|body| body.own).collect();
    let mut depth = vec![1_u32; bodies.len()];
    let mut ready: Vec<usize> =
        waiting.iter().enumerate().filter(|(_, calls)| **calls == 0).map(|(at, _)| at).collect();
    let mut done = 0;
    while let Some(callee) = ready.pop() {
        done += 1;
        let inner = cost.get(callee).copied().unwrap_or_default();
        let level = depth.get(callee).copied().unwrap_or_default();
        if level > budget.calls {
            let message = format!("functions call each other more than {} deep", budget.calls);
            return Err(Refusal::new(reason::CYCLE, message));
        }
        for caller in callers.get(callee).into_iter().flatten() {
            if let (Some(cost), Some(depth), Some(left)) =
                (cost.get_mut(*caller), depth.get_mut(*caller), waiting.get_mut(*caller))
            {
                *cost = cost.saturating_add(inner);
                *depth = (*depth).max(level + 1);
                *left -= 1;
                if *left == 0 {
                    ready.push(*caller);
                }
            }
        }
    }
    if done == bodies.len() {
        return Ok(cost);
    }
    let stuck = waiting.iter().position(|calls| *calls > 0).and_then(|at| model.functions.get(at));
    let name = stuck.map_or("", |function| function.name.as_str());
    Err(Refusal::new(reason::CYCLE, format!("function {} calls itself", quoted(name))))
}
