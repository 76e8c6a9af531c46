//! Damaged and malicious images: whatever is done to one, the reader answers, and in bounded time.
//!
//! What always holds: the images begin whole, made by the usual tools or by hand, and are then cut and changed at random;
//! the library is called directly, so a panic or an overflow anywhere in it fails the test. `PROPTEST_CASES` says how
//! many are tried.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dwcp_image::disk::Expected;
use dwcp_image::protocol::Answer;
use dwcp_image::task;
use proptest::prelude::*;
use support::*;

/// Far more than any of these images needs, on any machine that tests run on.
const PATIENCE: Duration = Duration::from_secs(60);

/// Small images of every kind.
struct Samples {
    images: Vec<(&'static str, Sparse)>,
}

const BLOCK_BYTES: usize = 512;

/// An image without its zeros: most of it is none of anybody's business.
#[derive(Clone)]
struct Sparse {
    /// Size of the whole.
    length: u64,
    /// Where each block belongs.
    places: Vec<u64>,
    /// The blocks, one after the other.
    bytes: Vec<u8>,
}

impl Sparse {
    fn new(whole: &[u8]) -> Self {
        let mut sparse = Self {
            length: whole.len() as u64,
            places: Vec::new(),
            bytes: Vec::new(),
        };
        for (index, block) in whole.chunks_exact(BLOCK_BYTES).enumerate() {
            if block != [0; BLOCK_BYTES] {
                sparse.places.push((index * BLOCK_BYTES) as u64);
                sparse.bytes.extend_from_slice(block);
            }
        }
        sparse
    }

    fn write(&self, path: &Path) {
        let file = output(path);
        for (place, block) in self.places.iter().zip(self.bytes.chunks(BLOCK_BYTES)) {
            std::os::unix::fs::FileExt::write_all_at(&file, block, *place).unwrap();
        }
        file.set_len(self.length).unwrap();
    }
}

/// Made once for all tests; none when the tools are not there.
fn samples(test: &str) -> Option<&'static Samples> {
    static MADE: OnceLock<Samples> = OnceLock::new();
    let tools = ["mkfs.ext4", "mkfs.vfat", "mcopy", "sfdisk", "qemu-img"];
    has_tools(test, &tools).then(|| MADE.get_or_init(make))
}

const UUID: &str = "9c3e58bd-3a7e-4b63-9c6c-7f5a2b0f6f10";

fn make() -> Samples {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Small, for changes to its bytes mean nothing to the reader.
    let kernel = noise(5, 3000);
    let config = format!(
        "menuentry x {{\nsearch --fs-uuid --set=root {UUID}\nlinux /boot/vmlinuz-6 root=x\ninitrd /boot/initrd\n}}"
    );
    lay_out(
        &at("root"),
        &[
            ("/boot/vmlinuz-6", Content::File(&kernel)),
            ("/boot/initrd", Content::File(b"initrd")),
            ("/boot/vmlinuz", Content::Link("../boot/vmlinuz-6")),
            ("/boot/grub/grub.cfg", Content::File(config.as_bytes())),
        ],
    );
    lay_out(
        &at("esp"),
        &[
            (
                "/loader/entries/a-long-name.conf",
                Content::File(b"linux /a-kernel-with-a-long-name\noptions x\n"),
            ),
            ("/a-kernel-with-a-long-name", Content::File(&kernel)),
        ],
    );
    // Without checksums, changes get further.
    make_ext4(
        &at("ext4"),
        &at("root"),
        2 * MIB,
        UUID,
        &["-O", "^metadata_csum", "-b", "1024"],
    );
    make_ext4(
        &at("ext2"),
        &at("root"),
        MIB,
        UUID,
        &["-t", "ext2", "-b", "1024"],
    );
    for (name, bits, mib) in [("fat12", "12", 1), ("fat16", "16", 9), ("fat32", "32", 34)] {
        make_fat(&at(name), &at("esp"), mib * MIB, bits);
    }
    let part = |kind, name: &str| (kind, at(name));
    let disk = |name: &str, label: &str, pieces: [(&str, PathBuf); 2]| {
        let pieces = pieces
            .each_ref()
            .map(|(kind, image)| piece(kind, image, UUID));
        make_disk(&at(name), label, &pieces[..]);
    };
    disk("gpt", "gpt", [part("L", "ext4"), part("U", "fat12")]);
    disk("mbr", "dos", [part("83", "ext2"), part("ef", "fat12")]);
    for (name, options) in [
        ("qcow2", &["-o", "cluster_size=4k"][..]),
        ("packed", &["-c", "-o", "cluster_size=4k"]),
        ("old", &["-o", "compat=0.10,cluster_size=512"]),
    ] {
        make_qcow2(&at("gpt"), &at(name), options);
    }
    let names = [
        "ext4", "ext2", "fat12", "fat16", "fat32", "gpt", "mbr", "qcow2", "packed", "old",
    ];
    let images = names.map(|name| (name, Sparse::new(&fs::read(at(name)).unwrap())));
    Samples {
        images: images.into(),
    }
}

