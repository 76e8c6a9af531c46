//! The documents in force: read, checked, and what each policy declares.
//!
//! What always holds: every policy's facts are declared; a set of documents that is refused leaves nothing behind.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::BUILTINS;
use regorus::{Engine, Value};

use crate::bindings::exports::dwcp::policy::rules::{Diagnostic, Document, Fact, Summary};
use crate::cut;
use crate::text::{Reference, references};

const REGO: &str = "application/vnd.openpolicyagent.rego";
const JSON: &str = "application/json";
const MAX_DOCUMENTS: usize = 256;
const MAX_DIAGNOSTICS: usize = 64;

/// Words that may stand before a parenthesis without being functions, and the root of all documents.
const KEYWORDS: [&str; 12] = [
    "as", "contains", "data", "else", "every", "if", "import", "in", "not", "print", "some", "with",
];

/// What a policy's rules are called.
pub const RULES: [&str; 6] = ["deny", "warn", "allow", "patch", "applies", "facts"];

/// A package that decides.
#[derive(Default)]
pub struct Policy {
    /// Which of [`RULES`] it has.
    pub rules: BTreeSet<&'static str>,
    /// The facts it needs, each a path with dots.
    pub facts: BTreeSet<String>,
}

impl Policy {
    fn decides(&self) -> bool {
        ["deny", "warn", "allow", "patch"]
            .iter()
            .any(|rule| self.rules.contains(rule))
    }
}

/// The documents in force.
#[derive(Default)]
pub struct Policies {
    pub engine: Engine,
    /// By package, without `data.`: `dwcp.tags`.
    pub policies: BTreeMap<String, Policy>,
}

fn about(file: &str, message: &str) -> Diagnostic {
    Diagnostic {
        file: file.to_owned(),
        line: 0,
        column: 0,
        message: cut(message, 1024),
    }
}

/// Reads the place out of an engine's message: `--> FILE:LINE:COLUMN … error: TEXT`.
pub fn diagnostic(file: &str, message: &str) -> Diagnostic {
    let place = message
        .split("--> ")
        .nth(1)
        .and_then(|rest| rest.lines().next());
    let mut parts = place.unwrap_or_default().rsplitn(3, ':');
    let mut number = || parts.next().and_then(|part| part.trim().parse().ok());
    let (column, line) = (number(), number());
    let text = message.rsplit("error: ").next().unwrap_or(message).trim();
    let named = parts.next().filter(|named| !named.is_empty());
    match (line, column) {
        (Some(line), Some(column)) => Diagnostic {
            file: named.unwrap_or(file).to_owned(),
            line,
            column,
            message: cut(text, 1024),
        },
        _ => about(file, message.trim()),
    }
}

