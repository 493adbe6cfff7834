//! Integers that a graph computes from shapes (Shape, Gather, Concat, …) and feeds to Reshape: which
//! of them follow a pruned axis by themselves, and which constants must be written anew.

use crate::compress::prune::atoms::{Axes, Labels};
use crate::compress::prune::trace::Trace;
use crate::onnx::graph::{attribute, input, int_of, output};
use crate::onnx::{NodeProto, weights};

/// One integer.
#[derive(Clone, Debug)]
pub enum Number {
    /// An element of a constant.
    Constant {
        /// The constant's name.
        name: String,
        /// The element's place in it.
        index: usize,
        /// Its value now.
        value: i64,
    },
    /// The length of an axis with these labels.
    Length(Labels),
    /// Computed from what no pruning changes.
    Other,
}

impl Trace<'_> {
    /// The integers in `name`: a constant's, or those computed from shapes. `None` when unknown.
    pub fn numbers(&self, name: &str) -> Option<Vec<Number>> {
        if let Some(found) = self.numbers.get(name) {
            return Some(found.clone());
        }
        let values = weights::to_i64(self.constants.get(name)?)?;
        let one = |(index, value)| Number::Constant { name: name.to_owned(), index, value };
        Some(values.into_iter().enumerate().map(one).collect())
    }

    /// Notes that this node understands the constant `name`, if it is one.
    pub fn understands(&mut self, name: &str) {
        if self.constants.contains_key(name) {
            *self.uses.entry(name.to_owned()).or_default() += 1;
        }
    }

    /// Shape: one number per axis.
    pub fn shape_of(&mut self, node: &NodeProto) {
        let Some(axes) = self.values.get(input(node, 0)).cloned() else { return };
        let rank = axes.len() as i64;
        let bound = |name: &str, default: i64| {
            let at = int_of(node, name, default);
            usize::try_from(if at < 0 { at + rank } else { at }).unwrap_or(0)
        };
        let (start, end) = (bound("start", 0), bound("end", rank));
        let kept = axes.into_iter().take(end).skip(start);
        let numbers = kept.map(|axis| axis.map_or(Number::Other, Number::Length)).collect();
        self.numbers.insert(output(node, 0).to_owned(), numbers);
    }

    /// Gather, Slice, Concat, Cast, Squeeze and Unsqueeze of numbers. False when `node` is none of
    /// them, or takes no numbers.
    pub fn arithmetic(&mut self, node: &NodeProto) -> bool {
        let numbers = match node.op_type.as_str() {
            "Cast" | "Squeeze" | "Unsqueeze" | "Identity" => {
                self.numbers.get(input(node, 0)).cloned()
            }
            "Gather" => self.gathered(node),
            "Slice" => self.sliced(node),
            "Concat" => self.joined(node),
            _ => None,
        };
        let Some(numbers) = numbers else { return false };
        for name in &node.input {
            self.understands(name);
        }
        self.numbers.insert(output(node, 0).to_owned(), numbers);
        true
    }

    fn gathered(&self, node: &NodeProto) -> Option<Vec<Number>> {
        let from = self.numbers.get(input(node, 0))?;
        let indices = weights::to_i64(self.constants.get(input(node, 1))?)?;
        let at = |index: &i64| {
            let length = from.len() as i64;
            let index = if *index < 0 { index + length } else { *index };
            from.get(usize::try_from(index).ok()?).cloned()
        };
        indices.iter().map(at).collect()
    }

    fn sliced(&self, node: &NodeProto) -> Option<Vec<Number>> {
        let from = self.numbers.get(input(node, 0))?;
        let bound = |at: usize, name: &str| {
            let given = self.constants.get(input(node, at)).and_then(|t| weights::to_i64(t));
            let value = match given {
                Some(values) => *values.first()?,
                None => *attribute(node, name)?.ints.first()?,
            };
            let length = from.len() as i64;
            let value = if value < 0 { value.saturating_add(length) } else { value };
            usize::try_from(value.clamp(0, length)).ok()
        };
        let step = self.constants.get(input(node, 4)).and_then(|t| weights::to_i64(t));
        if step.is_some_and(|step| step != [1]) {
            return None;
        }
        from.get(bound(1, "starts")?..bound(2, "ends")?).map(<[Number]>::to_vec)
    }

    fn joined(&self, node: &NodeProto) -> Option<Vec<Number>> {
        if !node.input.iter().any(|name| self.numbers.contains_key(name)) {
            // A shape of dimensions that are all unknown here may still hold constants to rewrite.
            let constant = |name: &String| {
                self.constants
                    .get(name.as_str())
                    .is_some_and(|t| t.dims == [1] && weights::to_i64(t).is_some())
            };
            if !node.input.iter().any(constant) {
                return None;
            }
        }
        let part = |name: &String| match self.numbers(name) {
            Some(numbers) => Some(numbers),
            None if self.labelled(name) => None,
            None => {
                let length = self.shape(name)?.iter().product::<i64>();
                Some(vec![Number::Other; usize::try_from(length).ok()?])
            }
        };
        let parts: Option<Vec<Vec<Number>>> = node.input.iter().map(part).collect();
        Some(parts?.concat())
    }

    /// Asks that the numbers in `name` are what a value with `wanted` axes needs: constants are
    /// written anew, lengths must already agree. `before` are the axes of the value reshaped, which a
    /// zero copies. Freezes what cannot be had.
    pub fn demand(&mut self, name: &str, wanted: &Axes, before: &Axes, zero_copies: bool) {
        const UNKNOWN: &str = "a shape that it is brought into is computed in an unknown way";
        let Some(numbers) = self.numbers(name).filter(|numbers| numbers.len() == wanted.len())
        else {
            for labels in wanted.iter().flatten() {
                self.atoms.freeze(labels, UNKNOWN);
            }
            return self.stop_value(name, UNKNOWN);
        };
        self.understands(name);
        for (at, (number, labels)) in numbers.into_iter().zip(wanted).enumerate() {
            match (number, labels) {
                (Number::Constant { value: 0, .. }, Some(labels)) if zero_copies => {
                    let copied = before.get(at).and_then(Option::as_ref);
                    if !copied.is_some_and(|copied| self.atoms.same(copied, labels)) {
                        self.atoms.freeze(labels, UNKNOWN);
                    }
                }
                (Number::Constant { value: -1, .. }, _) => {}
                // Expand takes 1 for any length.
                (Number::Constant { value: 1, .. }, Some(_)) => {}
                (Number::Constant { name, index, .. }, labels) => {
                    self.target(&name, index, labels.clone());
                }
                (Number::Length(seen), Some(labels)) => {
                    if !self.atoms.same(&seen, labels) {
                        self.atoms.freeze(&seen, UNKNOWN);
                        self.atoms.freeze(labels, UNKNOWN);
                    }
                }
                (Number::Length(seen), None) => self.atoms.freeze(&seen, UNKNOWN),
                (Number::Other, Some(labels)) => self.atoms.freeze(labels, UNKNOWN),
                (Number::Other, None) => {}
            }
        }
    }

    /// Notes that element `index` of the constant `name` is the length of an axis with `labels`, or
    /// must stay as it is. Two readers that disagree freeze it.
    fn target(&mut self, name: &str, index: usize, labels: Option<Labels>) {
        const SHARED: &str = "the constant of a shape is used for other axes too";
        let key = (name.to_owned(), index);
        match (self.targets.get(&key).cloned(), labels) {
            (None, labels) => {
                self.targets.insert(key, labels);
            }
            (Some(Some(a)), Some(b)) => self.atoms.join_all(&a, &b),
            (Some(Some(a)), None) | (Some(None), Some(a)) => self.atoms.freeze(&a, SHARED),
            (Some(None), None) => {}
        }
    }

    /// Keeps whatever the numbers in `name` depend on.
    pub fn stop_numbers(&mut self, name: &str, reason: &str) {
        for number in self.numbers.get(name).cloned().unwrap_or_default() {
            match number {
                Number::Constant { name, index, .. } => self.target(&name, index, None),
                Number::Length(labels) => self.atoms.freeze(&labels, reason),
                Number::Other => {}
            }
        }
    }
}
