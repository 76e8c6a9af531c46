//! Putting the values into the VM.
//!
//! What always holds: an expansion is within the limits of the contract; a placeholder without a parameter is
//! an error.

use crate::bindings::exports::dwcp::template::expansion::{
    self as contract, NetworkCard, Problem, VmSpec, Wishes,
};
use crate::document::{Image, Number, Placement, Restart, Vm, Volume};
use crate::parameters::Values;
use crate::{problem, unless_wrong};

const MAX_CMDLINE_BYTES: usize = 1536;
const MAX_VOLUMES: usize = 16;
const MAX_NETWORKS: usize = 8;
const MAX_TAGS: usize = 64;
const MAX_WISHES: usize = 64;

/// Expands a document's VM.
pub fn expand(vm: Vm, values: &Values) -> Result<VmSpec, Vec<Problem>> {
    let mut filler = Filler {
        values,
        problems: Vec::new(),
    };
    let spec = VmSpec {
        vcpus: filler.number("vm.vcpus", &vm.vcpus, 1..=32) as u32,
        memory_mib: filler.number("vm.memory_mib", &vm.memory_mib, 32..=1_048_576) as u32,
        kernel: vm.kernel.map(|image| filler.image("vm.kernel", image)),
        initrd: vm.initrd.map(|image| filler.image("vm.initrd", image)),
        cmdline: filler.text("vm.cmdline", &vm.cmdline, MAX_CMDLINE_BYTES),
        volumes: filler.volumes(vm.volumes),
        networks: filler
            .texts("vm.networks", &vm.networks, MAX_NETWORKS)
            .into_iter()
            .map(|network| NetworkCard { network })
            .collect(),
        tags: filler.tags(vm.tags),
        restart: match vm.restart {
            Restart::Never => contract::Restart::Never,
            Restart::OnFailure => contract::Restart::OnFailure,
            Restart::Always => contract::Restart::Always,
        },
        placement: filler.placement(vm.placement),
    };
    unless_wrong(spec, filler.problems)
}

/// Fills texts and notes what is wrong, so that all of it is told at once.
struct Filler<'a> {
    values: &'a Values,
    problems: Vec<Problem>,
}

impl Filler<'_> {
    fn wrong(&mut self, path: &str, message: &str) {
        self.problems.push(problem(path, message));
    }

    fn text(&mut self, path: &str, template: &str, max_bytes: usize) -> String {
        let filled = fill(template, self.values).unwrap_or_else(|message| {
            self.wrong(path, &message);
            String::new()
        });
        if filled.len() > max_bytes || filled.chars().any(char::is_control) {
            let message =
                format!("It must have at most {max_bytes} bytes and no control characters.");
            self.wrong(path, &message);
        }
        filled
    }

    fn number(&mut self, path: &str, number: &Number, range: std::ops::RangeInclusive<i64>) -> i64 {
        let value = match number {
            Number::Plain(value) => Some(*value),
            Number::Text(template) => self.text(path, template, 20).parse().ok(),
        };
        match value.filter(|value| range.contains(value)) {
            Some(value) => value,
            None => {
                let (min, max) = (range.start(), range.end());
                self.wrong(
                    path,
                    &format!("It must be a whole number from {min} to {max}."),
                );
                *min
            }
        }
    }

    fn image(&mut self, path: &str, image: Image) -> contract::Image {
        match image {
            Image::Bundled(title) => contract::Image::Bundled(self.text(path, &title, 128)),
            Image::Stored(digest) => {
                let digest = self.text(path, &digest, 71);
                let digits = digest.strip_prefix("sha256:").unwrap_or_default();
                let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if digits.len() != 64 || !digits.bytes().all(lower) {
                    self.wrong(
                        path,
                        "An image is named by `sha256:` and 64 hexadecimal digits.",
                    );
                }
                contract::Image::Stored(digest)
            }
        }
    }

    fn texts(&mut self, path: &str, templates: &[String], most: usize) -> Vec<String> {
        if templates.len() > most {
            self.wrong(path, &format!("There may be at most {most}."));
        }
        templates
            .iter()
            .take(most)
            .map(|template| self.text(path, template, 256))
            .collect()
    }

    fn volumes(&mut self, volumes: Vec<Volume>) -> Vec<contract::Volume> {
        let path = "vm.volumes";
        if volumes.len() > MAX_VOLUMES {
            self.wrong(path, &format!("There may be at most {MAX_VOLUMES}."));
        }
        let mut filled: Vec<contract::Volume> = Vec::new();
        for volume in volumes.into_iter().take(MAX_VOLUMES) {
            let name = self.text(path, &volume.name, 64);
            let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.is_empty() || !name.bytes().all(legal) {
                self.wrong(
                    path,
                    "A volume's name is 1 to 64 lower-case letters, digits and hyphens.",
                );
            }
            if filled.iter().any(|other| other.name == name) {
                self.wrong(path, "Two volumes have the same name.");
            }
            filled.push(contract::Volume {
                name,
                size_mib: self.number(path, &volume.size_mib, 1..=1 << 40) as u64,
                image: volume.image.map(|image| self.image(path, image)),
                read_only: volume.read_only,
            });
        }
        filled
    }

    fn tags(&mut self, tags: std::collections::BTreeMap<String, String>) -> Vec<(String, String)> {
        if tags.len() > MAX_TAGS {
            self.wrong("vm.tags", &format!("There may be at most {MAX_TAGS}."));
        }
        let fill = |(key, value): (String, String)| {
            let value = self.text("vm.tags", &value, 256);
            (key, value)
        };
        tags.into_iter().take(MAX_TAGS).map(fill).collect()
    }

    fn placement(&mut self, placement: Placement) -> Wishes {
        let near = placement
            .near
            .map(|near| self.text("vm.placement.near", &near, 256));
        let mut texts = |path, templates: &[String]| self.texts(path, templates, MAX_WISHES);
        Wishes {
            near,
            regions: texts("vm.placement.regions", &placement.regions),
            labels: texts("vm.placement.labels", &placement.labels),
            groups: texts("vm.placement.groups", &placement.groups),
            apart_from: texts("vm.placement.apart_from", &placement.apart_from),
        }
    }
}

/// Replaces each `{name}`; `{{` and `}}` stand for braces. Errors: a sentence.
fn fill(template: &str, values: &Values) -> Result<String, String> {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        filled.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            filled.push_str(brace);
            rest = after;
            continue;
        }
        let name = (brace == "{").then(|| rest.split_once('}')).flatten();
        let Some((name, after)) = name else {
            return Err("A brace stands alone; write `{{` or `}}` for one.".into());
        };
        let value = values.get(name);
        filled.push_str(value.ok_or_else(|| format!("There is no parameter `{name}`."))?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}
