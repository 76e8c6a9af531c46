//! How a registry asks who somebody is (`WWW-Authenticate`, RFC 9110 section 11.6.1).
//!
//! What it must not know: the answer.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A name and a password with each request.
    Basic,
    /// A token, which is had elsewhere.
    Bearer {
        /// The address where it is had.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The first that is understood.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let lines = headers.get_all(WWW_AUTHENTICATE).iter();
        lines.filter_map(|line| line.to_str().ok()).find_map(read)
    }
}

fn read(line: &str) -> Option<Challenge> {
    let (scheme, rest) = line.split_once(' ').unwrap_or((line, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = rest;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            // A list of actions has a comma too, so only the quotes tell where it ends.
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match name.trim_matches([' ', ',']) {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            "scope" => scope = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: realm?,
        service,
        scope,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let line =
            r#"Bearer realm="https://a.io/token", service="a.io",scope="repository:x/y:pull,push""#;
        let bearer = Challenge::Bearer {
            realm: "https://a.io/token".into(),
            service: Some("a.io".into()),
            scope: Some("repository:x/y:pull,push".into()),
        };
        assert_eq!(read(line), Some(bearer));
        assert_eq!(read(r#"basic realm="x""#), Some(Challenge::Basic));
        for line in [
            "Negotiate",
            "Bearer",
            r#"Bearer realm="no end"#,
            r#"Bearer service="x""#,
            "",
        ] {
            assert_eq!(read(line), None, "{line}");
        }
    }
}
