//! Images as vendors ship them: what is found in them is what was put there.
//!
//! What always holds: the images are made by mkfs, sfdisk and qemu-img; a test without them says that it is skipped.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use dwcp_image::boot::{Boot, Source};
use dwcp_image::disk::{Expected, Format};
use dwcp_image::files::FileSystem;
use dwcp_image::partitions::{Role, TableKind};
use dwcp_image::protocol::{Answer, Inspection};
use dwcp_image::task;
use support::*;

const EXT4: &[&str] = &["mkfs.ext4"];
const DISK: &[&str] = &["mkfs.ext4", "mkfs.vfat", "mcopy", "sfdisk", "qemu-img"];

const ROOT_TYPE: &str = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
const ESP_TYPE: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
const BOOT_TYPE: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";
const LINUX_TYPE: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

const ROOT_UUID: &str = "9c3e58bd-3a7e-4b63-9c6c-7f5a2b0f6f10";
const BOOT_UUID: &str = "0b6ad15e-57a5-4bd1-8ba5-1a4b5d6cb7a1";
const ROOT_PART: &str = "6d3f5f2e-8f3a-4f0e-9a53-1f1b2b3c4d5e";
const ESP_PART: &str = "11111111-2222-3333-4444-555555555555";
const BOOT_PART: &str = "22222222-3333-4444-5555-666666666666";

/// Debian 12's generated file, shortened where it repeats itself.
const GRUB_CFG: &str = include_str!("support/debian-grub.cfg");

/// What came out of an image.
struct Out {
    inspection: Inspection,
    boot: Boot,
    kernel: Vec<u8>,
    initrd: Vec<u8>,
}

fn boot(chain: Vec<(File, Expected)>, folder: &Path) -> Result<Out, String> {
    let (kernel, initrd) = (folder.join("out-kernel"), folder.join("out-initrd"));
    match task::boot(chain, output(&kernel), output(&initrd)) {
        Answer::Booted(inspection, boot) => {
            let out = Out {
                inspection,
                boot,
                kernel: fs::read(kernel).unwrap(),
                initrd: fs::read(initrd).unwrap(),
            };
            assert_eq!(out.boot.kernel_bytes, out.kernel.len() as u64);
            assert_eq!(out.boot.initrd_bytes, out.initrd.len() as u64);
            Ok(out)
        }
        Answer::Refused(reason) => Err(reason),
        other => panic!("{other:?}"),
    }
}

fn refused(chain: Vec<(File, Expected)>, folder: &Path) -> String {
    match boot(chain, folder) {
        Ok(out) => panic!("booted: {:?}", out.boot),
        Err(reason) => reason,
    }
}

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
                Piece {
                    kind: ESP_TYPE,
                    image: &at("esp.fat"),
                    uuid: ESP_PART,
                },
                Piece {
                    kind: ROOT_TYPE,
                    image: &at("root.ext4"),
                    uuid: ROOT_PART,
                },
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
        "encrypt.format=luks,encrypt.key-secret=s",
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
fn loader_entries_of_a_boot_partition_come_before_grub() {
    if !has_tools("loader_entries_of_a_boot_partition_come_before_grub", DISK) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let entry = |version: &str| {
        format!(
            "title Fedora Linux\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img \
             $tuned_initrd\noptions $kernelopts rhgb\noptions quiet\ngrub_users $grub_users\n"
        )
    };
    let (new, old) = (
        entry("6.5.10-300.fc39.x86_64"),
        entry("6.5.6-300.fc39.x86_64"),
    );
    let gone = entry("6.9.0-1.fc39.x86_64");
    let environment =
        format!("# GRUB Environment Block\nkernelopts=root=UUID={ROOT_UUID} ro\n####");
    lay_out(
        &at("boot"),
        &[
            (
                "/loader/entries/abc-6.9.0.conf",
                Content::File(gone.as_bytes()),
            ),
            (
                "/loader/entries/abc-6.5.10.conf",
                Content::File(new.as_bytes()),
            ),
            (
                "/loader/entries/abc-6.5.6.conf",
                Content::File(old.as_bytes()),
            ),
            (
                "/vmlinuz-6.5.10-300.fc39.x86_64",
                Content::File(b"new kernel"),
            ),
            (
                "/initramfs-6.5.10-300.fc39.x86_64.img",
                Content::File(b"new initrd"),
            ),
            (
                "/vmlinuz-6.5.6-300.fc39.x86_64",
                Content::File(b"old kernel"),
            ),
            (
                "/initramfs-6.5.6-300.fc39.x86_64.img",
                Content::File(b"old initrd"),
            ),
            ("/grub2/grubenv", Content::File(environment.as_bytes())),
            (
                "/grub2/grub.cfg",
                Content::File(b"menuentry x { linux /vmlinuz-6.5.6-300.fc39.x86_64 }"),
            ),
            ("/boot", Content::Link(".")),
        ],
    );
    make_ext4(&at("boot.ext4"), &at("boot"), 16 * MIB, BOOT_UUID, &[]);
    // A root that is not read, as Fedora has it.
    sparse(&at("root.btrfs"), 4 * MIB);
    let root = fs::OpenOptions::new()
        .write(true)
        .open(at("root.btrfs"))
        .unwrap();
    std::os::unix::fs::FileExt::write_all_at(&root, b"_BHRfS_M", 0x1_0040).unwrap();
    make_disk(
        &at("disk.raw"),
        "gpt",
        &[
            Piece {
                kind: ROOT_TYPE,
                image: &at("root.btrfs"),
                uuid: ROOT_PART,
            },
            Piece {
                kind: BOOT_TYPE,
                image: &at("boot.ext4"),
                uuid: BOOT_PART,
            },
        ],
    );
    let out = boot(chain(&at("disk.raw")), folder.path()).unwrap();
    assert_eq!(out.boot.source, Source::LoaderEntry);
    assert_eq!(out.kernel, b"new kernel");
    assert_eq!(out.initrd, b"new initrd");
    assert_eq!(
        out.boot.command_line,
        format!("root=UUID={ROOT_UUID} ro rhgb quiet console=ttyS0")
    );
    let remarks = out.boot.remarks.join("; ");
    assert!(
        remarks.contains("/vmlinuz-6.9.0-1.fc39.x86_64"),
        "{remarks}"
    );
    assert!(remarks.contains("partition 1 is btrfs"), "{remarks}");
}

