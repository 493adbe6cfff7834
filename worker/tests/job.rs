//! The compression Job around a compressor of the test: fetched once, made once, kept whole, and
//! every failure told to the operator with its exit code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::path::Path;

use clap::Parser;
use lithe::Digest;
use lithe::artifact::*;
use lithe::names::reason;
use lithe::recipe::artifact_key;
use lithe_worker::compress::{Compressed, Error, Request, VERSION, output};
use lithe_worker::job::{self, Options};
use lithe_worker::onnx;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn options(arguments: &[&str]) -> Options {
    Arguments::parse_from([&["compress"], arguments].concat()).options
}

/// Keeps the model as it is.
fn copy(request: &Request) -> Result<Compressed, Error> {
    let loaded = onnx::load(&request.model, &request.budget).unwrap();
    let model = std::fs::read(&request.model).unwrap();
    let digest = |path: &Path| Digest::of(std::fs::read(path).unwrap());
    let data = request.data.as_deref().map(digest);
    let manifest = Manifest {
        schema: MANIFEST_SCHEMA.into(),
        key: artifact_key(&loaded.digest, data.as_ref(), &request.recipe.digest(), VERSION),
        source: Source { digest: loaded.digest, size: loaded.size, parameters: 1, opset: 17 },
        data,
        recipe: request.recipe.clone(),
        model: File {
            name: MODEL_FILE.into(),
            digest: Digest::of(&model),
            size: model.len() as u64,
        },
        inputs: vec![],
        outputs: vec![],
        steps: vec![],
        search: None,
        evaluation: None,
        gates: vec![],
        layers: vec![],
        activations: vec![],
        report: None,
        memory: None,
        environment: Environment::default(),
    };
    let written = output::write(&request.out, &model, &manifest, None)?;
    let output::Written { model, manifest_path, manifest_digest, report } = written;
    Ok(Compressed { manifest, model, manifest_path, manifest_digest, report, fallback: None })
}

fn never(_: &Request) -> Result<Compressed, Error> {
    panic!("the compressor was asked")
}

fn corrupt(_: &Request) -> Result<Compressed, Error> {
    let refusal = onnx::Refusal::corrupt("because");
    Err(Error::Refused { refusal, field: Some("spec.model".into()), source_digest: None })
}

fn gate(_: &Request) -> Result<Compressed, Error> {
    Err(Error::Gate { line: "minimum 1, measured 0".into(), source_digest: Digest::of("s") })
}

fn liar(request: &Request) -> Result<Compressed, Error> {
    let compressed = copy(request)?;
    std::fs::write(&compressed.model, "something else").unwrap();
    Ok(compressed)
}

#[test]
fn the_same_work_is_done_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("m.onnx"), support::identity(1, &["n"])).unwrap();
    std::fs::write(at("recipe.yaml"), "steps: [{optimize: {}}]\n").unwrap();
    let store = format!("file://{}", at("store"));
    let message = at("message");
    let model = at("m.onnx");
    let recipe = at("recipe.yaml");
    let arguments = [
        "--model",
        &model,
        "--recipe",
        &recipe,
        "--store",
        &store,
        "--repository",
        "ns/n",
        "--termination-message",
        &message,
    ];
    let made = || match Outcome::from_message(&std::fs::read_to_string(&message).unwrap()) {
        Some(Outcome::Made(made)) => *made,
        other => panic!("{other:?}"),
    };
    assert_eq!(job::main(options(&arguments), copy), 0);
    let first = made();
    assert_eq!((first.reused, &first.source), (false, &Digest::of(support::identity(1, &["n"]))));
    assert_eq!(job::main(options(&arguments), never), 0);
    assert_eq!(made(), Made { reused: true, ..first.clone() });
    std::fs::write(at("recipe.yaml"), "steps: [{optimize: {}}]\nseed: 1\n").unwrap();
    assert_eq!(job::main(options(&arguments), copy), 0);
    assert_ne!(made().key, first.key);
}

#[test]
fn a_failed_compression_has_its_code_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("m.onnx"), support::identity(1, &["n"])).unwrap();
    let (model, store) = (at("m.onnx"), format!("file://{}", at("store")));
    for (compress, code) in
        [(corrupt as job::Compress, EXIT_REFUSED), (gate, EXIT_GATE_FAILED), (liar, 1)]
    {
        let arguments = ["--model", &model, "--store", &store, "--repository", "n"];
        assert_eq!(job::main(options(&arguments), compress), code);
        assert!(!Path::new(&at("store")).exists());
    }
}

#[test]
fn every_failure_is_told_with_its_field_and_code() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("m.onnx"), support::identity(1, &["n"])).unwrap();
    std::fs::write(at("bad.yaml"), "steps: [{optimise: {}}]\n").unwrap();
    std::fs::create_dir(at("claim")).unwrap();
    std::fs::write(at("page.onnx"), "<!DOCTYPE html><html>").unwrap();
    let page = at("page.onnx");
    let (model, bad, claim, message, none) =
        (at("m.onnx"), at("bad.yaml"), at("claim"), at("message"), at("none"));
    let other = Digest::of("x").to_string();
    let cases: [(&[&str], i32, &str, Option<&str>); 8] = [
        (&["--model", &none], EXIT_REFUSED, reason::SOURCE_NOT_FOUND, Some("spec.model.uri")),
        (
            &["--model", &model, "--model-digest", &other],
            EXIT_REFUSED,
            reason::DIGEST_MISMATCH,
            Some("spec.model.digest"),
        ),
        (
            &["--model", "pvc://c/gone.onnx", "--model-mount", &claim],
            EXIT_REFUSED,
            reason::SOURCE_NOT_FOUND,
            Some("spec.model.uri"),
        ),
        (
            &["--model", "https://127.0.0.1/m"],
            EXIT_REFUSED,
            reason::SOURCE_FORBIDDEN,
            Some("spec.model.uri"),
        ),
        (
            &["--model", "az://container/m", "--model-credentials", &claim],
            EXIT_REFUSED,
            reason::SECRET_MISSING,
            Some("spec.model.credentialsSecret"),
        ),
        (
            &["--model", &model, "--data", &none],
            EXIT_REFUSED,
            reason::SOURCE_NOT_FOUND,
            Some("spec.compression.data.uri"),
        ),
        (&["--model", &page], EXIT_REFUSED, reason::CORRUPT, Some("spec.model")),
        (
            &["--model", &model, "--recipe", &bad],
            EXIT_REFUSED,
            reason::RECIPE_INVALID,
            Some("spec.compression"),
        ),
    ];
    for (arguments, code, reason, field) in cases {
        let store = format!("file://{}", at("store"));
        let rest = ["--store", &store, "--repository", "n", "--termination-message", &message];
        assert_eq!(job::main(options(&[arguments, &rest].concat()), never), code, "{arguments:?}");
        let said = std::fs::read_to_string(&message).unwrap();
        let Some(Outcome::Refused(refusal)) = Outcome::from_message(&said) else {
            panic!("{said}")
        };
        assert_eq!((refusal.reason.as_str(), refusal.field.as_deref()), (reason, field), "{said}");
    }
}
