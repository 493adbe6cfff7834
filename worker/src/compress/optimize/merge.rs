//! Merges neighbours that undo or repeat each other: Transpose after Transpose, Cast after a Cast that
//! loses nothing, Reshape after a change of shape, Unsqueeze after Squeeze and the other way round.
//! What is left without a reader goes with the dead nodes.

use std::collections::HashMap;

use super::scope::Scope;
use crate::onnx::graph::{self, Constants, attribute, input, int_of, ints, output};
use crate::onnx::infer::Facts;
use crate::onnx::{DataType, GraphProto, NodeProto, Refusal, operators, weights};

/// Merges such pairs; returns how many.
pub fn merge(scope: &mut Scope<'_>) -> Result<u64, Refusal> {
    let facts = scope.facts();
    Ok(of_graph(scope.graph, scope.seen, &facts))
}

fn of_graph(graph: &mut GraphProto, seen: &Constants, facts: &Facts) -> u64 {
    let producers: HashMap<String, usize> =
        graph::producers(graph).into_iter().map(|(name, at)| (name.to_owned(), at)).collect();
    let mut merged = 0;
    for at in 0..graph.node.len() {
        let replaced = graph.node.get(at).and_then(|node| {
            let before = graph.node.get(*producers.get(input(node, 0))?)?;
            together(before, node, seen, facts)
        });
        if let (Some(new), Some(node)) = (replaced, graph.node.get_mut(at)) {
            *node = new;
            merged += 1;
        }
    }
    merged
}

/// What does what `before` and then `node` do, in one node.
fn together(
    before: &NodeProto,
    node: &NodeProto,
    seen: &Constants,
    facts: &Facts,
) -> Option<NodeProto> {
    let standard = |node: &NodeProto| operators::canonical(&node.domain).is_empty();
    if !standard(before) || !standard(node) || input(before, 0).is_empty() {
        return None;
    }
    let reread = || {
        let mut new = node.clone();
        if let Some(first) = new.input.first_mut() {
            input(before, 0).clone_into(first);
        }
        new
    };
    let undone = || graph::node("Identity", &node.name, &[input(before, 0)], &[output(node, 0)]);
    match (before.op_type.as_str(), node.op_type.as_str()) {
        ("Transpose", "Transpose") => {
            let mut new = reread();
            new.attribute = vec![ints("perm", &composed(before, node)?)];
            Some(new)
        }
        ("Cast", "Cast") => {
            let (middle, last) = (int_of(before, "to", 0), int_of(node, "to", 0));
            let first = facts.get(input(before, 0))?.data_type;
            let floats = [i64::from(first), middle, last].iter().all(|kind| is_float(*kind));
            let safe = keeps_all(i64::from(first), middle) && (i64::from(first) == last || floats);
            safe.then(reread)
        }
        ("Reshape" | "Flatten" | "Squeeze" | "Unsqueeze", "Reshape") => {
            let target = weights::to_i64(seen.get(input(node, 1))?)?;
            // A zero copies an axis of what `before` made.
            (!target.is_empty() && !target.contains(&0)).then(reread)
        }
        ("Squeeze", "Unsqueeze") | ("Unsqueeze", "Squeeze") => {
            let (a, b) = (axes(before, seen)?, axes(node, seen)?);
            (a == b).then(undone)
        }
        _ => None,
    }
}

/// The order of axes of `first` and then `second`.
fn composed(first: &NodeProto, second: &NodeProto) -> Option<Vec<i64>> {
    let (first, second) = (&attribute(first, "perm")?.ints, &attribute(second, "perm")?.ints);
    if first.len() != second.len() {
        return None;
    }
    second.iter().map(|at| first.get(usize::try_from(*at).ok()?).copied()).collect()
}

/// The axes of a Squeeze or Unsqueeze, sorted; `None` where they are not written down or counted from
/// the end.
fn axes(node: &NodeProto, seen: &Constants) -> Option<Vec<i64>> {
    let mut axes = match attribute(node, "axes") {
        Some(attribute) => attribute.ints.clone(),
        None => weights::to_i64(seen.get(input(node, 1))?)?,
    };
    axes.sort_unstable();
    (!axes.is_empty() && axes.iter().all(|axis| *axis >= 0)).then_some(axes)
}

fn is_float(kind: i64) -> bool {
    [DataType::Float16, DataType::Bfloat16, DataType::Float, DataType::Double]
        .iter()
        .any(|float| *float as i64 == kind)
}

