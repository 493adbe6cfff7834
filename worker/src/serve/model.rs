//! The model behind the protocols: its name, its signature, and what runs it.

use lithe::artifact::TensorSignature;

use super::error::InferError;
use crate::runtime::{RuntimeError, Session};
use crate::tensor::{Datatype, Tensor, elements};

/// The one version that a process serves: another artifact is another pod.
pub const VERSION: &str = "1";

/// What runs tensors through a model, one inference at a time.
pub trait Backend: Send + Sync + 'static {
    /// The inputs, in graph order.
    fn inputs(&self) -> &[TensorSignature];
    /// The outputs, in graph order.
    fn outputs(&self) -> &[TensorSignature];
    /// Runs one inference; `wanted` names the outputs to return, in order; empty means all of them
    /// in graph order.
    ///
    /// # Errors
    /// The model's own words.
    fn run(&self, inputs: &[(&str, &Tensor)], wanted: &[&str])
    -> Result<Vec<Tensor>, RuntimeError>;
}

impl Backend for Session {
    fn inputs(&self) -> &[TensorSignature] {
        Session::inputs(self)
    }

    fn outputs(&self) -> &[TensorSignature] {
        Session::outputs(self)
    }

    fn run(
        &self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        Session::run(self, inputs, wanted)
    }
}

/// What a client may send to a model and get from it.
#[derive(Clone, Debug)]
pub struct Signature {
    /// The inputs, in graph order.
    pub inputs: Vec<TensorSignature>,
    /// The outputs, in graph order.
    pub outputs: Vec<TensorSignature>,
}

impl Signature {
    /// The signature of `backend`.
    pub fn of(backend: &dyn Backend) -> Self {
        Self { inputs: backend.inputs().to_vec(), outputs: backend.outputs().to_vec() }
    }

    /// Checks that `inputs` are exactly the model's inputs, each of its type and of a shape that
    /// fits, and that `wanted` are outputs of the model.
    ///
    /// # Errors
    /// [`InferError::Invalid`], naming the first culprit.
    pub fn check(&self, inputs: &[(String, Tensor)], wanted: &[String]) -> Result<(), InferError> {
        let invalid = |text: String| Err(InferError::Invalid(text));
        for (index, (name, tensor)) in inputs.iter().enumerate() {
            let Some(known) = self.inputs.iter().find(|known| known.name == *name) else {
                let all: Vec<_> = self.inputs.iter().map(|input| input.name.as_str()).collect();
                return invalid(format!("unexpected input {name:?}; the model has {all:?}"));
            };
            if inputs.iter().take(index).any(|(earlier, _)| earlier == name) {
                return invalid(format!("input {name:?} is given twice"));
            }
            fits(known, tensor)?;
        }
        for known in &self.inputs {
            if !inputs.iter().any(|(name, _)| *name == known.name) {
                return invalid(format!("input {:?} is missing", known.name));
            }
        }
        for (index, name) in wanted.iter().enumerate() {
            if !self.outputs.iter().any(|known| known.name == *name) {
                let all: Vec<_> = self.outputs.iter().map(|output| output.name.as_str()).collect();
                return invalid(format!("unexpected output {name:?}; the model has {all:?}"));
            }
            if wanted.iter().take(index).any(|earlier| earlier == name) {
                return invalid(format!("output {name:?} is requested twice"));
            }
        }
        Ok(())
    }

    /// Puts checked `inputs` into the order of the model, so that requests are alike whatever the
    /// order in which clients list them.
    pub fn sort(&self, inputs: &mut [(String, Tensor)]) {
        let same = |(known, (name, _)): (&TensorSignature, &(String, Tensor))| known.name == *name;
        if !self.inputs.iter().zip(&*inputs).all(same) {
            let place = |name: &str| self.inputs.iter().position(|known| known.name == name);
            inputs.sort_by_key(|(name, _)| place(name));
        }
    }

    /// Inputs that the model should take: every open first dimension is `rows`, every other open
    /// dimension 1, every number 1, every string empty. `None` when that would take more than
    /// `limit` bytes.
    pub fn example(&self, rows: usize, limit: usize) -> Option<Vec<(String, Tensor)>> {
        let example =
            |input: &TensorSignature| Some((input.name.clone(), ones(input, rows, limit)?));
        self.inputs.iter().map(example).collect()
    }
}

fn fits(known: &TensorSignature, tensor: &Tensor) -> Result<(), InferError> {
    let name = &known.name;
    if tensor.datatype().name() != known.datatype {
        return Err(InferError::Invalid(format!(
            "input {name:?} is {}, got {}",
            known.datatype,
            tensor.datatype()
        )));
    }
    // A model may declare no shape at all; the runtime judges then.
    let same = |(declared, given): (&i64, &usize)| {
        *declared < 0 || usize::try_from(*declared).is_ok_and(|declared| declared == *given)
    };
    let shape = tensor.shape();
    let fits = known.shape.is_empty()
        || (known.shape.len() == shape.len() && known.shape.iter().zip(shape).all(same));
    if !fits {
        return Err(InferError::Invalid(format!(
            "input {name:?} has shape {:?}, got {shape:?}",
            known.shape
        )));
    }
    if tensor.datatype() == Datatype::Bytes {
        let bad = |item: &bytes::Bytes| item.contains(&0) || std::str::from_utf8(item).is_err();
        if tensor.strings().iter().any(bad) {
            return Err(InferError::Invalid(format!(
                "input {name:?} has an element that is no UTF-8 text, or holds NUL"
            )));
        }
    }
    Ok(())
}

