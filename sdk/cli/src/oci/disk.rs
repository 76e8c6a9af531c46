//! Taking the disk out of a layer: the layer may be the disk's file, compressed or not, or a part of a file system that
//! has it in `disk/` (what KubeVirt calls a container disk).
//!
//! What always holds: what it is shows in its bytes, for registries hold disks under many types; no name in it becomes a
//! path of this machine; no more is written than an image may have. It reads only what was checked against its digest.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};

use super::temporary;

/// Largest disk, bytes: what a host takes.
pub const DISK_BYTES_MAX: u64 = 64 << 30;
/// What is looked at to tell what a file is.
const HEAD_BYTES: usize = 512;
/// What is copied at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Names that a refusal shows.
const NAMES_MAX: usize = 8;

/// The disk in a layer, if there is one. `is_file` says that the layer is a file and not a part of a file system.
pub fn find(mut layer: File, is_file: bool) -> Result<Option<File>> {
    layer.rewind()?;
    let head = head(&mut layer)?;
    layer.rewind()?;
    let mut content: Box<dyn Read> = match &head[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(layer)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::new(layer)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            bail!(
                "Its layer is compressed with xz, which is not read: fetch it, `unxz` it, and add the file"
            )
        }
        // It is the disk itself: nothing to copy.
        _ if !is_tar(&head, is_file) => return Ok(Some(layer)),
        _ => return in_file_system(layer),
    };
    let head = self::head(&mut content)?;
    let content = Cursor::new(head.clone()).chain(content);
    match is_tar(&head, is_file) {
        true => in_file_system(content),
        false => copied(content).map(Some),
    }
}

/// The first bytes, as many as there are.
fn head(content: &mut impl Read) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    content
        .take(HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .context("Its layer cannot be read")?;
    Ok(head)
}

/// An archive says so in its first header; one without files is zeros alone, as is the beginning of many a disk.
fn is_tar(head: &[u8], is_file: bool) -> bool {
    head.get(257..262) == Some(b"ustar") || (!is_file && head.iter().all(|byte| *byte == 0))
}

/// The only file in `disk/` of an archive.
fn in_file_system(archive: impl Read) -> Result<Option<File>> {
    let mut archive = tar::Archive::new(archive.take(2 * DISK_BYTES_MAX));
    let mut found = None;
    let mut names = Vec::new();
    for entry in archive.entries().context("Its layer cannot be read")? {
        let entry = entry.context("Its layer cannot be read")?;
        if !entry.header().entry_type().is_file() && !entry.header().entry_type().is_gnu_sparse() {
            continue;
        }
        let path = entry.path().context("A name in its layer cannot be read")?;
        let Some(name) = in_disk(&path) else { continue };
        if names.len() == NAMES_MAX {
            break;
        }
        names.push(name);
        if found.is_none() {
            found = Some(copied(entry)?);
        }
    }
    if let [_, _, ..] = &names[..] {
        bail!(
            "Its folder disk/ holds several files, where one is expected: {}",
            names.join(", ")
        );
    }
    Ok(found)
}

/// The name of a file that is in `disk/`, directly. Files that only hide what an earlier layer had are none.
fn in_disk(path: &Path) -> Option<String> {
    let parts: Vec<_> = path
        .components()
        .filter(|part| !matches!(part, Component::RootDir | Component::CurDir))
        .collect();
    match &parts[..] {
        [Component::Normal(folder), Component::Normal(name)] if *folder == "disk" => {
            let name = name.to_string_lossy().into_owned();
            (!name.starts_with(".wh.")).then_some(name)
        }
        _ => None,
    }
}

/// Copies into a file of its own, zeros as holes.
fn copied(content: impl Read) -> Result<File> {
    let mut content = content.take(DISK_BYTES_MAX + 1);
    let mut file = temporary()?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut length = 0_u64;
    loop {
        let count = fill(&mut content, &mut piece).context("Its layer cannot be unpacked")?;
        if count == 0 {
            break;
        }
        let piece = piece.get(..count).unwrap_or_default();
        let written = match piece.iter().all(|byte| *byte == 0) {
            true => file.seek(SeekFrom::Current(count as i64)).map(drop),
            false => file.write_all(piece),
        };
        written.context("The disk cannot be written to a temporary file")?;
        length += count as u64;
    }
    ensure!(
        length <= DISK_BYTES_MAX,
        "Its disk has more than {} GiB, which is the most that a host takes",
        DISK_BYTES_MAX >> 30
    );
    file.set_len(length)
        .context("The disk cannot be written to a temporary file")?;
    Ok(file)
}

/// Fills a buffer as far as there is something.
fn fill(content: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match content.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(bytes: &[u8], is_file: bool) -> Result<Option<Vec<u8>>> {
        let mut layer = temporary().unwrap();
        layer.write_all(bytes).unwrap();
        let Some(mut disk) = find(layer, is_file)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        disk.rewind().unwrap();
        disk.read_to_end(&mut content).unwrap();
        Ok(Some(content))
    }

    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, name, *content).unwrap();
        }
        archive.into_inner().unwrap()
    }

    fn zipped(bytes: &[u8]) -> Vec<u8> {
        let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        zip.write_all(bytes).unwrap();
        zip.finish().unwrap()
    }

    /// A disk that begins with zeros, as one without a partition table does.
    fn disk() -> Vec<u8> {
        let mut disk = vec![0; 300_000];
        disk[1080..1082].copy_from_slice(&[0x53, 0xef]);
        disk
    }

    #[test]
    fn a_file_is_the_disk_compressed_or_not() {
        let disk = disk();
        for bytes in [
            disk.clone(),
            zipped(&disk),
            zstd::encode_all(&disk[..], 1).unwrap(),
        ] {
            assert_eq!(found(&bytes, true).unwrap().as_ref(), Some(&disk));
        }
        assert_eq!(found(b"QFI\xfb", false).unwrap().unwrap(), b"QFI\xfb");
    }

    #[test]
    fn a_file_system_has_it_in_its_folder() {
        let disk = disk();
        let files: [(&str, &[u8]); 3] = [
            ("etc/passwd", b"x"),
            ("./disk/a.qcow2", &disk),
            ("disk/.wh.b", b""),
        ];
        let tar = archive(&files);
        assert_eq!(found(&tar, false).unwrap().as_ref(), Some(&disk));
        assert_eq!(found(&zipped(&tar), false).unwrap().as_ref(), Some(&disk));
        // Many an image has layers without a file.
        assert_eq!(found(&[0; 1024], false).unwrap(), None);
        assert_eq!(found(&zipped(&[0; 1024]), false).unwrap(), None);
        assert_eq!(
            found(&archive(&[("disk/sub/a", b"x"), ("a", b"")]), false).unwrap(),
            None
        );
    }

    #[test]
    fn what_is_unclear_or_damaged_is_refused() {
        let said = |bytes: &[u8], is_file| format!("{:#}", found(bytes, is_file).unwrap_err());
        let two = archive(&[("disk/a.img", b"x"), ("disk/b.img", b"y")]);
        assert!(said(&two, false).contains("a.img, b.img"));
        assert!(said(b"\xfd7zXZ\0rest", true).contains("unxz"));
        let zip = zipped(&disk());
        assert!(said(&zip[..zip.len() - 20], true).contains("cannot be unpacked"));
    }
}
