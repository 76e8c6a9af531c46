//! The book and the pages beside it, held to what is there: contents, links, commands and limits.
//!
//! What always holds: a page that the contents do not name, a relative link that leads nowhere, a command or flag that
//! a program does not have, and a limit that the code does not name are found.
//!
//! What it must not know: what the pages say.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs whose commands and flags the pages may show, by what a reader types.
const PROGRAMS: &[(&[&str], &str)] = &[
    (&["cargo", "xtask", "demo"], "dwcp-demo"),
    (&["cargo", "xtask"], "xtask"),
    (&["dwcp"], "dwcp"),
    (&["dwcpd"], "dwcpd"),
    (&["dwcp-launch"], "dwcp-launch"),
    (&["dwcp-demo"], "dwcp-demo"),
];

#[test]
fn the_contents_name_every_page_and_nothing_else() {
    let source = root().join("docs/src");
    let contents = fs::read_to_string(source.join("SUMMARY.md")).unwrap();
    let named: BTreeSet<PathBuf> = links(&contents)
        .into_iter()
        .map(|link| source.join(link))
        .collect();
    let there: BTreeSet<PathBuf> = pages_below(&source)
        .into_iter()
        .filter(|page| !page.ends_with("SUMMARY.md"))
        .collect();
    assert_eq!(named, there);
}

#[test]
fn every_relative_link_leads_somewhere() {
    let pages = pages();
    assert!(pages.len() > 20, "only {} pages found", pages.len());
    let dead: Vec<String> = pages
        .iter()
        .flat_map(|page| dead_links(page, &fs::read_to_string(page).unwrap()))
        .collect();
    assert_none(&dead);
}

#[test]
fn every_command_shown_exists() {
    let Some(folder) = programs() else {
        println!(
            "SKIPPED every_command_shown_exists: the programs are not built (cargo build --workspace --bins)"
        );
        return;
    };
    let mut helps = Helps::new(|program: &str, path: &[String]| ask(&folder, program, path));
    let mut found = Vec::new();
    let mut checked = 0;
    for page in pages() {
        for command in commands(&fs::read_to_string(&page).unwrap()) {
            checked += 1;
            if let Err(problem) = helps.check(&command) {
                found.push(format!("{}: {command}: {problem}", page.display()));
            }
        }
    }
    assert!(checked > 20, "only {checked} commands found");
    assert_none(&found);
}

#[test]
fn every_limit_is_in_the_code() {
    let page = fs::read_to_string(root().join("docs/src/reference/limits.md")).unwrap();
    let places = places(&page);
    assert!(places.len() > 20, "only {} limits found", places.len());
    let lost: Vec<String> = places
        .into_iter()
        .filter(|(file, name)| {
            !fs::read_to_string(root().join(file)).is_ok_and(|code| code.contains(name.as_str()))
        })
        .map(|(file, name)| format!("{file} has no {name}"))
        .collect();
    assert_none(&lost);
}

#[test]
fn every_key_of_the_configuration_is_documented() {
    let code = fs::read_to_string(root().join("host/dwcpd/src/config.rs")).unwrap();
    let page = fs::read_to_string(root().join("docs/src/reference/configuration.md")).unwrap();
    let keys = keys(&code);
    assert!(keys.len() > 8, "only {keys:?} found");
    let lost: Vec<String> = keys
        .into_iter()
        .filter(|key| !page.contains(&format!("{key} =")))
        .collect();
    assert_none(&lost);
}

#[test]
fn the_daemon_accepts_the_configuration_shown() {
    let Some(folder) = programs() else {
        println!(
            "SKIPPED the_daemon_accepts_the_configuration_shown: the programs are not built (cargo build --workspace --bins)"
        );
        return;
    };
    let page = fs::read_to_string(root().join("docs/src/reference/configuration.md")).unwrap();
    let example = page
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("example.pem"), "PEM").unwrap();
    let file = place.path().join("dwcpd.toml");
    let here = format!("{}/", place.path().display());
    fs::write(&file, example.replace("/etc/dwcp/keys/", &here)).unwrap();
    let out = Command::new(folder.join("dwcpd"))
        .args(["--check", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
}

/// The checks, seen to fail.
#[test]
fn a_dead_link_is_found() {
    let page = root().join("docs/src/introduction.md");
    let text = "[a](decisions/README.md#x) [b](https://example.org) [c](nowhere.md)\n";
    let dead = dead_links(&page, text);
    assert_eq!(dead.len(), 1);
    assert!(dead[0].contains("nowhere.md"));
}

#[test]
fn an_unknown_command_or_flag_is_found() {
    let text = "Use `dwcp vm create web`.\n```sh\n# a remark\nsudo dwcp vm create web \\\n  --memory 1GiB --tag a=b\n\
                dwcp vm fly\n$ dwcp vm create --color red | less --wrong\nls --all\n```\n";
    let commands = commands(text);
    assert_eq!(commands.len(), 4, "{commands:?}");
    let mut helps = Helps::new(|_: &str, path: &[String]| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        Some(match path.as_slice() {
            [] => "Commands:\n  vm    Machines\n  help  Print this\n".into(),
            ["vm"] => "Commands:\n  create  Make one\n".into(),
            _ => "Options:\n      --memory <SIZE>\n      --tag <TAG>\n".to_owned(),
        })
    });
    let wrong: Vec<String> = commands
        .iter()
        .filter_map(|command| helps.check(command).err())
        .collect();
    assert_eq!(
        wrong,
        ["there is no command fly", "there is no flag --color"]
    );
}

/// What programs say of themselves, asked once each.
struct Helps<F> {
    ask: F,
    known: BTreeMap<(String, Vec<String>), String>,
}

