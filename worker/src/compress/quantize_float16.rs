//! The step `quantize: {mode: Float16}`: weights and sums in half precision, inputs and outputs of the
//! model and of its bodies in 32 bits as they were. Weights are those of
//! `onnxruntime.transformers.float16`; a value is cast at most once to each precision. A node whose
//! types are not known, or with a weight beyond half precision, stays as it is.

use std::collections::{BTreeMap, HashMap, HashSet};

use lithe::recipe::Quantize;

use crate::compress::change::Change;
use crate::compress::float16_operators::{
    Ability, Kind, ability, declared, halve_attributes, keeps_input, keeps_output, of_type,
    output_kind,
};
use crate::compress::{exclude, float16, normalise};
use crate::onnx::graph::{self, Names, int, output};
use crate::onnx::proto::type_proto::Value as Type;
use crate::onnx::{
    DataType, GraphProto, ModelProto, NodeProto, Refusal, TensorProto, operators, walk, weights,
};

/// The oldest operator set whose operators the pass knows.
const OLDEST: i64 = 7;

/// Turns `model` into half precision.
///
/// # Errors
/// `RecipeInvalid` when nothing matches, `exclude` names no node or the operator set is too old.
pub fn quantize_float16(
    mut model: ModelProto,
    step: &Quantize,
) -> Result<(ModelProto, Change), Refusal> {
    let opset = operators::opset(&model);
    if opset < OLDEST {
        let message =
            format!("quantize.float16 needs operator set {OLDEST} or newer; the model has {opset}");
        return Err(crate::compress::change::recipe_invalid(message));
    }
    normalise::normalise(&mut model, &mut Change::default());
    exclude::check(&model, &step.exclude)?;
    let Some(mut main) = model.graph.take() else { return Ok((model, Change::default())) };
    let mut pass = Pass {
        step,
        opset,
        names: Names::of(&main),
        graphs: Vec::new(),
        limits: None,
        change: Change::default(),
        nodes: 0,
        weights: 0,
    };
    pass.graph(&mut main, &Scope::new());
    graph::sweep(&mut main);
    model.graph = Some(main);
    let Pass { mut change, nodes, weights, .. } = pass;
    change.did(nodes, "nodes in half precision");
    change.matched_something("quantize.float16", "node that computes with 32-bit floats")?;
    change.done.push(format!("{weights} weights in 16 bits"));
    Ok((model, change))
}

/// A value and the names under which it stands in each precision.
#[derive(Clone, Debug)]
struct Value {
    kind: Kind,
    /// Its name in the original's type.
    full: Option<String>,
    /// Its name in half precision.
    half: Option<String>,
    /// A constant, and the depth of the graph that holds it.
    weight: Option<(usize, TensorProto)>,
    /// Whether it may be beyond half precision: a weight of its node is.
    large: bool,
}

impl Value {
    fn new(kind: Kind) -> Self {
        Self { kind, full: None, half: None, weight: None, large: false }
    }
}

type Scope = HashMap<String, Value>;

/// What becomes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// All its floats in half precision.
    Half,
    /// Left alone; the reason where it could have been otherwise.
    Full(Option<&'static str>),
    /// Reads what there is.
    Either,
}

const TOO_LARGE: &str = "a weight of it is beyond 65504, the largest number in half precision";

/// What is new in one graph.
#[derive(Default)]
struct New {
    nodes: Vec<NodeProto>,
    /// Weights in half precision by the name of their original.
    halves: BTreeMap<String, TensorProto>,
}

struct Pass<'a> {
    step: &'a Quantize,
    opset: i64,
    names: Names,
    /// The graphs around the current one and itself.
    graphs: Vec<New>,
    /// The names of -65504 and 65504, where they are needed.
    limits: Option<[String; 2]>,
    change: Change,
    nodes: u64,
    weights: u64,
}

