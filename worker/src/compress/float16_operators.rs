//! What half precision means to each operator: whether it has such a form, which of its inputs stay in
//! 32 bits, and whether an output is a 32-bit float at all. Facts of the ONNX operator set, 7 to 26,
//! and of ONNX Runtime's converter; must not look at a graph.

use crate::compress::float16;
use crate::onnx::graph::{attribute, int};
use crate::onnx::{DataType, NodeProto, TypeProto, operators, proto::type_proto::Value};

/// What is known of a value's type in the original model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A tensor of 32-bit floats.
    Float,
    /// Anything else.
    Other,
    /// Not known.
    Unknown,
}

/// What may be done with a node that reads or makes 32-bit floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// All its floats can be of half precision together.
    Half,
    /// It takes floats of either precision and makes none.
    Either,
    /// It stays in 32 bits, for this reason.
    Full(&'static str),
}

/// Operators that ONNX Runtime's converter keeps in 32 bits (`DEFAULT_OP_BLOCK_LIST`).
const BLOCKED: [&str; 28] = [
    "ArrayFeatureExtractor",
    "Binarizer",
    "CastMap",
    "CategoryMapper",
    "CumSum",
    "DictVectorizer",
    "FeatureVectorizer",
    "Imputer",
    "LabelEncoder",
    "LinearClassifier",
    "LinearRegressor",
    "Max",
    "Min",
    "NonMaxSuppression",
    "Normalizer",
    "OneHotEncoder",
    "RandomUniformLike",
    "Range",
    "RoiAlign",
    "SVMClassifier",
    "SVMRegressor",
    "Scaler",
    "TopK",
    "TreeEnsemble",
    "TreeEnsembleClassifier",
    "TreeEnsembleRegressor",
    "Upsample",
    "ZipMap",
];

/// Operators of the default set whose float inputs and outputs may all be of half precision.
const HALF: &str = " Abs Acos Acosh Add ArgMax ArgMin Asin Asinh Atan Atanh AveragePool \
    BatchNormalization Bernoulli Cast CastLike Ceil CenterCropPad Clip Col2Im Compress Concat \
    ConstantOfShape Conv ConvTranspose Cos Cosh DepthToSpace Det Div Dropout Einsum Elu Equal Erf Exp \
    Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool \
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid \
    HardSwish Hardmax Identity InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Less \
    LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul MaxPool MaxRoiPool MaxUnpool Mean \
    MeanVarianceNormalization Mish Mod Mul Multinomial Neg PRelu Pad Pow RNN RandomNormal \
    RandomNormalLike RandomUniform Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax \
    ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence \
    Round Scatter ScatterElements ScatterND Selu Shrink Sigmoid Sign SimplifiedLayerNormalization Sin \
    Sinh Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh \
    ThresholdedRelu Tile Transpose Trilu Unsqueeze Where ";

/// The same of ONNX Runtime's own set.
const HALF_CONTRIB: &str = " Attention BiasGelu FastGelu FusedMatMul Gelu MultiHeadAttention QuickGelu \
    SkipLayerNormalization ";

/// Operators that look at floats of either precision and make integers or booleans.
const EITHER: &str = " IsNaN NonZero Shape Size ";

/// Operators whose outputs are all integers or booleans.
const INTEGERS: &str = " And ArgMax ArgMin BitShift ConvInteger Equal Greater GreaterOrEqual IsInf IsNaN \
    Less LessOrEqual MatMulInteger Multinomial NonMaxSuppression NonZero Not Or QLinearConv QLinearMatMul \
    QuantizeLinear Shape Size Xor ";

/// Operators that stay in 32 bits and hand on the type of their first input.
const FULL_SAME: &str = " Celu CumProd CumSum DFT DeformConv Max Min Range RoiAlign RotaryEmbedding \
    RMSNormalization TensorScatter TopK Unique Upsample ";

fn lists(list: &str, op: &str) -> bool {
    list.split(' ').any(|one| one == op)
}

/// What may be done with `node`.
pub fn ability(node: &NodeProto) -> Ability {
    let op = node.op_type.as_str();
    if BLOCKED.contains(&op) {
        return Ability::Full("ONNX Runtime's converter keeps it in 32 bits");
    }
    let known = match operators::canonical(&node.domain) {
        "" if lists(EITHER, op) => return Ability::Either,
        "" => lists(HALF, op),
        "com.microsoft" => lists(HALF_CONTRIB, op),
        _ => false,
    };
    if known { Ability::Half } else { Ability::Full("no form of it in 16 bits is known") }
}

/// Whether input number `at` of `node` is a 32-bit float in whatever precision the rest is
/// (`ALWAYS_FLOAT_INPUTS`).
pub fn keeps_input(node: &NodeProto, at: usize, opset: i64) -> bool {
    operators::is(node, "Resize") && at == if opset < 11 { 1 } else { 2 }
}

/// Whether output number `at` of `node` is a 32-bit float in whatever precision the rest is: the mean
/// and the deviation of a normalization.
pub fn keeps_output(node: &NodeProto, at: usize) -> bool {
    match node.op_type.as_str() {
        "LayerNormalization" | "SimplifiedLayerNormalization" => at > 0,
        "SkipLayerNormalization" => at == 1 || at == 2,
        _ => false,
    }
}

