//! The compression Job around a compressor of the test: fetched once, made once, kept whole, and
//! every failure told to the operator with its exit code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;

use clap::Parser;
use lithe::Digest;
use lithe::artifact::*;
use lithe::names::reason;
use lithe_worker::job::{self, JobError, Options, Work};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn options(arguments: &[&str]) -> Options {
    Arguments::parse_from([&["compress"], arguments].concat()).options
}

/// Keeps the model as it is.
fn copy(work: &Work) -> Result<Manifest, JobError> {
    let model = std::fs::read(&work.model).unwrap();
    std::fs::write(work.out.join(MODEL_FILE), &model).unwrap();
    Ok(Manifest {
        schema: MANIFEST_SCHEMA.into(),
        key: work.key.clone(),
        source: Source { digest: work.source.clone(), size: model.len() as u64, parameters: 1, opset: 17 },
        data: work.data_digest.clone(),
        recipe: work.recipe.clone(),
        model: File { name: MODEL_FILE.into(), digest: Digest::of(&model), size: model.len() as u64 },
        inputs: vec![],
        outputs: vec![],
        steps: vec![],
        evaluation: None,
        gates: vec![],
        environment: Environment::default(),
    })
}

fn never(_: &Work) -> Result<Manifest, JobError> {
    panic!("the compressor was asked")
}

fn refuse(reason: &str) -> Refusal {
    Refusal { reason: reason.into(), message: "because".into(), field: None, source: None }
}

fn corrupt(_: &Work) -> Result<Manifest, JobError> {
    Err(JobError::Refused(refuse(reason::CORRUPT)))
}

fn gate(_: &Work) -> Result<Manifest, JobError> {
    Err(JobError::Gate(refuse(reason::GATE_FAILED)))
}

fn liar(work: &Work) -> Result<Manifest, JobError> {
    let manifest = copy(work)?;
    std::fs::write(work.out.join(MODEL_FILE), "something else").unwrap();
    Ok(manifest)
}

fn left_over(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_same_work_is_done_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("m.onnx"), "the model").unwrap();
    std::fs::write(at("recipe.yaml"), "steps: [{optimize: {}}]\n").unwrap();
    let store = format!("file://{}", at("store"));
    let message = at("message");
    let model = at("m.onnx");
    let recipe = at("recipe.yaml");
    let arguments = ["--model", &model, "--recipe", &recipe, "--store", &store, "--repository", "ns/n",
        "--termination-message", &message];
    let made = || match Outcome::from_message(&std::fs::read_to_string(&message).unwrap()) {
        Some(Outcome::Made(made)) => *made,
        other => panic!("{other:?}"),
    };
    assert_eq!(job::main(options(&arguments), copy), 0);
    let first = made();
    assert_eq!((first.reused, &first.source), (false, &Digest::of("the model")));
    assert_eq!(job::main(options(&arguments), never), 0);
    assert_eq!(made(), Made { reused: true, ..first.clone() });
    std::fs::write(at("recipe.yaml"), "steps: [{optimize: {}}]\nseed: 1\n").unwrap();
    assert_eq!(job::main(options(&arguments), copy), 0);
    assert_ne!(made().key, first.key);
}

#[test]
fn a_laptop_gets_two_whole_files_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("m.onnx"), "the model").unwrap();
    let (model, out) = (at("m.onnx"), at("out"));
    assert_eq!(job::main(options(&["--model", &model, "--out", &out]), copy), 0);
    let mut files = left_over(Path::new(&out));
    files.sort();
    assert_eq!(files, [MANIFEST_FILE, MODEL_FILE]);
    for (compress, code) in [(corrupt as job::Compress, EXIT_REFUSED), (gate, EXIT_GATE_FAILED), (liar, 1)] {
        let out = at(&format!("out-{code}"));
        assert_eq!(job::main(options(&["--model", &model, "--out", &out]), compress), code);
        assert_eq!(left_over(Path::new(&out)), Vec::<String>::new());
    }
}

#[test]
fn every_failure_is_told_with_its_field_and_code() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("m.onnx"), "the model").unwrap();
    std::fs::write(at("bad.yaml"), "steps: [{optimise: {}}]\n").unwrap();
    std::fs::create_dir(at("claim")).unwrap();
    let (model, bad, claim, message, none) = (at("m.onnx"), at("bad.yaml"), at("claim"), at("message"), at("none"));
    let other = Digest::of("x").to_string();
    let cases: [(&[&str], i32, &str, Option<&str>); 7] = [
        (&["--model", &none], EXIT_REFUSED, reason::SOURCE_NOT_FOUND, Some("spec.model.uri")),
        (&["--model", &model, "--model-digest", &other], EXIT_REFUSED, reason::DIGEST_MISMATCH, Some("spec.model.digest")),
        (&["--model", "pvc://c/gone.onnx", "--model-mount", &claim], EXIT_REFUSED, reason::SOURCE_NOT_FOUND, Some("spec.model.uri")),
        (&["--model", "https://127.0.0.1/m"], EXIT_REFUSED, reason::SOURCE_FORBIDDEN, Some("spec.model.uri")),
        (&["--model", "az://container/m", "--model-credentials", &claim], EXIT_REFUSED, reason::SECRET_MISSING, Some("spec.model.credentialsSecret")),
        (&["--model", &model, "--data", &none], EXIT_REFUSED, reason::SOURCE_NOT_FOUND, Some("spec.compression.data.uri")),
        (&["--model", &model, "--recipe", &bad], EXIT_REFUSED, reason::RECIPE_INVALID, Some("spec.compression")),
    ];
    for (arguments, code, reason, field) in cases {
        let out = at("out");
        let rest = ["--out", &out, "--termination-message", &message];
        assert_eq!(job::main(options(&[arguments, &rest].concat()), never), code, "{arguments:?}");
        let said = std::fs::read_to_string(&message).unwrap();
        let Some(Outcome::Refused(refusal)) = Outcome::from_message(&said) else { panic!("{said}") };
        assert_eq!((refusal.reason.as_str(), refusal.field.as_deref()), (reason, field), "{said}");
    }
}
