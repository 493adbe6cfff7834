//! Outputs to classes and regressions. An ONNX model has no such signatures, so its outputs are
//! chosen by name and type; what is chosen is told in docs/protocols.md.

use lithe::artifact::TensorSignature;
use lithe::tensorflow::serving::{
    Class, ClassificationResult, Classifications, Regression, RegressionResult,
};

use crate::serve::error::InferError;
use crate::serve::model::Signature;
use crate::serve::server::Response;
use crate::tensor::{Datatype, Tensor};

/// The names by which a model may say what its scores are.
const SCORES: [&str; 3] = ["scores", "probabilities", "output_probability"];
/// The name of the output with a label for each score.
const CLASSES: &str = "classes";
/// The name of the output that is a regression.
const REGRESSION: &str = "outputs";

/// The outputs that make a classification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classifier {
    scores: Option<String>,
    classes: Option<String>,
}

fn is(output: &TensorSignature, kinds: &[Datatype]) -> bool {
    Datatype::from_name(&output.datatype).is_some_and(|kind| kinds.contains(&kind))
}

fn float(output: &TensorSignature) -> bool {
    is(output, &[Datatype::Fp16, Datatype::Bf16, Datatype::Fp32, Datatype::Fp64])
}

/// The only output of `signature` that `fits`.
fn only(signature: &Signature, fits: fn(&TensorSignature) -> bool) -> Option<&TensorSignature> {
    let mut all = signature.outputs.iter().filter(|output| fits(output));
    all.next().filter(|_| all.next().is_none())
}

impl Classifier {
    /// The classifier that `signature` is: scores are the output of that name, or of a name that
    /// converters give, or the only output of floats; labels the output `classes`, or the only one
    /// of strings.
    ///
    /// # Errors
    /// [`InferError::Invalid`] when the model has neither.
    pub fn of(signature: &Signature) -> Result<Self, InferError> {
        let named = |name: &str| signature.outputs.iter().find(|output| output.name == name);
        let scores = SCORES.iter().find_map(|name| named(name).filter(|output| float(output)));
        let scores = scores.or_else(|| only(signature, float));
        let strings = |output: &TensorSignature| is(output, &[Datatype::Bytes]);
        let classes = named(CLASSES).or_else(|| only(signature, strings));
        if scores.is_none() && classes.is_none() {
            return Err(cannot(signature, "classify", "one output of floats, or one named scores"));
        }
        let name = |output: Option<&TensorSignature>| output.map(|output| output.name.clone());
        Ok(Self { scores: name(scores), classes: name(classes) })
    }

    /// The outputs to ask the model for.
    pub fn outputs(&self) -> Vec<String> {
        let mut outputs: Vec<_> = self.scores.iter().chain(&self.classes).cloned().collect();
        outputs.dedup();
        outputs
    }

    /// The classes of each of `rows` examples. Without labels, a class is called by its number.
    ///
    /// # Errors
    /// [`InferError::Invalid`] when an output has another shape than [examples, classes].
    pub fn read(
        &self,
        response: &Response,
        rows: usize,
    ) -> Result<ClassificationResult, InferError> {
        let scores = match &self.scores {
            Some(name) => Some(table(find(response, name)?, name, rows)?),
            None => None,
        };
        let labels = match &self.classes {
            Some(name) => Some(labels(find(response, name)?, name, rows)?),
            None => None,
        };
        let width = |items: usize| items / rows.max(1);
        let many = scores.as_ref().map(|scores| width(scores.len()));
        // A label for each example, and not for each score, says nothing of the scores.
        let labels = labels.filter(|labels| many.is_none_or(|many| width(labels.len()) == many));
        let many = many.or(labels.as_ref().map(|labels| width(labels.len()))).unwrap_or_default();
        let class = |row: usize, column: usize| {
            let at = row * many + column;
            Class {
                label: labels
                    .as_ref()
                    .and_then(|labels| labels.get(at).cloned())
                    .unwrap_or_else(|| column.to_string()),
                score: scores
                    .as_ref()
                    .and_then(|scores| scores.get(at))
                    .map_or(0.0, |score| *score as f32),
            }
        };
        let row = |row| Classifications { classes: (0..many).map(|c| class(row, c)).collect() };
        Ok(ClassificationResult { classifications: (0..rows).map(row).collect() })
    }
}

