//! The template world: what a template and its parameters become.
//!
//! Always: each call runs in an instance of its own, so that nothing of one user's parameters can reach another's.
//! What comes back keeps every bound of `wit/template`. Never: it grants nothing; the description is checked like any
//! other request.

use crate::{
    bindings::template as bound,
    bindings::template::exports::dwcp::template::expansion as wit,
    counters::Usage,
    document::{Document, Problem},
    fault::{Fault, FaultKind},
    plugin::{Plugin, digest},
    record::{DecisionRecord, Replay, ReplayError, Stamp, World},
    sandbox::{Compiled, OpenError, Sandbox, Setup},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Instant};

/// The kind of value that a parameter takes; limits are inclusive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParameterKind {
    /// JSON integer.
    Integer {
        /// The least.
        min: i64,
        /// The greatest.
        max: i64,
    },
    /// JSON true or false.
    Boolean,
    /// JSON string.
    Text {
        /// Its length in bytes.
        max_bytes: u32,
    },
    /// JSON string, one of these.
    Choice(Vec<String>),
}

/// One parameter of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub kind: ParameterKind,
    /// The value taken when none is given, JSON text; none: one must be given.
    pub default: Option<String>,
    /// For the user, with the unit.
    pub summary: String,
}

/// What the user sees before choosing a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// A sentence.
    pub summary: String,
    /// One of the eight categories.
    pub category: String,
    /// In the document's order.
    pub parameters: Vec<Parameter>,
}

/// Where the bytes of an image come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Image {
    /// A layer of the template's own artifact, by its title.
    Bundled(String),
    /// An image in the host's store: `sha256:` and 64 hexadecimal digits.
    Stored(String),
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique in the VM.
    pub name: String,
    /// Its size.
    pub size_mib: u64,
    /// What it starts with; empty otherwise.
    pub image: Option<Image>,
    /// Whether the guest may only read it.
    pub read_only: bool,
}

/// What happens when the guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Nothing.
    Never,
    /// Started again if it crashed.
    OnFailure,
    /// Started again.
    Always,
}

/// Wishes for placement, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// Region whose users it serves.
    pub near: Option<String>,
    /// Hard when not empty: one of these.
    pub regions: Vec<String>,
    /// Hard: labels of the host.
    pub labels: Vec<String>,
    /// Groups that the VM joins.
    pub groups: Vec<String>,
    /// Hard: not on a host with a member of these groups.
    pub apart_from: Vec<String>,
}

/// The description of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    /// 1 to 32.
    pub vcpus: u32,
    /// 32 to 1,048,576.
    pub memory_mib: u32,
    /// Kernel image.
    pub kernel: Option<Image>,
    /// Initial RAM disk.
    pub initrd: Option<Image>,
    /// Kernel command line.
    pub cmdline: String,
    /// At most 16.
    pub volumes: Vec<Volume>,
    /// Names of the project's networks, one for each card, at most 8.
    pub networks: Vec<String>,
    /// The user's own tags are added to these, and win.
    pub tags: BTreeMap<String, String>,
    /// What happens when the guest ends.
    pub restart: Restart,
    /// Wishes for placement.
    pub placement: Wishes,
}

