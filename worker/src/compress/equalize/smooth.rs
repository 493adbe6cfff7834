//! SmoothQuant (Xiao and others, 2022): s_j = max|X_j|^a / max|W_j|^(1-a) for input channel j of a matrix
//! product; X is divided and W multiplied by it. The division goes into the LayerNormalization or the
//! scale and shift before, where only these products read it; else into one Mul.

use std::collections::HashMap;

use super::{reach, scale};
use crate::compress::calibrate::{self, Feed};
use crate::compress::change::Change;
use crate::compress::products;
use crate::onnx::graph::{self, Constants, Names, input, int_of, output};
use crate::onnx::{GraphProto, ModelProto, NodeProto, Refusal, operators, order, weights};

/// What counts for a channel that is almost always zero; the reference's clip.
const LEAST: f32 = 1e-5;

/// Products that read the same activation.
struct Group {
    activation: String,
    /// The weight of each, once, and the axis of its input channels.
    weights: Vec<(String, usize)>,
    /// Products that read them.
    nodes: Vec<usize>,
    channels: usize,
}

/// Smooths the inputs of the matrix products in the main graph of `model`.
pub fn equalize(
    mut model: ModelProto,
    (strength, exclude): (f64, &[String]),
    feed: Feed<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    let mut change = Change::default();
    let Some(main) = &model.graph else { return Ok((model, change)) };
    let groups = groups(main, exclude, &mut change);
    let count: usize = groups.iter().map(|group| group.nodes.len()).sum();
    change.did(count as u64, "matrix products smoothed");
    change.matched_something("equalize.smoothquant", "MatMul or Gemm with constant weights")?;
    let reaches = measure(&model, &groups, feed)?;
    let Some(mut main) = model.graph.take() else { return Ok((model, change)) };
    let mut names = Names::of(&main);
    let mut multiplied = 0;
    for group in &groups {
        let Some(reached) = reaches.get(&group.activation) else { continue };
        let factors = factors(&main, group, reached, strength);
        for (name, axis) in &group.weights {
            if let Some(tensor) = main.initializer.iter_mut().find(|t| t.name == *name) {
                scale(tensor, *axis, &factors);
            }
        }
        let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
        if !fold(&mut main, group, &inverse) {
            multiply(&mut main, group, &inverse, &mut names);
            multiplied += 1;
        }
    }
    if multiplied > 0 {
        change.done.push(format!("{multiplied} Mul inserted where nothing before could take it"));
    }
    model.graph = Some(main);
    // New nodes stand at the end; each belongs before its readers.
    order::order(&mut model)?;
    Ok((model, change))
}

fn groups(graph: &GraphProto, exclude: &[String], change: &mut Change) -> Vec<Group> {
    let seen = graph::constants(graph);
    let readers = graph::readers(graph);
    let mut found: Vec<Group> = Vec::new();
    for (at, node) in graph.node.iter().enumerate().filter(|(_, n)| products::is_product(n)) {
        let (axis, channels) = match side(node, &seen, exclude) {
            Ok(side) => side,
            Err(why) => {
                change.skip(node, why);
                continue;
            }
        };
        let (activation, weight) = (input(node, 0), input(node, 1));
        let group = match found.iter_mut().find(|group| group.activation == activation) {
            Some(group) => group,
            None => {
                let activation = activation.to_owned();
                found.push(Group { activation, weights: vec![], nodes: vec![], channels });
                match found.last_mut() {
                    Some(group) => group,
                    None => continue,
                }
            }
        };
        if !group.weights.iter().any(|(name, _)| name == weight) {
            group.weights.push((weight.to_owned(), axis));
        }
        group.nodes.push(at);
    }
    // A weight that others read too would change for them.
    found.retain(|group| {
        let reads = |name: &str| {
            let own = group.nodes.iter().filter_map(|at| graph.node.get(*at));
            own.filter(|node| input(node, 1) == name).count()
        };
        let alone = group.weights.iter().all(|(name, _)| readers.get(name) == Some(&reads(name)));
        if !alone {
            for node in group.nodes.iter().filter_map(|at| graph.node.get(*at)) {
                change.skip(node, "its weights are read by other nodes too");
            }
        }
        alone
    });
    found
}

/// The axis and number of the input channels of the weight of `node`, or why it cannot be smoothed.
fn side(
    node: &NodeProto,
    seen: &Constants,
    exclude: &[String],
) -> Result<(usize, usize), &'static str> {
    let weight = products::weight(node, seen, exclude.contains(&node.name))?;
    if weight.dims.len() != 2 {
        return Err("its weights have more than two dimensions");
    }
    if int_of(node, "transA", 0) != 0 {
        return Err("it transposes its input");
    }
    let axis = usize::from(products::form(node).transposed_weight);
    let channels = weight.dims.get(axis).and_then(|dim| usize::try_from(*dim).ok());
    Ok((axis, channels.unwrap_or(0)))
}

