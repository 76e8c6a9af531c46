//! The user's parameters, held against what the document says of them.
//!
//! What always holds: what [`read`] returns has a value of the right type for every parameter, and no other.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::bindings::exports::dwcp::template::expansion::{Parameter, ParameterType, Problem};
use crate::{problem, unless_wrong};

/// A text for each parameter, to be put in place of its name.
pub type Values = BTreeMap<String, String>;

/// Reads a JSON object of parameters; defaults fill what is missing.
pub fn read(known: &[Parameter], json: &str) -> Result<Values, Vec<Problem>> {
    let mut given: Map<String, Value> = serde_json::from_str(json)
        .map_err(|error| vec![problem("/", &format!("They are no JSON object: {error}."))])?;
    let (mut values, mut problems) = (Values::new(), Vec::new());
    for parameter in known {
        let default = || {
            let text = parameter.default.as_ref()?;
            serde_json::from_str::<Value>(text).ok()
        };
        let path = format!("/{}", parameter.name);
        match given.remove(&parameter.name).or_else(default) {
            None => problems.push(problem(&path, "It has no default; give a value.")),
            Some(value) => match check(parameter, &value) {
                Ok(text) => {
                    values.insert(parameter.name.clone(), text);
                }
                Err(message) => problems.push(problem(&path, &message)),
            },
        }
    }
    for name in given.keys() {
        let names: Vec<&str> = known.iter().map(|known| known.name.as_str()).collect();
        let message = format!(
            "There is no such parameter; there are {}.",
            names.join(", ")
        );
        problems.push(problem(&format!("/{name}"), &message));
    }
    unless_wrong(values, problems)
}

/// The value as text, if it satisfies the parameter. Errors: a sentence.
pub fn check(parameter: &Parameter, value: &Value) -> Result<String, String> {
    match (&parameter.kind, value) {
        (ParameterType::Integer(range), Value::Number(number)) => match number.as_i64() {
            Some(number) if (range.min..=range.max).contains(&number) => Ok(number.to_string()),
            _ => Err(format!(
                "It must be a whole number from {} to {}.",
                range.min, range.max
            )),
        },
        (ParameterType::Integer(_), _) => Err("It must be a whole number.".into()),
        (ParameterType::Boolean, Value::Bool(value)) => Ok(value.to_string()),
        (ParameterType::Boolean, _) => Err("It must be true or false.".into()),
        (ParameterType::Text(limit), Value::String(text)) => {
            if text.len() <= limit.max_bytes as usize && !text.chars().any(char::is_control) {
                Ok(text.clone())
            } else {
                let most = limit.max_bytes;
                Err(format!(
                    "It must have at most {most} bytes and no control characters."
                ))
            }
        }
        (ParameterType::Text(_), _) => Err("It must be a text.".into()),
        (ParameterType::Choice(choices), Value::String(text)) if choices.contains(text) => {
            Ok(text.clone())
        }
        (ParameterType::Choice(choices), _) => {
            Err(format!("It must be one of {}.", choices.join(", ")))
        }
    }
}
