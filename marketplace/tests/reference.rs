//! Names: what is taken, what is refused, and that none leaves its directory.
#![allow(clippy::unwrap_used)]

use dwcp_marketplace::{Digest, Reference};
use proptest::prelude::*;

#[test]
fn names_with_and_without_version() {
    let named: Reference = "dwcp/placement-default@1.2.3-rc.1".parse().unwrap();
    assert_eq!(
        (named.publisher(), named.name()),
        ("dwcp", "placement-default")
    );
    assert_eq!(named.version().unwrap().to_string(), "1.2.3-rc.1");
    let any: Reference = "dwcp/placement-default".parse().unwrap();
    assert_eq!(any.version(), None);
    assert!(any.accepts(&named) && !named.accepts(&any));
}

#[test]
fn what_is_no_name_is_refused() {
    let long = "a".repeat(65);
    let bad = [
        "",
        "/",
        "dwcp",
        "dwcp/",
        "/p",
        "Dwcp/p",
        "dwcp/p/q",
        "dwcp/p@",
        "dwcp/p@1",
        "dwcp/p@latest",
        "dwcp/p@1.0.0+build",
        "../p",
        "dwcp/..",
        "dwcp/.",
        "dwcp/p@../1.0.0",
        "dwcp\\p",
        "dwcp/p q",
        "dwcp/-p",
        "1dwcp/p",
        "dwcp/p@1.0.0@2.0.0",
        "dwcp/p\0",
        "ｄwcp/p",
        &format!("dwcp/{long}"),
        &format!("dwcp/p@1.0.0-{long}"),
    ];
    for text in bad {
        assert!(text.parse::<Reference>().is_err(), "{text}");
    }
}

#[test]
fn what_is_no_digest_is_refused() {
    let good = format!("sha256:{}", "0a".repeat(32));
    assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
    let bad = [
        "",
        "sha256:",
        "sha256:../../etc/passwd",
        &good.to_uppercase(),
        &good[..70],
        &good[7..],
    ];
    for text in bad {
        assert!(text.parse::<Digest>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn good_names_are_read_as_they_are_written(
        publisher in "[a-z][a-z0-9-]{0,63}",
        name in "[a-z][a-z0-9-]{0,63}",
        version in prop::option::of((any::<u32>(), any::<u32>(), any::<u32>(), "(-[a-z]{1,8}(\\.[1-9][0-9]{0,3})?)?")),
    ) {
        let version = version.map(|(a, b, c, pre)| format!("@{a}.{b}.{c}{pre}")).unwrap_or_default();
        let text = format!("{publisher}/{name}{version}");
        let reference: Reference = text.parse().unwrap();
        prop_assert_eq!(reference.to_string(), text);
        prop_assert_eq!(reference.repository(), format!("{publisher}/{name}"));
    }

    #[test]
    fn whatever_is_taken_is_safe_and_reads_back(text in "\\PC{0,40}|[a-z./@0-9-]{0,40}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string(), text.clone());
            let safe = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            prop_assert!(safe(reference.publisher()) && safe(reference.name()));
        }
    }
}
