//! Small components written by hand, so that a test can make a plugin do exactly one wrong thing.
//!
//! A component is a core module in WAT under one of the contracts of `wit/`, encoded as `cargo xtask plugins` does.
//! Every function of the contract has a harmless default; a test replaces the ones it is about.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use dwcp_plugins::{Compiled, DecisionRecord, NoRecorder, Recorder, Sandbox, SandboxConfig, Stamp};
use std::{
    fmt::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Records in memory.
#[derive(Default)]
pub struct Kept(pub Mutex<Vec<DecisionRecord>>);

impl Recorder for Kept {
    fn record(&self, record: DecisionRecord) {
        self.0.lock().unwrap().push(record);
    }
}

impl Kept {
    pub fn all(&self) -> Vec<DecisionRecord> {
        self.0.lock().unwrap().clone()
    }

    pub fn last(&self) -> DecisionRecord {
        self.all().pop().unwrap()
    }
}

/// A sandbox in a directory that goes away with it.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub sandbox: Arc<Sandbox>,
    pub kept: Arc<Kept>,
}

pub fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let kept = Arc::new(Kept::default());
    let sandbox = Sandbox::new(SandboxConfig {
        instances: 40,
        manifest_ms: 1_000,
        ..SandboxConfig::below(dir.path(), kept.clone())
    })
    .unwrap();
    Bench { dir, sandbox, kept }
}

pub fn quiet_sandbox(dir: &Path) -> Arc<Sandbox> {
    Sandbox::new(SandboxConfig {
        instances: 40,
        manifest_ms: 1_000,
        ..SandboxConfig::below(dir, Arc::new(NoRecorder))
    })
    .unwrap()
}

pub fn stamp(id: &str) -> Stamp {
    Stamp::new(id, 1_700_000_000_000)
}

/// A component that `cargo xtask plugins` builds. The test fails without it.
pub fn built(name: &str) -> Vec<u8> {
    let dir = std::env::var_os("DWCP_PLUGINS_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/plugins"),
        PathBuf::from,
    );
    let path = dir.join(name).with_extension("wasm");
    std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: run cargo xtask plugins", path.display()))
}

/// A hand-made component.
pub struct Wat {
    world: &'static str,
    /// WIT text of a world of the test's own, in place of one of `wit/`.
    inline: Option<&'static str>,
    memory_pages: u32,
    imports: String,
    declarations: String,
    functions: Vec<(String, String)>,
    manifest_world: String,
    capabilities: Vec<&'static str>,
    version: &'static str,
}

/// Where static answers begin; below lie zeros, which mean "fine, nothing" in every contract.
const DATA: usize = 4_096;

impl Wat {
    pub fn policy() -> Wat {
        Wat::of("dwcp:policy/policy@0.1.0")
    }

    pub fn template() -> Wat {
        Wat::of("dwcp:template/template@0.1.0")
    }

    pub fn placement() -> Wat {
        Wat::of("dwcp:placement/placement@0.1.0")
    }

    /// A world with one more function, `run`, that takes and gives nothing.
    pub fn probe() -> Wat {
        Wat {
            inline: Some(
                "package test:probe; world probe { export dwcp:types/plugin@0.1.0; export run: func(); }",
            ),
            ..Wat::of("test:probe/probe")
        }
    }

    fn of(world: &'static str) -> Wat {
        Wat {
            world,
            inline: None,
            memory_pages: 2,
            imports: String::new(),
            declarations: String::new(),
            functions: Vec::new(),
            manifest_world: world.into(),
            capabilities: Vec::new(),
            version: "0.1.0",
        }
    }

    pub fn memory_pages(mut self, pages: u32) -> Wat {
        self.memory_pages = pages;
        self
    }

    pub fn version(mut self, version: &'static str) -> Wat {
        self.version = version;
        self
    }

    pub fn claims_world(mut self, world: &str) -> Wat {
        self.manifest_world = world.into();
        self
    }

    pub fn asks_for(mut self, capability: &'static str) -> Wat {
        self.capabilities.push(capability);
        self
    }

    /// WIT of a world of the test's own, which replaces the contract.
    pub fn world(mut self, world: &'static str, wit: &'static str) -> Wat {
        self.world = world;
        self.inline = Some(wit);
        self
    }

    /// Globals, data, helper functions, a start function.
    pub fn declare(mut self, wat: &str) -> Wat {
        self.declarations.push_str(wat);
        self
    }

    /// Imports of the core module.
    pub fn import(mut self, wat: &str) -> Wat {
        self.imports.push_str(wat);
        self
    }