/// Why a template was not expanded or described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Something is wrong with the document or the parameters.
    #[error("{}", list(.0))]
    Refused(Vec<Problem>),
    /// The plugin failed.
    #[error(transparent)]
    Fault(#[from] Fault),
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

/// What is recorded as the input of an expansion.
#[derive(Debug, Serialize, Deserialize)]
struct Input {
    template: Document,
    parameters: String,
}

/// What is recorded as its answer.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Answer<'a> {
    Vm(&'a VmSpec),
    Problems(&'a [Problem]),
}

/// An opened template plugin.
pub struct Template {
    plugin: Plugin,
    indices: bound::TemplateIndices,
    /// SHA-256 of the configuration.
    configuration: String,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.plugin.fmt(f)
    }
}

impl Sandbox {
    /// Opens a template plugin.
    pub fn template(
        self: &Arc<Self>,
        compiled: &Compiled,
        setup: Setup,
    ) -> Result<Template, OpenError> {
        let configuration = digest([setup.configuration.as_str()]);
        let concurrent = setup.limits.concurrent_calls;
        let (plugin, indices) =
            Plugin::open(self, compiled, setup, World::Template, concurrent, |pre| {
                bound::TemplateIndices::new(pre)
            })?;
        Ok(Template {
            plugin,
            indices,
            configuration,
        })
    }
}

impl Template {
    /// The component.
    pub fn compiled(&self) -> &Compiled {
        self.plugin.compiled()
    }

    /// What it did so far.
    pub fn usage(&self) -> Usage {
        self.plugin.usage()
    }

    /// What a template is and takes.
    pub fn describe(&self, template: &Document) -> Result<Description, TemplateError> {
        let began = Instant::now();
        let document = to_wit(template);
        let result = self
            .in_new_instance(template.text.len(), |guest, store| {
                guest.call_describe(store, &document)
            })
            .map_err(TemplateError::Fault)
            .and_then(|answer| match answer {
                Ok(description) => Ok(checked_description(description)?),
                Err(problems) => Err(TemplateError::Refused(checked_problems(problems)?)),
            });
        self.count(began, &result);
        result
    }

    /// The VM that a template becomes with `parameters`, a JSON object.
    pub fn expand(
        &self,
        stamp: &Stamp,
        template: &Document,
        parameters: &str,
    ) -> Result<VmSpec, TemplateError> {
        let began = Instant::now();
        let result = self.try_expand(template, parameters);
        self.count(began, &result);
        let input = Input {
            template: template.clone(),
            parameters: parameters.to_owned(),
        };
        let input = serde_json::to_string(&input).unwrap_or_default();
        let answer = as_answer(&result);
        self.plugin.record(
            stamp,
            World::Template,
            &self.configuration,
            input,
            answer.as_ref().map_err(|f| *f),
            began,
        );
        result
    }

    /// Decides a record again.
    pub fn replay(&self, record: &DecisionRecord) -> Result<Replay, ReplayError> {
        let input: Input = serde_json::from_str(&record.input)
            .map_err(|error| ReplayError::Damaged(error.to_string()))?;
        let result = std::cell::OnceCell::new();
        self.plugin.replay(record, &self.configuration, || {
            let result = result.get_or_init(|| self.try_expand(&input.template, &input.parameters));
            Ok(as_answer(result).map_err(Clone::clone))
        })
    }

    fn count<T>(&self, began: Instant, result: &Result<T, TemplateError>) {
        self.plugin.count(began, result, |error| match error {
            TemplateError::Fault(fault) => Some(fault.kind),
            TemplateError::Refused(_) => None,
        });
    }

    fn try_expand(&self, template: &Document, parameters: &str) -> Result<VmSpec, TemplateError> {
        if parameters.len() > 64 << 10 {
            return Err(Fault::new(
                FaultKind::Input,
                "The parameters of a template may have 64 KiB.",
            )
            .into());
        }
        let document = to_wit(template);
        let bytes = template.text.len() + parameters.len();
        match self.in_new_instance(bytes, |guest, store| {
            guest.call_expand(store, &document, parameters)
        })? {
            Ok(spec) => Ok(checked_spec(spec)?),
            Err(problems) => Err(TemplateError::Refused(checked_problems(problems)?)),
        }
    }

    fn in_new_instance<R>(
        &self,
        input_bytes: usize,
        f: impl FnOnce(
            &wit::Guest,
            &mut wasmtime::Store<crate::instance::Budget>,
        ) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        self.plugin.check_input(input_bytes)?;
        let _permit = self.plugin.enter()?;
        let mut live = self
            .plugin
            .start(|store, instance| self.indices.load(store, instance))?;
        self.plugin.call(&mut live, |exports, store| {
            f(exports.dwcp_template_expansion(), store)
        })
    }
}

fn as_answer(result: &Result<VmSpec, TemplateError>) -> Result<Answer<'_>, &Fault> {
    match result {
        Ok(spec) => Ok(Answer::Vm(spec)),
        Err(TemplateError::Refused(problems)) => Ok(Answer::Problems(problems)),
        Err(TemplateError::Fault(fault)) => Err(fault),
    }
}

fn to_wit(document: &Document) -> wit::Document {
    wit::Document {
        path: document.path.clone(),
        media: document.media.clone(),
        text: document.text.clone(),
    }
}

fn wrong(what: impl std::fmt::Display) -> Fault {
    Fault::new(
        FaultKind::Answer,
        format!("The plugin's answer is wrong: {what}."),
    )
}

