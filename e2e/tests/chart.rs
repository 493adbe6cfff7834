//! The chart renders what was read and agreed on, and never asks for a right it must not have.
//!
//! Run by `cargo e2e test`, which names Helm. `UPDATE=1` writes the golden files anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/lithe")
}

fn helm() -> Command {
    Command::new(std::env::var("LITHE_HELM").expect("LITHE_HELM: run `cargo e2e test`"))
}

fn cases() -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(chart().join("tests"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 4, "only {} cases", cases.len());
    cases
}

fn render(case: &Path) -> String {
    let output = helm()
        .args(["template", "lithe"])
        .arg(chart())
        .args(["--namespace", "lithe-system", "--kube-version", "1.36.0", "--values"])
        .arg(case.join("values.yaml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn renders_are_the_golden_ones() {
    for case in cases() {
        let (golden, rendered) = (case.join("golden.yaml"), render(&case));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&golden, &rendered).unwrap();
        }
        let agreed = std::fs::read_to_string(&golden).unwrap_or_default();
        assert!(agreed == rendered, "{} drifted: UPDATE=1 and read the change", golden.display());
    }
}

#[test]
fn the_chart_lints() {
    let output = helm().args(["lint", "--strict"]).arg(chart()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn no_role_has_a_wildcard_or_reads_secrets() {
    for case in cases() {
        for document in render(&case).split("\n---") {
            let object: serde_json::Value = serde_yaml::from_str(document).unwrap_or_default();
            let rules = object.get("rules").and_then(|rules| rules.as_array()).cloned();
            for rule in rules.unwrap_or_default() {
                let text = rule.to_string();
                assert!(!text.contains("\"*\""), "{}: {text}", case.display());
                assert!(!text.contains("\"secrets\""), "{}: {text}", case.display());
            }
        }
    }
}

#[test]
fn the_namespaced_mode_has_no_cluster_scoped_right() {
    let rendered = render(&chart().join("tests/namespaced"));
    for kind in ["kind: ClusterRole\n", "kind: ClusterRoleBinding\n"] {
        assert!(!rendered.contains(kind), "{kind}");
    }
}
