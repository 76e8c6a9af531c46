//! The audit log: files after a crash or in a stranger's hands, and what a server that is not trusted shows of its log.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use dwcp_audit::tree::{self, Frontier, Nodes};
use dwcp_audit::{AuditLog, Checkpoint, Entry, Hash, Kept, Outcome, Replay, Signer, Verifier};
use sha2::{Digest, Sha256};

use crate::input::{Input, read_json};

const NAME: &str = "fuzz.example/log";

/// Files of a log, put together from steps: true and false entries and commits, raw bytes, cuts.
///
/// A log that opens has everything that was acknowledged, takes an entry, and opens again with nothing lost or mended;
/// one that is refused stays as it was.
pub(super) fn log(input: &[u8]) {
    let folder = super::folder();
    let acknowledged = Files::default().build(Input(input)).write(folder.path());
    let before = contents(folder.path());
    let log = match AuditLog::open(folder.path(), signer(1)) {
        Ok(log) => log,
        Err(_) => {
            return assert!(
                before == contents(folder.path()),
                "a refused log was changed"
            );
        }
    };
    let entries = log.report().entries;
    assert_eq!(entries, log.size());
    assert!(entries >= acknowledged, "{entries} of {acknowledged}");
    match log.append(&entry()) {
        Ok(receipt) => assert_eq!(receipt.index, entries),
        Err(error) => panic!("{error}"),
    }
    drop(log);
    match AuditLog::open(folder.path(), signer(1)) {
        Ok(log) => {
            let report = log.report();
            assert_eq!(report.entries, entries + 1);
            assert_eq!((report.dropped_bytes, report.hashes_mended), (0, 0));
        }
        Err(error) => panic!("it opened once and not again: {error}"),
    }
}

fn signer(seed: u8) -> Signer {
    match Signer::from_seed(NAME, &[seed; 32]) {
        Ok(signer) => signer,
        Err(error) => panic!("{error}"),
    }
}

/// The log's key and another of the same name, made once: making one takes longer than most inputs.
fn signers() -> &'static [Signer; 2] {
    static SIGNERS: OnceLock<[Signer; 2]> = OnceLock::new();
    SIGNERS.get_or_init(|| [signer(1), signer(2)])
}

fn entry() -> Entry {
    Entry {
        time_ms: 1,
        principal: "key:admin".into(),
        action: "vm.create".into(),
        object: "projects/default/vms/web".into(),
        outcome: Outcome::Done,
        detail: serde_json::Value::Null,
    }
}

/// All files but the lock, which every opening makes, and an empty hash file, which may be made or not.
fn contents(folder: &Path) -> BTreeMap<std::ffi::OsString, Vec<u8>> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .map(|file| {
            let content = fs::read(file.path()).unwrap_or_default();
            (file.file_name(), content)
        })
        .filter(|(name, content)| name != "lock" && !(name == "hashes" && content.is_empty()))
        .collect()
}

/// A log's files being made, with the tree that they are of.
#[derive(Default)]
struct Files {
    segments: BTreeMap<u64, Vec<u8>>,
    hashes: Vec<u8>,
    /// Hashes that the tree has and the hash file has not.
    pending: Vec<u8>,
    tree: Frontier,
}

impl Files {
    fn build(mut self, mut input: Input<'_>) -> Self {
        self.begin_segment();
        while !input.is_empty() {
            match input.u8() {
                0 => self.entry(input.piece()),
                1 => self.commit(&signers()[0]),
                2 => self.commit(&signers()[1]),
                3 => self.record(b'C', input.piece()),
                4 => self.segment().extend(input.piece()),
                5 => self.begin_segment(),
                6 => {
                    let cut = usize::from(input.u16());
                    let segment = self.segment();
                    segment.truncate(segment.len().saturating_sub(cut));
                }
                7 => self.hashes.append(&mut self.pending),
                8 => self.hashes.extend(input.piece()),
                _ => {
                    let canonical = entry().canonical().unwrap_or_default();
                    self.entry(canonical.as_bytes());
                }
            }
        }
        self
    }

    /// Writes the files; answers how many entries the hash file says were acknowledged at least.
    fn write(self, folder: &Path) -> u64 {
        let mut written = fs::write(folder.join("hashes"), &self.hashes);
        for (first, content) in &self.segments {
            let path = folder.join(format!("segment-{first:020}"));
            written = written.and_then(|()| fs::write(path, content));
        }
        if let Err(error) = written {
            panic!("{error}");
        }
        let hashes = self.hashes.len() as u64 / 32;
        (0..=hashes)
            .take_while(|leaves| 2 * leaves - u64::from(leaves.count_ones()) <= hashes)
            .last()
            .unwrap_or(0)
    }

    fn segment(&mut self) -> &mut Vec<u8> {
        let last = self
            .segments
            .last_key_value()
            .map_or(0, |(first, _)| *first);
        self.segments.entry(last).or_default()
    }

    fn begin_segment(&mut self) {
        let first = self.tree.size();
        let mut header = b"DWCPAUD1".to_vec();
        header.extend(first.to_le_bytes());
        header.resize(32, 0);
        self.segments.entry(first).or_insert(header);
    }

