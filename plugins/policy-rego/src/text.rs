//! Finding what a policy's text refers to, so that what would go wrong later is seen when it is applied: facts
//! that are not declared, functions that the engine does not have.
//!
//! What always holds: references are found wherever they stand outside of comments and texts, with their place:
//! `input.facts.a`, `input["facts"]["a"]`, `regex.match(`. An alias of `input` hides what is behind it.

/// A name and what is reached through it.
#[derive(Debug, PartialEq)]
pub struct Reference {
    /// `input`, `facts`, `a`: never empty.
    pub path: Vec<String>,
    /// Whether an opening parenthesis follows at once.
    pub is_call: bool,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

/// All references, in the order of the text.
pub fn references(rego: &str) -> Vec<Reference> {
    let mut found = Vec::new();
    let mut rest = rego;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' => quoted(rest).map_or(rest.len(), |(_, after)| rest.len() - after.len()),
            '`' => rest[1..].find('`').map_or(rest.len(), |end| end + 2),
            _ if first.is_ascii_digit() => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ if is_word(first) => {
                let (path, after) = reference_at(rest);
                let (line, column) = place(rego, rest);
                found.push(Reference {
                    path,
                    is_call: after.starts_with('('),
                    line,
                    column,
                });
                // What stands in brackets is read for itself.
                rest.len() - after.len()
            }
            _ => first.len_utf8(),
        };
        rest = &rest[skipped..];
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Line and column of `at`, which is the end of `rego`.
fn place(rego: &str, at: &str) -> (u32, u32) {
    let before = &rego[..rego.len() - at.len()];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() as u32 + 1;
    (line, before[line_start..].chars().count() as u32 + 1)
}

/// Reads the reference at the beginning, and what comes after it.
fn reference_at(text: &str) -> (Vec<String>, &str) {
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    let mut path = vec![text[..end].to_owned()];
    let mut rest = &text[end..];
    while let Some((part, after)) = step(rest) {
        path.push(part);
        rest = after;
    }
    (path, rest)
}

/// One step of a reference: `.name` or `["name"]`, and what comes after it.
fn step(text: &str) -> Option<(String, &str)> {
    if let Some(after) = text.strip_prefix('.') {
        let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
        return (end > 0).then(|| (after[..end].to_owned(), &after[end..]));
    }
    let (name, after) = quoted(text.strip_prefix('[')?)?;
    Some((name, after.strip_prefix(']')?))
}

/// A text in quotes at the beginning, and what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some((inner[..at].to_owned(), &inner[at + 1..])),
            _ => {}
        }
    }
    None
}
