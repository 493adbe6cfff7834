//! Removes nodes that hand their first input on as it is: a Cast to the type it has, a Reshape to the
//! shape it has, a Slice of everything. Only where types and shapes are known for certain.

use super::scope::Scope;
use crate::compress::normalise;
use crate::onnx::graph::{Constants, attribute, input, int_of, output};
use crate::onnx::infer::{Dim, Fact, Facts, constant};
use crate::onnx::{NodeProto, Refusal, operators, weights};

/// Removes such nodes; returns how many.
pub fn remove(scope: &mut Scope<'_>) -> Result<u64, Refusal> {
    let known = Known { facts: scope.facts(), seen: scope.seen };
    Ok(normalise::remove_nodes(scope.graph, |node| known.hands_on(node)))
}

struct Known<'a> {
    facts: Facts,
    seen: &'a Constants,
}

impl Known<'_> {
    fn fact(&self, name: &str) -> Option<Fact> {
        self.facts.get(name).cloned().or_else(|| self.seen.get(name).map(constant))
    }

    fn shapes(&self, node: &NodeProto) -> Option<(Vec<Dim>, Vec<Dim>)> {
        Some((self.fact(input(node, 0))?.shape?, self.fact(output(node, 0))?.shape?))
    }

    fn hands_on(&self, node: &NodeProto) -> bool {
        if !operators::canonical(&node.domain).is_empty() || node.output.len() != 1 {
            return false;
        }
        match node.op_type.as_str() {
            "Cast" => self.fact(input(node, 0)).is_some_and(|fact| {
                fact.data_type != 0 && i64::from(fact.data_type) == int_of(node, "to", 0)
            }),
            "Transpose" => attribute(node, "perm").is_some_and(|perm| {
                !perm.ints.is_empty()
                    && perm.ints.iter().enumerate().all(|(at, to)| at as i64 == *to)
            }),
            "Reshape" | "Flatten" => self.shapes(node).is_some_and(|(a, b)| same_elements(&a, &b)),
            "Expand" => {
                self.shapes(node).is_some_and(|(a, b)| a == b && a.iter().all(Option::is_some))
            }
            "Slice" => self.takes_all(node),
            "Pad" => self.pads_nothing(node),
            "Concat" | "Sum" | "Max" | "Min" | "Mean" => node.input.len() == 1,
            "Clip" => {
                ["min", "max"].iter().all(|name| attribute(node, name).is_none())
                    && node.input.iter().skip(1).all(String::is_empty)
            }
            _ => false,
        }
    }

    fn numbers(&self, node: &NodeProto, index: usize) -> Option<Vec<i64>> {
        weights::to_i64(self.seen.get(input(node, index))?)
    }

    /// A Slice in the form of operator set 10 and later.
    fn takes_all(&self, node: &NodeProto) -> bool {
        let all = || -> Option<bool> {
            let (starts, ends) = (self.numbers(node, 1)?, self.numbers(node, 2)?);
            let axes = match input(node, 3) {
                "" => (0..starts.len() as i64).collect(),
                _ => self.numbers(node, 3)?,
            };
            let plain =
                input(node, 4).is_empty() || self.numbers(node, 4)?.iter().all(|step| *step == 1);
            let shape = self.fact(input(node, 0)).and_then(|fact| fact.shape);
            let to_the_end = |(axis, end): (&i64, &i64)| {
                let length = shape.as_ref().and_then(|shape| {
                    let at = if *axis < 0 { axis + shape.len() as i64 } else { *axis };
                    shape.get(usize::try_from(at).ok()?).copied().flatten()
                });
                // Exporters write the largest integer of either width for `to the end`.
                *end >= length.unwrap_or(i64::from(i32::MAX))
            };
            let whole = axes.iter().zip(&ends).all(to_the_end);
            Some(plain && whole && starts.iter().all(|start| *start == 0))
        };
        node.input.len() > 1 && all().unwrap_or(false)
    }

    fn pads_nothing(&self, node: &NodeProto) -> bool {
        let pads = match attribute(node, "pads") {
            Some(attribute) => Some(attribute.ints.clone()),
            None => self.numbers(node, 1),
        };
        pads.is_some_and(|pads| !pads.is_empty() && pads.iter().all(|pad| *pad == 0))
    }
}

/// Whether two shapes of the same number of elements are the same: all axes, or all but one of which
/// the length then follows.
fn same_elements(a: &[Dim], b: &[Dim]) -> bool {
    let open = a.iter().zip(b).filter(|(a, b)| a.is_none() || b.is_none()).count();
    let equal = a.iter().zip(b).all(|(a, b)| match (a, b) {
        // Beside an axis of length 0 the other could have any length.
        (Some(a), Some(b)) => a == b && (open == 0 || *a > 0),
        _ => true,
    });
    a.len() == b.len() && open <= 1 && equal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_axis_of_unknown_length_follows_from_the_others() {
        assert!(same_elements(&[None, Some(3)], &[None, Some(3)]));
        assert!(same_elements(&[None, Some(3)], &[Some(2), Some(3)]));
        assert!(same_elements(&[Some(0), Some(3)], &[Some(0), Some(3)]));
        assert!(!same_elements(&[None, Some(0)], &[None, Some(0)]));
        assert!(!same_elements(&[None, None], &[None, None]));
        assert!(!same_elements(&[Some(6)], &[Some(2), Some(3)]));
        assert!(!same_elements(&[None, Some(3)], &[Some(3), None]));
    }
}
