//! Boot Loader Specification entries of type 1: `loader/entries/*.conf`.
//!
//! What always holds: entries are sorted as the specification says and the first whose files exist is taken; one for
//! another architecture, or that starts an EFI program, is passed over. Words that are variables of GRUB's environment
//! (`$kernelopts`) are replaced from it, as Fedora and its kin write them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::version::compare;
use super::{Candidate, Search, Source};
use crate::files::Volume;
use crate::limits::BOOT_ENTRIES_MAX;
use crate::partitions::Role;
use crate::shown::shown;

/// Where entries are: seen from a boot partition, and from a root that has its own `/boot`.
const PLACES: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];
/// Where GRUB keeps its environment.
const ENVIRONMENTS: [&str; 4] = [
    "/grub2/grubenv",
    "/boot/grub2/grubenv",
    "/grub/grubenv",
    "/boot/grub/grubenv",
];
const ARCHITECTURE: &str = "x64";

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    /// Its file's name without ending and boot counter.
    name: String,
    /// It has been tried as often as it may.
    is_bad: bool,
    sort_key: Option<String>,
    machine: String,
    version: String,
    linux: Option<String>,
    initrds: Vec<String>,
    options: Vec<String>,
    is_foreign: bool,
}

/// Looks through the entries.
pub(super) fn find(search: &mut Search<'_>) -> Option<Candidate> {
    let order = [Role::ExtendedBoot, Role::EfiSystem, Role::Root];
    for (part, volume) in search.system.volumes(&order) {
        for place in PLACES {
            let mut entries = read(search, volume, place);
            if entries.is_empty() {
                continue;
            }
            entries.sort_by(order_of);
            let environment = environment(search, volume);
            for entry in entries {
                if let Some(found) = candidate(search, part, place, &entry, &environment) {
                    return Some(found);
                }
            }
        }
    }
    None
}

fn read(search: &mut Search<'_>, volume: &Volume, place: &str) -> Vec<Entry> {
    let names = search.names(volume, place);
    let mut entries = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".conf")) {
        if entries.len() == BOOT_ENTRIES_MAX {
            search.remark(format!(
                "{place} has more than {BOOT_ENTRIES_MAX} entries; the rest was not read"
            ));
            break;
        }
        if let Some(text) = search.text(volume, &format!("{place}/{name}")) {
            entries.push(parse(name, &text));
        }
    }
    entries
}

fn parse(file: &str, text: &str) -> Entry {
    let stem = file.strip_suffix(".conf").unwrap_or(file);
    let (name, is_bad) = without_counter(stem);
    let mut entry = Entry {
        name: name.to_owned(),
        is_bad,
        ..Entry::default()
    };
    for line in text.lines().map(str::trim) {
        let Some((key, value)) = line.split_once([' ', '\t']) else {
            continue;
        };
        let value = value.trim();
        match key {
            "sort-key" => entry.sort_key = Some(value.to_owned()),
            "machine-id" => entry.machine = value.to_owned(),
            "version" => entry.version = value.to_owned(),
            "linux" => entry.linux = Some(value.to_owned()),
            "options" => entry.options.push(value.to_owned()),
            "architecture" => entry.is_foreign = !value.eq_ignore_ascii_case(ARCHITECTURE),
            "initrd" => entry
                .initrds
                .extend(value.split_ascii_whitespace().map(str::to_owned)),
            _ => {}
        }
    }
    entry
}

/// Takes the boot counter (`+LEFT` or `+LEFT-DONE`) off a name; whether no tries are left.
fn without_counter(stem: &str) -> (&str, bool) {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some((name, counter)) = stem.rsplit_once('+') else {
        return (stem, false);
    };
    let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
    match is_number(left) && is_number(done) {
        true => (name, left.bytes().all(|byte| byte == b'0')),
        false => (stem, false),
    }
}

/// The order in which a boot menu would show them.
fn order_of(left: &Entry, right: &Entry) -> Ordering {
    let keys = match (&left.sort_key, &right.sort_key) {
        (Some(a), Some(b)) => a
            .cmp(b)
            .then_with(|| left.machine.cmp(&right.machine))
            .then_with(|| compare(&right.version, &left.version)),
        (a, b) => b.is_some().cmp(&a.is_some()),
    };
    left.is_bad
        .cmp(&right.is_bad)
        .then(keys)
        .then_with(|| compare(&right.name, &left.name))
}

