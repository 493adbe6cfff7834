//! Tensors from JSON whose shape is its nesting: `instances` row by row, `inputs` column by column.
//! The signature says the type; values go straight into bytes, with no tree in between.

use std::fmt;

use base64::Engine as _;
use lithe::artifact::TensorSignature;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::serve::element::{self, Scalar};
use crate::serve::model::Signature;
use crate::tensor::{Datatype, Tensor};

/// The key of an object that holds a string's bytes as base64.
const BINARY: &str = "b64";

/// One input as it grows.
struct Column<'a> {
    known: &'a TensorSignature,
    datatype: Datatype,
    /// The lengths of the lists at each depth, as far as one has ended there.
    shape: Vec<Option<usize>>,
    /// The depth at which elements are.
    leaf: Option<usize>,
    /// Rows that were read, in the row form.
    rows: usize,
    data: Vec<u8>,
}

fn columns(signature: &Signature) -> Result<Vec<Column<'_>>, String> {
    let mut columns = Vec::with_capacity(signature.inputs.len());
    for known in &signature.inputs {
        let datatype = Datatype::from_name(&known.datatype).ok_or_else(|| {
            format!("input {:?} has the unknown type {}", known.name, known.datatype)
        })?;
        let shape = Vec::new();
        columns.push(Column { known, datatype, shape, leaf: None, rows: 0, data: Vec::new() });
    }
    Ok(columns)
}

fn tensors(columns: Vec<Column<'_>>) -> Result<Vec<(String, Tensor)>, String> {
    let tensor = |column: Column<'_>| {
        let shape = column.shape.iter().map(|size| size.unwrap_or_default()).collect();
        let name = column.known.name.clone();
        let tensor = Tensor::new(column.datatype, shape, column.data.into());
        tensor
            .map(|tensor| (name.clone(), tensor))
            .map_err(|error| format!("input {name:?}: {error}"))
    };
    columns.into_iter().map(tensor).collect()
}

/// The inputs in the value of `instances`: one item for each row.
///
/// # Errors
/// What is wrong, in one sentence.
pub fn rows(signature: &Signature, json: &str) -> Result<Vec<(String, Tensor)>, String> {
    let mut columns = columns(signature)?;
    let mut json = serde_json::Deserializer::from_str(json);
    let count = Rows { columns: &mut columns }
        .deserialize(&mut json)
        .map_err(|error| format!("instances: {error}"))?;
    if count == 0 {
        return Err("instances is empty".into());
    }
    for column in &mut columns {
        if let Some(first) = column.shape.first_mut() {
            *first = Some(count);
        }
    }
    tensors(columns)
}

/// The inputs in the value of `inputs`: an object of inputs by name, or the only input.
///
/// # Errors
/// What is wrong, in one sentence.
pub fn whole(signature: &Signature, json: &str) -> Result<Vec<(String, Tensor)>, String> {
    let mut columns = columns(signature)?;
    let mut json = serde_json::Deserializer::from_str(json);
    Entry { columns: &mut columns, depth: 0, row: 0 }
        .deserialize(&mut json)
        .map_err(|error| format!("inputs: {error}"))?;
    tensors(columns)
}

struct Rows<'c, 'a> {
    columns: &'c mut [Column<'a>],
}

impl<'de> DeserializeSeed<'de> for Rows<'_, '_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_, '_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list with an item for each row")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<usize, A::Error> {
        for column in self.columns.iter_mut() {
            column.shape.push(None);
        }
        let mut row = 0;
        while let Some(()) =
            items.next_element_seed(Entry { columns: self.columns, depth: 1, row })?
        {
            row += 1;
        }
        Ok(row)
    }
}

/// All inputs by name, or the value of the only one, at `depth` and in the row `row`.
struct Entry<'c, 'a> {
    columns: &'c mut [Column<'a>],
    depth: usize,
    row: usize,
}

impl<'c, 'a> Entry<'c, 'a> {
    fn only<E: Error>(self) -> Result<Value<'c, 'a>, E> {
        let depth = self.depth;
        match self.columns {
            [column] => {
                column.rows += 1;
                Ok(Value { column, depth })
            }
            columns => {
                let names: Vec<_> =
                    columns.iter().map(|c| c.known.name.as_str()).take(64).collect();
                Err(E::custom(format!(
                    "the model has {} inputs: send an object with the keys {names:?}",
                    columns.len()
                )))
            }
        }
    }

