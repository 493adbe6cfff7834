//! Which steps there are, and what runs for each.

use lithe::names::reason;
use lithe::recipe::{Gates, QuantizeMode, Recipe, Step, Target};

use crate::compress::calibrate::Visitor;
use crate::compress::change::{Change, recipe_invalid};
use crate::compress::data::Samples;
use crate::compress::{
    Error, VERSION, equalize, feed, gates, optimize, prune, quantize_dynamic, quantize_float16,
    quantize_static, quantize_weight_only, shapes,
};
use crate::onnx::{ModelProto, Refusal, graph, walk};
use crate::runtime::{Options, Session};

const NO_CALIBRATION: &str =
    "a step measures ranges or layers on calibration data, and none were given";

/// The spec field of the step at `index`.
pub fn field(index: usize, step: &Step) -> String {
    let name = match step {
        Step { optimize: Some(_), .. } => ".optimize",
        Step { equalize: Some(_), .. } => ".equalize",
        Step { prune: Some(_), .. } => ".prune",
        Step { finetune: Some(_), .. } => ".finetune",
        Step { quantize: Some(_), .. } => ".quantize",
        _ => "",
    };
    format!("spec.compression.steps[{index}]{name}")
}

/// Refuses what this version cannot do, and what cannot be right, before any work.
pub fn check(recipe: &Recipe, has_data: bool) -> Result<(), Error> {
    if recipe.objective.is_some() {
        return check_objective(recipe, has_data);
    }
    for (index, step) in recipe.steps.iter().enumerate() {
        check_step(index, step, recipe.target.unwrap_or_default())?;
    }
    if calibrates(recipe) && !has_data {
        return refuse(reason::DATA_INVALID, NO_CALIBRATION, "spec.compression.data");
    }
    match &recipe.gates {
        Some(gates) => check_gates(gates, recipe, has_data),
        None => Ok(()),
    }
}

/// A search needs data that judge, and a bound that keeps the smallest model from being the worst one.
fn check_objective(recipe: &Recipe, has_data: bool) -> Result<(), Error> {
    const FIELD: &str = "spec.compression.objective";
    if !recipe.steps.is_empty() {
        let message = "give either steps, or an objective to search for them";
        return refuse(reason::RECIPE_INVALID, message, FIELD);
    }
    if !has_data {
        let message = "a search judges its candidates by data, and none were given";
        return refuse(reason::DATA_INVALID, message, "spec.compression.data");
    }
    if let Some(fault) = recipe.objective_fault() {
        return refuse(reason::RECIPE_INVALID, fault, "spec.compression.gates");
    }
    let budget = recipe.objective.as_ref().and_then(|objective| objective.budget.as_ref());
    if let Some(Err(error)) = budget.map(lithe::units::Duration::parse) {
        return refuse(reason::RECIPE_INVALID, error.to_string(), &format!("{FIELD}.budget"));
    }
    recipe.gates.iter().try_for_each(|gates| check_gates(gates, recipe, has_data))
}

/// Whether something in `recipe` measures on calibration data.
pub fn calibrates(recipe: &Recipe) -> bool {
    recipe.objective.is_some() || recipe.steps.iter().any(Step::calibrates)
}

fn refuse(reason: &'static str, message: impl Into<String>, field: &str) -> Result<(), Error> {
    let refusal = Refusal::new(reason, message);
    Err(Error::Refused { refusal, field: Some(field.to_owned()), source_digest: None })
}

fn check_step(index: usize, step: &Step, target: Target) -> Result<(), Error> {
    let Step { optimize, equalize, prune, finetune, quantize } = step;
    let set = [
        optimize.is_some(),
        equalize.is_some(),
        prune.is_some(),
        finetune.is_some(),
        quantize.is_some(),
    ];
    let path = field(index, step);
    if set.iter().filter(|set| **set).count() != 1 {
        let message = format!(
            "step {index} is not exactly one of optimize, equalize, prune, finetune, quantize"
        );
        return refuse(reason::RECIPE_INVALID, message, &path);
    }
    if finetune.is_some() {
        let message = format!("step {index}: this version cannot fine-tune");
        return refuse(reason::UNSUPPORTED, message, &path);
    }
    match step.faults(target).into_iter().next() {
        Some((field, what)) => {
            let path = format!("spec.compression.steps[{index}].{field}");
            refuse(reason::RECIPE_INVALID, format!("step {index}: {field} {what}"), &path)
        }
        None => Ok(()),
    }
}