    fn entry(&mut self, body: &[u8]) {
        self.record(b'E', body);
        let pending = &mut self.pending;
        self.tree
            .push(Hash::of_leaf(body), |_, _, hash| pending.extend(hash.0));
    }

    /// A commit of the tree so far, signed with the log's key or with another.
    fn commit(&mut self, by: &Signer) {
        let checkpoint = Checkpoint {
            origin: NAME.into(),
            size: self.tree.size(),
            root: self.tree.root(),
        };
        self.record(b'C', checkpoint.sign(by).as_bytes());
    }

    fn record(&mut self, kind: u8, body: &[u8]) {
        let hash: [u8; 32] = match kind {
            b'E' => Hash::of_leaf(body).0,
            _ => Sha256::new()
                .chain_update([kind])
                .chain_update(body)
                .finalize()
                .into(),
        };
        let segment = self.segment();
        segment.push(kind);
        segment.extend((body.len() as u32).to_le_bytes());
        segment.extend(&hash[..4]);
        segment.extend(body);
    }
}

/// Checkpoints, proofs and what a client keeps. A proof that holds shows what is so: here the whole tree is known.
pub(super) fn proofs(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        notes(text);
    }
    let verifier = Verifier::new(signers()[0].verifier().clone());
    if let Some(kept) = read_json::<Kept>(input) {
        assert!(
            Replay::resume(&verifier, &kept).is_err(),
            "nobody signed it"
        );
    }
    let mut input = Input(input);
    let tree = Tree::new(u64::from(input.u8() % 64) + 1);
    let (index, old) = (input.u64(), input.u64());
    let (leaf, root) = (tree.pick(input.u16()), tree.pick(input.u16()));
    let proof: Vec<Hash> = (0..input.u8()).map(|_| tree.pick(input.u16())).collect();
    if tree::inclusion_holds(&leaf, index, tree.size(), &proof, &tree.root(tree.size())) {
        assert_eq!(leaf, tree.leaves[index as usize]);
    }
    let new_root = tree.root(tree.size());
    if tree::consistency_holds(old, &root, tree.size(), &new_root, &proof) {
        assert_eq!(root, tree.root(old));
    }
    tree.prove(index % tree.size(), old % (tree.size() + 1));
}

/// Notes and checkpoints from the server.
fn notes(text: &str) {
    let signer = &signers()[0];
    assert!(signer.verifier().open(text).is_err(), "nobody signed it");
    if let Ok(checkpoint) = Checkpoint::parse(text) {
        let again = Checkpoint::parse(&checkpoint.to_string());
        assert_eq!(again.as_ref(), Ok(&checkpoint));
    }
    // Signed: what is said is read as it was said, or refused as a whole.
    let said = format!("{}\n", text.trim_end_matches('\n'));
    if let Ok(opened) = signer.verifier().open(&signer.sign(&said)) {
        assert_eq!(opened, said);
    }
}

struct Tree {
    leaves: Vec<Hash>,
}

impl Tree {
    fn new(size: u64) -> Self {
        let leaf = |index: u64| Hash::of_leaf(&index.to_le_bytes());
        Self {
            leaves: (0..size).map(leaf).collect(),
        }
    }

    fn size(&self) -> u64 {
        self.leaves.len() as u64
    }

    /// The root over the first `size` leaves.
    fn root(&self, size: u64) -> Hash {
        let mut tree = Frontier::new();
        for leaf in &self.leaves[..size as usize] {
            tree.push(*leaf, |_, _, _| {});
        }
        tree.root()
    }

    /// Some hash that stands somewhere in the tree, or is the root of an older one.
    fn pick(&self, at: u16) -> Hash {
        let [level, index] = at.to_le_bytes();
        if level == 255 {
            return self.root(u64::from(index) % (self.size() + 1));
        }
        let level = u32::from(level % 7);
        let index = u64::from(index) % ((self.size() >> level).max(1));
        match self.node(level, index) {
            Ok(hash) => hash,
            Err(never) => match never {},
        }
    }

    /// True proofs hold.
    fn prove(&self, index: u64, old: u64) {
        let (size, root) = (self.size(), self.root(self.size()));
        let Ok(proof) = tree::inclusion_proof(self, index, size);
        let leaf = &self.leaves[index as usize];
        assert!(tree::inclusion_holds(leaf, index, size, &proof, &root));
        let Ok(proof) = tree::consistency_proof(self, old, size);
        let old_root = self.root(old);
        assert!(tree::consistency_holds(old, &old_root, size, &root, &proof));
    }
}

impl Nodes for Tree {
    type Error = std::convert::Infallible;

    fn node(&self, level: u32, index: u64) -> Result<Hash, Self::Error> {
        let first = (index << level) as usize;
        let end = (first + (1 << level)).min(self.leaves.len());
        let mut tree = Frontier::new();
        for leaf in &self.leaves[first.min(end)..end] {
            tree.push(*leaf, |_, _, _| {});
        }
        Ok(tree.root())
    }
}