impl<F: Fn(&str, &[String]) -> Option<String>> Helps<F> {
    fn new(ask: F) -> Self {
        Self {
            ask,
            known: BTreeMap::new(),
        }
    }

    fn help(&mut self, program: &str, path: &[String]) -> Result<String, String> {
        let key = (program.to_owned(), path.to_vec());
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let help = (self.ask)(program, path)
            .ok_or_else(|| format!("{program} {} has no help", path.join(" ")))?;
        self.known.insert(key, help.clone());
        Ok(help)
    }

    /// Checks one command line against the program's help.
    fn check(&mut self, line: &str) -> Result<(), String> {
        let words = words(line);
        let Some((typed, program)) = program_of(&words) else {
            return Ok(());
        };
        let mut path: Vec<String> = Vec::new();
        let mut help = self.help(program, &path)?;
        let mut rest = words[typed..].iter().peekable();
        loop {
            let commands = subcommands(&help);
            let Some(word) = rest.next_if(|word| is_word(word)) else {
                break;
            };
            if commands.contains(word.as_str()) {
                path.push(word.clone());
                help = self.help(program, &path)?;
            } else if commands.is_empty() {
                break;
            } else {
                return Err(format!("there is no command {word}"));
            }
        }
        for flag in rest.take_while(|word| *word != "--") {
            let name = flag.split('=').next().unwrap_or_default();
            let shown = help
                .split(|c: char| c.is_whitespace() || ",[]=".contains(c))
                .any(|word| word == name);
            if name.starts_with('-') && name.len() > 1 && !shown {
                return Err(format!("there is no flag {name}"));
            }
        }
        Ok(())
    }
}

/// Which program a command line starts, and how many words name it.
fn program_of(words: &[String]) -> Option<(usize, &'static str)> {
    PROGRAMS
        .iter()
        .find(|(typed, _)| {
            words.len() >= typed.len() && typed.iter().zip(words).all(|(typed, word)| typed == word)
        })
        .map(|(typed, program)| (typed.len(), *program))
}

/// The commands that a help text lists.
fn subcommands(help: &str) -> BTreeSet<&str> {
    help.lines()
        .skip_while(|line| line.trim() != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

fn is_word(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase()) && !word.contains(['.', '/', '=', ':'])
}

/// A command line's words up to a pipe, a redirection or a remark. What begins with a variable or `sudo` begins later.
fn words(line: &str) -> Vec<String> {
    line.split_whitespace()
        .skip_while(|word| *word == "$" || *word == "sudo" || word.contains('='))
        .take_while(|word| !matches!(*word, "|" | "&&" | ";" | "&" | ">" | "#"))
        .map(|word| word.trim_matches(['"', '\'', '…']).to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Lines that start one of our programs: in code that a shell would read, and between backticks in text.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fence: Option<bool> = None;
    let mut open = String::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            fence = match fence {
                None => Some(matches!(language.trim(), "sh" | "console" | "bash")),
                Some(_) => None,
            };
            continue;
        }
        match fence {
            Some(true) => match line.trim_end().strip_suffix('\\') {
                Some(part) => open = open + part + " ",
                None => found.push(std::mem::take(&mut open) + line),
            },
            Some(false) => {}
            None => found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned)),
        }
    }
    found.retain(|line| {
        program_of(&words(line)).is_some_and(|(typed, _)| words(line).len() > typed)
    });
    found
}

/// The folder with the built programs: beside this test's own folder.
fn programs() -> Option<PathBuf> {
    let folder = std::env::var_os("DWCP_BIN_DIR")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::current_exe().ok()?.parent()?.parent()?.into()))?;
    let all = PROGRAMS.iter().all(|(_, name)| folder.join(name).is_file());
    all.then_some(folder)
}

/// The help of a program's command.
fn ask(folder: &Path, program: &str, path: &[String]) -> Option<String> {
    let out = Command::new(folder.join(program))
        .args(path)
        .arg("--help")
        .output()
        .ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The fields of the structures that are read from the configuration file, tables left out.
fn keys(code: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for part in code.split("deny_unknown_fields").skip(1) {
        let fields = part.split("\n}").next().unwrap_or_default();
        for line in fields.lines() {
            let Some((name, kind)) = line.trim().trim_end_matches(',').split_once(": ") else {
                continue;
            };
            // A type of this file is a table: its own fields are the keys.
            let own = code.contains(&format!("struct {kind} {{"));
            if !own && !kind.starts_with("Vec<") {
                keys.insert(name.to_owned());
            }
        }
    }
    keys
}

/// Pairs of file and name in the last cell of a table's rows.
fn places(page: &str) -> Vec<(String, String)> {
    page.lines()
        .filter_map(|row| {
            let cell = row.trim().strip_suffix('|')?.rsplit('|').next()?.trim();
            let mut quoted = cell.split('`').skip(1).step_by(2);
            let (file, name) = (quoted.next()?, quoted.next()?);
            file.ends_with(".rs")
                .then(|| (file.to_owned(), name.to_owned()))
        })
        .collect()
}

/// Relative links of a page that lead nowhere.
fn dead_links(page: &Path, text: &str) -> Vec<String> {
    let folder = page.parent().unwrap();
    links(text)
        .into_iter()
        .filter(|link| !folder.join(link).exists())
        .map(|link| format!("{}: {link} is not there", page.display()))
        .collect()
}

/// The relative links of a text, without their anchors; code is passed over.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push(path.to_owned());
            }
        }
    }
    found
}

/// The book's pages, those in the root of the tree and those beside the policies.
fn pages() -> Vec<PathBuf> {
    let mut pages = pages_below(&root().join("docs/src"));
    pages.extend(pages_below(&root().join("policies")));
    for entry in fs::read_dir(root()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "md") {
            pages.push(path);
        }
    }
    pages
}

fn pages_below(folder: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}
