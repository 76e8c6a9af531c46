//! The default templates: a document in TOML or JSON with typed parameters becomes the description of a VM.
//!
//! A document (`marketplace/templates/worker.toml` is one):
//! ```toml
//! format = 1
//! summary = "What it is"
//! category = "databases"              # one of the eight
//!
//! [[parameters]]                      # at most 64, shown in this order
//! name = "memory_mib"
//! type = "integer"                    # or boolean, text, choice
//! min = 512                           # integer: limits, inclusive
//! max = 4096
//! # max_bytes = 64                    # text: 1 to 4096
//! # choices = ["small", "large"]      # choice: 1 to 64
//! default = 1024                      # without one, the user must give it
//! summary = "Memory in MiB"
//!
//! [vm]                                # texts may contain {name}; {{ and }} stand for braces
//! vcpus = 1
//! memory_mib = "{memory_mib}"
//! kernel = { bundled = "kernel" }     # a layer of the artifact, or { stored = "sha256:…" }
//! initrd = { bundled = "initrd" }
//! cmdline = "console=ttyS0"
//! restart = "never"                   # or on-failure, always
//! networks = ["default"]
//! volumes = [{ name = "data", size_mib = 1024, image = { stored = "sha256:…" }, read_only = false }]
//! tags = { tier = "small" }
//! placement = { near = "eu", regions = ["eu"], labels = ["gpu=yes"], groups = ["db"], apart_from = ["db"] }
//! ```
//!
//! What always holds: unknown keys and parameters are errors; every error names the place; an expansion is
//! within the limits of the contract.
//!
//! What it must not know: hosts, images' content, who asks.

mod document;
mod expand;
mod parameters;
#[cfg(test)]
mod tests;

#[allow(missing_docs)]
mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/template"],
        world: "dwcp:template/template",
        additional_derives: [PartialEq],
        generate_all,
    });
}

use bindings::exports::dwcp::template::expansion::{
    Description, Document, Guest as Expansion, VmSpec,
};
use bindings::exports::dwcp::types::plugin::{Guest as Plugin, Identity, Problem};

struct TemplateDefault;

impl Plugin for TemplateDefault {
    fn manifest() -> Identity {
        Identity {
            name: env!("CARGO_PKG_NAME").to_owned(),
            publisher: "dwcp".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            world: "dwcp:template/template@0.1.0".to_owned(),
            capabilities: Vec::new(),
            configuration_schema: r#"{"type": "object", "additionalProperties": false}"#.to_owned(),
        }
    }

    fn set_up(configuration: String) -> Result<(), Vec<Problem>> {
        match serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&configuration) {
            Ok(given) if given.is_empty() => Ok(()),
            _ => Err(vec![problem(
                "",
                "There is nothing to configure; give `{}`.",
            )]),
        }
    }
}

impl Expansion for TemplateDefault {
    fn describe(template: Document) -> Result<Description, Vec<Problem>> {
        let document = document::read(&template)?;
        Ok(Description {
            summary: document.summary,
            category: document.category,
            parameters: document.parameters,
        })
    }

    fn expand(template: Document, parameters: String) -> Result<VmSpec, Vec<Problem>> {
        let document = document::read(&template)?;
        let values = parameters::read(&document.parameters, &parameters)?;
        expand::expand(document.vm, &values)
    }
}

/// Most problems that one call tells of.
const MAX_PROBLEMS: usize = 64;

/// Something wrong at a place.
fn problem(path: &str, message: &str) -> Problem {
    Problem {
        path: path.chars().take(128).collect(),
        message: message.chars().take(512).collect(),
    }
}

/// The value, unless something was wrong on the way to it.
fn unless_wrong<T>(value: T, mut problems: Vec<Problem>) -> Result<T, Vec<Problem>> {
    problems.truncate(MAX_PROBLEMS);
    if problems.is_empty() {
        Ok(value)
    } else {
        Err(problems)
    }
}

bindings::export!(TemplateDefault with_types_in bindings);
