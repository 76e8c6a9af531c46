//! The document as it is written, read and checked.
//!
//! What always holds: what [`read`] returns has a known category, well-formed parameters with unique names, and
//! defaults that satisfy their own parameter.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::bindings::exports::dwcp::template::expansion::{
    Document as Given, IntegerRange, Parameter, ParameterType, Problem, TextLimit,
};
use crate::{parameters, problem, unless_wrong};

const CATEGORIES: [&str; 8] = [
    "web-applications",
    "databases",
    "ml-workloads",
    "development-environments",
    "game-servers",
    "infrastructure",
    "security",
    "monitoring",
];
const MAX_PARAMETERS: usize = 64;
const MAX_CHOICES: usize = 64;
const MAX_TEXT_BYTES: u32 = 4096;
const MAX_SUMMARY_BYTES: usize = 512;

/// A checked document.
pub struct Document {
    pub summary: String,
    pub category: String,
    pub parameters: Vec<Parameter>,
    pub vm: Vm,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    summary: String,
    category: String,
    #[serde(default)]
    parameters: Vec<WrittenParameter>,
    vm: Vm,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenParameter {
    name: String,
    #[serde(rename = "type")]
    kind: Kind,
    min: Option<i64>,
    max: Option<i64>,
    max_bytes: Option<u32>,
    choices: Option<Vec<String>>,
    default: Option<Value>,
    #[serde(default)]
    summary: String,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Integer,
    Boolean,
    Text,
    Choice,
}

/// The VM as it is written, with placeholders.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    pub vcpus: Number,
    pub memory_mib: Number,
    pub kernel: Option<Image>,
    pub initrd: Option<Image>,
    #[serde(default)]
    pub cmdline: String,
    #[serde(default)]
    pub restart: Restart,
    #[serde(default)]
    pub networks: Vec<String>,
    #[serde(default)]
    pub volumes: Vec<Volume>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub placement: Placement,
}

/// A number, or a text that becomes one.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Number {
    Plain(i64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Image {
    Bundled(String),
    Stored(String),
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    #[default]
    Never,
    OnFailure,
    Always,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    pub name: String,
    pub size_mib: Number,
    pub image: Option<Image>,
    #[serde(default)]
    pub read_only: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Placement {
    pub near: Option<String>,
    pub regions: Vec<String>,
    pub labels: Vec<String>,
    pub groups: Vec<String>,
    pub apart_from: Vec<String>,
}

/// Reads and checks a document.
pub fn read(given: &Given) -> Result<Document, Vec<Problem>> {
    let written: Written = parse(given).map_err(|message| vec![problem("", &message)])?;
    let mut problems = Vec::new();
    if written.format != 1 {
        problems.push(problem("format", "Only format 1 is known."));
    }
    if written.summary.is_empty() || written.summary.len() > MAX_SUMMARY_BYTES {
        problems.push(problem(
            "summary",
            "Write one sentence of at most 512 bytes.",
        ));
    }
    if !CATEGORIES.contains(&written.category.as_str()) {
        let message = format!("Use one of {}.", CATEGORIES.join(", "));
        problems.push(problem("category", &message));
    }
    if written.parameters.len() > MAX_PARAMETERS {
        problems.push(problem("parameters", "There may be at most 64."));
    }
    let mut names = BTreeSet::new();
    let mut parameters = Vec::new();
    for (index, parameter) in written.parameters.into_iter().enumerate() {
        let path = format!("parameters.{index}");
        if !names.insert(parameter.name.clone()) {
            problems.push(problem(&path, "Another parameter has this name."));
        }
        match check(parameter) {
            Ok(parameter) => parameters.push(parameter),
            Err(message) => problems.push(problem(&path, &message)),
        }
    }
    let document = Document {
        summary: written.summary,
        category: written.category,
        parameters,
        vm: written.vm,
    };
    unless_wrong(document, problems)
}

fn parse<T: DeserializeOwned>(given: &Given) -> Result<T, String> {
    if given.media.ends_with("+toml") {
        toml::from_str(&given.text).map_err(|error| error.to_string())
    } else if given.media.ends_with("+json") {
        serde_json::from_str(&given.text).map_err(|error| error.to_string())
    } else {
        let media = &given.media;
        Err(format!(
            "The media type `{media}` is not known; use `…+toml` or `…+json`."
        ))
    }
}

fn check(written: WrittenParameter) -> Result<Parameter, String> {
    if !is_name(&written.name) {
        return Err(
            "The name must be 1 to 64 lower-case letters, digits and underscores, beginning with a letter.".into(),
        );
    }
    let kind = kind(&written)?;
    if written.summary.len() > MAX_SUMMARY_BYTES {
        return Err("The summary may have at most 512 bytes.".into());
    }
    let parameter = Parameter {
        name: written.name,
        kind,
        default: written.default.as_ref().map(Value::to_string),
        summary: written.summary,
    };
    if let Some(default) = written.default {
        parameters::check(&parameter, &default).map_err(|what| format!("The default: {what}"))?;
    }
    Ok(parameter)
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn kind(written: &WrittenParameter) -> Result<ParameterType, String> {
    let WrittenParameter {
        kind,
        min,
        max,
        max_bytes,
        choices,
        ..
    } = written;
    let foreign = match kind {
        Kind::Integer => max_bytes.is_some() || choices.is_some(),
        Kind::Boolean => min.or(*max).is_some() || max_bytes.is_some() || choices.is_some(),
        Kind::Text => min.or(*max).is_some() || choices.is_some(),
        Kind::Choice => min.or(*max).is_some() || max_bytes.is_some(),
    };
    if foreign {
        return Err("It has limits of another type.".into());
    }
    match kind {
        Kind::Integer => match (min, max) {
            (Some(min), Some(max)) if min <= max => Ok(ParameterType::Integer(IntegerRange {
                min: *min,
                max: *max,
            })),
            _ => Err("An integer needs `min` and `max`, the smaller first.".into()),
        },
        Kind::Boolean => Ok(ParameterType::Boolean),
        Kind::Text => match max_bytes {
            Some(max_bytes) if (1..=MAX_TEXT_BYTES).contains(max_bytes) => {
                Ok(ParameterType::Text(TextLimit {
                    max_bytes: *max_bytes,
                }))
            }
            _ => Err("A text needs `max_bytes`, 1 to 4096.".into()),
        },
        Kind::Choice => match choices {
            Some(choices) if (1..=MAX_CHOICES).contains(&choices.len()) => {
                Ok(ParameterType::Choice(choices.clone()))
            }
            _ => Err("A choice needs `choices`, 1 to 64 of them.".into()),
        },
    }
}
