//! How many items a message lists, seen before it is decoded. Knows the fields of the protocols
//! that hold lists, and nothing else of them; allocates nothing.

/// Inputs, outputs, parameters and dimensions in one message: far more than any model has.
const ITEMS: usize = 4096;
/// Strings in one message: 32 MiB of references to them.
const STRINGS: usize = 1 << 20;
/// Strings that weigh as much as one example or one feature of it, maps included.
const FEATURE: usize = 4;
/// Numbers of variable length in one message: one byte each on the wire, eight in memory.
const NUMBERS: usize = 1 << 24;

/// What a field of a message costs in memory beyond its bytes on the wire.
#[derive(Clone, Copy)]
enum Cost {
    /// A message with a few fields.
    Item,
    /// So many references to bytes.
    Strings(usize),
    /// Packed or single numbers of variable length.
    Numbers,
}

/// A field that costs something, with the fields of its message that do.
struct Field {
    number: u64,
    cost: Cost,
    within: &'static [Field],
}

const fn field(number: u64, cost: Cost, within: &'static [Field]) -> Field {
    Field { number, cost, within }
}

/// `InferTensorContents`
const CONTENTS: &[Field] = &[
    field(2, Cost::Numbers, &[]),
    field(3, Cost::Numbers, &[]),
    field(4, Cost::Numbers, &[]),
    field(5, Cost::Numbers, &[]),
    field(8, Cost::Strings(1), &[]),
];
/// `ModelInferRequest` and, as clients read it, `ModelInferResponse`.
const INFER: &[Field] = &[
    field(4, Cost::Item, &[]),
    field(
        5,
        Cost::Item,
        &[field(3, Cost::Numbers, &[]), field(4, Cost::Item, &[]), field(5, Cost::Item, CONTENTS)],
    ),
    field(6, Cost::Item, &[field(2, Cost::Item, &[])]),
    field(7, Cost::Item, &[]),
];
/// Requests with one map in field 1 or 3: settings and the repository's parameters.
const SETTINGS: &[Field] = &[
    field(1, Cost::Item, &[field(2, Cost::Item, &[field(1, Cost::Item, &[])])]),
    field(3, Cost::Item, &[]),
];
/// `TensorProto`
const TENSOR: &[Field] = &[
    field(2, Cost::Item, &[field(2, Cost::Item, &[])]),
    field(7, Cost::Numbers, &[]),
    field(8, Cost::Strings(1), &[]),
    field(10, Cost::Numbers, &[]),
    field(13, Cost::Numbers, &[]),
    field(16, Cost::Numbers, &[]),
    field(17, Cost::Numbers, &[]),
];
/// `PredictRequest`: inputs are entries of a map, with the tensor in field 2.
const PREDICT: &[Field] =
    &[field(2, Cost::Item, &[field(2, Cost::Item, TENSOR)]), field(3, Cost::Item, &[])];
/// `Example`: features are entries of a map, with lists in them.
const EXAMPLE: &[Field] = &[field(
    1,
    Cost::Item,
    &[field(
        1,
        Cost::Strings(FEATURE),
        &[field(
            2,
            Cost::Strings(0),
            &[
                field(1, Cost::Strings(0), &[field(1, Cost::Strings(1), &[])]),
                field(3, Cost::Strings(0), &[field(1, Cost::Numbers, &[])]),
            ],
        )],
    )],
)];
/// `Input`: a list of examples, in one of two forms.
const EXAMPLES: &[Field] = &[
    field(1, Cost::Item, &[field(1, Cost::Strings(FEATURE), EXAMPLE)]),
    field(
        2,
        Cost::Item,
        &[field(1, Cost::Strings(FEATURE), EXAMPLE), field(2, Cost::Item, EXAMPLE)],
    ),
];
/// `ClassificationRequest` and `RegressionRequest`.
const EXAMPLES_REQUEST: &[Field] = &[field(2, Cost::Item, EXAMPLES)];
/// `MultiInferenceRequest`
const TASKS: &[Field] = &[field(1, Cost::Item, &[]), field(2, Cost::Item, EXAMPLES)];
/// `GetModelMetadataRequest`
const METADATA: &[Field] = &[field(2, Cost::Item, &[])];
/// `ReloadConfigRequest`
const RELOAD: &[Field] =
    &[field(1, Cost::Item, &[field(1, Cost::Item, &[field(1, Cost::Item, &[])])])];

/// The costly fields of a message; none of one that only this server sends, since who reads its
/// answers trusts it.
fn costly(package: &str, name: &str) -> &'static [Field] {
    match (package, name) {
        ("inference", "ModelInferRequest") => INFER,
        ("inference", name) if name.ends_with("Request") => SETTINGS,
        ("tensorflow.serving", "PredictRequest") => PREDICT,
        ("tensorflow.serving", "ClassificationRequest" | "RegressionRequest") => EXAMPLES_REQUEST,
        ("tensorflow.serving", "MultiInferenceRequest") => TASKS,
        ("tensorflow.serving", "GetModelMetadataRequest") => METADATA,
        ("tensorflow.serving", "ReloadConfigRequest") => RELOAD,
        _ => &[],
    }
}

#[derive(Default)]
struct Count {
    items: usize,
    strings: usize,
    numbers: usize,
}

impl Count {
    fn too_many(&self) -> Option<String> {
        if self.items > ITEMS {
            return Some(format!("{ITEMS} items"));
        }
        if self.strings > STRINGS {
            return Some(format!("{STRINGS} strings, or {} features", STRINGS / FEATURE));
        }
        (self.numbers > NUMBERS).then(|| format!("{NUMBERS} numbers of variable length"))
    }
}

