//! Policies written in Rego, evaluated by `regorus`.
//!
//! `policies/README.md` says how a policy is written: packages `dwcp.*` with the rules `deny`, `warn`, `allow`,
//! `patch`, `applies`, `facts`.
//!
//! What always holds: whatever goes wrong denies (an error while evaluating, a missing fact, an input that is no
//! JSON object, no documents at all), with the reason; the strongest outcome wins; reasons have one order.
//!
//! What it must not know: where facts come from, what is done with a verdict.

mod policies;
#[cfg(test)]
mod tests;
mod text;
mod verdict;

#[allow(missing_docs)]
mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/policy"],
        world: "dwcp:policy/policy",
        generate_all,
    });
}

use std::cell::RefCell;

use bindings::exports::dwcp::policy::rules::{
    Diagnostic, Document, Guest as Rules, Summary, Verdict,
};
use bindings::exports::dwcp::types::plugin::{Guest as Plugin, Identity, Problem};
use policies::Policies;

struct PolicyRego;

thread_local! {
    static POLICIES: RefCell<Policies> = RefCell::default();
}

impl Plugin for PolicyRego {
    fn manifest() -> Identity {
        Identity {
            name: env!("CARGO_PKG_NAME").to_owned(),
            publisher: "dwcp".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            world: "dwcp:policy/policy@0.1.0".to_owned(),
            capabilities: Vec::new(),
            configuration_schema: r#"{"type": "object", "additionalProperties": false}"#.to_owned(),
        }
    }

    fn set_up(configuration: String) -> Result<(), Vec<Problem>> {
        match serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&configuration) {
            Ok(given) if given.is_empty() => Ok(()),
            _ => Err(vec![Problem {
                path: String::new(),
                message: "There is nothing to configure; give `{}`.".to_owned(),
            }]),
        }
    }
}

impl Rules for PolicyRego {
    fn configure(documents: Vec<Document>) -> Result<Summary, Vec<Diagnostic>> {
        let policies = Policies::read(&documents)?;
        let summary = policies.summary();
        POLICIES.set(policies);
        Ok(summary)
    }

    fn decide(inputs: Vec<String>) -> Vec<Verdict> {
        POLICIES.with_borrow_mut(|policies| {
            let inputs = inputs.iter();
            inputs
                .map(|input| verdict::decide(policies, input))
                .collect()
        })
    }
}

/// At most `most` bytes of a text, cut between characters.
fn cut(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

bindings::export!(PolicyRego with_types_in bindings);
