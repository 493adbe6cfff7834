//! The shapes of all values in a model, learnt by running it once on zeros. For passes that must know
//! how a Reshape lays out elements; they are handed the shapes and never see the runtime.

use std::collections::{HashMap, HashSet};

use lithe::artifact::TensorSignature;

use crate::onnx::{ModelProto, ValueInfoProto, graph};
use crate::runtime::{Options, Session};
use crate::tensor::{Datatype, Tensor, elements};

/// (samples, length of other free axes), in the order in which they are tried. Primes first: a free
/// axis must not be taken for a fixed one that happens to be as long. One sample comes last: the
/// batch must not be taken for an axis that broadcasts.
const TRIED: [(usize, usize); 7] =
    [(5, 17), (5, 37), (3, 64), (3, 224), (1, 17), (1, 64), (1, 224)];
/// Numbers in one input.
const LARGEST: usize = 1 << 26;

/// The shape of every value that nodes of the main graph produce, and of its inputs.
///
/// # Errors
/// The runtime's words, when the model does not run.
pub fn shapes(model: &ModelProto) -> Result<HashMap<String, Vec<i64>>, String> {
    let mut open = model.clone();
    let Some(graph) = &mut open.graph else { return Ok(HashMap::new()) };
    let mut named: HashSet<String> =
        graph.output.iter().map(|output| output.name.clone()).collect();
    let values: Vec<String> =
        graph.node.iter().flat_map(|node| node.output.iter().cloned()).collect();
    for name in values {
        if !name.is_empty() && named.insert(name.clone()) {
            graph.output.push(ValueInfoProto { name, ..ValueInfoProto::default() });
        }
    }
    // What the runtime's optimiser merges would have no shape.
    let options = Options { threads: 1, optimise: false, spin: false };
    let session = Session::load(&graph::serialise(&open), options).map_err(|e| e.to_string())?;
    let mut failed = String::new();
    for free in TRIED {
        let zeros: Vec<(String, Tensor)> =
            session.inputs().iter().filter_map(|input| zeros(input, free)).collect();
        let inputs: Vec<(&str, &Tensor)> =
            zeros.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        match session.run(&inputs, &[]) {
            Ok(outputs) => {
                let names = session.outputs().iter().map(|output| output.name.clone());
                let shape =
                    |tensor: &Tensor| tensor.shape().iter().map(|dim| *dim as i64).collect();
                let mut found: HashMap<String, Vec<i64>> =
                    names.zip(outputs.iter().map(shape)).collect();
                found.extend(zeros.iter().map(|(name, tensor)| (name.clone(), shape(tensor))));
                return Ok(found);
            }
            Err(error) => failed = error.to_string(),
        }
    }
    Err(failed)
}

/// Zeros that fit `input`.
fn zeros(input: &TensorSignature, (samples, length): (usize, usize)) -> Option<(String, Tensor)> {
    let free = |at: usize| if at == 0 { samples } else { length };
    let dims = input.shape.iter().enumerate();
    let shape: Vec<usize> =
        dims.map(|(at, dim)| usize::try_from(*dim).unwrap_or_else(|_| free(at))).collect();
    let datatype = Datatype::from_name(&input.datatype)?;
    let count = elements(&shape).filter(|count| *count <= LARGEST)?;
    let tensor = match datatype.size() {
        Some(size) => {
            Tensor::new(datatype, shape, vec![0; count.checked_mul(size)?].into()).ok()?
        }
        None => Tensor::from_strings(shape, &vec![""; count]).ok()?,
    };
    Some((input.name.clone(), tensor))
}