/// The largest magnitude in each channel of each group's activation.
fn measure(
    model: &ModelProto,
    groups: &[Group],
    feed: Feed<'_>,
) -> Result<HashMap<String, Vec<f32>>, Refusal> {
    let tensors: Vec<String> = groups.iter().map(|group| group.activation.clone()).collect();
    let (watched, names) = calibrate::watch(model, &tensors);
    let mut reaches: HashMap<String, Vec<f32>> =
        groups.iter().map(|g| (g.activation.clone(), vec![0.0; g.channels])).collect();
    feed(&watched, &mut |name, tensor| {
        let Some(name) = names.get(name) else { return Ok(()) };
        calibrate::extent(name, tensor)?;
        let Some(reach) = reaches.get_mut(name) else { return Ok(()) };
        let count = reach.len().max(1);
        for (at, value) in calibrate::floats(tensor).enumerate() {
            if let Some(largest) = reach.get_mut(at % count) {
                *largest = largest.max(value.abs());
            }
        }
        Ok(())
    })?;
    Ok(reaches)
}

fn factors(graph: &GraphProto, group: &Group, reached: &[f32], strength: f64) -> Vec<f32> {
    let mut heaviest = vec![LEAST; group.channels];
    for (name, axis) in &group.weights {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == *name);
        let own = tensor.map(|tensor| reach(tensor, *axis)).unwrap_or_default();
        heaviest.iter_mut().zip(own).for_each(|(largest, value)| *largest = largest.max(value));
    }
    let factor = |(x, w): (&f32, &f32)| {
        let (x, w) = (f64::from(x.max(LEAST)), f64::from(*w));
        (x.powf(strength) / w.powf(1.0 - strength)) as f32
    };
    let factors: Vec<f32> = reached.iter().zip(&heaviest).map(factor).collect();
    let usable = |factor: &f32| factor.is_normal() && (1.0 / factor).is_normal();
    factors.into_iter().map(|factor| if usable(&factor) { factor } else { 1.0 }).collect()
}

/// Multiplies what makes the activation of `group` by `factors`; whether that was possible.
fn fold(graph: &mut GraphProto, group: &Group, factors: &[f32]) -> bool {
    let readers = graph::readers(graph);
    let outputs = |name: &str| graph.output.iter().any(|output| output.name == name);
    let own = group.nodes.len();
    if readers.get(&group.activation) != Some(&own) || outputs(&group.activation) {
        return false;
    }
    let Some(vectors) = vectors(graph, &group.activation, factors.len()) else { return false };
    if vectors.iter().any(|name| readers.get(name) != Some(&1)) {
        return false;
    }
    for tensor in graph.initializer.iter_mut().filter(|t| vectors.contains(&t.name)) {
        scale(tensor, 0, factors);
    }
    true
}

/// The constants that `activation` is proportional to together: scale and shift of a
/// LayerNormalization, or of a Mul and an Add.
fn vectors(graph: &GraphProto, activation: &str, channels: usize) -> Option<Vec<String>> {
    let seen = graph::constants(graph);
    let readers = graph::readers(graph);
    let is_vector = |name: &str| {
        seen.get(name).is_some_and(|tensor| {
            tensor.dims == [channels as i64] && weights::to_f32(tensor).is_some()
        })
    };
    let maker = |name: &str| graph.node.iter().find(|node| node.output.iter().any(|o| o == name));
    let split = |node: &NodeProto| -> Option<(String, String)> {
        let [a, b] = [input(node, 0), input(node, 1)];
        match (is_vector(a), is_vector(b)) {
            (false, true) => Some((a.to_owned(), b.to_owned())),
            (true, false) => Some((b.to_owned(), a.to_owned())),
            _ => None,
        }
    };
    let node = maker(activation)?;
    if operators::is(node, "LayerNormalization") && output(node, 0) == activation {
        let vectors: Vec<String> =
            node.input.iter().skip(1).filter(|name| !name.is_empty()).cloned().collect();
        return vectors.iter().all(|name| is_vector(name)).then_some(vectors);
    }
    if operators::is(node, "Mul") {
        return Some(vec![split(node)?.1]);
    }
    if operators::is(node, "Add") {
        let (scaled, shift) = split(node)?;
        let scaling = maker(&scaled).filter(|node| operators::is(node, "Mul"))?;
        let alone = readers.get(&scaled) == Some(&1);
        return alone.then_some(vec![split(scaling)?.1, shift]);
    }
    None
}

/// Puts one Mul between the activation and the products of `group`.
fn multiply(graph: &mut GraphProto, group: &Group, factors: &[f32], names: &mut Names) {
    let [vector, node, smoothed] = ["smooth_scale", "smooth", "smoothed"]
        .map(|what| names.fresh(&format!("{}_{what}", group.activation)));
    graph.initializer.push(weights::from_f32(&vector, &[factors.len() as i64], factors));
    for at in &group.nodes {
        if let Some(input) = graph.node.get_mut(*at).and_then(|node| node.input.first_mut()) {
            input.clone_from(&smoothed);
        }
    }
    graph.node.push(graph::node("Mul", &node, &[&group.activation, &vector], &[&smoothed]));
}