    /// The object's values by key, after the first key was read.
    fn named<'de, A: MapAccess<'de>>(self, first: String, mut map: A) -> Result<(), A::Error> {
        let mut key = Some(first);
        while let Some(name) = key {
            let known = self.columns.iter_mut().find(|column| column.known.name == name);
            let Some(column) = known else {
                let names: Vec<_> =
                    self.columns.iter().map(|c| c.known.name.as_str()).take(64).collect();
                return Err(A::Error::custom(format!(
                    "unexpected input {name:?}; the model has {names:?}"
                )));
            };
            if column.rows != self.row {
                return Err(A::Error::custom(format!("input {name:?} is given twice")));
            }
            column.rows += 1;
            map.next_value_seed(Value { column, depth: self.depth })?;
            key = map.next_key()?;
        }
        match self.columns.iter().find(|column| column.rows != self.row + 1) {
            None => Ok(()),
            Some(column) => {
                Err(A::Error::custom(format!("input {:?} is missing", column.known.name)))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Entry<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entry<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the inputs by name, or the value of the only input")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let first = map.next_key::<String>()?;
        let bytes = matches!(&*self.columns, [column]
            if column.datatype == Datatype::Bytes && column.known.name != BINARY);
        match first {
            Some(key) if bytes && key == BINARY => self.only()?.binary(map),
            Some(key) => self.named(key, map),
            None if self.columns.is_empty() => Ok(()),
            None => Err(A::Error::custom("an object without inputs")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        self.only()?.visit_seq(items)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.only()?.visit_bool(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.only()?.visit_i64(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.only()?.visit_u64(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.only()?.visit_f64(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.only()?.visit_str(value)
    }
}

/// A value of one input: an element, or a list of values.
struct Value<'c, 'a> {
    column: &'c mut Column<'a>,
    depth: usize,
}

impl Value<'_, '_> {
    fn leaf<E: Error>(self, scalar: Scalar<'_>) -> Result<(), E> {
        let Column { known, datatype, shape, leaf, data, .. } = self.column;
        if *leaf.get_or_insert(self.depth) != self.depth || shape.len() > self.depth {
            return Err(E::custom(format!(
                "input {:?} has elements at different depths",
                known.name
            )));
        }
        element::push(data, *datatype, scalar)
            .map_err(|error| E::custom(format!("input {:?}: {error}", known.name)))
    }

    /// An element from an object, after its key `b64` was read.
    fn binary<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let text = map.next_value::<std::borrow::Cow<'_, str>>()?;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(text.as_bytes())
            .or_else(|_| base64::engine::general_purpose::URL_SAFE.decode(text.as_bytes()))
            .map_err(|error| A::Error::custom(format!("{BINARY}: {error}")))?;
        if let Some(key) = map.next_key::<String>()? {
            return Err(A::Error::custom(format!("{key:?} beside {BINARY:?}")));
        }
        self.leaf(Scalar::Binary(&bytes))
    }
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "elements of {} for input {:?}", self.column.datatype, self.column.known.name)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { column, depth } = self;
        let name = &column.known.name;
        if column.leaf.is_some_and(|leaf| leaf <= depth) {
            return Err(A::Error::custom(format!(
                "input {name:?} has elements at different depths"
            )));
        }
        if column.shape.len() <= depth {
            column.shape.push(None);
        }
        let mut count = 0;
        while items.next_element_seed(Value { column, depth: depth + 1 })?.is_some() {
            count += 1;
        }
        let same =
            column.shape.get_mut(depth).is_some_and(|size| *size.get_or_insert(count) == count);
        if same {
            return Ok(());
        }
        Err(A::Error::custom(format!(
            "input {:?} has lists of different lengths at one depth",
            column.known.name
        )))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        match map.next_key::<String>()? {
            Some(key) if key == BINARY => self.binary(map),
            key => Err(A::Error::custom(format!(
                "an object with {:?} is no element of input {:?}",
                key.unwrap_or_default(),
                self.column.known.name
            ))),
        }
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.leaf(Scalar::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.leaf(Scalar::Whole(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.leaf(Scalar::Whole(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.leaf(Scalar::Float(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.leaf(Scalar::Text(value))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn signature(inputs: &[(&str, &str)]) -> Signature {
        let tensor = |(name, datatype): &(&str, &str)| TensorSignature {
            name: (*name).into(),
            datatype: (*datatype).into(),
            shape: vec![-1],
        };
        Signature { inputs: inputs.iter().map(tensor).collect(), outputs: Vec::new() }
    }

    type Read = fn(&Signature, &str) -> Result<Vec<(String, Tensor)>, String>;

    #[test]
    fn the_nesting_is_the_shape_in_both_forms() {
        let x = signature(&[("x", "FP32")]);
        for (read, json, shape) in [
            (rows as Read, "[1,2,3]", &[3][..]),
            (rows, "[[1,2],[3,4],[5,6]]", &[3, 2]),
            (rows, "[[],[]]", &[2, 0]),
            (rows, r#"[{"x":[[1]]},{"x":[[2]]}]"#, &[2, 1, 1]),
            (rows, r#"[{"x":1},[],2]"#, &[]),
            (whole, "7", &[]),
            (whole, "[]", &[0]),
            (whole, "[[1.5,-2]]", &[1, 2]),
            (whole, r#"{"x":[[[1]]]}"#, &[1, 1, 1]),
        ] {
            match read(&x, json) {
                Ok(inputs) => assert_eq!(inputs.first().unwrap().1.shape(), shape, "{json}"),
                Err(error) => {
                    assert!(json.contains("[],2") && error.contains("depths"), "{json}: {error}")
                }
            }
        }
        let two = signature(&[("x", "INT64"), ("s", "BYTES")]);
        let by_row = rows(&two, r#"[{"x":1,"s":"a"},{"s":{"b64":"/w=="},"x":2}]"#).unwrap();
        let by_column = whole(&two, r#"{"s":["a",{"b64":"/w=="}],"x":[1,2]}"#).unwrap();
        assert_eq!(by_row, by_column);
        assert_eq!(by_row.get(1).unwrap().1.strings(), [&b"a"[..], &b"\xff"[..]]);
        let text = signature(&[("s", "BYTES")]);
        let bytes = rows(&text, r#"[{"b64":"YQ=="},"b"]"#).unwrap();
        assert_eq!(bytes.first().unwrap().1.strings(), ["a", "b"]);
    }

    /// Inputs with their types, how they are read, from what, and the words of the refusal.
    type Case<'a> = (&'a [(&'a str, &'a str)], Read, &'a str, &'a str);

    #[test]
    fn what_does_not_fit_is_refused_in_one_sentence() {
        let x = [("x", "FP32")];
        let two = [("x", "INT64"), ("s", "BYTES")];
        let cases: [Case<'_>; 18] = [
            (&x, rows, "[[1,2],[3]]", "different lengths"),
            (&x, rows, "[[1],2]", "different depths"),
            (&x, rows, "[1,[2]]", "different depths"),
            (&x, rows, "[[],1]", "different depths"),
            (&x, rows, "[]", "instances is empty"),
            (&x, rows, "7", "a list with an item for each row"),
            (&x, rows, r#"{"x":1}"#, "a list with an item for each row"),
            (&x, rows, r#"[{"z":1}]"#, "unexpected input \"z\""),
            (&x, rows, r#"[{"b64":"YQ=="}]"#, "unexpected input \"b64\""),
            (&x, whole, r#"{"x":{"b64":"YQ=="}}"#, "base64 is not an element of FP32"),
            (&x, whole, "\"a\"", "a string is not an element"),
            (&x, whole, "null", "invalid type: null"),
            (&x, whole, "{}", "an object without inputs"),
            (&two, rows, "[1]", "the model has 2 inputs"),
            (&two, rows, r#"[{"x":1}]"#, "input \"s\" is missing"),
            (&two, rows, r#"[{"x":1,"x":2,"s":"a"}]"#, "given twice"),
            (&two, whole, r#"{"x":1.5,"s":"a"}"#, "1.5 is not an element of INT64"),
            (&two, whole, r#"{"x":1,"s":{"b64":"!"}}"#, "b64"),
        ];
        for (inputs, read, json, words) in cases {
            let error = read(&signature(inputs), json).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
        }
        assert!(whole(&signature(&x), &"[".repeat(100_000)).is_err());
    }
}
