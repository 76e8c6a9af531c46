//! Finding the facts that a policy's text uses, so that one that is not declared is seen when it is applied.
//!
//! What always holds: `input.facts.a.b` and `input["facts"]["a"]` are found wherever they stand outside of
//! comments and texts, with their place. An alias of `input` hides what is behind it.

/// A use of facts.
#[derive(Debug, PartialEq)]
pub struct Use {
    /// The path below `input.facts`; empty when the text goes no further.
    pub path: Vec<String>,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

/// All uses, in the order of the text.
pub fn uses(rego: &str) -> Vec<Use> {
    let mut found = Vec::new();
    let mut rest = rego;
    let mut after_word = false;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' => quoted(rest).map_or(rest.len(), |(_, after)| rest.len() - after.len()),
            '`' => rest[1..].find('`').map_or(rest.len(), |end| end + 2),
            _ if is_word(first) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                if &rest[..end] == "input" && !after_word {
                    found.extend(use_at(rego, rest));
                }
                end
            }
            _ => first.len_utf8(),
        };
        after_word = first == '.' || is_word(first);
        rest = &rest[skipped..];
    }
    found
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Reads the reference that begins with `input` at `at`.
fn use_at(rego: &str, at: &str) -> Option<Use> {
    let mut rest = &at["input".len()..];
    let mut path = Vec::new();
    while let Some((part, after)) = step(rest) {
        path.push(part);
        rest = after;
    }
    if path.first().is_none_or(|first| first != "facts") {
        return None;
    }
    path.remove(0);
    let before = &rego[..rego.len() - at.len()];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Some(Use {
        path,
        line: before.matches('\n').count() as u32 + 1,
        column: before[line_start..].chars().count() as u32 + 1,
    })
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
