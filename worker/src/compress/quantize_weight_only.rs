//! The step `quantize: {mode: WeightOnly}`: the matrices of MatMul and Gemm in 4 or 8 bits, expanded by
//! the kernel that multiplies them (`com.microsoft.MatMulNBits`); embedding tables in 8 bits. Nodes and
//! numbers are those of ONNX Runtime's `matmul_nbits_quantizer` with symmetric weights.

use std::collections::HashMap;

use lithe::recipe::{Embeddings, Quantize};

use crate::compress::change::{Change, not_finite};
use crate::compress::nbits::{self, Layout};
use crate::compress::products::{self, Form, label};
use crate::compress::{embeddings, exclude, normalise};
use crate::onnx::graph::{self, Constants, Names, input, int, output};
use crate::onnx::{GraphProto, ModelProto, NodeProto, Refusal, TensorProto, operators, weights};

/// The domain of MatMulNBits.
const DOMAIN: &str = "com.microsoft";
/// The kernel computes in 8-bit integers. Every other level expands the matrix to floats on every run,
/// slower than the model was before.
const ACCURACY_LEVEL: i64 = 4;
/// Bits of a weight where the recipe does not say.
const BITS: u8 = 4;
/// Weights that share a scale where the recipe does not say.
const BLOCK: u32 = 32;
/// The oldest operator set whose Add takes a bias without saying along which axis.
const OLDEST: i64 = 7;

/// Quantizes the weights of `model`.
///
/// # Errors
/// `RecipeInvalid` when nothing matches or `exclude` names no node; `NotFinite` for a weight that
/// is NaN or infinite.
pub fn quantize_weight_only(
    mut model: ModelProto,
    step: &Quantize,
) -> Result<(ModelProto, Change), Refusal> {
    let block = step.block_size.unwrap_or(BLOCK) as usize;
    let layout = Layout { bits: step.bits.unwrap_or(BITS), block };
    let mut change = Change::default();
    normalise::normalise(&mut model, &mut Change::default());
    exclude::check(&model, &step.exclude)?;
    let Some(mut main) = model.graph.take() else { return Ok((model, change)) };
    let names = Names::of(&main);
    let opset = operators::opset(&model);
    let mut pass = Pass { step, layout, opset, names, matmul: 0, gemm: 0, gather: 0 };
    graph::scopes(&mut main, &Constants::new(), &mut |graph, seen| {
        pass.graph(graph, seen, &mut change)
    })?;
    graph::sweep(&mut main);
    model.graph = Some(main);
    change.did(pass.matmul, "MatMul");
    change.did(pass.gemm, "Gemm");
    change.did(pass.gather, "Gather");
    change.matched_something("quantize.weightonly", "MatMul, Gemm or embedding")?;
    if pass.matmul + pass.gemm > 0 {
        operators::import(&mut model, DOMAIN, 1);
    }
    Ok((model, change))
}

struct Pass<'a> {
    step: &'a Quantize,
    layout: Layout,
    opset: i64,
    names: Names,
    matmul: u64,
    gemm: u64,
    gather: u64,
}

/// A matrix in blocks: the names of its integers and scales, and its shape.
#[derive(Clone)]
struct Blocks {
    packed: String,
    scales: String,
    rows: usize,
    columns: usize,
}

/// What is new in one graph.
#[derive(Default)]
struct New {
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
    weights: HashMap<(String, bool, u32), Blocks>,
}

