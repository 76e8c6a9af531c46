//! One verdict: every policy that applies is asked, the strongest answer wins.
//!
//! What always holds: no error is silent; each becomes a reason that denies.

use std::collections::BTreeSet;

use regorus::{Engine, Value};

use crate::bindings::exports::dwcp::policy::rules::{Outcome, Reason, Verdict};
use crate::cut;
use crate::policies::{Policies, Policy};

const MAX_REASONS: usize = 64;
const MAX_INPUT_BYTES: usize = 1 << 20;
const MAX_PATCH_BYTES: usize = 64 << 10;

/// What the policies said so far.
#[derive(Default)]
struct Findings {
    denied: bool,
    /// Policy, rule, message: ordered, each once.
    reasons: BTreeSet<(String, &'static str, String)>,
    operations: Vec<String>,
    missing: BTreeSet<String>,
}

impl Findings {
    fn say(&mut self, policy: &str, rule: &'static str, message: &str) {
        self.denied |= rule != "warn";
        self.reasons
            .insert((policy.to_owned(), rule, cut(message, 1024)));
    }

    fn into_verdict(mut self) -> Verdict {
        let patch = format!("[{}]", self.operations.join(","));
        if patch.len() > MAX_PATCH_BYTES {
            self.say(
                "",
                "error",
                "The policies' patch has more than 65,536 bytes.",
            );
        }
        let outcome = match (
            self.denied,
            self.reasons.is_empty(),
            self.operations.is_empty(),
        ) {
            (true, ..) => Outcome::Deny,
            (_, false, _) => Outcome::Warn,
            (.., false) => Outcome::Patch,
            _ => Outcome::Allow,
        };
        let patched = !self.denied && !self.operations.is_empty();
        let reason = |(policy, rule, message): (String, &str, String)| Reason {
            policy,
            rule: rule.to_owned(),
            message,
        };
        Verdict {
            outcome,
            reasons: self
                .reasons
                .into_iter()
                .take(MAX_REASONS)
                .map(reason)
                .collect(),
            patch: patched.then_some(patch),
            missing_facts: self.missing.into_iter().collect(),
        }
    }
}

/// Asks all policies about one input.
pub fn decide(policies: &mut Policies, input: &str) -> Verdict {
    let mut findings = Findings::default();
    match read(policies, input) {
        Ok(input) => {
            for (name, policy) in &policies.policies {
                ask(&mut policies.engine, name, policy, &input, &mut findings);
            }
        }
        Err(message) => findings.say("", "error", message),
    }
    findings.into_verdict()
}

fn read(policies: &Policies, input: &str) -> Result<Value, &'static str> {
    if policies.policies.is_empty() {
        return Err("No policy is in force, so nothing can be decided.");
    }
    if input.len() > MAX_INPUT_BYTES {
        return Err("The input has more than 1 MiB.");
    }
    match Value::from_json_str(input) {
        Ok(value) if value.as_object().is_ok() => Ok(value),
        _ => Err("The input is no JSON object."),
    }
}

fn ask(engine: &mut Engine, name: &str, policy: &Policy, input: &Value, findings: &mut Findings) {
    let mut asked = |rule: &'static str, input: &Value| {
        if !policy.rules.contains(rule) {
            return Ok(None);
        }
        engine.set_input(input.clone());
        let value = engine.eval_rule(format!("data.{name}.{rule}"));
        value.map(Some).map_err(|error| error.to_string())
    };
    let outcome = (|| {
        if let Some(applies) = asked("applies", input)? {
            // Missing facts must not make a policy step aside, so it is asked once more without any.
            if !policy.facts.is_empty()
                && asked("applies", &without_facts(input))? != Some(applies.clone())
            {
                return Err("`applies` must not depend on facts.".to_owned());
            }
            if applies != Value::Bool(true) {
                return Ok(());
            }
        }
        let missing = policy.facts.iter().filter(|fact| !has_fact(input, fact));
        let missing: Vec<&String> = missing.collect();
        for fact in &missing {
            findings.missing.insert((*fact).clone());
            findings.say(
                name,
                "facts",
                &format!("The fact `{fact}` is needed and was not given."),
            );
        }
        if !missing.is_empty() {
            return Ok(());
        }
        for rule in ["deny", "warn"] {
            for message in messages(asked(rule, input)?)? {
                findings.say(name, rule, &message);
            }
        }
        if asked("allow", input)?.is_some_and(|allowed| allowed != Value::Bool(true)) {
            findings.say(name, "allow", "Nothing in this policy allows it.");
        }
        for operation in elements(asked("patch", input)?)? {
            let json = serde_json::to_string(&operation).map_err(|error| error.to_string())?;
            findings.operations.push(json);
        }
        Ok(())
    })();
    if let Err(message) = outcome {
        let message = crate::policies::diagnostic("", &message);
        let place = match message.line {
            0 => String::new(),
            line => format!("{}:{line}:{}: ", message.file, message.column),
        };
        findings.say(name, "error", &format!("{place}{}", message.message));
    }
}

fn without_facts(input: &Value) -> Value {
    let mut input = input.clone();
    if let Ok(fields) = input.as_object_mut() {
        fields.remove(&Value::from("facts"));
    }
    input
}

/// Whether there is something other than null at this path below `facts`.
fn has_fact(input: &Value, fact: &str) -> bool {
    let mut at = &input["facts"];
    for part in fact.split('.') {
        at = &at[part];
    }
    !matches!(at, Value::Undefined | Value::Null)
}

/// The elements of a set or array; none when undefined.
fn elements(value: Option<Value>) -> Result<Vec<Value>, String> {
    match value {
        None | Some(Value::Undefined) => Ok(Vec::new()),
        Some(Value::Set(values)) => Ok(values.iter().cloned().collect()),
        Some(Value::Array(values)) => Ok(values.iter().cloned().collect()),
        Some(_) => Err("A rule is no set; write `deny contains message if …`.".to_owned()),
    }
}

fn messages(value: Option<Value>) -> Result<Vec<String>, String> {
    // `deny if …` is a rule of true or false: it holds without words.
    match value {
        Some(Value::Bool(true)) => {
            return Ok(vec!["The rule holds; it gives no message.".to_owned()]);
        }
        Some(Value::Bool(false)) => return Ok(Vec::new()),
        _ => {}
    }
    let text = |value: Value| match value.as_string() {
        Ok(text) => Ok(text.to_string()),
        Err(_) => serde_json::to_string(&value).map_err(|error| error.to_string()),
    };
    elements(value)?.into_iter().map(text).collect()
}
