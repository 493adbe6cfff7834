//! What is fuzzed: one function per kind of input. Each takes any bytes; it must neither panic nor hang
//! nor allocate what the bytes merely claim, and what it accepts must survive a round trip. libFuzzer
//! calls them, and `worker/tests/fuzz.rs` on the committed seeds.

use lithe::artifact::TensorSignature;
use lithe::recipe::{Optimize, Quantize, Recipe};
use lithe_worker::compress::data::source;
use lithe_worker::compress::{optimize, quantize_dynamic, steps};
use lithe_worker::onnx::{self, Budget, graph};

/// Weights and nodes that a fuzzed model may have: enough for every path, little enough to be quick.
fn small() -> Budget {
    Budget { bytes: 1 << 20, nodes: 2000, tensors: 2000, decoded: 16 << 20, ..Budget::default() }
}

/// An ONNX file: the loader, and the passes that take whatever it lets through.
pub fn model(bytes: &[u8]) {
    let Ok(loaded) = onnx::parse(bytes.to_vec().into(), None, &small()) else { return };
    let written = graph::serialise(&loaded.model);
    let again = onnx::parse(written.clone().into(), None, &small());
    let again = again.expect("what was loaded and written loads again").model;
    assert!(graph::serialise(&again) == written, "the second writing differs from the first");
    // A refusal is an answer, too.
    let Ok((model, _)) = optimize::optimize(loaded.model, &Optimize {}, &|_| None) else { return };
    if let Ok((model, _)) = quantize_dynamic::quantize_dynamic(model, &Quantize::default()) {
        graph::serialise(&model);
    }
}

/// Evaluation data of any format.
pub fn npz(bytes: &[u8]) {
    use std::io::Write as _;
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("write a temporary file");
    let input = TensorSignature { name: "x".into(), datatype: "FP32".into(), shape: vec![-1, 4] };
    let Ok(arrays) = source::open(file.path(), &[input]) else { return };
    for (_, column) in arrays {
        // What was accepted is there: a row of it can be read.
        column.rows(0, 1).expect("the first row of an accepted array");
    }
}

/// A recipe file.
pub fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(recipe) = serde_yaml::from_str::<Recipe>(text) else { return };
    // A refusal is an answer, too.
    let _ = steps::check(&recipe, true);
    let json = serde_json::to_string(&recipe).expect("a recipe is JSON");
    // JSON has no NaN; a recipe with one is refused by `check`.
    if let Ok(again) = serde_json::from_str::<Recipe>(&json) {
        assert_eq!(again.digest(), recipe.digest(), "the recipe changed on its way through JSON");
    }
}