/// The output of `signature` that is a regression: the one named `outputs`, or the only one of
/// numbers.
///
/// # Errors
/// [`InferError::Invalid`] when the model has none.
pub fn regression(signature: &Signature) -> Result<String, InferError> {
    let number = |output: &TensorSignature| !is(output, &[Datatype::Bytes, Datatype::Bool]);
    let named = signature.outputs.iter().find(|output| output.name == REGRESSION && number(output));
    let found = named.or_else(|| only(signature, float)).or_else(|| only(signature, number));
    let found = found.ok_or_else(|| {
        cannot(signature, "regress", "one output of numbers, or one named outputs")
    })?;
    Ok(found.name.clone())
}

/// The regression of each of `rows` examples from the output `name`.
///
/// # Errors
/// [`InferError::Invalid`] when the output has another shape than [examples] or [examples, 1].
pub fn regressions(
    response: &Response,
    name: &str,
    rows: usize,
) -> Result<RegressionResult, InferError> {
    let tensor = find(response, name)?;
    let values = table(tensor, name, rows)?;
    if values.len() != rows {
        return Err(InferError::Invalid(format!(
            "output {name:?} has shape {:?}: a regression has one number for each of {rows} examples",
            tensor.shape()
        )));
    }
    let regressions = values.iter().map(|value| Regression { value: *value as f32 });
    Ok(RegressionResult { regressions: regressions.collect() })
}

fn cannot(signature: &Signature, what: &str, needs: &str) -> InferError {
    let outputs: Vec<_> =
        signature.outputs.iter().map(|output| (&output.name, &output.datatype)).take(64).collect();
    InferError::Invalid(format!(
        "the model cannot {what}: that needs {needs}, it has {outputs:?}; use Predict"
    ))
}

fn find<'a>(response: &'a Response, name: &str) -> Result<&'a Tensor, InferError> {
    let found = response.outputs.iter().find(|(known, _)| known == name);
    let missing = || InferError::Internal(format!("the model did not return {name:?}"));
    found.map(|(_, tensor)| tensor).ok_or_else(missing)
}

/// Refuses an output that has no row for each example.
fn shaped(tensor: &Tensor, name: &str, rows: usize) -> Result<(), InferError> {
    if matches!(tensor.shape(), [first] | [first, _] if *first == rows) {
        return Ok(());
    }
    Err(InferError::Invalid(format!(
        "output {name:?} has shape {:?}, not a row for each of {rows} examples; use Predict",
        tensor.shape()
    )))
}

/// The numbers of an output, row by row.
fn table(tensor: &Tensor, name: &str, rows: usize) -> Result<Vec<f64>, InferError> {
    shaped(tensor, name, rows)?;
    tensor.to_f64().ok_or_else(|| InferError::Internal(format!("output {name:?} holds no numbers")))
}

