//! The step `quantize: {mode: WeightOnly}`: the matrices of MatMul and Gemm in 4 or 8 bits, expanded by
//! the kernel that multiplies them (`com.microsoft.MatMulNBits`); embedding tables in 8 bits. Nodes and
//! numbers are those of ONNX Runtime's `matmul_nbits_quantizer` with symmetric weights.

use std::collections::HashMap;

use lithe::recipe::{Embeddings, Quantize, Rounding};

use crate::compress::calibrate::Feed;
use crate::compress::change::{Change, not_finite};
use crate::compress::moments::{self, Reading};
use crate::compress::nbits::{self, Layout, Quantized};
use crate::compress::products::{self, Form, label};
use crate::compress::{embeddings, exclude, gptq, normalise};
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

/// Quantizes the weights of `model`; `feed` runs calibration samples where the step rounds by them.
///
/// # Errors
/// `RecipeInvalid` when nothing matches or `exclude` names no node; `NotFinite` for a weight or an
/// activation that is NaN or infinite; what `feed` says.
pub fn quantize_weight_only(
    mut model: ModelProto,
    step: &Quantize,
    feed: Feed<'_>,
) -> Result<(ModelProto, Change), Refusal> {
    let block = step.block_size.unwrap_or(BLOCK) as usize;
    let layout = Layout { bits: step.bits.unwrap_or(BITS), block };
    let mut change = Change::default();
    normalise::normalise(&mut model, &mut Change::default());
    exclude::check(&model, &step.exclude)?;
    let opset = operators::opset(&model);
    let chosen = match step.rounding {
        Some(Rounding::Gptq) => chosen(&model, (step, layout, opset), feed, &mut change)?,
        _ => HashMap::new(),
    };
    let Some(mut main) = model.graph.take() else { return Ok((model, change)) };
    let names = Names::of(&main);
    let mut pass = Pass { step, layout, opset, names, chosen, matmul: 0, gemm: 0, gather: 0 };
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
    /// Integers that GPTQ chose.
    chosen: HashMap<(String, bool, u32), Quantized>,
    matmul: u64,
    gemm: u64,
    gather: u64,
}

/// The integers that GPTQ chooses for the matrices of the main graph, by [`Form::key`].
fn chosen(
    model: &ModelProto,
    (step, layout, opset): (&Quantize, Layout, i64),
    feed: Feed<'_>,
    change: &mut Change,
) -> Result<HashMap<(String, bool, u32), Quantized>, Refusal> {
    let Some(main) = &model.graph else { return Ok(HashMap::new()) };
    let seen = graph::constants(main);
    let mut layers: Vec<(NodeProto, Reading)> = Vec::new();
    for node in main.node.iter().filter(|node| products::is_product(node)) {
        let Ok(weight) = fitting(node, &seen, (step, layout, opset)) else { continue };
        let form = products::form(node);
        let (_, dims) = products::matrix(weight, form);
        let rows = dims.first().and_then(|rows| usize::try_from(*rows).ok()).unwrap_or(0);
        let reading = Reading::Rows(rows);
        if form.transposed_input || reading.bytes().is_none() {
            change
                .skip(node, "rounded to the nearest: its input is transposed or too wide for GPTQ");
            continue;
        }
        layers.push((node.clone(), reading));
    }
    let mut chosen = HashMap::new();
    moments::gather(model, &layers, feed, &mut |node, moments| {
        let Some(weight) = seen.get(input(node, 1)) else { return Ok(()) };
        let form = products::form(node);
        // A matrix that several nodes read rounds for the first of them.
        if chosen.contains_key(&form.key(weight)) {
            return Ok(());
        }
        let (values, dims) = products::matrix(weight, form);
        let moments = moments.groups.first().map(Vec::as_slice).unwrap_or_default();
        let quantized = gptq::quantize(&values, products::last(&dims), layout, moments)
            .ok_or_else(|| not_finite(&weight.name, node))?;
        chosen.insert(form.key(weight), quantized);
        Ok(())
    })?;
    change.done.push(format!("{} matrices rounded by GPTQ", chosen.len()));
    Ok(chosen)
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

/// The constant matrix of `node` that becomes smaller in blocks, or why there is none.
fn fitting<'c>(
    node: &NodeProto,
    seen: &'c Constants,
    (step, layout, opset): (&Quantize, Layout, i64),
) -> Result<&'c TensorProto, &'static str> {
    let weight = products::weight(node, seen, step.exclude.contains(&node.name))?;
    let (rows, columns) = match (weight.dims.as_slice(), products::form(node)) {
        ([columns, rows], Form { transposed_weight: true, .. }) => (*rows, *columns),
        ([rows, columns], _) => (*rows, *columns),
        _ => return Err("its weights have more than two dimensions"),
    };
    if node.op_type == "Gemm" && opset < OLDEST {
        return Err("the operator set is older than 7");
    }
    let size = |dim: i64| usize::try_from(dim).unwrap_or(0);
    let blocks = layout.blocks(size(rows)).saturating_mul(size(columns));
    if blocks.saturating_mul(layout.bytes() + 4) as u64 >= weights::size(weight) {
        return Err("its columns are too short for blocks of this size to gain");
    }
    Ok(weight)
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
            match fitting(&node, seen, (self.step, self.layout, self.opset)) {
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
        let quantized = match self.chosen.get(&key) {
            Some(quantized) => quantized.clone(),
            None => nbits::quantize(&values, columns, self.layout)
                .ok_or_else(|| not_finite(&weight.name, node))?,
        };
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