impl Pass<'_> {
    fn graph(
        &mut self,
        graph: &mut GraphProto,
        seen: &Constants,
        change: &mut Change,
    ) -> Result<(), Refusal> {
        let mut new = New::default();
        for node in std::mem::take(&mut graph.node) {
            if !products::is_product(&node) {
                new.nodes.push(node);
                continue;
            }
            match self.weight(&node, seen) {
                Ok(weight) => self.replace(&node, weight, seen, &mut new)?,
                Err(why) => {
                    change.skip(&node, why);
                    new.nodes.push(node);
                }
            }
        }
        graph.node = new.nodes;
        graph.initializer.extend(new.tensors);
        if self.step.embeddings == Embeddings::PerRow {
            self.gather += embeddings::quantize(graph, seen, self.step, &mut self.names, change)?;
        }
        Ok(())
    }

    /// The constant matrix of `node` that becomes smaller in blocks, or why there is none.
    fn weight<'c>(
        &self,
        node: &NodeProto,
        seen: &'c Constants,
    ) -> Result<&'c TensorProto, &'static str> {
        let excluded = self.step.exclude.contains(&node.name);
        let weight = products::weight(node, seen, excluded)?;
        let (rows, columns) = match (weight.dims.as_slice(), products::form(node)) {
            ([columns, rows], Form { transposed_weight: true, .. }) => (*rows, *columns),
            ([rows, columns], _) => (*rows, *columns),
            _ => return Err("its weights have more than two dimensions"),
        };
        if node.op_type == "Gemm" && self.opset < OLDEST {
            return Err("the operator set is older than 7");
        }
        let size = |dim: i64| usize::try_from(dim).unwrap_or(0);
        let blocks = self.layout.blocks(size(rows)).saturating_mul(size(columns));
        if blocks.saturating_mul(self.layout.bytes() + 4) as u64 >= weights::size(weight) {
            return Err("its columns are too short for blocks of this size to gain");
        }
        Ok(weight)
    }

    /// MatMulNBits [-> Add].
    fn replace(
        &mut self,
        node: &NodeProto,
        weight: &TensorProto,
        seen: &Constants,
        new: &mut New,
    ) -> Result<(), Refusal> {
        let form = products::form(node);
        let blocks = self.blocks(weight, form, node, new)?;
        let mut source = input(node, 0).to_owned();
        if form.transposed_input {
            let name = self.names.fresh(&format!("{}_transposed", label(node)));
            let transposed = self.names.fresh(&format!("{name}_output"));
            new.nodes.push(graph::node("Transpose", &name, &[&source], &[&transposed]));
            source = transposed;
        }
        let bias = products::bias(node, seen, &mut self.names, &mut new.tensors);
        let result = match &bias {
            Some(_) => self.names.fresh(&format!("{}_product", output(node, 0))),
            None => output(node, 0).to_owned(),
        };
        let name = self.names.fresh(&format!("{}_Q{}", label(node), self.layout.bits));
        let inputs = [source.as_str(), &blocks.packed, &blocks.scales];
        let mut product = graph::node("MatMulNBits", &name, &inputs, &[&result]);
        product.domain = DOMAIN.into();
        product.attribute = vec![
            int("K", blocks.rows as i64),
            int("N", blocks.columns as i64),
            int("accuracy_level", ACCURACY_LEVEL),
            int("bits", i64::from(self.layout.bits)),
            int("block_size", self.layout.block as i64),
        ];
        new.nodes.push(product);
        if let Some(bias) = bias {
            let name = self.names.fresh(&format!("{}_add", label(node)));
            new.nodes.push(graph::node("Add", &name, &[&result, &bias], &[output(node, 0)]));
        }
        *(if form.gemm { &mut self.gemm } else { &mut self.matmul }) += 1;
        Ok(())
    }

    /// The blocks of `weight`: made once for all nodes that read it alike.
    fn blocks(
        &mut self,
        weight: &TensorProto,
        form: Form,
        node: &NodeProto,
        new: &mut New,
    ) -> Result<Blocks, Refusal> {
        let key = form.key(weight);
        if let Some(blocks) = new.weights.get(&key) {
            return Ok(blocks.clone());
        }
        let (values, dims) = products::matrix(weight, form);
        let columns = products::last(&dims);
        let quantized = nbits::quantize(&values, columns, self.layout)
            .ok_or_else(|| not_finite(&weight.name, node))?;
        let rows = values.len() / columns.max(1);
        let blocks = Blocks {
            packed: self.names.fresh(&format!("{}_Q{}", weight.name, self.layout.bits)),
            scales: self.names.fresh(&format!("{}_scales", weight.name)),
            rows,
            columns,
        };
        let shape = [columns as i64, self.layout.blocks(rows) as i64, self.layout.bytes() as i64];
        new.tensors.push(weights::from_u8(&blocks.packed, &shape, &quantized.packed));
        let [columns, along, _] = shape;
        new.tensors.push(weights::from_f32(&blocks.scales, &[columns, along], &quantized.scales));
        new.weights.insert(key, blocks.clone());
        Ok(blocks)
    }
}