#[test]
fn grub_of_a_boot_partition_finds_its_files_there_and_joins_initrds() {
    let name = "grub_of_a_boot_partition_finds_its_files_there_and_joins_initrds";
    if !has_tools(name, DISK) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let config = format!(
        "menuentry 'memory test' {{ linux16 /memtest86+ }}\nmenuentry 'Ubuntu' {{\n search --no-floppy --fs-uuid \
         --set=root {}\n linux ($root)/vmlinuz-6.8 root=LABEL=cloudimg-rootfs ro $vt_handoff\n initrd \
         /microcode.cpio /initrd.img-6.8\n}}",
        BOOT_UUID.to_uppercase()
    );
    lay_out(
        &at("boot"),
        &[
            ("/grub/grub.cfg", Content::File(config.as_bytes())),
            ("/vmlinuz-6.8", Content::File(b"the kernel")),
            ("/microcode.cpio", Content::File(b"micro")),
            ("/initrd.img-6.8", Content::File(b"initrd")),
        ],
    );
    lay_out(
        &at("root"),
        &[("/etc/os-release", Content::File(b"ID=ubuntu\n"))],
    );
    // Old file systems have no extents and no checksums.
    make_ext4(
        &at("boot.ext2"),
        &at("boot"),
        8 * MIB,
        BOOT_UUID,
        &["-t", "ext2", "-b", "1024"],
    );
    make_ext4(&at("root.ext4"), &at("root"), 8 * MIB, ROOT_UUID, &[]);
    make_disk(
        &at("disk.raw"),
        "dos",
        &[
            Piece {
                kind: "83",
                image: &at("root.ext4"),
                uuid: "",
            },
            Piece {
                kind: "ea",
                image: &at("boot.ext2"),
                uuid: "",
            },
        ],
    );
    let out = boot(chain(&at("disk.raw")), folder.path()).unwrap();
    assert_eq!(out.inspection.table, TableKind::Mbr);
    assert_eq!(out.boot.source, Source::Grub);
    assert_eq!(out.kernel, b"the kernel");
    assert_eq!(out.initrd, b"micro\0\0\0initrd");
    assert_eq!(
        out.boot.command_line,
        "root=LABEL=cloudimg-rootfs ro console=ttyS0"
    );
    assert!(
        out.boot.remarks[0].contains("/memtest86+"),
        "{:?}",
        out.boot.remarks
    );
}

