//! Why a model is not taken: a reason that a condition shows and one line that names the culprit.
//!
//! Names in a model are an attacker's text; [`quoted`] is the only way one gets into a message.

use lithe::names::reason;

/// A model that is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// One of [`lithe::names::reason`].
    pub reason: &'static str,
    /// What was seen, in one line of printable characters.
    pub message: String,
}

impl Refusal {
    /// A refusal; `message` must already be one printable line.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// The bytes are no readable model.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(reason::CORRUPT, message)
    }

    /// The model asks for more than the budget allows.
    pub fn budget(message: impl Into<String>) -> Self {
        Self::new(reason::RESOURCE_BUDGET, message)
    }
}

/// The most characters of a foreign text in a message.
const QUOTE: usize = 96;

/// `text` in quotes with control characters escaped, cut after 96 characters.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for (count, c) in text.chars().enumerate() {
        if count == QUOTE {
            out.push('…');
            break;
        }
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Bidirectional marks and other invisible characters reorder what a terminal shows.
            c if c.is_control() || is_invisible(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn is_invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The first bytes of a file, as text where they are printable and escaped where not.
pub fn quoted_bytes(bytes: &[u8]) -> String {
    let shown = bytes.get(..bytes.len().min(24)).unwrap_or_default();
    format!("\"{}\"", shown.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_stays_on_one_line_and_cannot_paint_the_terminal() {
        let shown = quoted("a\n\u{1b}[31mred\u{202e}\"");
        assert_eq!(shown, "\"a\\u{a}\\u{1b}[31mred\\u{202e}\\\"\"");
        assert!(quoted(&"x".repeat(1 << 20)).len() < 120);
        assert_eq!(quoted_bytes(b"<!DOC\n\xff"), "\"<!DOC\\n\\xff\"");
    }
}
