//! Examples from JSON: `examples` is a list of objects of features, `context` one such object. A
//! feature is a value or a list of values: whole numbers, numbers, or strings, `b64` included.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use lithe::tensorflow::feature::Kind;
use lithe::tensorflow::{BytesList, Example, Feature, Features, FloatList, Int64List};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::example::Examples;

/// What one request may list, in strings: each takes 32 bytes beyond its own.
const BUDGET: usize = 1 << 20;
/// What an example or a feature takes of it.
const FEATURE: usize = 4;

/// The examples in the JSON `rows` with the features in `context` for all of them.
///
/// # Errors
/// What is wrong, in one sentence.
pub fn read(rows: &str, context: Option<&str>) -> Result<Examples, String> {
    let left = Cell::new(BUDGET);
    let rows = Rows(&left)
        .deserialize(&mut serde_json::Deserializer::from_str(rows))
        .map_err(|error| format!("examples: {error}"))?;
    let context = context.map(|json| {
        Row(&left)
            .deserialize(&mut serde_json::Deserializer::from_str(json))
            .map_err(|error| format!("context: {error}"))
    });
    Ok(Examples { rows, context: context.transpose()? })
}

fn take<E: Error>(left: &Cell<usize>, cost: usize) -> Result<(), E> {
    let rest = left.get().checked_sub(cost).ok_or_else(|| {
        E::custom(format!("more than {BUDGET} strings or {} features are listed", BUDGET / FEATURE))
    })?;
    left.set(rest);
    Ok(())
}

/// Reads a list of examples.
struct Rows<'b>(&'b Cell<usize>);

impl<'de> DeserializeSeed<'de> for Rows<'_> {
    type Value = Vec<Example>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Vec<Example>, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = Vec<Example>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects with features")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Example>, A::Error> {
        let mut rows = Vec::new();
        while let Some(row) = items.next_element_seed(Row(self.0))? {
            rows.push(row);
        }
        Ok(rows)
    }
}

/// Reads one example.
struct Row<'b>(&'b Cell<usize>);

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = Example;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Example, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = Example;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with features")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Example, A::Error> {
        take(self.0, FEATURE)?;
        let mut feature = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            take(self.0, FEATURE)?;
            let mut values = Values::default();
            map.next_value_seed(Value { values: &mut values, left: self.0 })?;
            feature.insert(name, values.feature());
        }
        Ok(Example { features: Some(Features { feature }) })
    }
}

/// The values of one feature; those of one kind only.
#[derive(Default)]
struct Values {
    /// The numbers while all of them are whole.
    whole: Vec<i64>,
    /// The numbers once one has a fraction.
    numbers: Vec<f32>,
    bytes: Vec<bytes::Bytes>,
}

impl Values {
    fn feature(self) -> Feature {
        let kind = if !self.numbers.is_empty() {
            Kind::FloatList(FloatList { value: self.numbers })
        } else if !self.bytes.is_empty() {
            Kind::BytesList(BytesList { value: self.bytes })
        } else {
            Kind::Int64List(Int64List { value: self.whole })
        };
        Feature { kind: Some(kind) }
    }

    fn whole<E: Error>(&mut self, value: i64) -> Result<(), E> {
        one_kind(self.bytes.is_empty())?;
        if self.numbers.is_empty() {
            self.whole.push(value);
        } else {
            self.numbers.push(value as f32);
        }
        Ok(())
    }

    fn number<E: Error>(&mut self, value: f32) -> Result<(), E> {
        one_kind(self.bytes.is_empty())?;
        self.numbers.extend(std::mem::take(&mut self.whole).into_iter().map(|value| value as f32));
        self.numbers.push(value);
        Ok(())
    }

    fn bytes<E: Error>(&mut self, bytes: Vec<u8>) -> Result<(), E> {
        one_kind(self.numbers.is_empty() && self.whole.is_empty())?;
        self.bytes.push(bytes.into());
        Ok(())
    }
}