#[test]
fn the_usual_names_serve_a_disk_without_a_table() {
    if !has_tools("the_usual_names_serve_a_disk_without_a_table", EXT4) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    lay_out(
        &at("root"),
        &[
            ("/boot/vmlinuz-5.10.0-9", Content::File(b"older")),
            ("/boot/vmlinuz-5.10.0-28", Content::File(b"newest")),
            (
                "/boot/initramfs-5.10.0-28.img",
                Content::File(b"its initrd"),
            ),
            ("/etc/fstab", Content::File(b"")),
        ],
    );
    make_ext4(
        &at("disk.ext4"),
        &at("root"),
        8 * MIB,
        ROOT_UUID,
        &["-O", "^metadata_csum"],
    );
    let out = boot(chain(&at("disk.ext4")), folder.path()).unwrap();
    assert_eq!(out.inspection.table, TableKind::None);
    assert_eq!(out.boot.source, Source::UsualNames);
    assert_eq!(
        (out.kernel, out.initrd),
        (b"newest".to_vec(), b"its initrd".to_vec())
    );
    assert_eq!(out.boot.command_line, "root=/dev/vda ro console=ttyS0");

    // A link is taken before the newest; a written command line before a made one.
    lay_out(
        &at("root"),
        &[
            ("/vmlinuz", Content::Link("/boot/vmlinuz-5.10.0-9")),
            ("/etc/kernel/cmdline", Content::File(b"root=/dev/vda1 rw\n")),
        ],
    );
    make_ext4(&at("disk.ext4"), &at("root"), 8 * MIB, ROOT_UUID, &[]);
    let out = boot(chain(&at("disk.ext4")), folder.path()).unwrap();
    assert_eq!((out.kernel, out.initrd), (b"older".to_vec(), Vec::new()));
    assert_eq!(out.boot.command_line, "root=/dev/vda1 rw console=ttyS0");
}

#[test]
fn loader_entries_on_an_efi_partition_are_read_from_every_fat() {
    let tools = &["mkfs.vfat", "mcopy", "sfdisk"];
    if !has_tools(
        "loader_entries_on_an_efi_partition_are_read_from_every_fat",
        tools,
    ) {
        return;
    }
    for (bits, mib) in [("12", 2), ("16", 16), ("32", 40)] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let kernel = noise(7, 700_001);
        lay_out(
            &at("esp"),
            &[
                (
                    "/loader/entries/system-with-a-long-name.conf",
                    Content::File(b"linux /some-distribution/6.1/linux\noptions root=/dev/vda2\n"),
                ),
                ("/some-distribution/6.1/linux", Content::File(&kernel)),
            ],
        );
        make_fat(&at("esp.fat"), &at("esp"), mib * MIB, bits);
        make_disk(
            &at("disk.raw"),
            "gpt",
            &[Piece {
                kind: ESP_TYPE,
                image: &at("esp.fat"),
                uuid: ESP_PART,
            }],
        );
        let out = boot(chain(&at("disk.raw")), folder.path()).unwrap();
        assert_eq!(out.boot.source, Source::LoaderEntry, "FAT{bits}");
        assert_eq!(out.kernel, kernel, "FAT{bits}");
        assert_eq!(out.boot.command_line, "root=/dev/vda2 console=ttyS0");
    }
}

#[test]
fn file_systems_that_are_not_read_are_named() {
    let tools = &["mkfs.xfs", "mkfs.btrfs", "sfdisk"];
    if !has_tools("file_systems_that_are_not_read_are_named", tools) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    sparse(&at("root.xfs"), 320 * MIB);
    run("mkfs.xfs", &["-q", text(&at("root.xfs"))], "");
    sparse(&at("boot.btrfs"), 128 * MIB);
    run("mkfs.btrfs", &["-q", text(&at("boot.btrfs"))], "");
    make_disk(
        &at("disk.raw"),
        "gpt",
        &[
            Piece {
                kind: BOOT_TYPE,
                image: &at("boot.btrfs"),
                uuid: BOOT_PART,
            },
            Piece {
                kind: LINUX_TYPE,
                image: &at("root.xfs"),
                uuid: ROOT_PART,
            },
        ],
    );
    let reason = refused(chain(&at("disk.raw")), folder.path());
    assert!(
        reason.contains("partition 1 is btrfs, partition 2 is XFS"),
        "{reason}"
    );
    assert!(
        reason.contains("only ext4 and FAT are read") && reason.contains("--kernel"),
        "{reason}"
    );
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
