//! Embedding tables as 8-bit integers with one scale per row: a quarter of the size, and unlike one
//! scale for the whole table it costs hardly any accuracy.
//!
//! Gather(table) becomes Gather(integers) -> Cast -> Mul(Gather(scales)).

use std::collections::{HashMap, HashSet};

use lithe::recipe::Quantize;

use crate::compress::change::Change;
use crate::compress::change::not_finite;
use crate::compress::int8::{self, Layout};
use crate::onnx::graph::{self, Constants, Names, input, int, int_of, output};
use crate::onnx::{DataType, GraphProto, NodeProto, Refusal, TensorProto, operators, weights};

/// Tables with fewer numbers stay: three more nodes cost more than the bytes.
const SMALLEST: u64 = 4096;
/// Rows with fewer numbers stay: the scale would take a large part of what is saved.
const NARROWEST: i64 = 16;

/// Quantizes the embedding tables of `graph`; returns how many Gather nodes read them.
pub fn quantize(
    graph: &mut GraphProto,
    seen: &Constants,
    step: &Quantize,
    names: &mut Names,
    change: &mut Change,
) -> Result<u64, Refusal> {
    let own: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let readers = graph::readers(graph);
    let mut gathers: HashMap<String, usize> = HashMap::new();
    for node in graph.node.iter().filter(|node| is_lookup(node)) {
        *gathers.entry(input(node, 0).to_owned()).or_default() += 1;
    }
    let mut fits = HashMap::new();
    for node in graph.node.iter().filter(|node| is_lookup(node)) {
        let Some(table) = seen.get(input(node, 0)) else { continue };
        match table_fits(node, table, step) {
            None => continue,
            Some(Err(why)) => change.skip(node, why),
            Some(Ok(())) if !own.contains(table.name.as_str()) => {
                change.skip(node, "its table lies in another graph");
            }
            Some(Ok(())) if readers.get(&table.name) != gathers.get(&table.name) => {
                change.skip(node, "its table is read by other nodes too");
            }
            Some(Ok(())) => {
                fits.insert(table.name.clone(), table.clone());
            }
        }
    }
    let skipped: HashSet<&String> = step.exclude.iter().collect();
    fits.retain(|table, _| {
        !graph
            .node
            .iter()
            .any(|n| is_lookup(n) && input(n, 0) == table && skipped.contains(&n.name))
    });
    replace(graph, &fits, names)
}

/// A Gather of whole rows.
fn is_lookup(node: &NodeProto) -> bool {
    operators::is(node, "Gather") && matches!(int_of(node, "axis", 0), 0 | -2)
}

/// Whether `table` is an embedding table worth it; `None` for what is no table at all.
fn table_fits(
    node: &NodeProto,
    table: &TensorProto,
    step: &Quantize,
) -> Option<Result<(), &'static str>> {
    let floats = table.data_type == DataType::Float as i32;
    if !floats || table.dims.len() != 2 {
        return None;
    }
    if step.exclude.contains(&node.name) {
        return Some(Err("excluded by the recipe"));
    }
    let narrow = table.dims.get(1).is_none_or(|width| *width < NARROWEST);
    if narrow || weights::count(table) < SMALLEST {
        return Some(Err("its table is too small to gain"));
    }
    Some(Ok(()))
}

fn replace(
    graph: &mut GraphProto,
    tables: &HashMap<String, TensorProto>,
    names: &mut Names,
) -> Result<u64, Refusal> {
    let mut made: HashMap<String, (String, String)> = HashMap::new();
    let (mut nodes, mut count) = (Vec::with_capacity(graph.node.len()), 0);
    for node in std::mem::take(&mut graph.node) {
        let table = if is_lookup(&node) { tables.get(input(&node, 0)) } else { None };
        let Some(table) = table else {
            nodes.push(node);
            continue;
        };
        if !made.contains_key(&table.name) {
            let [values, scales] = quantized(table, names, &node)?;
            made.insert(table.name.clone(), (values.name.clone(), scales.name.clone()));
            graph.initializer.extend([values, scales]);
        }
        if let Some((values, scales)) = made.get(&table.name) {
            nodes.extend(lookup(&node, values, scales, names));
            count += 1;
        }
    }
    graph.node = nodes;
    Ok(count)
}

fn quantized(
    table: &TensorProto,
    names: &mut Names,
    node: &NodeProto,
) -> Result<[TensorProto; 2], Refusal> {
    let floats = weights::to_f32(table).unwrap_or_default();
    // Nothing multiplies these integers, so they never need to give up a bit.
    let quantized = int8::quantize(&floats, Layout::of(&table.dims, Some(0)), false)
        .ok_or_else(|| not_finite(&table.name, node))?;
    let values = names.fresh(&format!("{}_quantized", table.name));
    let scales = names.fresh(&format!("{}_scale", table.name));
    let rows = quantized.scales.len() as i64;
    Ok([
        weights::from_i8(&values, &table.dims, &quantized.values),
        weights::from_f32(&scales, &[rows, 1], &quantized.scales),
    ])
}

fn lookup(node: &NodeProto, values: &str, scales: &str, names: &mut Names) -> [NodeProto; 4] {
    let base = if node.name.is_empty() { output(node, 0) } else { &node.name };
    let [rows, wide, scale] =
        ["rows", "cast", "scale"].map(|what| names.fresh(&format!("{base}_{what}_output")));
    let mut of = |op: &str, what: &str, inputs: [&str; 2], out: &str| {
        let inputs = inputs.into_iter().filter(|input| !input.is_empty()).collect::<Vec<_>>();
        graph::node(op, &names.fresh(&format!("{base}_{what}")), &inputs, &[out])
    };
    let indices = input(node, 1);
    let mut gather = of("Gather", "rows", [values, indices], &rows);
    let mut scaled = of("Gather", "scale", [scales, indices], &scale);
    gather.attribute.push(int("axis", 0));
    scaled.attribute.push(int("axis", 0));
    let mut cast = of("Cast", "cast", [&rows, ""], &wide);
    cast.attribute.push(int("to", DataType::Float as i64));
    [gather, cast, scaled, of("Mul", "rescale", [&wide, &scale], output(node, 0))]
}