impl Pass<'_> {
    fn graph(&mut self, graph: &mut GraphProto, outer: &Scope) {
        let depth = self.graphs.len();
        let mut scope = outer.clone();
        let forms = self.forms(graph, &mut scope, depth);
        self.graphs.push(New::default());
        let outputs: HashSet<String> = graph.output.iter().map(|one| one.name.clone()).collect();
        let mut halved = HashSet::new();
        for (node, form) in std::mem::take(&mut graph.node).into_iter().zip(forms) {
            match form {
                Form::Half => self.halve(node, &outputs, &mut scope, &mut halved),
                Form::Full(_) | Form::Either => self.keep(node, form, &mut scope),
            }
        }
        self.restore_outputs(graph, &mut scope);
        let New { nodes, halves } = self.graphs.pop().unwrap_or_default();
        graph.node = nodes;
        store(graph, halves);
        if depth == 0
            && let Some([low, high]) = &self.limits
        {
            graph.initializer.push(weights::from_f32(low, &[], &[-float16::LARGEST]));
            graph.initializer.push(weights::from_f32(high, &[], &[float16::LARGEST]));
        }
        for value in graph.value_info.iter_mut().filter(|value| halved.contains(&value.name)) {
            if let Some(Type::TensorType(tensor)) =
                value.r#type.as_mut().and_then(|kind| kind.value.as_mut())
            {
                tensor.elem_type = DataType::Float16 as i32;
            }
        }
    }

    /// Adds the values of `graph` to `scope` and says what becomes of each node.
    fn forms(&self, graph: &GraphProto, scope: &mut Scope, depth: usize) -> Vec<Form> {
        let known = graph.value_info.iter().chain(&graph.output);
        let known: HashMap<&str, Kind> =
            known.map(|value| (value.name.as_str(), declared(value.r#type.as_ref()))).collect();
        let given = |kind, name: &str, weight| {
            let full = Some(name.to_owned());
            (name.to_owned(), Value { full, weight, ..Value::new(kind) })
        };
        scope.extend(graph.input.iter().map(|i| given(declared(i.r#type.as_ref()), &i.name, None)));
        let sparse = graph.sparse_initializer.iter().filter_map(|sparse| sparse.values.as_ref());
        scope.extend(sparse.map(|t| given(of_type(t.data_type), &t.name, None)));
        scope.extend(graph.initializer.iter().map(|tensor| {
            let kind = of_type(tensor.data_type);
            let weight = (kind == Kind::Float).then(|| (depth, tensor.clone()));
            given(kind, &tensor.name, weight)
        }));
        let mut forms = Vec::with_capacity(graph.node.len());
        for node in &graph.node {
            let inputs: Vec<Kind> = node.input.iter().map(|name| kind_of(scope, name)).collect();
            let inner = self.body_kinds(node, scope, depth);
            let mut makes_floats = false;
            for (at, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                let kind = match known.get(name.as_str()) {
                    None | Some(Kind::Unknown) => inner
                        .get(at)
                        .copied()
                        .unwrap_or_else(|| output_kind(node, at, &inputs, self.opset)),
                    Some(kind) => *kind,
                };
                makes_floats |= kind == Kind::Float;
                scope.insert(name.clone(), Value::new(kind));
            }
            forms.push(self.form(node, &inputs, makes_floats, scope));
        }
        settle_sources(graph, scope, &mut forms);
        forms
    }

    /// The kinds of the outputs of If, Loop or Scan; empty for other nodes.
    fn body_kinds(&self, node: &NodeProto, scope: &Scope, depth: usize) -> Vec<Kind> {
        let Some(body) = walk::bodies(node).next() else { return Vec::new() };
        let mut inner = scope.clone();
        self.forms(body, &mut inner, depth + 1);
        // The first output of a Loop's body says whether to go on.
        let skipped = usize::from(node.op_type == "Loop");
        body.output.iter().skip(skipped).map(|output| kind_of(&inner, &output.name)).collect()
    }

    fn form(&self, node: &NodeProto, inputs: &[Kind], makes_floats: bool, scope: &Scope) -> Form {
        if walk::bodies(node).next().is_some() {
            return Form::Full(None);
        }
        let reads_floats = inputs.contains(&Kind::Float);
        if !reads_floats && !makes_floats {
            return Form::Full(None);
        }
        if self.step.exclude.contains(&node.name) {
            return Form::Full(Some("excluded by the recipe"));
        }
        match ability(node) {
            Ability::Full(why) => return Form::Full(Some(why)),
            Ability::Either => return Form::Either,
            Ability::Half => {}
        }
        if operators::is(node, "Cast") {
            // A Cast to another type reads what there is, so that nothing is rounded twice.
            return if makes_floats { Form::Half } else { Form::Either };
        }
        if inputs.contains(&Kind::Unknown) {
            return Form::Full(Some("the type of an input is not known"));
        }
        let weights =
            node.input.iter().enumerate().filter(|(at, _)| !keeps_input(node, *at, self.opset));
        let mut weights = weights.filter_map(|(_, name)| scope.get(name)?.weight.as_ref());
        if weights.any(|(_, weight)| float16::exceeds(weight)) {
            return Form::Full(Some(TOO_LARGE));
        }
        Form::Half
    }

    /// Adds `node` in half precision.
    fn halve(
        &mut self,
        mut node: NodeProto,
        outputs: &HashSet<String>,
        scope: &mut Scope,
        halved: &mut HashSet<String>,
    ) {
        let reads: Vec<bool> =
            (0..node.input.len()).map(|at| keeps_input(&node, at, self.opset)).collect();
        let is_cast = operators::is(&node, "Cast");
        for (input, full) in node.input.iter_mut().zip(reads) {
            if kind_of(scope, input) == Kind::Float {
                let full = full || (is_cast && is_full(scope, input));
                *input = if full { self.full(input, scope) } else { self.half(input, scope) };
            }
        }
        halve_attributes(&mut node);
        let mut casts = Vec::new();
        for at in 0..node.output.len() {
            let name = output(&node, at).to_owned();
            let Some(value) = scope.get_mut(&name) else { continue };
            if value.kind != Kind::Float || keeps_output(&node, at) {
                value.full = Some(name);
            } else if outputs.contains(&name) {
                let half = self.names.fresh(&format!("{name}_fp16"));
                casts.push((half.clone(), name.clone()));
                (value.half, value.full) = (Some(half.clone()), Some(name));
                if let Some(output) = node.output.get_mut(at) {
                    *output = half;
                }
            } else {
                halved.insert(name.clone());
                value.half = Some(name);
            }
        }
        self.nodes += 1;
        self.push(node);
        for (half, full) in casts {
            self.cast(&half, &full, DataType::Float);
        }
    }

    /// Adds `node` in 32 bits, its bodies changed inside.
    fn keep(&mut self, mut node: NodeProto, form: Form, scope: &mut Scope) {
        if let Form::Full(Some(why)) = form {
            self.change.skip(&node, why);
        }
        for input in &mut node.input {
            if kind_of(scope, input) == Kind::Float {
                let half = scope.get(input).and_then(|value| value.half.clone());
                *input = match half {
                    Some(half) if form == Form::Either && !is_full(scope, input) => half,
                    _ => self.full(input, scope),
                };
            }
        }
        for body in walk::bodies_mut(&mut node) {
            self.graph(body, scope);
        }
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            if let Some(value) = scope.get_mut(name) {
                value.full = Some(name.clone());
                value.large = form == Form::Full(Some(TOO_LARGE));
            }
        }
        self.push(node);
    }

    /// The name of `name` in half precision, made where it is not there yet.
    fn half(&mut self, name: &str, scope: &mut Scope) -> String {
        let Some(value) = scope.get_mut(name) else { return name.to_owned() };
        if let Some(half) = &value.half {
            return half.clone();
        }
        let known = value.weight.as_ref().and_then(|(depth, _)| self.graphs.get(*depth));
        if let Some(half) = known.and_then(|graph| graph.halves.get(name)) {
            return half.name.clone();
        }
        let half = self.names.fresh(&format!("{name}_fp16"));
        value.half = Some(half.clone());
        let (weight, full, large) = (value.weight.clone(), value.full.clone(), value.large);
        match weight {
            Some((depth, tensor)) => {
                self.weights += 1;
                if let Some(graph) = self.graphs.get_mut(depth) {
                    graph.halves.insert(name.to_owned(), float16::tensor(&tensor, &half));
                }
            }
            None => {
                let mut full = full.unwrap_or_else(|| name.to_owned());
                if large {
                    full = self.clip(&full);
                }
                self.cast(&full, &half, DataType::Float16);
            }
        }
        half
    }

    /// The name of `name` in its original type, made where it is not there any more.
    fn full(&mut self, name: &str, scope: &mut Scope) -> String {
        let Some(value) = scope.get_mut(name) else { return name.to_owned() };
        if let Some(full) = &value.full {
            return full.clone();
        }
        let full = self.names.fresh(&format!("{name}_fp32"));
        value.full = Some(full.clone());
        let half = value.half.clone().unwrap_or_else(|| name.to_owned());
        self.cast(&half, &full, DataType::Float);
        full
    }

    /// Keeps a value that may be beyond half precision finite, as weights are: a mask of large negative
    /// numbers must not become one of infinities, whose softmax is NaN.
    fn clip(&mut self, name: &str) -> String {
        let clipped = self.names.fresh(&format!("{name}_clipped"));
        let node_name = self.names.fresh(&format!("{clipped}_node"));
        let mut node = graph::node("Clip", &node_name, &[name], &[&clipped]);
        if self.opset < 11 {
            let limit = |name: &str, f: f32| crate::onnx::AttributeProto {
                f,
                r#type: crate::onnx::AttributeType::Float as i32,
                ..int(name, 0)
            };
            node.attribute = vec![limit("min", -float16::LARGEST), limit("max", float16::LARGEST)];
        } else {
            let names = &mut self.names;
            let limits = self.limits.get_or_insert_with(|| {
                ["lowest_fp16", "largest_fp16"].map(|name| names.fresh(name))
            });
            node.input.extend(limits.iter().cloned());
        }
        self.push(node);
        clipped
    }

    fn cast(&mut self, from: &str, to: &str, data_type: DataType) {
        let name = self.names.fresh(&format!("{to}_cast"));
        let mut node = graph::node("Cast", &name, &[from], &[to]);
        node.attribute.push(int("to", data_type as i64));
        self.push(node);
    }

    fn push(&mut self, node: NodeProto) {
        if let Some(graph) = self.graphs.last_mut() {
            graph.nodes.push(node);
        }
    }

    /// A body may hand out what a graph around it made in half precision; its output is in 32 bits.
    fn restore_outputs(&mut self, graph: &mut GraphProto, scope: &mut Scope) {
        for output in &mut graph.output {
            if kind_of(scope, &output.name) == Kind::Float {
                output.name = self.full(&output.name, scope);
            }
        }
    }
}

fn kind_of(scope: &Scope, name: &str) -> Kind {
    if name.is_empty() {
        return Kind::Other;
    }
    scope.get(name).map_or(Kind::Unknown, |value| value.kind)
}

fn is_full(scope: &Scope, name: &str) -> bool {
    scope.get(name).is_some_and(|value| value.full.is_some())
}

/// A node that makes floats of something else makes them in 32 bits where nothing reads them otherwise.
fn settle_sources(graph: &GraphProto, scope: &Scope, forms: &mut [Form]) {
    let mut wanted: HashSet<&str> = HashSet::new();
    for (node, form) in graph.node.iter().zip(forms.iter()) {
        if *form == Form::Half {
            wanted.extend(node.input.iter().map(String::as_str));
        }
    }
    for (node, form) in graph.node.iter().zip(forms) {
        let is_source = !node.input.iter().any(|name| kind_of(scope, name) == Kind::Float);
        let is_read = node.output.iter().any(|name| wanted.contains(name.as_str()));
        if *form == Form::Half && is_source && !is_read {
            *form = Form::Full(None);
        }
    }
}

/// Puts weights in half precision into `graph`: in the place and under the name of their originals
/// where nothing reads these any more.
fn store(graph: &mut GraphProto, mut halves: BTreeMap<String, TensorProto>) {
    let readers = graph::readers(graph);
    let mut renames = HashMap::new();
    for tensor in &mut graph.initializer {
        if readers.contains_key(&tensor.name) {
            continue;
        }
        if let Some(half) = halves.remove(&tensor.name) {
            renames.insert(half.name.clone(), tensor.name.clone());
            *tensor = TensorProto { name: tensor.name.clone(), ..half };
        }
    }
    graph.initializer.extend(halves.into_values());
    graph::redirect(graph, &renames);
}
