//! Operators that keep channels where they are: activations, sums and products of values, norms,
//! pooling. What looks across channels (Softmax, LayerNormalization) freezes them.

use crate::compress::prune::atoms::{Axes, Labels};
use crate::compress::prune::layers::{at, lengths};
use crate::compress::prune::trace::Trace;
use crate::onnx::graph::{attribute, input, int_of, output};
use crate::onnx::{NodeProto, weights};

impl Trace<'_> {
    /// All outputs have the axes of the first input.
    pub fn pass(&mut self, node: &NodeProto) {
        let Some(axes) = self.values.get(input(node, 0)).cloned() else { return };
        for index in 0..node.output.len() {
            self.set_output(node, index, axes.clone());
        }
    }

    /// An operator on several inputs of shapes that broadcast.
    pub fn broadcast(&mut self, node: &NodeProto) {
        if !node.input.iter().any(|name| self.labelled(name)) {
            return;
        }
        if attribute(node, "broadcast").is_some() || attribute(node, "axis").is_some() {
            return self.stop(node, "it broadcasts in the way of an operator set before 7");
        }
        let inputs: Option<Vec<(Axes, Vec<i64>)>> =
            node.input.iter().map(|name| Some((self.axes(name)?, self.shape(name)?))).collect();
        let Some(inputs) = inputs.filter(|all| all.iter().all(|(a, s)| a.len() == s.len())) else {
            return self.stop(node, "it is combined with a value of unknown shape");
        };
        let rank = inputs.iter().map(|(axes, _)| axes.len()).max().unwrap_or(0);
        let mut result = Vec::with_capacity(rank);
        for back in (1..=rank).rev() {
            let met: Vec<(Option<Labels>, Option<i64>)> = node
                .input
                .iter()
                .zip(&inputs)
                .filter_map(|(name, (axes, shape))| {
                    let at = axes.len().checked_sub(back)?;
                    // A constant can be cut to whatever the others need: it is asked below.
                    let constant = self.constants.contains_key(name.as_str());
                    let length = shape.get(at).copied();
                    let open = constant && length != Some(1);
                    (!open).then(|| (axes.get(at).cloned().flatten(), length))
                })
                .collect();
            result.push(self.meet(&met));
        }
        for (name, (_, shape)) in node.input.iter().zip(&inputs) {
            if self.constants.contains_key(name.as_str()) {
                let axes = self.fitted(&result, shape);
                self.constant(name, axes);
            }
        }
        self.set(node, result);
    }

    /// The axes of a constant of `shape` that broadcasts to `result`; what does not fit is frozen.
    fn fitted(&mut self, result: &Axes, shape: &[i64]) -> Axes {
        let skipped = result.len().saturating_sub(shape.len());
        let one = |(length, labels): (&i64, &Option<Labels>)| match labels {
            Some(labels) if *length != 1 && labels.len() as i64 == *length => Some(labels.clone()),
            Some(labels) if *length != 1 => {
                self.atoms.freeze(labels, "it is combined with an axis of another length");
                None
            }
            _ => None,
        };
        shape.iter().zip(result.iter().skip(skipped)).map(one).collect()
    }

    /// One axis of several values that broadcast: labels that meet are joined, those that meet an
    /// axis without labels are frozen unless its length is 1.
    pub fn meet(&mut self, values: &[(Option<Labels>, Option<i64>)]) -> Option<Labels> {
        let first = values.iter().find_map(|(labels, _)| labels.clone())?;
        for (labels, length) in values {
            match labels {
                Some(labels) => self.atoms.join_all(&first, labels),
                None if *length == Some(1) => {}
                None => self.atoms.freeze(&first, "it is combined with what is no layer's channel"),
            }
        }
        Some(first)
    }

    /// BatchNormalization and InstanceNormalization: each channel by itself.
    pub fn channel_norm(&mut self, node: &NodeProto) {
        const COMPUTED: &str = "its channels reach a norm whose numbers are computed";
        let axes = self.axes(input(node, 0)).unwrap_or_default();
        let labels = axes.get(1).cloned().flatten();
        let training = !output(node, 1).is_empty();
        let parameters: Vec<&String> = node.input.iter().skip(1).collect();
        let fits = parameters.iter().all(|name| {
            self.constants.get(name.as_str()).is_some_and(|tensor| {
                labels.as_ref().is_none_or(|labels| lengths(tensor) == [labels.len()])
            })
        });
        if training || !fits {
            return self.stop(node, COMPUTED);
        }
        for name in parameters {
            self.constant(name, vec![labels.clone()]);
        }
        if let (Some(labels), "BatchNormalization") = (&labels, node.op_type.as_str()) {
            self.norm(input(node, 1), 0, labels);
        }
        let across: Axes =
            axes.iter().enumerate().map(|(at, l)| if at > 1 { l.clone() } else { None }).collect();
        if node.op_type == "InstanceNormalization" {
            self.only(&across, usize::MAX, "its channels reach InstanceNormalization as space");
        }
        self.set(node, axes);
    }

    /// LayerNormalization: what it averages over cannot lose channels and mean the same.
    pub fn layer_norm(&mut self, node: &NodeProto) {
        let Some(axes) = self.axes(input(node, 0)) else { return self.unclear(node) };
        let from = place(int_of(node, "axis", -1), axes.len());
        let more = !output(node, 1).is_empty();
        self.across(node, axes, |at| at >= from || more);
    }

    /// Softmax: before operator set 13 over all axes from `axis` on, since then over one.
    pub fn softmax(&mut self, node: &NodeProto) {
        let Some(axes) = self.axes(input(node, 0)) else { return self.unclear(node) };
        let old = self.opset < 13;
        let axis = place(int_of(node, "axis", if old { 1 } else { -1 }), axes.len());
        self.across(node, axes, |at| if old { at >= axis } else { at == axis });
    }

    /// Freezes the axes that `node` looks across and hands the others on.
    fn across(&mut self, node: &NodeProto, axes: Axes, across: impl Fn(usize) -> bool) {
        let reason = format!("its channels reach {}, which looks across them", node.op_type);
        for (_, labels) in axes.iter().enumerate().filter(|(at, _)| across(*at)) {
            labels.iter().for_each(|labels| self.atoms.freeze(labels, &reason));
        }
        self.set(node, axes);
    }

    fn unclear(&mut self, node: &NodeProto) {
        self.stop(node, "its channels reach a value of unknown shape");
    }

    /// Pooling over space.
    pub fn pool(&mut self, node: &NodeProto) {
        let axes = self.axes(input(node, 0)).unwrap_or_default();
        if !output(node, 1).is_empty() {
            return self.stop(node, "its channels reach MaxPool with indices");
        }
        let labels = self.only(&axes, 1, "its channels reach pooling as space");
        self.set(node, at(axes.len(), [(1, labels)]));
    }

    /// Pad: channels pass where nothing is put beside them.
    pub fn pad(&mut self, node: &NodeProto) {
        const REASON: &str = "its channels reach Pad, which adds some or may add some";
        let axes = self.axes(input(node, 0)).unwrap_or_default();
        let given = match attribute(node, "pads") {
            Some(pads) => Some(pads.ints.clone()),
            None => self.tensor(node, 1).and_then(weights::to_i64),
        };
        let rank = axes.len();
        let Some(pads) = given.filter(|pads| pads.len() == 2 * rank && input(node, 3).is_empty())
        else {
            return self.stop(node, REASON);
        };
        let zero = |at: usize| pads.get(at) == Some(&0) && pads.get(at + rank) == Some(&0);
        for (_, labels) in axes.iter().enumerate().filter(|(at, _)| !zero(*at)) {
            labels.iter().for_each(|labels| self.atoms.freeze(labels, REASON));
        }
        self.set(node, axes);
    }

    /// Resize and Upsample: channels pass where they are not interpolated.
    pub fn resize(&mut self, node: &NodeProto) {
        const REASON: &str = "its channels reach Resize, which may interpolate them";
        let axes = self.axes(input(node, 0)).unwrap_or_default();
        let cropped = attribute(node, "coordinate_transformation_mode")
            .is_some_and(|mode| mode.s == b"tf_crop_and_resize");
        if cropped || attribute(node, "axes").is_some() {
            return self.stop(node, REASON);
        }
        if !input(node, 3).is_empty() {
            self.set(node, axes.clone());
            return self.demand(input(node, 3), &axes, &axes, false);
        }
        let scales = match attribute(node, "scales") {
            Some(scales) => Some(scales.floats.clone()),
            // Upsample has its scales second, Resize since 11 third; before 11 second too.
            None => {
                let at = if input(node, 2).is_empty() { 1 } else { 2 };
                self.tensor(node, at).and_then(weights::to_f32)
            }
        };
        let Some(scales) = scales.filter(|scales| scales.len() == axes.len()) else {
            return self.stop(node, REASON);
        };
        for (labels, _) in axes.iter().zip(&scales).filter(|(_, scale)| **scale != 1.0) {
            labels.iter().for_each(|labels| self.atoms.freeze(labels, REASON));
        }
        self.set(node, axes);
    }

    /// ReduceMean and its kin: axes that stay are handed on.
    pub fn reduce(&mut self, node: &NodeProto) {
        let Some(axes) = self.axes(input(node, 0)) else { return self.unclear(node) };
        let given = match attribute(node, "axes") {
            Some(given) => Some(given.ints.clone()),
            None => self.tensor(node, 1).and_then(weights::to_i64),
        };
        let Some(given) = given.filter(|given| !given.is_empty()) else {
            return self.stop(
                node,
                &format!("its channels reach {}, which looks across them", node.op_type),
            );
        };
        let reduced: Vec<usize> = given.iter().map(|axis| place(*axis, axes.len())).collect();
        let reason = format!("its channels reach {}, which looks across them", node.op_type);
        let keep = int_of(node, "keepdims", 1) != 0;
        let mut result = Vec::new();
        for (at, labels) in axes.into_iter().enumerate() {
            if !reduced.contains(&at) {
                result.push(labels);
                continue;
            }
            labels.iter().for_each(|labels| self.atoms.freeze(labels, &reason));
            if keep {
                result.push(None);
            }
        }
        self.set(node, result);
    }
}

/// `axis`, which counts from the end when negative, as a place.
pub fn place(axis: i64, rank: usize) -> usize {
    usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).unwrap_or(0)
}
