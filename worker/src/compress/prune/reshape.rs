//! Operators that move axes: the labels are carried along, split and merged as the elements are.

use crate::compress::prune::atoms::{Atom, Axes, FIXED, Labels};
use crate::compress::prune::elementwise::place;
use crate::compress::prune::trace::{Edit, Trace};
use crate::onnx::graph::{attribute, input, int_of, output};
use crate::onnx::{NodeProto, weights};

/// Elements of a block of axes that are looked at one by one.
const LARGEST: usize = 1 << 22;

const MIXED: &str = "a Reshape mixes its channels with another axis";
const HEADS: &str =
    "a Reshape splits its channels in two axes, as attention heads are; see structure: Heads";
const UNKNOWN: &str = "its channels reach a value of unknown shape";

/// A run of axes before and after a Reshape that hold the same elements.
type Block = (std::ops::Range<usize>, std::ops::Range<usize>);

impl Trace<'_> {
    /// Reshape: the labels by the elements, the shape's constants by the labels.
    pub fn reshape(&mut self, node: &NodeProto) {
        let before = self.axes(input(node, 0)).unwrap_or_default();
        let Some(axes) = self.refolded(node, &before) else { return self.stop(node, UNKNOWN) };
        if let Some(shape) = attribute(node, "shape") {
            let fixed = |(at, labels): (usize, &Option<Labels>)| {
                labels.clone().filter(|_| shape.ints.get(at) != Some(&-1))
            };
            for labels in axes.iter().enumerate().filter_map(fixed) {
                self.atoms.freeze(&labels, "a shape that it is brought into is an attribute");
            }
        } else {
            self.demand(input(node, 1), &axes, &before, int_of(node, "allowzero", 0) == 0);
        }
        self.set(node, axes);
    }

    /// Flatten, Squeeze, Unsqueeze: a Reshape whose shape follows by itself.
    pub fn refold(&mut self, node: &NodeProto) {
        let before = self.axes(input(node, 0)).unwrap_or_default();
        match self.refolded(node, &before) {
            Some(axes) => self.set(node, axes),
            None => self.stop(node, UNKNOWN),
        }
    }

    /// The axes after the elements were laid out anew.
    fn refolded(&mut self, node: &NodeProto, before: &Axes) -> Option<Axes> {
        let size = |name: &str| -> Option<Vec<usize>> {
            self.shape(name)?.iter().map(|dim| usize::try_from(*dim).ok()).collect()
        };
        let (from, to) = (size(input(node, 0))?, size(output(node, 0))?);
        if from.len() != before.len() || from.contains(&0) || to.contains(&0) {
            return None;
        }
        let mut result = vec![None; to.len()];
        let mut seen = 0;
        for (old, new) in blocks(&from, &to)? {
            seen = old.end;
            let axes = before.get(old.clone())?;
            let labels = self.block(axes, from.get(old)?, to.get(new.clone())?);
            if let (Some((at, labels)), start) = (labels, new.start)
                && let Some(axis) = result.get_mut(start + at)
            {
                *axis = Some(labels);
            }
        }
        // What is left has length 1.
        for labels in before.iter().skip(seen).flatten() {
            self.atoms.freeze(labels, MIXED);
        }
        Some(result)
    }

    /// The labels of one block after it was laid out anew, and at which of its new axes they are.
    fn block(
        &mut self,
        axes: &[Option<Labels>],
        from: &[usize],
        to: &[usize],
    ) -> Option<(usize, Labels)> {
        let mut labelled = axes.iter().enumerate().filter_map(|(at, l)| Some((at, l.clone()?)));
        let (axis, labels) = labelled.next()?;
        let others: Vec<Labels> = labelled.map(|(_, labels)| labels).collect();
        let count: usize = from.iter().product();
        if !others.is_empty() || count > LARGEST || from.get(axis) != Some(&labels.len()) {
            for labels in others.iter().chain([&labels]) {
                self.atoms.freeze(labels, MIXED);
            }
            return None;
        }
        let inside: usize = from.iter().skip(axis + 1).product();
        let flat: Vec<Atom> =
            (0..count).filter_map(|at| labels.get(at / inside % labels.len()).copied()).collect();
        if let Some(found) = self.along(&flat, to) {
            return Some(found);
        }
        let mut wide = to.iter().enumerate().filter(|(_, length)| **length > 1);
        if let (true, [_], Some((first, length))) = (self.heads, from, wide.next()) {
            // Whole heads: all channels of one index of the first new axis stay or go together.
            let each = flat.len() / length;
            for head in flat.chunks(each) {
                head.iter().for_each(|atom| {
                    self.atoms.join(*atom, head.first().copied().unwrap_or(FIXED))
                });
            }
            let heads: Labels = flat.iter().copied().step_by(each).collect();
            self.split.push(heads.clone());
            return Some((first, heads));
        }
        self.atoms.freeze(&labels, if from.len() == 1 { HEADS } else { MIXED });
        None
    }

    /// The one axis of `to` along which alone `flat` changes its classes, with the labels along it.
    fn along(&self, flat: &[Atom], to: &[usize]) -> Option<(usize, Labels)> {
        let classes: Vec<Atom> = flat.iter().map(|atom| self.atoms.class(*atom)).collect();
        (0..to.len()).find_map(|axis| {
            let length = *to.get(axis)?;
            let inside: usize = to.iter().skip(axis + 1).product();
            let mut first: Vec<Option<Atom>> = vec![None; length];
            for (at, class) in classes.iter().enumerate() {
                let slot = first.get_mut(at / inside % length)?;
                if *slot.get_or_insert(*class) != *class {
                    return None;
                }
            }
            (length > 1).then_some((axis, first.into_iter().flatten().collect()))
        })
    }

    /// Transpose.
    pub fn transpose(&mut self, node: &NodeProto) {
        let Some(axes) = self.axes(input(node, 0)) else { return self.stop(node, UNKNOWN) };
        let order: Vec<usize> = match attribute(node, "perm") {
            Some(perm) => perm.ints.iter().map(|axis| place(*axis, axes.len())).collect(),
            None => (0..axes.len()).rev().collect(),
        };
        let moved = order.iter().map(|from| axes.get(*from).cloned().flatten()).collect();
        self.set(node, moved);
    }

    /// Concat: labels one after the other; along the other axes all inputs agree.
    pub fn concat(&mut self, node: &NodeProto) {
        let inputs: Option<Vec<(Axes, Vec<i64>)>> =
            node.input.iter().map(|name| Some((self.axes(name)?, self.shape(name)?))).collect();
        let Some(inputs) = inputs else { return self.stop(node, UNKNOWN) };
        let rank = inputs.first().map_or(0, |(axes, _)| axes.len());
        let axis = place(int_of(node, "axis", 1), rank);
        let mut result = Vec::with_capacity(rank);
        for at in 0..rank {
            let parts: Vec<(Option<Labels>, Option<i64>)> = inputs
                .iter()
                .map(|(axes, shape)| (axes.get(at).cloned().flatten(), shape.get(at).copied()))
                .collect();
            let labels = if at == axis { chain(&parts) } else { self.agree(&parts) };
            result.push(labels);
        }
        for name in &node.input {
            // A constant among the inputs stays whole.
            if self.constants.contains_key(name.as_str()) {
                self.constant(name, vec![None; rank]);
            }
        }
        self.set(node, result);
    }

    /// An axis that several values share without broadcasting.
    fn agree(&mut self, parts: &[(Option<Labels>, Option<i64>)]) -> Option<Labels> {
        let strict: Vec<_> = parts.iter().map(|(labels, _)| (labels.clone(), None)).collect();
        self.meet(&strict)
    }

    /// Split: each part has its share of the labels, and sizes that follow it.
    pub fn split(&mut self, at_node: usize, node: &NodeProto) {
        let Some(axes) = self.axes(input(node, 0)) else { return self.stop(node, UNKNOWN) };
        let axis = place(int_of(node, "axis", 0), axes.len());
        let labels = axes.get(axis).cloned().flatten();
        let (mut start, mut parts) = (0, Vec::new());
        for index in 0..node.output.len() {
            let length = self.shape(output(node, index)).and_then(|shape| shape.get(axis).copied());
            let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else {
                return self.stop(node, UNKNOWN);
            };
            let part: Option<Labels> = labels
                .as_ref()
                .map(|labels| labels.iter().copied().skip(start).take(length).collect());
            start += length;
            parts.extend(part.clone());
            let mut axes = axes.clone();
            if let Some(axis) = axes.get_mut(axis) {
                *axis = part;
            }
            self.set_output(node, index, axes);
        }
        self.understands(input(node, 1));
        if labels.is_some() {
            self.edits.push(Edit::Split { node: at_node, parts });
        }
    }

    /// Slice: channels pass along axes that are taken whole.
    pub fn slice(&mut self, node: &NodeProto) {
        const CUT: &str = "its channels reach Slice, which takes some of them";
        let axes = self.axes(input(node, 0)).unwrap_or_default();
        let given = |index: usize, name: &str| match attribute(node, name) {
            Some(given) => Some(given.ints.clone()),
            None => self.tensor(node, index).and_then(weights::to_i64),
        };
        let (starts, ends) = (given(1, "starts"), given(2, "ends"));
        let steps = given(4, "steps");
        let sliced = match (given(3, "axes"), input(node, 3)) {
            (Some(axes), _) => Some(axes),
            (None, "") => starts.as_ref().map(|starts| (0..starts.len() as i64).collect()),
            (None, _) => None,
        };
        let Some(sliced) = sliced else { return self.stop(node, CUT) };
        for (at, axis) in sliced.into_iter().enumerate() {
            let Some(labels) = axes.get(place(axis, axes.len())).cloned().flatten() else {
                continue;
            };
            let number =
                |list: &Option<Vec<i64>>| list.as_ref().and_then(|list| list.get(at).copied());
            let one = number(&steps).map_or(input(node, 4).is_empty(), |step| step == 1);
            // An end past the last channel stays past it when there are fewer.
            let whole = number(&starts) == Some(0)
                && number(&ends).is_some_and(|end| end >= labels.len() as i64);
            if !(one && whole) {
                self.atoms.freeze(&labels, CUT);
            }
        }
        self.set(node, axes);
    }

    /// Gather from a value along an axis without labels: the axes of the indices take its place.
    pub fn gather(&mut self, node: &NodeProto) {
        const TAKEN: &str = "its channels reach Gather, which takes some of them";
        // The indices themselves may be a value with channels.
        self.stop_value(input(node, 1), TAKEN);
        let Some(axes) = self.values.get(input(node, 0)).cloned() else {
            return self.stop(node, TAKEN);
        };
        let axis = place(int_of(node, "axis", 0), axes.len());
        let Some(indices) = self.shape(input(node, 1)) else { return self.stop(node, UNKNOWN) };
        if let Some(labels) = axes.get(axis).cloned().flatten() {
            self.atoms.freeze(&labels, TAKEN);
        }
        let mut result: Axes = axes.iter().take(axis).cloned().collect();
        result.extend(indices.iter().map(|_| None));
        result.extend(axes.iter().skip(axis + 1).cloned());
        self.set(node, result);
    }

    /// Expand: channels pass where they are not stretched; the shape says their number or 1.
    pub fn expand(&mut self, node: &NodeProto) {
        const STRETCHED: &str = "its channels reach Expand, which may stretch them";
        let (axes, to) = (self.axes(input(node, 0)), self.shape(output(node, 0)));
        let (Some(axes), Some(to)) = (axes, to) else { return self.stop(node, UNKNOWN) };
        let mut result = vec![None; to.len().saturating_sub(axes.len())];
        result.extend(axes);
        for (labels, length) in result.iter().zip(&to) {
            if let Some(labels) = labels.as_ref().filter(|labels| labels.len() as i64 != *length) {
                self.atoms.freeze(labels, STRETCHED);
            }
        }
        self.demand(input(node, 1), &result, &result, false);
        self.set(node, result);
    }
}