/// What the message `name` of `package` has too many of.
pub fn excess(package: &str, name: &str, message: &[u8]) -> Option<String> {
    let mut count = Count::default();
    walk(message, costly(package, name), &mut count)
}

/// Depth is that of the tables above.
fn walk(message: &[u8], known: &[Field], count: &mut Count) -> Option<String> {
    if known.is_empty() {
        return None;
    }
    for (number, content) in fields(message) {
        let Some(field) = known.iter().find(|field| field.number == number) else { continue };
        match field.cost {
            Cost::Item => count.items += 1,
            Cost::Strings(weight) => count.strings += weight,
            // Every number ends with a byte without the high bit.
            Cost::Numbers => count.numbers += content.iter().filter(|byte| **byte < 0x80).count(),
        }
        if let Some(what) = count.too_many().or_else(|| walk(content, field.within, count)) {
            return Some(what);
        }
    }
    None
}

/// The fields of `message` that have a length or are one number of variable length: number and
/// content. Ends where the message breaks; prost says why.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let key = varint(&mut message)?;
            match key & 7 {
                0 => {
                    let before = message;
                    varint(&mut message)?;
                    let content = before.get(..before.len() - message.len())?;
                    return Some((key >> 3, content));
                }
                1 => message = message.get(8..)?,
                5 => message = message.get(4..)?,
                2 => {
                    let length = usize::try_from(varint(&mut message)?).ok()?;
                    let (content, rest) = message.split_at_checked(length)?;
                    message = rest;
                    return Some((key >> 3, content));
                }
                _ => return None,
            }
        }
    })
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::{Message, Name};

    use super::*;
    use crate::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
    use crate::inference::{InferTensorContents, ModelInferRequest};
    use crate::tensorflow::serving::{
        ClassificationRequest, ExampleList, Input, PredictRequest, input,
    };
    use crate::tensorflow::tensor_shape_proto::Dim;
    use crate::tensorflow::{
        BytesList, Example, Feature, Features, TensorProto, TensorShapeProto, feature,
    };

    fn look<M: Message + Name>(message: M) -> Option<String> {
        excess(M::PACKAGE, M::NAME, &message.encode_to_vec())
    }

    /// `content` as the field `number` of a message.
    fn wrap(number: u32, content: Vec<u8>) -> Vec<u8> {
        let mut out = Vec::with_capacity(content.len() + 8);
        prost::encoding::bytes::encode(number, &content, &mut out);
        out
    }

    #[test]
    fn a_message_that_lists_too_much_is_seen_before_it_is_decoded() {
        let strings = |count| InferInputTensor {
            contents: Some(InferTensorContents {
                bytes_contents: vec![Bytes::new(); count],
                ..Default::default()
            }),
            ..Default::default()
        };
        let sane = ModelInferRequest {
            inputs: vec![strings(1000); 8],
            outputs: vec![InferRequestedOutputTensor::default(); 8],
            raw_input_contents: vec![Bytes::from_static(&[0x2a; 1000]); 8],
            ..Default::default()
        };
        assert_eq!(look(sane), None);
        let inputs = ModelInferRequest {
            inputs: vec![InferInputTensor::default(); 100_000],
            ..Default::default()
        };
        assert_eq!(look(inputs).as_deref(), Some("4096 items"));
        let many = ModelInferRequest { inputs: vec![strings(STRINGS + 1)], ..Default::default() };
        assert!(look(many).is_some_and(|what| what.starts_with("1048576 strings")));
        let numbers = wrap(5, wrap(5, wrap(3, vec![0; NUMBERS + 1])));
        let seen = excess("inference", "ModelInferRequest", &numbers);
        assert!(seen.is_some_and(|what| what.contains("numbers")));
        assert_eq!(excess("inference", "ModelInferRequest", &[0x2a, 0xff, 0xff]), None);
    }

    #[test]
    fn tensors_of_tensorflow_that_list_too_much_are_seen() {
        let predict = |tensor: TensorProto| PredictRequest {
            inputs: [("x".to_owned(), tensor)].into(),
            ..Default::default()
        };
        let dims = TensorShapeProto { dim: vec![Dim::default(); 100_000], unknown_rank: false };
        let shape = TensorProto { tensor_shape: Some(dims), ..Default::default() };
        assert_eq!(look(predict(shape)).as_deref(), Some("4096 items"));
        let strings =
            |count| TensorProto { string_val: vec![Bytes::new(); count], ..Default::default() };
        assert_eq!(look(predict(strings(1000))), None);
        assert!(look(predict(strings(STRINGS + 1))).is_some());
        let numbers = wrap(2, wrap(2, wrap(10, vec![0; NUMBERS + 1])));
        let seen = excess("tensorflow.serving", "PredictRequest", &numbers);
        assert!(seen.is_some_and(|what| what.contains("numbers")));
    }

    #[test]
    fn examples_that_list_too_much_are_seen() {
        let classify = |examples| ClassificationRequest {
            input: Some(Input { kind: Some(input::Kind::ExampleList(ExampleList { examples })) }),
            ..Default::default()
        };
        let words = |count| {
            let value = vec![Bytes::new(); count];
            let feature = Feature { kind: Some(feature::Kind::BytesList(BytesList { value })) };
            Example { features: Some(Features { feature: [("a".to_owned(), feature)].into() }) }
        };
        assert_eq!(look(classify(vec![words(3); 1000])), None);
        assert!(look(classify(vec![words(STRINGS + 1)])).is_some());
        assert!(look(classify(vec![Example::default(); 300_000])).is_some());
    }
}
