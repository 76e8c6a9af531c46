//! Disk images made by the tools that vendors make theirs with.
//!
//! What always holds: everything is in a temporary directory; a tool that is missing is named, so that the test can say
//! why it was skipped.

#![allow(dead_code, clippy::unwrap_used)]

pub mod spawn;
pub mod vendor;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use dwcp_image::disk::Expected;

pub const SECTOR: u64 = 512;
pub const MIB: u64 = 1 << 20;

/// Where administrators' tools are when `PATH` does not say it.
const MORE_PLACES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Whether the tools are there; says that the test is skipped when one is not.
pub fn has_tools(test: &str, tools: &[&str]) -> bool {
    for tool in tools {
        if find(tool).is_none() {
            println!("SKIPPED {test}: there is no {tool}");
            return false;
        }
    }
    true
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(MORE_PLACES.iter().map(PathBuf::from))
        .map(|place| place.join(tool))
        .find(|file| file.is_file())
}

/// Runs a tool to its end, with `input` on its standard input, and answers its output.
pub fn run(tool: &str, arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    let mut child = Command::new(find(tool).unwrap())
        .args(arguments)
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that compress little and are the same every time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// A file or link of a file system that is to be made.
pub enum Content<'a> {
    File(&'a [u8]),
    Link(&'a str),
}

/// Lays files out in a directory.
pub fn lay_out(root: &Path, files: &[(&str, Content<'_>)]) {
    fs::create_dir_all(root).unwrap();
    for (path, content) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content {
            Content::File(bytes) => fs::write(&path, bytes).unwrap(),
            Content::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
        }
    }
}

/// Makes an ext4 file system of a directory.
pub fn make_ext4(image: &Path, root: &Path, bytes: u64, uuid: &str, more: &[&str]) {
    sparse(image, bytes);
    let mut arguments = vec!["-q", "-F", "-U", uuid, "-d", text(root)];
    arguments.extend(more);
    arguments.push(text(image));
    run("mkfs.ext4", &arguments, "");
}

/// Makes a FAT volume and copies a directory's files into it.
pub fn make_fat(image: &Path, root: &Path, bytes: u64, bits: &str) {
    sparse(image, bytes);
    run(
        "mkfs.vfat",
        &["-F", bits, "-i", "1234abcd", text(image)],
        "",
    );
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        run("mcopy", &["-s", "-i", text(image), text(&path), "::"], "");
    }
}

/// One partition: its type for `sfdisk`, and what is in it.
pub struct Piece<'a> {
    kind: &'a str,
    image: &'a Path,
    uuid: &'a str,
}

/// Puts one together.
pub fn piece<'a>(kind: &'a str, image: &'a Path, uuid: &'a str) -> Piece<'a> {
    Piece { kind, image, uuid }
}

/// Puts partitions behind each other under a table of the given kind (`gpt`, `dos`).
pub fn make_disk(disk: &Path, label: &str, pieces: &[Piece<'_>]) {
    let mut script = format!("label: {label}\nlabel-id: 0x11223344\n");
    if label == "gpt" {
        script = format!("label: {label}\n");
    }
    let mut at = MIB;
    let mut places = Vec::new();
    for piece in pieces {
        let bytes = fs::metadata(piece.image)
            .unwrap()
            .len()
            .next_multiple_of(MIB);
        script += &format!(
            "start={}, size={}, type={}",
            at / SECTOR,
            bytes / SECTOR,
            piece.kind
        );
        if label == "gpt" {
            script += &format!(", uuid={}", piece.uuid);
        }
        script += "\n";
        places.push(at);
        at += bytes;
    }
    sparse(disk, at + MIB);
    run("sfdisk", &["-q", text(disk)], &script);
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    for (piece, at) in pieces.iter().zip(places) {
        let bytes = fs::read(piece.image).unwrap();
        for (index, block) in bytes.chunks(4096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at + index as u64 * 4096).unwrap();
            }
        }
    }
}

/// Converts a raw image.
pub fn make_qcow2(raw: &Path, qcow2: &Path, options: &[&str]) {
    let mut arguments = vec!["convert", "-f", "raw", "-O", "qcow2"];
    arguments.extend(options);
    arguments.extend([text(raw), text(qcow2)]);
    run("qemu-img", &arguments, "");
}

/// A file that is all holes.
pub fn sparse(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// A chain of one image whose format is to be found out.
pub fn chain(image: &Path) -> Vec<(File, Expected)> {
    vec![(File::open(image).unwrap(), Expected::Detect)]
}

/// An empty file to be written.
pub fn output(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .unwrap()
}
