//! The names in a step's `exclude`.

use std::collections::HashSet;

use crate::compress::change::recipe_invalid;
use crate::onnx::refusal::quoted;
use crate::onnx::{ModelProto, Refusal, walk};

/// Refuses names in `exclude` that no node has: a misspelt name must not change the node.
pub fn check(model: &ModelProto, exclude: &[String]) -> Result<(), Refusal> {
    of(exclude, &nodes(model), "node")
}

/// The same where initializers of the main graph may be named too.
pub fn check_with_initializers(model: &ModelProto, exclude: &[String]) -> Result<(), Refusal> {
    let mut names = nodes(model);
    let initializers = model.graph.iter().flat_map(|graph| &graph.initializer);
    names.extend(initializers.map(|tensor| tensor.name.as_str()));
    of(exclude, &names, "node or initializer (of equal initializers one name is kept)")
}

fn nodes(model: &ModelProto) -> HashSet<&str> {
    let mut names = HashSet::new();
    if let Some(graph) = &model.graph {
        walk::nodes(graph, &mut |node| {
            names.insert(node.name.as_str());
        });
    }
    names
}

fn of(exclude: &[String], names: &HashSet<&str>, what: &str) -> Result<(), Refusal> {
    match exclude.iter().find(|name| !names.contains(name.as_str())) {
        Some(name) => {
            let message = format!("exclude names {}, which is the name of no {what}", quoted(name));
            Err(recipe_invalid(message))
        }
        None => Ok(()),
    }
}