/// The labels of `parts` one after the other, fixed where a part has none; `None` when none has any.
fn chain(parts: &[(Option<Labels>, Option<i64>)]) -> Option<Labels> {
    parts.iter().find(|(labels, _)| labels.is_some())?;
    let mut all = Vec::new();
    for (labels, length) in parts {
        match labels {
            Some(labels) => all.extend(labels.iter().copied()),
            None => {
                let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
                all.extend(std::iter::repeat_n(FIXED, length));
            }
        }
    }
    Some(all.into())
}

/// The smallest runs of axes of `from` and `to` with equal products, in order; what is left at the
/// end of either has length 1. `None` when the shapes hold different numbers of elements.
fn blocks(from: &[usize], to: &[usize]) -> Option<Vec<Block>> {
    let (mut i, mut j, mut found) = (0, 0, Vec::new());
    while let (Some(a), Some(b)) = (from.get(i), to.get(j)) {
        let (start, mut a, mut b) = ((i, j), *a, *b);
        (i, j) = (i + 1, j + 1);
        while a != b {
            if a < b {
                a = a.checked_mul(*from.get(i)?)?;
                i += 1;
            } else {
                b = b.checked_mul(*to.get(j)?)?;
                j += 1;
            }
        }
        found.push((start.0..i, start.1..j));
    }
    let ones = |dims: &[usize], at: usize| dims.iter().skip(at).all(|dim| *dim == 1);
    (ones(from, i) && ones(to, j)).then_some(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_matched_by_their_elements() {
        assert_eq!(blocks(&[2, 64, 7, 7], &[2, 3136]).unwrap(), [(0..1, 0..1), (1..4, 1..2)]);
        assert_eq!(
            blocks(&[2, 3, 384], &[2, 3, 12, 32]).unwrap(),
            [(0..1, 0..1), (1..2, 1..2), (2..3, 2..4)]
        );
        assert_eq!(blocks(&[2, 8, 1, 1], &[2, 8]).unwrap(), [(0..1, 0..1), (1..2, 1..2)]);
        assert_eq!(blocks(&[2, 8], &[4, 5]), None);
    }
}
