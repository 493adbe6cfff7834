//! Visits everything in a model, however deep: graphs in nodes, tensors in attributes.
//!
//! Depth is bounded by [`super::Budget::depth`], so recursion is safe.

use super::{AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};

/// The graphs inside `node`: the bodies of If, Loop and Scan.
pub fn bodies(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}

/// The graphs inside `node`, to change.
pub fn bodies_mut(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute
        .iter_mut()
        .flat_map(|attribute| attribute.g.iter_mut().chain(attribute.graphs.iter_mut()))
}

/// Visits every node of `graph` and of the graphs inside it, outer before inner.
pub fn nodes<'a>(graph: &'a GraphProto, visit: &mut dyn FnMut(&'a NodeProto)) {
    for node in &graph.node {
        visit(node);
        bodies(node).for_each(|body| nodes(body, visit));
    }
}

/// Visits `graph` and every graph inside it, inner before outer.
pub fn graphs_mut<E>(
    graph: &mut GraphProto,
    visit: &mut dyn FnMut(&mut GraphProto) -> Result<(), E>,
) -> Result<(), E> {
    for node in &mut graph.node {
        for body in bodies_mut(node) {
            graphs_mut(body, visit)?;
        }
    }
    visit(graph)
}

/// Visits every tensor of `model`: initializers, sparse ones, attributes, bodies, functions,
/// training graphs.
pub fn tensors_mut<E>(
    model: &mut ModelProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    let training = model
        .training_info
        .iter_mut()
        .flat_map(|info| info.initialization.iter_mut().chain(info.algorithm.iter_mut()));
    for graph in model.graph.iter_mut().chain(training) {
        graph_tensors(graph, visit)?;
    }
    for function in &mut model.functions {
        for attribute in &mut function.attribute_proto {
            attribute_tensors(attribute, visit)?;
        }
        node_tensors(&mut function.node, visit)?;
    }
    Ok(())
}

fn graph_tensors<E>(
    graph: &mut GraphProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    for sparse in &mut graph.sparse_initializer {
        sparse_tensors(sparse, visit)?;
    }
    node_tensors(&mut graph.node, visit)
}

fn node_tensors<E>(
    nodes: &mut [NodeProto],
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute_tensors(attribute, visit)?;
    }
    Ok(())
}

fn attribute_tensors<E>(
    attribute: &mut AttributeProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    attribute.t.iter_mut().chain(&mut attribute.tensors).try_for_each(&mut *visit)?;
    for sparse in attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors) {
        sparse_tensors(sparse, visit)?;
    }
    for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        graph_tensors(graph, visit)?;
    }
    Ok(())
}

fn sparse_tensors<E>(
    sparse: &mut SparseTensorProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    sparse.values.iter_mut().chain(&mut sparse.indices).try_for_each(visit)
}

/// Visits every sparse tensor of `model`.
pub fn sparse_mut<E>(
    model: &mut ModelProto,
    visit: &mut dyn FnMut(&mut SparseTensorProto) -> Result<(), E>,
) -> Result<(), E> {
    fn of_nodes<E>(
        nodes: &mut [NodeProto],
        visit: &mut dyn FnMut(&mut SparseTensorProto) -> Result<(), E>,
    ) -> Result<(), E> {
        for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
            let AttributeProto { sparse_tensor, sparse_tensors, g, graphs, .. } = attribute;
            sparse_tensor.iter_mut().chain(sparse_tensors).try_for_each(&mut *visit)?;
            for graph in g.iter_mut().chain(graphs) {
                graph.sparse_initializer.iter_mut().try_for_each(&mut *visit)?;
                of_nodes(&mut graph.node, visit)?;
            }
        }
        Ok(())
    }
    if let Some(graph) = &mut model.graph {
        graph.sparse_initializer.iter_mut().try_for_each(&mut *visit)?;
        of_nodes(&mut graph.node, visit)?;
    }
    for function in &mut model.functions {
        of_nodes(&mut function.node, visit)?;
    }
    Ok(())
}