fn checked_problems(from: Vec<wit::Problem>) -> Result<Vec<Problem>, Fault> {
    let problems: Vec<Problem> = from
        .into_iter()
        .map(|p| Problem {
            path: p.path,
            message: p.message,
        })
        .collect();
    if !(1..=64).contains(&problems.len()) || !problems.iter().all(Problem::is_bounded) {
        return Err(wrong("problems out of bounds"));
    }
    Ok(problems)
}

fn checked_description(from: wit::Description) -> Result<Description, Fault> {
    if from.summary.len() > 512 || from.category.len() > 64 || from.parameters.len() > 64 {
        return Err(wrong("a description out of bounds"));
    }
    let parameters = from
        .parameters
        .into_iter()
        .map(|p| {
            if !(1..=64).contains(&p.name.len()) || p.summary.len() > 512 {
                return Err(wrong("a parameter out of bounds"));
            }
            let kind = match p.kind {
                wit::ParameterType::Integer(range) => ParameterKind::Integer {
                    min: range.min,
                    max: range.max,
                },
                wit::ParameterType::Boolean => ParameterKind::Boolean,
                wit::ParameterType::Text(limit) => ParameterKind::Text {
                    max_bytes: limit.max_bytes,
                },
                wit::ParameterType::Choice(choices) if (1..=64).contains(&choices.len()) => {
                    ParameterKind::Choice(choices)
                }
                wit::ParameterType::Choice(_) => {
                    return Err(wrong("a choice of none or of more than 64"));
                }
            };
            Ok(Parameter {
                name: p.name,
                kind,
                default: p.default,
                summary: p.summary,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Description {
        summary: from.summary,
        category: from.category,
        parameters,
    })
}

fn checked_spec(from: wit::VmSpec) -> Result<VmSpec, Fault> {
    if !(1..=32).contains(&from.vcpus) {
        return Err(wrong(format!("{} vCPUs", from.vcpus)));
    }
    if !(32..=1 << 20).contains(&from.memory_mib) {
        return Err(wrong(format!("{} MiB of memory", from.memory_mib)));
    }
    if from.cmdline.len() > 2_047 || from.cmdline.chars().any(char::is_control) {
        return Err(wrong(
            "a command line that is too long or has control characters",
        ));
    }
    if from.volumes.len() > 16 || from.networks.len() > 8 || from.tags.len() > 64 {
        return Err(wrong("more than 16 volumes, 8 networks or 64 tags"));
    }
    let volumes = from
        .volumes
        .into_iter()
        .map(|v| {
            if !is_label(&v.name) {
                return Err(wrong("a volume's name is out of bounds"));
            }
            let image = v.image.map(checked_image).transpose()?;
            Ok(Volume {
                name: v.name,
                size_mib: v.size_mib,
                image,
                read_only: v.read_only,
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    let names: std::collections::BTreeSet<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
    if names.len() != volumes.len() {
        return Err(wrong("two volumes of the same name"));
    }
    Ok(VmSpec {
        vcpus: from.vcpus,
        memory_mib: from.memory_mib,
        kernel: from.kernel.map(checked_image).transpose()?,
        initrd: from.initrd.map(checked_image).transpose()?,
        cmdline: from.cmdline,
        volumes,
        networks: from.networks.into_iter().map(|n| n.network).collect(),
        tags: from.tags.into_iter().collect(),
        restart: match from.restart {
            wit::Restart::Never => Restart::Never,
            wit::Restart::OnFailure => Restart::OnFailure,
            wit::Restart::Always => Restart::Always,
        },
        placement: checked_wishes(from.placement)?,
    })
}

fn checked_wishes(from: wit::Wishes) -> Result<Wishes, Fault> {
    let lists = [&from.regions, &from.labels, &from.groups, &from.apart_from];
    let names = lists.into_iter().flatten().chain(&from.near);
    if lists.iter().any(|l| l.len() > 16)
        || names.into_iter().any(|n| !(1..=256).contains(&n.len()))
    {
        return Err(wrong("wishes for placement out of bounds"));
    }
    Ok(Wishes {
        near: from.near,
        regions: from.regions,
        labels: from.labels,
        groups: from.groups,
        apart_from: from.apart_from,
    })
}

fn checked_image(from: wit::Image) -> Result<Image, Fault> {
    match from {
        wit::Image::Bundled(title) if (1..=256).contains(&title.len()) => Ok(Image::Bundled(title)),
        wit::Image::Stored(digest) if is_digest(&digest) => Ok(Image::Stored(digest)),
        _ => Err(wrong("an image's title or digest is out of bounds")),
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn is_label(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
