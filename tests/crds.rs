//! The committed CRD is the one the types make, the chart ships the same bytes, and every example
//! is what the types read.
#![cfg(feature = "crd")]
#![allow(clippy::unwrap_used)]

use std::path::Path;

use lithe::spec::{ModelDeployment, manifest};

const COPIES: [&str; 2] =
    ["crds/modeldeployments.yaml", "charts/lithe/crd-manifests/modeldeployments.yaml"];

#[test]
fn committed_manifests_are_what_the_types_make() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for copy in COPIES {
        let path = root.join(copy);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, manifest()).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == manifest(), "{copy} drifted: UPDATE=1 cargo test --test crds");
    }
}

#[test]
fn every_example_reads_back_as_it_was_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        for text in std::fs::read_to_string(&path).unwrap().split("\n---\n") {
            let written: serde_json::Value = serde_yaml::from_str(text).unwrap();
            if written["kind"] != "ModelDeployment" {
                continue;
            }
            let read: ModelDeployment = serde_json::from_value(written.clone())
                .unwrap_or_else(|error| unreachable!("{}: {error}", path.display()));
            let again = serde_json::to_value(&read).unwrap();
            assert!(contains(&again, &written), "{}: a field is unknown", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 5, "only {seen} examples");
}

/// Whether `whole` has everything that `part` has: nothing the user wrote was dropped.
fn contains(whole: &serde_json::Value, part: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|w| contains(w, value)))
        }
        (Value::Array(whole), Value::Array(part)) => {
            whole.len() == part.len() && whole.iter().zip(part).all(|(w, p)| contains(w, p))
        }
        (Value::Number(whole), Value::Number(part)) => whole.as_f64() == part.as_f64(),
        _ => whole == part,
    }
}