/// The labels of an output, row by row.
fn labels(tensor: &Tensor, name: &str, rows: usize) -> Result<Vec<String>, InferError> {
    shaped(tensor, name, rows)?;
    if let Some(numbers) = tensor.to_f64() {
        return Ok(numbers.iter().map(f64::to_string).collect());
    }
    Ok(tensor.strings().iter().map(|item| String::from_utf8_lossy(item).into_owned()).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn signature(outputs: &[(&str, &str)]) -> Signature {
        let tensor = |(name, datatype): &(&str, &str)| TensorSignature {
            name: (*name).into(),
            datatype: (*datatype).into(),
            shape: vec![-1, -1],
        };
        Signature { inputs: Vec::new(), outputs: outputs.iter().map(tensor).collect() }
    }

    fn pairs(result: &ClassificationResult) -> Vec<String> {
        let class = |class: &Class| format!("{}={}", class.label, class.score);
        let row =
            |row: &Classifications| row.classes.iter().map(class).collect::<Vec<_>>().join(" ");
        result.classifications.iter().map(row).collect()
    }

    #[test]
    fn scores_and_labels_are_found_by_name_and_type() {
        let classifier = |outputs: &[(&str, &str)]| Classifier::of(&signature(outputs));
        let both = Classifier { scores: Some("p".into()), classes: Some("s".into()) };
        assert_eq!(classifier(&[("s", "BYTES"), ("p", "FP32")]).unwrap(), both);
        let named = classifier(&[("a", "FP32"), ("scores", "FP32"), ("classes", "INT64")]).unwrap();
        assert_eq!(named.outputs(), ["scores", "classes"]);
        let sklearn = classifier(&[("label", "INT64"), ("probabilities", "FP32")]).unwrap();
        assert_eq!(sklearn.outputs(), ["probabilities"]);
        let error = classifier(&[("a", "FP32"), ("b", "FP32")]).unwrap_err().to_string();
        assert!(error.contains("cannot classify") && error.contains("\"b\""), "{error}");
        assert_eq!(regression(&signature(&[("y", "FP32"), ("n", "INT64")])).unwrap(), "y");
        assert_eq!(
            regression(&signature(&[("a", "FP32"), ("outputs", "FP64")])).unwrap(),
            "outputs"
        );
        assert!(regression(&signature(&[("s", "BYTES")])).is_err());
    }

    #[test]
    fn rows_become_classes_with_labels_or_numbers() {
        let scores = Tensor::from_f32(vec![2, 2], &[0.75, 0.25, 0.5, 0.5]).unwrap();
        let labels = Tensor::from_strings(vec![2, 2], &["a", "b", "c", "d"]).unwrap();
        let winners = Tensor::from_strings(vec![2], &["a", "c"]).unwrap();
        let read = |outputs: Vec<(&str, Tensor)>, rows| {
            let name = |name: &str| {
                outputs.iter().any(|(known, _)| *known == name).then(|| name.to_owned())
            };
            let classifier = Classifier { scores: name("scores"), classes: name("classes") };
            let outputs = outputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor));
            classifier.read(&Response { outputs: outputs.collect() }, rows)
        };
        let numbered = read(vec![("scores", scores.clone())], 2).unwrap();
        assert_eq!(pairs(&numbered), ["0=0.75 1=0.25", "0=0.5 1=0.5"]);
        let labelled = read(vec![("scores", scores.clone()), ("classes", labels)], 2).unwrap();
        assert_eq!(pairs(&labelled), ["a=0.75 b=0.25", "c=0.5 d=0.5"]);
        let narrow =
            read(vec![("scores", scores.clone()), ("classes", winners.clone())], 2).unwrap();
        assert_eq!(narrow, numbered, "a label for each row is none for each score");
        let alone = read(vec![("classes", winners)], 2).unwrap();
        assert_eq!(pairs(&alone), ["a=0", "c=0"]);
        let error = read(vec![("scores", scores)], 3).unwrap_err().to_string();
        assert!(error.contains("not a row for each of 3"), "{error}");
    }

    #[test]
    fn a_regression_is_one_number_for_each_example() {
        let answer = |shape: Vec<usize>| Response {
            outputs: vec![("y".into(), Tensor::from_f32(shape, &[1.0, 2.0]).unwrap())],
        };
        for shape in [vec![2], vec![2, 1]] {
            let result = regressions(&answer(shape), "y", 2).unwrap();
            let values: Vec<_> = result.regressions.iter().map(|one| one.value).collect();
            assert_eq!(values, [1.0, 2.0]);
        }
        assert!(regressions(&answer(vec![1, 2]), "y", 1).is_err());
    }
}