/// Reads an image to the end, whatever it is; answers how long it took.
fn read(path: &Path, folder: &Path) -> (Answer, Duration) {
    let start = Instant::now();
    let image = vec![(File::open(path).unwrap(), Expected::Detect)];
    let answer = task::boot(
        image,
        output(&folder.join("kernel")),
        output(&folder.join("initrd")),
    );
    (answer, start.elapsed())
}

#[test]
fn the_samples_boot_unharmed() {
    let Some(samples) = samples("the_samples_boot_unharmed") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    for (name, image) in &samples.images {
        image.write(&path);
        let (answer, _) = read(&path, folder.path());
        assert!(matches!(answer, Answer::Booted(..)), "{name}: {answer:?}");
    }
}

/// One change to an image.
#[derive(Clone, Debug)]
struct Change {
    at: proptest::sample::Index,
    with: With,
}

#[derive(Clone, Debug)]
enum With {
    Byte(u8),
    Small(u16),
    Large(u32),
    Ones,
    Zeros,
    /// What is somewhere else in the image.
    Copy(proptest::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let with = prop_oneof![
        any::<u8>().prop_map(With::Byte),
        any::<u16>().prop_map(With::Small),
        any::<u32>().prop_map(With::Large),
        Just(With::Ones),
        Just(With::Zeros),
        any::<proptest::sample::Index>().prop_map(With::Copy),
    ];
    (any::<proptest::sample::Index>(), with).prop_map(|(at, with)| Change { at, with })
}

fn apply(image: &mut [u8], change: &Change) {
    let at = change.at.index(image.len());
    let mut put = |at: usize, bytes: &[u8]| {
        let end = (at + bytes.len()).min(image.len());
        image[at..end].copy_from_slice(&bytes[..end - at]);
    };
    match &change.with {
        With::Byte(byte) => put(at, &[*byte]),
        With::Small(number) => put(at, &number.to_le_bytes()),
        With::Large(number) => put(at, &number.to_le_bytes()),
        With::Ones => put(at, &[0xff; 8]),
        With::Zeros => put(at, &[0; 8]),
        With::Copy(from) => {
            const PIECE_BYTES: usize = 32;
            let pieces = image.len() / PIECE_BYTES;
            let from = from.index(pieces) * PIECE_BYTES;
            let to = change.at.index(pieces) * PIECE_BYTES;
            image.copy_within(from..from + PIECE_BYTES, to);
        }
    }
}

proptest! {
    // Shrinking an image is of little use, and slow.
    #![proptest_config(ProptestConfig { max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn changed_images_are_answered(
        which in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec(change(), 1..24),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let Some(samples) = samples("changed_images_are_answered") else { return Ok(()) };
        let (name, whole) = which.get(&samples.images);
        let mut image = whole.clone();
        for change in &changes {
            apply(&mut image.bytes, change);
        }
        if let Some(cut) = cut {
            image.length = cut.index(image.length as usize) as u64 + 1;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        image.write(&path);
        let (_, took) = read(&path, folder.path());
        prop_assert!(took < PATIENCE, "{name} took {took:?}");
    }

    #[test]
    fn bytes_with_the_marks_of_formats_are_answered(
        head in prop_oneof![
            Just(b"QFI\xfb\0\0\0\x03".to_vec()),
            Just(b"QFI\xfb\0\0\0\x02".to_vec()),
            Just([vec![0; 512], b"EFI PART".to_vec()].concat()),
            Just([vec![0; 510], vec![0x55, 0xaa]].concat()),
            Just([vec![0; 1080], vec![0x53, 0xef]].concat()),
            Just(b"\xeb\x3c\x90MSWIN4.1\0\x02\x04\x01\0\x02\x40\0".to_vec()),
        ],
        tail in proptest::collection::vec(any::<u8>(), 0..8192),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, [head, tail].concat()).unwrap();
        let (answer, took) = read(&path, folder.path());
        prop_assert!(took < PATIENCE);
        prop_assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    }
}