/// The variables of GRUB's environment block.
fn environment(search: &mut Search<'_>, volume: &Volume) -> BTreeMap<String, String> {
    ENVIRONMENTS
        .iter()
        .find_map(|path| search.text(volume, path))
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The entry's files, if they exist.
fn candidate(
    search: &mut Search<'_>,
    part: usize,
    place: &str,
    entry: &Entry,
    environment: &BTreeMap<String, String>,
) -> Option<Candidate> {
    let linux = entry.linux.as_ref()?;
    if entry.is_foreign {
        return None;
    }
    let label = format!("{place}/{}.conf", entry.name);
    let Some(kernel) = search.locate(part, &paths(linux)) else {
        search.remark(format!("{}: there is no {}", shown(&label), shown(linux)));
        return None;
    };
    let written = expand(&entry.initrds.join(" "), environment);
    let written: Vec<&str> = written.split_ascii_whitespace().collect();
    if !search.takes_initrds(&shown(&label), written.len()) {
        return None;
    }
    let mut initrds = Vec::new();
    for initrd in written {
        let Some(found) = search.locate(part, &paths(initrd)) else {
            search.remark(format!("{}: there is no {}", shown(&label), shown(initrd)));
            return None;
        };
        initrds.push(found);
    }
    Some(Candidate {
        source: Source::LoaderEntry,
        kernel,
        initrds,
        options: expand(&entry.options.join(" "), environment),
    })
}

/// A path in an entry counts from the boot partition's root; where `/boot` is a directory of the root partition, some
/// tools count from there.
fn paths(path: &str) -> [String; 2] {
    let path = path.trim_start_matches('/');
    [format!("/{path}"), format!("/boot/{path}")]
}

/// Replaces words that are variables; one that is not set is nothing.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
    let words = text.split_ascii_whitespace().filter_map(|word| {
        let Some(name) = word.strip_prefix('$') else {
            return Some(word);
        };
        let name = name
            .strip_prefix('{')
            .and_then(|name| name.strip_suffix('}'))
            .unwrap_or(name);
        environment.get(name).map(String::as_str)
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(files: &[(&str, &str)]) -> Vec<String> {
        let mut entries: Vec<Entry> = files.iter().map(|(name, text)| parse(name, text)).collect();
        entries.sort_by(order_of);
        entries.into_iter().map(|entry| entry.name).collect()
    }

    #[test]
    fn an_entry_is_read() {
        let entry = parse(
            "abc-6.1.conf",
            "# a comment\ntitle  A system\nversion 6.1\nmachine-id abc\nlinux\t/vmlinuz-6.1\ninitrd /a.img $tuned\n\
             initrd /b.img\noptions root=UUID=1 ro\noptions quiet\narchitecture X64\nunknown x\n",
        );
        assert_eq!(entry.linux.as_deref(), Some("/vmlinuz-6.1"));
        assert_eq!(entry.initrds, ["/a.img", "$tuned", "/b.img"]);
        assert_eq!(entry.options, ["root=UUID=1 ro", "quiet"]);
        assert_eq!(entry.version, "6.1");
        assert!(!entry.is_foreign && !entry.is_bad);
        assert!(parse("x.conf", "architecture aa64").is_foreign);
    }

    #[test]
    fn the_newest_comes_first_and_the_rescue_last() {
        let order = sorted(&[
            ("abc-0-rescue.conf", "version 0-rescue"),
            ("abc-6.5.6-200.conf", "version 6.5.6-200"),
            ("abc-6.5.10-100.conf", "version 6.5.10-100"),
        ]);
        assert_eq!(order, ["abc-6.5.10-100", "abc-6.5.6-200", "abc-0-rescue"]);
    }

    #[test]
    fn a_sort_key_goes_before_names_and_no_tries_left_goes_last() {
        let order = sorted(&[
            ("z.conf", ""),
            ("old.conf", "sort-key debian\nversion 5.9"),
            ("new+3-1.conf", "sort-key debian\nversion 5.10"),
            ("bad+0-3.conf", "sort-key aaa\nversion 9"),
            ("arch.conf", "sort-key arch\nversion 1"),
        ]);
        assert_eq!(order, ["arch", "new", "old", "z", "bad"]);
    }

    #[test]
    fn a_plus_that_is_no_counter_stays() {
        assert_eq!(without_counter("6.1.0+deb12"), ("6.1.0+deb12", false));
        assert_eq!(without_counter("6.1+3"), ("6.1", false));
        assert_eq!(without_counter("6.1+0-2"), ("6.1", true));
    }

    #[test]
    fn variables_come_from_the_environment_or_vanish() {
        let environment = BTreeMap::from([("kernelopts".to_owned(), "root=UUID=7 ro".to_owned())]);
        assert_eq!(
            expand("$kernelopts  quiet ${tuned} a=$b", &environment),
            "root=UUID=7 ro quiet a=$b"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_an_entry(name in ".{0,30}", text in "(?s).{0,200}") {
            let entry = parse(&name, &text);
            prop_assert_eq!(order_of(&entry, &entry), Ordering::Equal);
        }
    }
}