fn check_gates(gates: &Gates, recipe: &Recipe, has_data: bool) -> Result<(), Error> {
    const FIELD: &str = "spec.compression.gates";
    if let Some((field, what)) = gates.faults().into_iter().next() {
        let message = format!("gates.{field} {what}");
        return refuse(reason::RECIPE_INVALID, message, &format!("{FIELD}.{field}"));
    }
    if gates::need_data(gates) && !has_data && !recipe.steps.is_empty() {
        let message = "the gates judge by data, and none were given";
        return refuse(reason::DATA_INVALID, message, "spec.compression.data");
    }
    Ok(())
}

/// What a step may use beside the model.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// The samples that ranges are measured on.
    pub calibration: Option<&'a Samples>,
    /// Where the model will run.
    pub target: Target,
}

/// Runs one step that [`check`] let through.
pub fn run(
    model: ModelProto,
    index: usize,
    step: &Step,
    Means { calibration, target }: Means<'_>,
) -> Result<(ModelProto, Change), Error> {
    // `check` refuses a step that calibrates and has no data.
    let feed = |model: &ModelProto, visit: Visitor<'_>| match calibration {
        Some(samples) => feed::feed(samples, model, visit),
        None => Err(Refusal::new(reason::DATA_INVALID, NO_CALIBRATION)),
    };
    let result = if let Some(step) = &step.optimize {
        optimize::optimize(model, step, &evaluate)
    } else if let Some(step) = &step.equalize {
        equalize::equalize(model, step, &evaluate, &feed)
    } else if let Some(step) = &step.prune {
        prune::prune(model, step, &shapes::shapes, &evaluate)
    } else if let Some(step) = &step.quantize {
        let step = &step.decided_for(target);
        match step.mode {
            QuantizeMode::Dynamic => quantize_dynamic::quantize_dynamic(model, step),
            QuantizeMode::Static => {
                quantize_static::quantize_static(model, (step, target), &evaluate, &feed)
            }
            QuantizeMode::WeightOnly => {
                quantize_weight_only::quantize_weight_only(model, step, &feed)
            }
            QuantizeMode::Float16 => quantize_float16::quantize_float16(model, step),
        }
    } else {
        Err(recipe_invalid(format!("step {index} cannot be run")))
    };
    result.map_err(|refusal| Error::Refused {
        refusal,
        field: Some(field(index, step)),
        source_digest: None,
    })
}

/// Runs a model that has no inputs; the runtime's own optimiser has nothing to add to one node.
pub fn evaluate(model: &ModelProto) -> Option<Vec<crate::tensor::Tensor>> {
    let options = Options { threads: 1, optimise: false, spin: false };
    let session = Session::load(&graph::serialise(model), options).ok()?;
    session.run(&[], &[]).ok()
}

/// Names the writer and drops what only the exporter's author reads: the same model gives the same
/// bytes, and no stack traces are shipped.
pub fn stamp(model: &mut ModelProto) {
    model.producer_name = "lithe".into();
    model.producer_version = VERSION.into();
    model.doc_string = String::new();
    model.metadata_props.sort_by(|a, b| a.key.cmp(&b.key));
    let Some(graph) = &mut model.graph else { return };
    let Ok(()) = walk::graphs_mut(graph, &mut |graph| {
        graph.doc_string = String::new();
        for node in &mut graph.node {
            node.doc_string = String::new();
            node.metadata_props = Vec::new();
        }
        for tensor in &mut graph.initializer {
            tensor.doc_string = String::new();
            tensor.metadata_props = Vec::new();
        }
        for value in graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info) {
            value.doc_string = String::new();
            value.metadata_props = Vec::new();
        }
        Ok::<_, std::convert::Infallible>(())
    });
}
