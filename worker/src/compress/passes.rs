//! The hidden verb `passes`: takes many models through `optimize` in one process and writes each one
//! after every pass that changed it, so that a test can compare what they compute. One line of JSON
//! per model says what was written, and what is known of the shapes in the model as it was loaded.

use std::io::Write;
use std::path::{Path, PathBuf};

use lithe::recipe::Optimize;
use serde_json::{Value, json};

use crate::compress::{optimize, steps};
use crate::onnx::infer::{self, Inputs};
use crate::onnx::{self, Budget, ModelProto, Refusal, graph, operators};

/// Takes models through the passes of `optimize`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The folder that gets the models after each pass.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The models, one path a line.
    #[arg(long, value_name = "FILE")]
    list: PathBuf,
}

/// Runs the verb; returns the exit code. A model that is refused is a line, not an end.
pub fn run(args: &Args) -> i32 {
    match attempt(args) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("lithe-worker: {error}");
            1
        }
    }
}

fn attempt(args: &Args) -> std::io::Result<()> {
    std::fs::create_dir_all(&args.out)?;
    let list = std::fs::read_to_string(&args.list)?;
    let mut stdout = std::io::stdout().lock();
    for (index, path) in list.lines().enumerate() {
        let mut written = Vec::new();
        let mut broken = Ok(());
        let result = one(Path::new(path), &mut |did, matched, model| {
            let file = args.out.join(format!("{index}-{}.onnx", written.len()));
            if broken.is_ok() {
                broken = std::fs::write(&file, graph::serialise(model));
            }
            written.push(json!({"did": did, "matched": matched, "file": file}));
        });
        broken?;
        let line = match result {
            Ok(facts) => json!({"model": path, "written": written, "facts": facts}),
            Err(refusal) => {
                json!({"model": path, "reason": refusal.reason, "refused": refusal.message})
            }
        };
        writeln!(stdout, "{line}")?;
    }
    Ok(())
}

fn one(path: &Path, observe: optimize::Observer<'_>) -> Result<Value, Refusal> {
    let loaded = onnx::load(path, &Budget::default())?;
    let facts = facts(&loaded.model);
    optimize::observed(loaded.model, &Optimize::default(), &steps::evaluate, observe)?;
    Ok(facts)
}

/// Element type and shape of each value in the main graph, by name.
fn facts(model: &ModelProto) -> Value {
    let Some(main) = &model.graph else { return json!({}) };
    let seen = graph::constants(main);
    let known = infer::infer(main, &seen, operators::opset(model), Inputs::Checked);
    let one = |(name, fact): (&String, &infer::Fact)| {
        (name.clone(), json!({"type": fact.data_type, "shape": fact.shape}))
    };
    known.iter().map(one).collect::<serde_json::Map<String, Value>>().into()
}