    /// The body of an export, parameters and result included.
    pub fn function(mut self, export: &str, wat: &str) -> Wat {
        self.functions.push((export.into(), wat.into()));
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let wit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        let mut resolve = Resolve::default();
        let mut packages = Vec::new();
        for package in ["types", "placement", "policy", "template"] {
            packages.push(resolve.push_path(wit.join(package)).unwrap().0);
        }
        if let Some(text) = self.inline {
            packages.push(resolve.push_str("inline.wit", text).unwrap());
        }
        let world = resolve.select_world(&packages, Some(self.world)).unwrap();
        let mut module = wat::parse_str(self.module()).unwrap();
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false)
            .unwrap();
        ComponentEncoder::default()
            .module(&module)
            .unwrap()
            .validate(true)
            .encode()
            .unwrap()
    }

    fn module(&self) -> String {
        let plugin = "dwcp:types/plugin@0.1.0";
        let mut defaults = vec![
            (
                format!("{plugin}#manifest"),
                format!("(result i32) i32.const {DATA}"),
            ),
            (
                format!("{plugin}#set-up"),
                "(param i32 i32) (result i32) i32.const 64".to_owned(),
            ),
        ];
        let more: &[(&str, &str)] = match self
            .manifest_world
            .split(':')
            .nth(1)
            .and_then(|w| w.split('/').next())
        {
            Some("policy") => &[
                (
                    "dwcp:policy/rules@0.1.0#configure",
                    "(param i32 i32) (result i32) i32.const 64",
                ),
                // One verdict: the zeros at 64, "allow".
                (
                    "dwcp:policy/rules@0.1.0#decide",
                    "(param i32 i32) (result i32) i32.const 16",
                ),
            ],
            Some("template") => &[
                (
                    "dwcp:template/expansion@0.1.0#describe",
                    "(param i32 i32 i32 i32 i32 i32) (result i32) unreachable",
                ),
                (
                    "dwcp:template/expansion@0.1.0#expand",
                    "(param i32 i32 i32 i32 i32 i32 i32 i32) (result i32) unreachable",
                ),
            ],
            Some("placement") => &[
                (
                    "dwcp:placement/decisions@0.1.0#load",
                    "(param i32) (result i32) i32.const 64",
                ),
                (
                    "dwcp:placement/decisions@0.1.0#apply",
                    "(param i32) (result i32) i32.const 64",
                ),
                (
                    "dwcp:placement/decisions@0.1.0#decide",
                    "(param i32) (result i32) unreachable",
                ),
            ],
            _ => &[("run", "")],
        };
        defaults.extend(
            more.iter()
                .map(|(name, body)| ((*name).to_owned(), (*body).to_owned())),
        );
        let mut text = format!(
            r#"(module {imports}
  (memory (export "memory") {pages})
  (global $top (mut i32) (i32.const 65536))
  (data (i32.const 16) "\40\00\00\00\01\00\00\00")
  (func (export "cabi_realloc") (param $old i32) (param $had i32) (param $align i32) (param $want i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
    (global.set $top (i32.add (local.get $at) (local.get $want)))
    (block $fits
      (br_if $fits (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
      (br_if $fits (i32.ne (i32.const -1) (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get $want) (i32.const 16))))))
      unreachable)
    (local.get $at))
"#,
            imports = self.imports,
            pages = self.memory_pages
        );
        text.push_str(&self.manifest_data());
        text.push_str(&self.declarations);
        for (name, body) in &defaults {
            if !self.functions.iter().any(|(n, _)| n == name) {
                write!(text, "\n  (func (export \"{name}\") {body})").unwrap();
            }
        }
        for (name, body) in &self.functions {
            write!(text, "\n  (func (export \"{name}\") {body})").unwrap();
        }
        text.push(')');
        text
    }

    fn manifest_data(&self) -> String {
        let mut strings = Bytes::at(DATA + 48);
        let mut record = Bytes::at(DATA);
        for text in ["made-by-hand", "dwcp", self.version, &self.manifest_world] {
            record.string(&mut strings, text);
        }
        let mut capabilities = Vec::new();
        for capability in &self.capabilities {
            let mut row = Bytes::at(0);
            row.string(&mut strings, capability);
            row.string(&mut strings, "It is a test.");
            row.u32(0);
            capabilities.extend(row.bytes);
        }
        let count = self.capabilities.len() as u32;
        let at = strings.put(&capabilities);
        record.u32(at).u32(count).string(&mut strings, "{}");
        record.data() + &strings.data()
    }
}

/// Bytes of guest memory from an address on.
pub struct Bytes {
    at: usize,
    pub bytes: Vec<u8>,
}

impl Bytes {
    pub fn at(at: usize) -> Bytes {
        Bytes {
            at,
            bytes: Vec::new(),
        }
    }

    pub fn u8(&mut self, value: u8) -> &mut Bytes {
        self.bytes.push(value);
        self
    }

    pub fn u32(&mut self, value: u32) -> &mut Bytes {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Bytes {
        self.bytes.extend(value.to_le_bytes());
        self
    }

    pub fn f64(&mut self, value: f64) -> &mut Bytes {
        self.u64(value.to_bits())
    }

    /// Zeros up to a multiple of `to`.
    pub fn align(&mut self, to: usize) -> &mut Bytes {
        while !(self.at + self.bytes.len()).is_multiple_of(to) {
            self.bytes.push(0);
        }
        self
    }

    /// Puts bytes, 8-aligned, and gives their address.
    pub fn put(&mut self, bytes: &[u8]) -> u32 {
        self.align(8);
        let address = self.at + self.bytes.len();
        self.bytes.extend(bytes);
        address as u32
    }

    /// Pointer and length here, the text in `pool`.
    pub fn string(&mut self, pool: &mut Bytes, text: &str) -> &mut Bytes {
        let at = pool.put(text.as_bytes());
        self.u32(at).u32(text.len() as u32)
    }

    pub fn data(&self) -> String {
        let escaped: String = self.bytes.iter().fold(String::new(), |mut out, byte| {
            write!(out, "\\{byte:02x}").unwrap();
            out
        });
        format!("\n  (data (i32.const {}) \"{escaped}\")", self.at)
    }
}

pub fn compile(sandbox: &Sandbox, wat: &Wat) -> Compiled {
    sandbox.compile(&wat.build()).unwrap()
}