/// The kind of a declared type.
pub fn declared(kind: Option<&TypeProto>) -> Kind {
    match kind.and_then(|kind| kind.value.as_ref()) {
        Some(Value::TensorType(tensor)) => of_type(tensor.elem_type),
        Some(_) => Kind::Other,
        None => Kind::Unknown,
    }
}

/// The kind of a tensor with elements of `data_type`.
pub fn of_type(data_type: i32) -> Kind {
    match data_type {
        0 => Kind::Unknown,
        1 => Kind::Float,
        _ => Kind::Other,
    }
}

/// The kind of output number `at` of `node`, whose inputs are of these kinds.
pub fn output_kind(node: &NodeProto, at: usize, inputs: &[Kind], opset: i64) -> Kind {
    let op = node.op_type.as_str();
    let same = |at: usize| inputs.get(at).copied().unwrap_or(Kind::Unknown);
    let typed =
        |name: &str| attribute(node, name).map(|a| of_type(i32::try_from(a.i).unwrap_or(0)));
    match (operators::canonical(&node.domain), op) {
        ("", _) if lists(INTEGERS, op) => Kind::Other,
        ("", "DynamicQuantizeLinear") if at == 1 => Kind::Float,
        ("", "DynamicQuantizeLinear") => Kind::Other,
        ("", "MaxPool" | "TopK" | "Unique") if at > 0 => Kind::Other,
        ("", "Dropout") if at > 0 && opset >= 10 => Kind::Other,
        ("", "Cast") => typed("to").unwrap_or(Kind::Unknown),
        ("", "Where" | "CastLike" | "DequantizeLinear") => same(1),
        ("", "OneHot") => same(2),
        ("", "RandomNormal" | "RandomUniform") => typed("dtype").unwrap_or(Kind::Float),
        ("", "Bernoulli" | "EyeLike" | "RandomNormalLike" | "RandomUniformLike") => {
            typed("dtype").unwrap_or(same(0))
        }
        ("", "ConstantOfShape") => attribute(node, "value")
            .and_then(|a| a.t.as_ref())
            .map_or(Kind::Float, |tensor| of_type(tensor.data_type)),
        ("", _) if keeps_output(node, at) => Kind::Float,
        ("", _) if lists(HALF, op) || lists(FULL_SAME, op) => same(0),
        ("com.microsoft", _) if keeps_output(node, at) => Kind::Float,
        ("com.microsoft", _) if lists(HALF_CONTRIB, op) || op == "MatMulNBits" => same(0),
        _ => Kind::Unknown,
    }
}

/// Changes the attributes of `node` that say 32-bit float.
pub fn halve_attributes(node: &mut NodeProto) {
    const FLOAT: i64 = DataType::Float as i64;
    const HALF: i64 = DataType::Float16 as i64;
    let name = match node.op_type.as_str() {
        "Cast" => "to",
        "Bernoulli" | "EyeLike" | "RandomNormal" | "RandomNormalLike" | "RandomUniform" => "dtype",
        "ConstantOfShape" => return halve_value(node),
        _ => return,
    };
    match node.attribute.iter_mut().find(|attribute| attribute.name == name) {
        Some(attribute) if attribute.i == FLOAT => attribute.i = HALF,
        Some(_) => {}
        None if matches!(node.op_type.as_str(), "RandomNormal" | "RandomUniform") => {
            node.attribute.push(int(name, HALF));
        }
        None => {}
    }
}

/// The value of a ConstantOfShape; without one it is a 32-bit zero.
fn halve_value(node: &mut NodeProto) {
    use crate::onnx::{AttributeProto, AttributeType, weights};
    if let Some(tensor) =
        node.attribute.iter_mut().find(|a| a.name == "value").and_then(|a| a.t.as_mut())
    {
        *tensor = float16::tensor(tensor, "");
        return;
    }
    node.attribute.push(AttributeProto {
        name: "value".into(),
        r#type: AttributeType::Tensor as i32,
        t: Some(float16::tensor(&weights::from_f32("", &[1], &[0.0]), "")),
        ..AttributeProto::default()
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::graph::node;

    #[test]
    fn an_operator_of_another_domain_is_not_the_default_one() {
        let mut relu = node("Relu", "r", &["x"], &["y"]);
        assert_eq!(ability(&relu), Ability::Half);
        relu.domain = "my.domain".into();
        assert!(matches!(ability(&relu), Ability::Full(_)));
        assert_eq!(output_kind(&relu, 0, &[Kind::Float], 17), Kind::Unknown);
    }

    #[test]
    fn a_constant_of_shape_without_value_gets_a_half_zero() {
        let mut fill = node("ConstantOfShape", "c", &["s"], &["y"]);
        assert_eq!(output_kind(&fill, 0, &[Kind::Other], 17), Kind::Float);
        halve_attributes(&mut fill);
        assert_eq!(output_kind(&fill, 0, &[Kind::Other], 17), Kind::Other);
    }

    #[test]
    fn only_the_scales_of_resize_stay_in_32_bits() {
        let resize = node("Resize", "r", &["x", "roi", "scales"], &["y"]);
        let kept = |opset| (0..3).map(|at| keeps_input(&resize, at, opset)).collect::<Vec<_>>();
        assert_eq!(kept(13), [false, false, true]);
        assert_eq!(kept(10), [false, true, false]);
    }
}
