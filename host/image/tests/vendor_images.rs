//! Images as vendors ship them, raw and as qcow2: what is found in them is what was put there.
//!
//! What always holds: the images are made by mkfs, sfdisk and qemu-img; a test without them says that it is skipped.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use dwcp_image::boot::Source;
use dwcp_image::disk::{Expected, Format};
use dwcp_image::files::FileSystem;
use dwcp_image::partitions::{Role, TableKind};
use support::vendor::*;
use support::*;

/// Debian 12's generated file, shortened where it repeats itself.
const GRUB_CFG: &str = include_str!("support/debian-grub.cfg");

/// A disk like Debian's cloud image: an ESP, and a root with two kernels and a generated `grub.cfg`.
struct Debian {
    folder: tempfile::TempDir,
    raw: PathBuf,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

impl Debian {
    fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (kernel, initrd) = (noise(18, 900_001), noise(81, 2_500_003));
        let grub = GRUB_CFG
            .replace("@ROOT_UUID@", ROOT_UUID)
            .replace("@ROOT_PART@", ROOT_PART);
        lay_out(
            &at("root"),
            &[
                ("/boot/vmlinuz-6.1.0-9-cloud-amd64", Content::File(b"older")),
                (
                    "/boot/initrd.img-6.1.0-9-cloud-amd64",
                    Content::File(b"older"),
                ),
                ("/boot/vmlinuz-6.1.0-18-cloud-amd64", Content::File(&kernel)),
                (
                    "/boot/initrd.img-6.1.0-18-cloud-amd64",
                    Content::File(&initrd),
                ),
                ("/boot/grub/grub.cfg", Content::File(grub.as_bytes())),
                (
                    "/vmlinuz",
                    Content::Link("boot/vmlinuz-6.1.0-18-cloud-amd64"),
                ),
                (
                    "/initrd.img",
                    Content::Link("boot/initrd.img-6.1.0-18-cloud-amd64"),
                ),
                ("/etc/os-release", Content::File(b"ID=debian\n")),
            ],
        );
        lay_out(
            &at("esp"),
            &[
                (
                    "/EFI/debian/grub.cfg",
                    Content::File(b"configfile $prefix/grub.cfg\n"),
                ),
                ("/EFI/BOOT/BOOTX64.EFI", Content::File(&noise(3, 70_000))),
            ],
        );
        make_ext4(&at("root.ext4"), &at("root"), 48 * MIB, ROOT_UUID, &[]);
        make_fat(&at("esp.fat"), &at("esp"), 16 * MIB, "16");
        let raw = at("disk.raw");
        make_disk(
            &raw,
            "gpt",
            &[
                piece(ESP_TYPE, &at("esp.fat"), ESP_PART),
                piece(ROOT_TYPE, &at("root.ext4"), ROOT_PART),
            ],
        );
        Self {
            raw,
            kernel,
            initrd,
            folder,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn check(&self, out: &Out) {
        assert_eq!(out.boot.source, Source::Grub);
        assert_eq!(out.kernel, self.kernel);
        assert_eq!(out.initrd, self.initrd);
        assert_eq!(out.boot.kernel_path, "/boot/vmlinuz-6.1.0-18-cloud-amd64");
        assert_eq!(
            out.boot.command_line,
            format!(
                "root=PARTUUID={ROOT_PART} ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0"
            )
        );
        assert_eq!(out.boot.remarks, [""; 0]);
    }
}

#[test]
fn debians_image_is_read_raw_and_as_qcow2() {
    if !has_tools("debians_image_is_read_raw_and_as_qcow2", DISK) {
        return;
    }
    let debian = Debian::make();
    let folder = debian.folder.path();
    let out = boot(chain(&debian.raw), folder).unwrap();
    debian.check(&out);
    assert_eq!(out.inspection.layers[0].format, Format::Raw);
    assert_eq!(out.inspection.table, TableKind::Gpt);
    let parts: Vec<_> = out
        .inspection
        .partitions
        .iter()
        .map(|part| {
            (
                part.number,
                part.role,
                part.start,
                part.bytes,
                part.file_system,
            )
        })
        .collect();
    assert_eq!(
        parts,
        [
            (1, Role::EfiSystem, MIB, 16 * MIB, FileSystem::Fat),
            (2, Role::Root, 17 * MIB, 48 * MIB, FileSystem::Ext),
        ]
    );
    let raw_bytes = fs::metadata(&debian.raw).unwrap().len();
    for (name, options) in [
        ("plain.qcow2", &[][..]),
        ("compressed.qcow2", &["-c"]),
        ("old.qcow2", &["-o", "compat=0.10"]),
        ("small.qcow2", &["-o", "cluster_size=512"]),
        ("large.qcow2", &["-c", "-o", "cluster_size=2M"]),
    ] {
        let image = debian.at(name);
        make_qcow2(&debian.raw, &image, options);
        let out = boot(chain(&image), folder).unwrap();
        debian.check(&out);
        let layer = &out.inspection.layers[0];
        assert_eq!(layer.format, Format::Qcow2);
        assert_eq!(out.inspection.virtual_bytes, raw_bytes);
        assert_eq!(layer.file_bytes, fs::metadata(&image).unwrap().len());
        assert!(layer.allocated_bytes > 0 && layer.allocated_bytes < raw_bytes);
    }
}

#[test]
fn what_a_qcow2_names_is_refused_and_what_it_cannot_have_is_said() {
    let name = "what_a_qcow2_names_is_refused_and_what_it_cannot_have_is_said";
    if !has_tools(name, &["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    sparse(&at("base.raw"), 4 * MIB);
    let create = |name: &str, options: &[&str]| {
        let image = at(name);
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        arguments.extend(options);
        arguments.extend([text(&image), "4M"]);
        run("qemu-img", &arguments, "");
        refused(chain(&image), folder.path())
    };
    let base = at("base.raw");
    let reason = create("overlay.qcow2", &["-b", text(&base), "-F", "raw"]);
    assert!(
        reason.contains("names a backing file") && reason.contains("qemu-img rebase"),
        "{reason}"
    );
    let data = format!("data_file={},data_file_raw=on", text(&at("data.raw")));
    let reason = create("outside.qcow2", &["-o", &data]);
    assert!(
        reason.contains("keeps its data in another file"),
        "{reason}"
    );
    let reason = create(
        "subclusters.qcow2",
        &["-o", "extended_l2=on,cluster_size=64k"],
    );
    assert!(reason.contains("extended_l2=off"), "{reason}");
    let reason = create("zstd.qcow2", &["-o", "compression_type=zstd"]);
    assert!(reason.contains("compression_type=zlib"), "{reason}");
    let secret = [
        "--object",
        "secret,id=s,data=abc",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    ];
    let reason = create("locked.qcow2", &secret);
    assert!(reason.contains("encrypted"), "{reason}");
    // One without any of these is opened, and only then found to be empty.
    let reason = create("plain.qcow2", &[]);
    assert!(reason.contains("No kernel was found"), "{reason}");
}

#[test]
fn a_chain_is_what_the_caller_says() {
    if !has_tools("a_chain_is_what_the_caller_says", DISK) {
        return;
    }
    let debian = Debian::make();
    let folder = debian.folder.path();
    let bytes = fs::metadata(&debian.raw).unwrap().len();
    let (overlay, middle) = (debian.at("overlay.qcow2"), debian.at("middle.qcow2"));
    for path in [&overlay, &middle] {
        dwcp_image::volume::create_qcow2(output(path), bytes).unwrap();
        run("qemu-img", &["check", "-q", text(path)], "");
    }
    let open = |path: &Path, expected| (File::open(path).unwrap(), expected);
    let chain = vec![
        open(&overlay, Expected::Qcow2),
        open(&middle, Expected::Detect),
        open(&debian.raw, Expected::Raw),
    ];
    let out = boot(chain, folder).unwrap();
    debian.check(&out);
    let formats: Vec<_> = out
        .inspection
        .layers
        .iter()
        .map(|layer| layer.format)
        .collect();
    assert_eq!(formats, [Format::Qcow2, Format::Qcow2, Format::Raw]);
    // The overlay alone is an empty disk.
    let reason = refused(vec![open(&overlay, Expected::Qcow2)], folder);
    assert!(reason.contains("No kernel was found"), "{reason}");
    let reason = refused(
        vec![
            open(&debian.raw, Expected::Raw),
            open(&overlay, Expected::Qcow2),
        ],
        folder,
    );
    assert!(reason.contains("Image 1 of the chain is raw"), "{reason}");
    // What is said of a format is not second-guessed.
    let reason = refused(vec![open(&overlay, Expected::Raw)], folder);
    assert!(reason.contains("No kernel was found"), "{reason}");
    let reason = refused(vec![open(&debian.raw, Expected::Qcow2)], folder);
    assert!(reason.contains("does not begin as a qcow2"), "{reason}");
    assert!(refused(Vec::new(), folder).contains("1 to 8 images"));
}

#[test]
fn a_backup_table_and_large_sectors_and_logical_partitions_are_read() {
    let name = "a_backup_table_and_large_sectors_and_logical_partitions_are_read";
    if !has_tools(name, DISK) {
        return;
    }
    let debian = Debian::make();
    let folder = debian.folder.path();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&debian.raw)
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 64], 600).unwrap();
    debian.check(&boot(chain(&debian.raw), folder).unwrap());
    let end = fs::metadata(&debian.raw).unwrap().len();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 64], end - SECTOR).unwrap();
    let reason = refused(chain(&debian.raw), folder);
    assert!(
        reason.contains("GUID partition table is damaged"),
        "{reason}"
    );

    // The table is whole again, but the image ends within the root.
    let cut = Debian::make();
    let file = fs::OpenOptions::new().write(true).open(&cut.raw).unwrap();
    file.set_len(30 * MIB).unwrap();
    let reason = refused(chain(&cut.raw), folder);
    assert!(
        reason.contains("partition 2 does not lie within the disk"),
        "{reason}"
    );

    let logical = debian.at("logical.raw");
    sparse(&logical, 60 * MIB);
    let script = "label: dos\nlabel-id: 0xdeadbeef\nstart=2048, size=110000, type=5\nstart=4096, size=2048, \
                  type=83\nstart=8192, size=98304, type=83\n";
    run("sfdisk", &["-q", text(&logical)], script);
    let file = fs::OpenOptions::new().write(true).open(&logical).unwrap();
    let root = fs::read(debian.at("root.ext4")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &root, 8192 * SECTOR).unwrap();
    let out = boot(chain(&logical), folder).unwrap();
    let numbers: Vec<_> = out
        .inspection
        .partitions
        .iter()
        .map(|part| part.number)
        .collect();
    assert_eq!(numbers, [5, 6]);
    debian.check(&out);
}
