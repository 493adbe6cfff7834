//! The paths of TensorFlow Serving's REST API below `/v1/models`, which are KServe v1's too. Verbs
//! and path words are taken in any case, as TensorFlow Serving takes them.

use super::{Asked, Version};

/// What is to be done with the model of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Tell the state of its versions.
    Status,
    /// Tell its signature.
    Metadata,
    /// Run it on tensors.
    Predict,
    /// Run it on examples, for classes.
    Classify,
    /// Run it on examples, for numbers.
    Regress,
    /// KServe's explanations.
    Explain,
}

/// The model and the act of the path `rest` below `/v1/`; `None` when it is no such path.
pub fn parse(rest: &str) -> Option<(Asked, Act)> {
    let rest = word(rest, "models/")?;
    let (place, verb) = match rest.rsplit_once(':') {
        Some((place, verb)) => (place, Some(verb)),
        None => (rest, None),
    };
    let mut parts = place.trim_end_matches('/').split('/');
    let model = parts.next().filter(|model| !model.is_empty())?.to_owned();
    let mut next = parts.next();
    let mut version = Version::Latest;
    if let Some(kind) = next {
        if kind.eq_ignore_ascii_case("versions") {
            version = Version::Number(number(parts.next()?)?);
            next = parts.next();
        } else if kind.eq_ignore_ascii_case("labels") {
            version = Version::Label(parts.next().filter(|label| !label.is_empty())?.to_owned());
            next = parts.next();
        }
    }
    let act = match (next, verb) {
        (None, None) => Act::Status,
        (Some(last), None) if last.eq_ignore_ascii_case("metadata") => Act::Metadata,
        (None, Some(verb)) => verbs(verb)?,
        _ => return None,
    };
    let asked = Asked { model, version, signature: String::new() };
    parts.next().is_none().then_some((asked, act))
}

fn verbs(verb: &str) -> Option<Act> {
    let known = [
        ("predict", Act::Predict),
        ("classify", Act::Classify),
        ("regress", Act::Regress),
        ("explain", Act::Explain),
    ];
    known.iter().find(|(name, _)| verb.eq_ignore_ascii_case(name)).map(|(_, act)| *act)
}

/// A version's number: digits only, as in TensorFlow Serving.
fn number(text: &str) -> Option<i64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(word.len())?;
    head.eq_ignore_ascii_case(word).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_path_is_read_and_no_other() {
        let at =
            |model: &str, version| Asked { model: model.into(), version, signature: String::new() };
        let label = || Version::Label("stable".into());
        for (path, expected) in [
            ("models/m", (at("m", Version::Latest), Act::Status)),
            ("models/m/", (at("m", Version::Latest), Act::Status)),
            ("models/m/metadata", (at("m", Version::Latest), Act::Metadata)),
            ("models/m/versions/7", (at("m", Version::Number(7)), Act::Status)),
            ("models/m/Versions/7/METADATA", (at("m", Version::Number(7)), Act::Metadata)),
            ("models/m/labels/stable", (at("m", label()), Act::Status)),
            ("models/m:predict", (at("m", Version::Latest), Act::Predict)),
            ("Models/m:PREDICT", (at("m", Version::Latest), Act::Predict)),
            ("models/m/versions/7:classify", (at("m", Version::Number(7)), Act::Classify)),
            ("models/m/labels/stable:regress", (at("m", label()), Act::Regress)),
            ("models/m:explain", (at("m", Version::Latest), Act::Explain)),
        ] {
            assert_eq!(parse(path), Some(expected), "{path}");
        }
        for path in [
            "",
            "models",
            "models/",
            "models/:predict",
            "models/m:",
            "models/m:paint",
            "models/m/x",
            "models/m/versions",
            "models/m/versions/",
            "models/m/versions/-1",
            "models/m/versions/+1",
            "models/m/versions/a:predict",
            "models/m/versions/1/2",
            "models/m/versions/99999999999999999999",
            "models/m/labels/",
            "models/m/metadata:predict",
            "models/m/metadata/x",
            "mod\u{e9}ls/m",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