fn ones(input: &TensorSignature, rows: usize, limit: usize) -> Option<Tensor> {
    let datatype = Datatype::from_name(&input.datatype)?;
    let size = |(axis, dim): (usize, &i64)| {
        usize::try_from(*dim).unwrap_or(if axis == 0 { rows } else { 1 })
    };
    let shape: Vec<usize> = input.shape.iter().enumerate().map(size).collect();
    let count = elements(&shape).filter(|count| *count <= limit / 8)?;
    let one: &[u8] = match datatype {
        Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => &[1],
        Datatype::Uint16 | Datatype::Int16 => &[1, 0],
        Datatype::Uint32 | Datatype::Int32 => &[1, 0, 0, 0],
        Datatype::Uint64 | Datatype::Int64 => &[1, 0, 0, 0, 0, 0, 0, 0],
        Datatype::Fp16 => &[0x00, 0x3c],
        Datatype::Bf16 => &[0x80, 0x3f],
        Datatype::Fp32 => &[0, 0, 0x80, 0x3f],
        Datatype::Fp64 => &[0, 0, 0, 0, 0, 0, 0xf0, 0x3f],
        Datatype::Bytes => &[0, 0, 0, 0],
    };
    Tensor::new(datatype, shape, one.repeat(count).into()).ok()
}

/// A tensor from what a client says and sends.
///
/// # Errors
/// [`InferError::Invalid`] when the type is unknown, a dimension negative, or the bytes do not fit.
pub fn tensor(
    name: &str,
    datatype: &str,
    shape: &[i64],
    data: bytes::Bytes,
) -> Result<Tensor, InferError> {
    let (datatype, shape) = describe(name, datatype, shape)?;
    Tensor::new(datatype, shape, data)
        .map_err(|error| InferError::Invalid(format!("input {name:?}: {error}")))
}

/// The type and shape that a client claims for the input `name`.
///
/// # Errors
/// [`InferError::Invalid`] when the type is unknown or a dimension negative.
pub fn describe(
    name: &str,
    datatype: &str,
    shape: &[i64],
) -> Result<(Datatype, Vec<usize>), InferError> {
    let kind = Datatype::from_name(datatype).ok_or_else(|| {
        InferError::Invalid(format!("input {name:?} has datatype {datatype:?}, which is unknown"))
    })?;
    let dims = shape.iter().map(|dim| usize::try_from(*dim)).collect::<Result<Vec<_>, _>>();
    let dims = dims.map_err(|_| {
        InferError::Invalid(format!("input {name:?} has shape {shape:?}: a dimension is negative"))
    })?;
    Ok((kind, dims))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn signature() -> Signature {
        let tensor = |name: &str, shape: &[i64]| TensorSignature {
            name: name.into(),
            datatype: "FP32".into(),
            shape: shape.into(),
        };
        Signature { inputs: vec![tensor("x", &[-1, 2])], outputs: vec![tensor("y", &[-1])] }
    }

    fn x(shape: &[usize]) -> (String, Tensor) {
        let count = shape.iter().product();
        ("x".into(), Tensor::from_f32(shape.to_vec(), &vec![1.0; count]).unwrap())
    }

    #[test]
    fn only_the_models_own_inputs_and_outputs_pass() {
        let signature = signature();
        assert_eq!(signature.check(&[x(&[3, 2])], &["y".into()]), Ok(()));
        let refused = |inputs: &[(String, Tensor)], outputs: &[String], words: &str| {
            let error = signature.check(inputs, outputs).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused(&[], &[], "missing");
        refused(&[x(&[1, 2]), x(&[1, 2])], &[], "twice");
        refused(&[x(&[1, 3])], &[], "shape [-1, 2]");
        refused(&[x(&[2])], &[], "shape [-1, 2]");
        refused(&[("z".into(), x(&[1, 2]).1)], &[], "unexpected input");
        refused(&[x(&[1, 2])], &["z".into()], "unexpected output");
        refused(&[x(&[1, 2])], &["y".into(), "y".into()], "twice");
        let other = Tensor::new(Datatype::Int32, vec![1, 2], vec![0; 8].into()).unwrap();
        refused(&[("x".into(), other)], &[], "is FP32, got INT32");
    }

    #[test]
    fn inputs_come_into_the_order_of_the_model() {
        let mut signature = signature();
        signature.inputs.push(TensorSignature { name: "a".into(), ..signature.inputs[0].clone() });
        let mut inputs = vec![("a".into(), x(&[1, 2]).1), x(&[1, 2])];
        signature.sort(&mut inputs);
        assert_eq!(inputs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["x", "a"]);
    }

    #[test]
    fn an_example_fits_its_own_signature() {
        let signature = signature();
        let example = signature.example(3, 1 << 20).unwrap();
        assert_eq!(signature.check(&example, &[]), Ok(()));
        assert_eq!(example[0].1.shape(), [3, 2]);
        assert!(signature.example(1, 8).is_none());
    }
}