/// Whether every number of type `from` is one of type `to`.
fn keeps_all(from: i64, to: i64) -> bool {
    use DataType as D;
    let kind = |kind: i64| i32::try_from(kind).ok().and_then(|kind| D::try_from(kind).ok());
    let (Some(from), Some(to)) = (kind(from), kind(to)) else { return false };
    let wider: &[D] = match from {
        D::Bool => &[
            D::Int8,
            D::Uint8,
            D::Int16,
            D::Uint16,
            D::Int32,
            D::Uint32,
            D::Int64,
            D::Uint64,
            D::Float16,
            D::Bfloat16,
            D::Float,
            D::Double,
        ],
        D::Uint8 => &[
            D::Int16,
            D::Uint16,
            D::Int32,
            D::Uint32,
            D::Int64,
            D::Uint64,
            D::Float16,
            D::Bfloat16,
            D::Float,
            D::Double,
        ],
        D::Int8 => &[D::Int16, D::Int32, D::Int64, D::Float16, D::Bfloat16, D::Float, D::Double],
        D::Uint16 => &[D::Int32, D::Uint32, D::Int64, D::Uint64, D::Float, D::Double],
        D::Int16 => &[D::Int32, D::Int64, D::Float, D::Double],
        D::Uint32 => &[D::Int64, D::Uint64, D::Double],
        D::Int32 => &[D::Int64, D::Double],
        D::Float16 | D::Bfloat16 => &[D::Float, D::Double],
        D::Float => &[D::Double],
        _ => &[],
    };
    from == to || wider.contains(&to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::{int, node};
    use crate::onnx::infer::Fact;

    fn merged(
        nodes: Vec<NodeProto>,
        constants: &[(&str, &[i64])],
        from: DataType,
    ) -> Vec<NodeProto> {
        let mut graph = GraphProto { node: nodes, ..GraphProto::default() };
        let one = |(name, values): &(&str, &[i64])| {
            ((*name).to_owned(), weights::from_i64(name, &[values.len() as i64], values))
        };
        let seen: Constants = constants.iter().map(one).collect();
        let facts = Facts::from([("x".to_owned(), Fact::new(from as i32, None))]);
        of_graph(&mut graph, &seen, &facts);
        graph.node
    }

    fn moved(order: &[i64], from: &str, to: &str) -> NodeProto {
        let mut made = node("Transpose", to, &[from], &[to]);
        made.attribute.push(ints("perm", order));
        made
    }

    fn cast(to: DataType, from: &str, name: &str) -> NodeProto {
        let mut made = node("Cast", name, &[from], &[name]);
        made.attribute.push(int("to", to as i64));
        made
    }

    #[test]
    fn transposes_compose_in_the_order_in_which_they_run() {
        let nodes = merged(
            vec![moved(&[1, 2, 0], "x", "t"), moved(&[0, 2, 1], "t", "y")],
            &[],
            DataType::Float,
        );
        // y[i, j, k] = t[i, k, j] = x[j, i, k].
        assert_eq!(nodes[1].input, ["x"]);
        assert_eq!(nodes[1].attribute[0].ints, [1, 0, 2]);
    }

    #[test]
    fn a_cast_there_and_back_goes_only_when_nothing_is_lost() {
        let there = |middle| {
            let nodes = vec![cast(middle, "x", "t"), cast(DataType::Float, "t", "y")];
            merged(nodes, &[], DataType::Float)[1].input[0].clone()
        };
        assert_eq!(there(DataType::Double), "x");
        assert_eq!(there(DataType::Float16), "t");
        assert_eq!(there(DataType::Int64), "t");
    }

    #[test]
    fn a_reshape_reads_past_another_unless_it_copies_an_axis() {
        let read = |target: &[i64]| {
            let nodes =
                vec![node("Flatten", "", &["x"], &["t"]), node("Reshape", "", &["t", "s"], &["y"])];
            merged(nodes, &[("s", target)], DataType::Float)[1].input[0].clone()
        };
        assert_eq!(read(&[2, -1]), "x");
        assert_eq!(read(&[0, -1]), "t");
    }

    #[test]
    fn squeeze_and_unsqueeze_of_the_same_axes_undo_each_other() {
        let second = |list: &[i64]| {
            let nodes = vec![
                node("Unsqueeze", "", &["x", "a"], &["t"]),
                node("Squeeze", "", &["t", "b"], &["y"]),
            ];
            merged(nodes, &[("a", &[1, 2]), ("b", list)], DataType::Float)[1].op_type.clone()
        };
        assert_eq!(second(&[2, 1]), "Identity");
        assert_eq!(second(&[0, 1]), "Squeeze");
        assert_eq!(second(&[-1, 1]), "Squeeze");
    }
}