impl Policies {
    /// Reads documents. Errors: everything that is wrong with them.
    pub fn read(documents: &[Document]) -> Result<Self, Vec<Diagnostic>> {
        let mut read = Self::default();
        read.engine.set_strict_builtin_errors(true);
        let mut problems = Vec::new();
        if documents.len() > MAX_DOCUMENTS {
            problems.push(about("", "There are more than 256 documents."));
        }
        let mut paths = BTreeSet::new();
        let mut packages = BTreeMap::new();
        for document in documents.iter().take(MAX_DOCUMENTS) {
            if !paths.insert(document.path.as_str()) {
                problems.push(about(&document.path, "Another document has this path."));
                continue;
            }
            match read.add(document) {
                Ok(Some(package)) => {
                    packages.insert(document.path.as_str(), package);
                }
                Ok(None) => {}
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            read.policies.retain(|_, policy| policy.decides());
            problems.extend(read.learn_facts());
            problems.extend(read.unknown(documents, &packages));
        }
        if problems.is_empty() {
            problems.extend(read.try_out());
        }
        problems.truncate(MAX_DIAGNOSTICS);
        if problems.is_empty() {
            Ok(read)
        } else {
            Err(problems)
        }
    }

    /// What the host is told of them.
    pub fn summary(&self) -> Summary {
        let mut needed: BTreeMap<&String, Vec<String>> = BTreeMap::new();
        for (name, policy) in &self.policies {
            for fact in &policy.facts {
                needed.entry(fact).or_default().push(name.clone());
            }
        }
        let fact = |(name, policies): (&String, Vec<String>)| Fact {
            name: name.clone(),
            policies,
        };
        Summary {
            policies: self.policies.keys().cloned().collect(),
            facts: needed.into_iter().map(fact).collect(),
        }
    }

    /// Adds a document; answers its package if it is Rego.
    fn add(&mut self, document: &Document) -> Result<Option<String>, Diagnostic> {
        let path = &document.path;
        let failed = |error: &dyn std::fmt::Display| diagnostic(path, &error.to_string());
        match document.media.as_str() {
            REGO => {
                let (name, text) = (path.clone(), document.text.clone());
                let package = self.engine.add_policy(name, text).map_err(|e| failed(&e))?;
                let package = package.trim_start_matches("data.").to_owned();
                if package.starts_with("dwcp.") && !package.ends_with("_test") {
                    self.note_rules(path, &package).map_err(|e| failed(&e))?;
                }
                Ok(Some(package))
            }
            JSON => {
                let data = Value::from_json_str(&document.text).map_err(|e| failed(&e))?;
                self.engine.add_data(data).map_err(|e| failed(&e))?;
                Ok(None)
            }
            other => {
                let message =
                    format!("The media type `{other}` is not known; use {REGO} or {JSON}.");
                Err(about(path, &message))
            }
        }
    }

    fn note_rules(&mut self, path: &str, package: &str) -> Result<(), String> {
        let policy = self.policies.entry(package.to_owned()).or_default();
        for rule in RULES {
            let declared = self.engine.has_declared_rule_rooted_at(path, rule);
            if declared.map_err(|error| error.to_string())? {
                policy.rules.insert(rule);
            }
        }
        Ok(())
    }

    /// Evaluates each `facts`, which must not depend on anything.
    fn learn_facts(&mut self) -> Vec<Diagnostic> {
        let mut problems = Vec::new();
        self.engine.set_input(Value::new_object());
        for (name, policy) in &mut self.policies {
            if !policy.rules.contains("facts") {
                continue;
            }
            let value = self.engine.eval_rule(format!("data.{name}.facts"));
            match value.as_ref().ok().and_then(texts) {
                Some(facts) => policy.facts = facts,
                None => {
                    let message = format!(
                        "`facts` of {name} must be a set of texts, such as {{\"budget.exceeded\"}}."
                    );
                    problems.push(about("", &message));
                }
            }
        }
        problems
    }

    /// What the documents refer to and is not there: facts that are not declared, functions unknown to the engine.
    fn unknown(
        &self,
        documents: &[Document],
        packages: &BTreeMap<&str, String>,
    ) -> Vec<Diagnostic> {
        let mut problems = Vec::new();
        for document in documents {
            let Some(package) = packages.get(document.path.as_str()) else {
                continue;
            };
            if package.ends_with("_test") {
                continue;
            }
            let imported = imported(&document.text);
            for reference in references(&document.text) {
                let problem = self
                    .undeclared_fact(&reference, package)
                    .or_else(|| self.unknown_function(&reference, package, packages, &imported));
                problems.extend(problem.map(|message| Diagnostic {
                    file: document.path.clone(),
                    line: reference.line,
                    column: reference.column,
                    message,
                }));
            }
        }
        problems
    }

    fn undeclared_fact(&self, reference: &Reference, package: &str) -> Option<String> {
        if !reference
            .path
            .starts_with(&["input".to_owned(), "facts".to_owned()])
        {
            return None;
        }
        let name = reference.path[2..].join(".");
        let covers = |fact: &String| name == *fact || name.starts_with(&format!("{fact}."));
        // A library may use what any policy declares.
        let declared = match self.policies.get(package) {
            Some(policy) => policy.facts.iter().any(covers),
            None => self
                .policies
                .values()
                .any(|policy| policy.facts.iter().any(covers)),
        };
        match (declared, name.as_str()) {
            (true, _) => None,
            (_, "") => Some("Name the fact: `input.facts` alone hides which one is needed.".into()),
            _ => Some(format!(
                "The fact is not declared; add \"{name}\" to `facts` of {package}."
            )),
        }
    }

    fn unknown_function(
        &self,
        reference: &Reference,
        package: &str,
        packages: &BTreeMap<&str, String>,
        imported: &BTreeSet<String>,
    ) -> Option<String> {
        let first = reference.path[0].as_str();
        let name = reference.path.join(".");
        let known = !reference.is_call
            || BUILTINS.contains_key(name.as_str())
            || KEYWORDS.contains(&first)
            || imported.contains(first);
        if known {
            return None;
        }
        let mut siblings = packages.iter().filter(|(_, other)| *other == package);
        let declared = siblings.any(|(path, _)| {
            let declared = self.engine.has_declared_rule_rooted_at(path, first);
            declared.is_ok_and(|declared| declared)
        });
        (!declared).then(|| format!("The function `{name}` is not known to this engine."))
    }

    /// Evaluates every rule once without input, so that what the engine cannot do is seen now.
    fn try_out(&mut self) -> Vec<Diagnostic> {
        let mut problems = Vec::new();
        for (name, policy) in &self.policies {
            for rule in &policy.rules {
                self.engine.set_input(Value::new_object());
                if let Err(error) = self.engine.eval_rule(format!("data.{name}.{rule}")) {
                    problems.push(diagnostic("", &error.to_string()));
                }
            }
        }
        problems
    }
}

/// The names under which a document imports others.
fn imported(rego: &str) -> BTreeSet<String> {
    let imports = rego
        .lines()
        .filter_map(|line| line.trim().strip_prefix("import "));
    let name = |import: &str| {
        let import = import.split('#').next().unwrap_or_default().trim();
        import
            .rsplit([' ', '.'])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    imports.map(name).collect()
}

/// The texts of a set or array; nothing when it is something else or holds something else.
fn texts(value: &Value) -> Option<BTreeSet<String>> {
    let text = |value: &Value| Some(value.as_string().ok()?.to_string());
    match value {
        Value::Set(values) => values.iter().map(text).collect(),
        Value::Array(values) => values.iter().map(text).collect(),
        _ => None,
    }
}
