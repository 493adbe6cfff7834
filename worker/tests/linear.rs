//! Work that grows with the size of a model and not with its square: loading, normalising and
//! optimising twice the nodes allocates about twice as much. Counts bytes, not time.

#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use lithe::recipe::Optimize;
use lithe_worker::compress::optimize;
use lithe_worker::onnx::graph::{self, int};
use lithe_worker::onnx::{
    AttributeProto, AttributeType, Budget, DataType, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TypeProto, ValueInfoProto, parse, proto, weights,
};

/// The system's allocator, which counts what each thread asks for.
struct Counting;

thread_local! {
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has no counter any more.
        let _ = BYTES.try_with(|bytes| bytes.set(bytes.get() + layout.size() as u64));
        // SAFETY: the caller's layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's pointer and layout, which came from `alloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn value(name: &str, kind: DataType) -> ValueInfoProto {
    let shape = proto::TensorShapeProto::default();
    let tensor = proto::type_proto::Tensor { elem_type: kind as i32, shape: Some(shape) };
    let value = Some(proto::type_proto::Value::TensorType(tensor));
    let r#type = Some(TypeProto { value, ..TypeProto::default() });
    ValueInfoProto { name: name.into(), r#type, ..ValueInfoProto::default() }
}

fn model(graph: GraphProto) -> Vec<u8> {
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    let model =
        ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() };
    graph::serialise(&model)
}

fn body(name: &str, from: &str, to: &str) -> AttributeProto {
    let graph = GraphProto {
        name: name.into(),
        node: vec![graph::node("Add", "", &[from, "weight"], &[to])],
        output: vec![value(to, DataType::Float)],
        ..GraphProto::default()
    };
    AttributeProto {
        name: name.into(),
        g: Some(graph),
        r#type: AttributeType::Graph as i32,
        ..AttributeProto::default()
    }
}

/// A chain of If nodes, each with two bodies that read what is around them: as many values, and as many
/// constants, as there are nodes.
fn conditions(count: usize) -> Vec<u8> {
    let one = |at: usize| {
        let mut made = graph::node("If", "", &["c"], &[&format!("y{}", at + 1)]);
        let from = format!("y{at}");
        made.attribute = vec![
            body("then_branch", &from, &format!("t{at}")),
            body("else_branch", &from, &format!("e{at}")),
        ];
        made
    };
    model(GraphProto {
        name: "conditions".into(),
        input: vec![value("c", DataType::Bool), value("y0", DataType::Float)],
        output: vec![value(&format!("y{count}"), DataType::Float)],
        node: (0..count).map(one).collect(),
        initializer: (0..count)
            .map(|at| weights::from_f32(&format!("w{at}"), &[], &[at as f32]))
            .chain([weights::from_f32("weight", &[], &[1.0])])
            .collect(),
        ..GraphProto::default()
    })
}

/// A chain of nodes with something for most passes: identities that are read twice, casts there and
/// back, equal nodes, and outputs that are mere identities.
fn chain(count: usize) -> Vec<u8> {
    let mut nodes: Vec<NodeProto> = Vec::new();
    let mut outputs = Vec::new();
    for at in 0..count / 8 {
        let name = |what: &str| format!("{what}{at}");
        let cast = |to: DataType, from: &str, name: &str| {
            let mut made = graph::node("Cast", "", &[from], &[name]);
            made.attribute.push(int("to", to as i64));
            made
        };
        let (from, to) = (name("x"), format!("x{}", at + 1));
        nodes.extend([
            graph::node("Identity", "", &[&from], &[&name("i")]),
            cast(DataType::Double, &name("i"), &name("d")),
            cast(DataType::Float, &name("d"), &name("f")),
            graph::node("Relu", "", &[&name("f")], &[&name("a")]),
            graph::node("Relu", "", &[&name("i")], &[&name("b")]),
            graph::node("Add", "", &[&name("a"), &name("b")], &[&to]),
            graph::node("Neg", "", &[&to], &[&name("n")]),
            graph::node("Identity", "", &[&name("n")], &[&name("o")]),
        ]);
        outputs.push(value(&name("o"), DataType::Float));
    }
    model(GraphProto {
        name: "chain".into(),
        input: vec![value("x0", DataType::Float)],
        output: outputs,
        node: nodes,
        ..GraphProto::default()
    })
}

/// Bytes allocated while a model is read and optimised, and the nodes that are left.
fn work(bytes: Vec<u8>) -> (u64, usize) {
    let before = BYTES.get();
    let loaded = parse(bytes.into(), None, &Budget::default()).unwrap();
    let (model, _) = optimize::optimize(loaded.model, &Optimize::default(), &|_| None).unwrap();
    (BYTES.get() - before, model.graph.unwrap().node.len())
}

fn assert_linear(make: fn(usize) -> Vec<u8>, count: usize) -> usize {
    let (small, _) = work(make(count));
    let (large, left) = work(make(4 * count));
    // Maps grow in powers of two, so not exactly four times.
    let factor = large as f64 / small as f64;
    assert!(factor < 6.0, "4 times the nodes cost {factor:.1} times the bytes ({small}, {large})");
    left
}

#[test]
fn thousands_of_bodies_cost_as_many_times_as_one() {
    assert_eq!(assert_linear(conditions, 500), 2_000);
}

#[test]
fn a_long_chain_costs_as_its_length() {
    // Of eight nodes the casts and identities go, and one of the equal nodes.
    assert_eq!(assert_linear(chain, 4_000), 16_000 / 8 * 3);
}
