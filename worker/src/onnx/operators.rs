//! Which operators may stand in a model: standard domains, in versions that the runtime knows.

use std::collections::HashSet;

use lithe::names::reason;

use super::refusal::{Refusal, quoted};
use super::{FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, walk};

/// The newest version of each allowed domain in ONNX Runtime 1.31.
pub const DOMAINS: [(&str, i64); 3] = [("", 26), ("ai.onnx.ml", 5), ("com.microsoft", 1)];
/// The newest file format version that ONNX Runtime 1.31 reads.
pub const IR_VERSION: i64 = 13;

/// The operator set `domain`, where `ai.onnx` is another name of the default one.
pub fn canonical(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// The version of the default operator set; 0 when it is not imported.
pub fn opset(model: &ModelProto) -> i64 {
    let default = |import: &&OperatorSetIdProto| canonical(&import.domain).is_empty();
    model.opset_import.iter().find(default).map_or(0, |import| import.version)
}

/// Makes `model` import the operator set `domain`; a version that it imports already stays.
pub fn import(model: &mut ModelProto, domain: &str, version: i64) {
    if !model.opset_import.iter().any(|import| import.domain == domain) {
        model.opset_import.push(OperatorSetIdProto { domain: domain.to_owned(), version });
    }
}

/// Whether `node` is the default operator set's `op`.
pub fn is(node: &NodeProto, op: &str) -> bool {
    node.op_type == op && canonical(&node.domain).is_empty()
}

/// Refuses operators and versions that the runtime does not know or that reach out of the model.
pub fn check(model: &ModelProto) -> Result<(), Refusal> {
    if model.ir_version > IR_VERSION {
        let message = format!(
            "the model has ONNX IR version {}, ONNX Runtime 1.31 reads up to {IR_VERSION}",
            model.ir_version
        );
        return Err(Refusal::new(reason::FORBIDDEN_OP, message));
    }
    if model.opset_import.is_empty() {
        return Err(Refusal::corrupt(
            "the model does not say which operator set it uses (opset_import)",
        ));
    }
    check_imports(&model.opset_import)?;
    let local: HashSet<(&str, &str)> =
        model.functions.iter().map(|f| (f.domain.as_str(), f.name.as_str())).collect();
    let mut found = Ok(());
    let mut visit = |node: &NodeProto| {
        if found.is_ok() {
            found = check_node(node, &local);
        }
    };
    if let Some(graph) = &model.graph {
        walk::nodes(graph, &mut visit);
    }
    for node in model.functions.iter().flat_map(|function| &function.node) {
        visit(node);
        walk::bodies(node).for_each(|body| walk::nodes(body, &mut visit));
    }
    found?;
    model
        .functions
        .iter()
        .try_for_each(|function: &FunctionProto| check_imports(&function.opset_import))
}

fn check_imports(imports: &[OperatorSetIdProto]) -> Result<(), Refusal> {
    for import in imports {
        let known = DOMAINS.iter().find(|(domain, _)| *domain == canonical(&import.domain));
        // A domain that no node uses does no harm; exporters import many.
        let Some((domain, newest)) = known else { continue };
        if import.version < 1 || import.version > *newest {
            let name = if domain.is_empty() { "ai.onnx" } else { domain };
            let message = format!(
                "the model uses operator set {name} {}, ONNX Runtime 1.31 knows 1 to {newest}",
                import.version
            );
            return Err(Refusal::new(reason::FORBIDDEN_OP, message));
        }
    }
    Ok(())
}

fn check_node(node: &NodeProto, local: &HashSet<(&str, &str)>) -> Result<(), Refusal> {
    let refuse = |why: &str| {
        let domain = if node.domain.is_empty() { "ai.onnx" } else { &node.domain };
        let message = format!(
            "node {} is {}:{}, {why}",
            quoted(&node.name),
            quoted(domain),
            quoted(&node.op_type)
        );
        Err(Refusal::new(reason::FORBIDDEN_OP, message))
    };
    if node.op_type == "EPContext" {
        return refuse("which hands a foreign binary to an accelerator's driver");
    }
    if node.op_type == "PyOp" || node.op_type == "PythonOp" {
        return refuse("which runs code from outside of the model");
    }
    let known = DOMAINS.iter().any(|(domain, _)| *domain == canonical(&node.domain));
    if known || local.contains(&(node.domain.as_str(), node.op_type.as_str())) {
        return Ok(());
    }
    refuse("of a domain that is not allowed (ai.onnx, ai.onnx.ml, com.microsoft are)")
}