fn one_kind<E: Error>(kept: bool) -> Result<(), E> {
    if kept { Ok(()) } else { Err(E::custom("a feature mixes strings and numbers")) }
}

/// Reads a value, or a list of values, of one feature.
struct Value<'v> {
    values: &'v mut Values,
    left: &'v Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a string, or a list of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Self { values, left } = self;
        while items.next_element_seed(Value { values: &mut *values, left })?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some(key) = map.next_key::<String>()?.filter(|key| key == "b64") else {
            return Err(A::Error::custom("an object is no value, unless its only key is b64"));
        };
        let bytes = base64::engine::general_purpose::STANDARD.decode(map.next_value::<String>()?);
        if map.next_key::<String>()?.is_some() {
            return Err(A::Error::custom(format!("an object has more than {key:?}")));
        }
        take(self.left, 1)?;
        self.values.bytes(bytes.map_err(A::Error::custom)?)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.values.whole(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.values.whole(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        let whole = i64::try_from(value)
            .map_err(|_| E::custom(format!("{value} does not fit into 64 signed bits")))?;
        self.values.whole(whole)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.values.number(value as f32)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        match value {
            "\0NaN" => self.values.number(f32::NAN),
            "\0Infinity" => self.values.number(f32::INFINITY),
            "\0-Infinity" => self.values.number(f32::NEG_INFINITY),
            text => {
                take(self.left, 1)?;
                self.values.bytes(text.as_bytes().to_vec())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_and_lists_of_every_kind_become_features() {
        let json = r#"[{"i":[1,2],"one":7,"f":[1,2.5],"nan":"\u0000NaN","s":["a",{"b64":"/w=="}],
            "b":true,"none":[]}]"#;
        let examples = read(json, Some(r#"{"c":1.5}"#)).unwrap();
        let features = examples.rows.first().unwrap().features.as_ref().unwrap();
        let kind = |name: &str| features.feature.get(name).unwrap().kind.clone().unwrap();
        let whole = |value: &[i64]| Kind::Int64List(Int64List { value: value.to_vec() });
        assert_eq!(kind("i"), whole(&[1, 2]));
        assert_eq!(kind("one"), whole(&[7]));
        assert_eq!(kind("b"), whole(&[1]));
        assert_eq!(kind("none"), whole(&[]));
        assert_eq!(kind("f"), Kind::FloatList(FloatList { value: vec![1.0, 2.5] }));
        assert!(
            matches!(kind("nan"), Kind::FloatList(list) if list.value.iter().all(|v| v.is_nan()))
        );
        let Kind::BytesList(text) = kind("s") else { unreachable!() };
        assert_eq!(text.value, [&b"a"[..], &b"\xff"[..]]);
        assert!(examples.context.is_some());
    }

    #[test]
    fn what_is_no_example_is_refused() {
        for (rows, context, words) in [
            ("{}", None, "examples: invalid type: map"),
            ("[1]", None, "examples: invalid type: integer"),
            (r#"[{"a":[1,"b"]}]"#, None, "mixes strings and numbers"),
            (r#"[{"a":{"b":1}}]"#, None, "examples: "),
            (r#"[{"a":{"b64":"!"}}]"#, None, "Invalid symbol"),
            (r#"[{"a":null}]"#, None, "a number, a string, or a list"),
            (r#"[{"a":18446744073709551615}]"#, None, "does not fit into 64 signed bits"),
            ("[]", Some("1"), "context: "),
        ] {
            let error = read(rows, context).unwrap_err();
            assert!(error.contains(words), "{rows}: {error}");
        }
        let many = format!("[{}{{}}]", "{},".repeat(BUDGET / FEATURE));
        assert!(read(&many, None).unwrap_err().contains("features are listed"));
        assert!(read(&"[".repeat(100_000), None).is_err());
    }
}
