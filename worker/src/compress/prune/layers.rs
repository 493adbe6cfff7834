//! Layers with weights: what comes in along one axis of the weights, what goes out along another.

use crate::compress::prune::atoms::{Axes, Labels};
use crate::compress::prune::trace::{Edit, Trace};
use crate::onnx::graph::{input, int_of};
use crate::onnx::{DataType, NodeProto, TensorProto};

const COMPUTED: &str = "its channels reach weights that are computed or no 32-bit floats";
const ROWS: &str = "its channels lie on an axis that a layer treats as samples or space";

/// `dims` as lengths.
pub fn lengths(tensor: &TensorProto) -> Vec<usize> {
    tensor.dims.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect()
}

fn is_float(tensor: &TensorProto) -> bool {
    tensor.data_type == DataType::Float as i32
}

/// Axes of rank `rank` with labels only at the given places.
pub fn at<const N: usize>(rank: usize, labels: [(usize, Option<Labels>); N]) -> Axes {
    let mut axes = vec![None; rank];
    for (at, labels) in labels {
        if let Some(axis) = axes.get_mut(at) {
            *axis = labels;
        }
    }
    axes
}

impl Trace<'_> {
    /// The kernel of a convolution and the labels of its input channels.
    fn kernel(&mut self, node: &NodeProto, inputs: usize) -> Option<Option<Labels>> {
        let axes = self.values.get(input(node, 0)).cloned().unwrap_or_default();
        let labels = self.only(&axes, 1, ROWS);
        match labels {
            Some(labels) if labels.len() != inputs => {
                self.atoms.freeze(&labels, "its weights do not fit it");
                None
            }
            labels => Some(labels),
        }
    }

    /// Conv: weights [out, in / group, …].
    pub fn conv(&mut self, at_node: usize, node: &NodeProto) {
        let kernel = self.tensor(node, 1).filter(|tensor| is_float(tensor));
        let Some(dims) = kernel.map(lengths) else { return self.stop(node, COMPUTED) };
        let group = usize::try_from(int_of(node, "group", 1)).unwrap_or(1).max(1);
        let (Some(outputs), Some(per_group)) = (dims.first().copied(), dims.get(1).copied()) else {
            return self.stop(node, COMPUTED);
        };
        let Some(incoming) = self.kernel(node, per_group.saturating_mul(group)) else {
            return self.stop(node, COMPUTED);
        };
        let (name, rank) = (input(node, 1), dims.len());
        if group > 1 && per_group == 1 && outputs.is_multiple_of(group) {
            let outgoing = incoming.map(|labels| self.depthwise(at_node, &labels, outputs));
            self.constant(name, at(rank, [(0, outgoing.clone())]));
            return self.conv_outputs(node, rank, name, 0, outgoing);
        }
        let incoming = self.per_group(incoming, group);
        let outgoing = self.outputs(at_node, outputs, group);
        self.constant(name, at(rank, [(0, Some(outgoing.clone())), (1, incoming.clone())]));
        if let Some(labels) = incoming {
            self.norm(name, 1, &labels);
        }
        self.conv_outputs(node, rank, name, 0, Some(outgoing));
    }

    /// ConvTranspose: weights [in, out / group, …].
    pub fn conv_transpose(&mut self, at_node: usize, node: &NodeProto) {
        let kernel = self.tensor(node, 1).filter(|tensor| is_float(tensor));
        let Some(dims) = kernel.map(lengths) else { return self.stop(node, COMPUTED) };
        let group = usize::try_from(int_of(node, "group", 1)).unwrap_or(1).max(1);
        let (Some(inputs), Some(per_group)) = (dims.first().copied(), dims.get(1).copied()) else {
            return self.stop(node, COMPUTED);
        };
        let Some(incoming) = self.kernel(node, inputs) else { return self.stop(node, COMPUTED) };
        let (name, rank) = (input(node, 1), dims.len());
        if group > 1 && per_group == 1 && inputs == group {
            let outgoing = incoming.map(|labels| self.depthwise(at_node, &labels, inputs));
            self.constant(name, at(rank, [(0, outgoing.clone())]));
            return self.conv_outputs(node, rank, name, 0, outgoing);
        }
        self.per_group(incoming.clone(), group);
        let outgoing = self.outputs(at_node, per_group.saturating_mul(group), group);
        let one: Labels = outgoing.iter().copied().take(per_group).collect();
        self.constant(name, at(rank, [(0, incoming.clone()), (1, Some(one.clone()))]));
        if let Some(labels) = incoming {
            self.norm(name, 0, &labels);
        }
        self.norm(name, 1, &one);
        self.conv_outputs(node, rank, "", 0, Some(outgoing));
    }

    /// The output channels of a convolution with one filter set per input channel: they go with it.
    fn depthwise(&mut self, node: usize, incoming: &Labels, outputs: usize) -> Labels {
        self.edits.push(Edit::Group { node, labels: incoming.clone() });
        let each = (outputs / incoming.len().max(1)).max(1);
        incoming.iter().flat_map(|atom| std::iter::repeat_n(*atom, each)).collect()
    }

    /// Makes every group of a grouped convolution lose the same of its input channels; returns the
    /// labels of one group.
    fn per_group(&mut self, incoming: Option<Labels>, group: usize) -> Option<Labels> {
        let incoming = incoming?;
        let each = (incoming.len() / group).max(1);
        let first: Labels = incoming.iter().copied().take(each).collect();
        for other in incoming.chunks(each).skip(1) {
            self.atoms.join_all(&first, other);
        }
        Some(first)
    }

    fn conv_outputs(
        &mut self,
        node: &NodeProto,
        rank: usize,
        weight: &str,
        axis: usize,
        outgoing: Option<Labels>,
    ) {
        if let Some(labels) = outgoing.as_ref().filter(|_| !weight.is_empty()) {
            self.norm(weight, axis, labels);
        }
        self.bias(node, 2, outgoing.as_ref());
        self.set(node, at(rank, [(1, outgoing)]));
    }

    /// The bias at input `index`, added along the last axis of its shape.
    fn bias(&mut self, node: &NodeProto, index: usize, labels: Option<&Labels>) {
        let (name, Some(labels)) = (input(node, index), labels) else { return };
        if name.is_empty() {
            return;
        }
        let Some(dims) = self.tensor(node, index).map(lengths) else {
            return self.atoms.freeze(labels, "its bias is computed");
        };
        let last = dims.len().saturating_sub(1);
        let length = dims.last().copied().unwrap_or(1);
        if length == labels.len() {
            self.constant(name, at(dims.len(), [(last, Some(labels.clone()))]));
        } else if length == 1 {
            self.constant(name, vec![None; dims.len()]);
        } else {
            self.atoms.freeze(labels, "its bias does not fit it");
        }
    }

    /// Gemm: A [rows, in] times B [in, out], or B [out, in] with transB.
    pub fn gemm(&mut self, at_node: usize, node: &NodeProto) {
        let matrix = self.tensor(node, 1).filter(|t| is_float(t) && t.dims.len() == 2);
        let (Some(dims), None) = (matrix.map(lengths), self.tensor(node, 0)) else {
            return self.stop(node, COMPUTED);
        };
        let (k, n) = if int_of(node, "transB", 0) != 0 { (1, 0) } else { (0, 1) };
        let last = usize::from(int_of(node, "transA", 0) == 0);
        let axes = self.values.get(input(node, 0)).cloned().unwrap_or_default();
        let incoming = self.only(&axes, last, ROWS);
        let (outgoing, axes) = self.product(at_node, input(node, 1), &dims, (k, n), incoming);
        self.constant(input(node, 1), axes);
        self.bias(node, 2, Some(&outgoing));
        self.set(node, vec![None, Some(outgoing)]);
    }

    /// The output channels of a matrix product with the constant `name`, and the axes of the constant.
    fn product(
        &mut self,
        at_node: usize,
        name: &str,
        dims: &[usize],
        (k, n): (usize, usize),
        incoming: Option<Labels>,
    ) -> (Labels, Axes) {
        let length = |axis: usize| dims.get(axis).copied().unwrap_or(0);
        let incoming = incoming.filter(|labels| {
            let fits = labels.len() == length(k);
            if !fits {
                self.atoms.freeze(labels, "its weights do not fit it");
            }
            fits
        });
        let outgoing = self.layer(at_node, length(n));
        if let Some(labels) = &incoming {
            self.norm(name, k, labels);
        }
        self.norm(name, n, &outgoing);
        let axes = at(dims.len(), [(k, incoming), (n, Some(outgoing.clone()))]);
        (outgoing, axes)
    }

    /// MatMul with a constant matrix on either side, or of two values.
    pub fn matmul(&mut self, at_node: usize, node: &NodeProto) {
        let matrix = |index: usize| {
            self.tensor(node, index).filter(|t| is_float(t) && t.dims.len() == 2).map(lengths)
        };
        let (left, right) = (matrix(0), matrix(1));
        let rank = |name: &str| self.axes(name).map(|axes| axes.len()).filter(|rank| *rank >= 2);
        match (left, right) {
            (None, Some(dims)) if self.tensor(node, 0).is_none() => {
                let Some(rank) = rank(input(node, 0)) else { return self.stop(node, COMPUTED) };
                self.matmul_constant(at_node, node, (0, 1), &dims, (0, 1), rank);
            }
            (Some(dims), None) if self.tensor(node, 1).is_none() => {
                let Some(rank) = rank(input(node, 1)) else { return self.stop(node, COMPUTED) };
                self.matmul_constant(at_node, node, (1, 0), &dims, (1, 0), rank);
            }
            _ => self.matmul_values(node),
        }
    }

    /// `value` times a matrix, or a matrix times `value`: the value's last axis but `back` sums up.
    fn matmul_constant(
        &mut self,
        at_node: usize,
        node: &NodeProto,
        (value, constant): (usize, usize),
        dims: &[usize],
        (k, n): (usize, usize),
        rank: usize,
    ) {
        let summed = if value == 0 { rank - 1 } else { rank - 2 };
        let mut axes = self.axes(input(node, value)).unwrap_or_default();
        let incoming = axes.get(summed).cloned().flatten();
        let name = input(node, constant);
        let (outgoing, constant_axes) = self.product(at_node, name, dims, (k, n), incoming);
        self.constant(name, constant_axes);
        if let Some(axis) = axes.get_mut(summed) {
            *axis = Some(outgoing);
        }
        self.set(node, axes);
    }

    /// A product of two values, as attention has: batch axes and the summed axis agree.
    fn matmul_values(&mut self, node: &NodeProto) {
        let names = [input(node, 0), input(node, 1)];
        if !names.iter().any(|name| self.labelled(name)) {
            return;
        }
        let constant = names.iter().any(|name| self.constants.contains_key(name));
        let (Some(a), Some(b)) = (self.axes(names[0]), self.axes(names[1])) else {
            return self.stop(node, COMPUTED);
        };
        let rank = a.len();
        if constant || rank < 2 || rank != b.len() {
            return self.stop(node, COMPUTED);
        }
        let axis = |axes: &Axes, back: usize| axes.get(rank - back).cloned().flatten();
        match (axis(&a, 1), axis(&b, 2)) {
            (Some(a), Some(b)) => self.atoms.join_all(&a, &b),
            (Some(one), None) | (None, Some(one)) => {
                self.atoms.freeze(&one, "it is multiplied with what is no layer's channel");
            }
            (None, None) => {}
        }
        let shapes = [self.shape(names[0]), self.shape(names[1])];
        let mut axes: Axes = (0..rank - 2)
            .map(|at| {
                let one = |axes: &Axes, shape: &Option<Vec<i64>>| {
                    let length = shape.as_ref().and_then(|shape| shape.get(at).copied());
                    (axes.get(at).cloned().flatten(), length)
                };
                let [first, second] = &shapes;
                self.meet(&[one(&a, first), one(&b, second)])
            })
            .collect();
        axes.extend([axis(&a, 2), axis(&b, 1)]);
        self.set(node, axes);
    }
}
