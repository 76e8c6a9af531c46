//! Where a kernel is found: loader entries, GRUB's configuration, the usual names, on every table and file system.
//!
//! What always holds: the images are made by mkfs and sfdisk; a test without them says that it is skipped.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use dwcp_image::boot::Source;
use dwcp_image::limits::{BOOT_ENTRIES_MAX, INITRD_FILES_MAX};
use dwcp_image::partitions::TableKind;
use support::vendor::*;
use support::*;

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
            piece(ROOT_TYPE, &at("root.btrfs"), ROOT_PART),
            piece(BOOT_TYPE, &at("boot.ext4"), BOOT_PART),
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
            piece("83", &at("root.ext4"), ""),
            piece("ea", &at("boot.ext2"), ""),
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
fn an_entry_with_too_many_initrds_is_passed_over_and_said() {
    let name = "an_entry_with_too_many_initrds_is_passed_over_and_said";
    if !has_tools(name, EXT4) {
        return;
    }
    let many = " /initrd".repeat(INITRD_FILES_MAX + 1);
    let most = " /initrd".repeat(INITRD_FILES_MAX);
    let grub = format!(
        "menuentry many {{\n linux /new x\n initrd{many}\n}}\nmenuentry most {{\n linux /old x\n initrd{most}\n}}"
    );
    let (first, second) = (
        format!("version 2\nlinux /new\ninitrd{many}\n"),
        format!("version 1\nlinux /old\ninitrd{most}\n"),
    );
    let entries = [
        ("/loader/entries/b.conf", &first),
        ("/loader/entries/a.conf", &second),
    ];
    for (source, configuration) in [
        (Source::Grub, &[("/grub/grub.cfg", &grub)][..]),
        (Source::LoaderEntry, &entries),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut files = vec![
            ("/new", Content::File(b"new kernel")),
            ("/old", Content::File(b"old kernel")),
            ("/initrd", Content::File(b"four")),
        ];
        files.extend(
            configuration
                .iter()
                .map(|(path, text)| (*path, Content::File(text.as_bytes()))),
        );
        lay_out(&at("boot"), &files);
        make_ext4(&at("disk.ext4"), &at("boot"), 8 * MIB, BOOT_UUID, &[]);
        let out = boot(chain(&at("disk.ext4")), folder.path()).unwrap();
        assert_eq!(
            (out.boot.source, &out.kernel[..]),
            (source, &b"old kernel"[..])
        );
        assert_eq!(out.initrd, b"four".repeat(INITRD_FILES_MAX));
        let remarks = out.boot.remarks.join("; ");
        assert!(remarks.contains("its initrd is 9 files"), "{remarks}");
    }
}

#[test]
fn a_menu_that_is_cut_is_said() {
    let name = "a_menu_that_is_cut_is_said";
    if !has_tools(name, EXT4) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let entry = "menuentry gone {\n linux /gone\n}\n";
    let remarks = |count: usize| {
        let menu = entry.repeat(count);
        lay_out(
            &at("boot"),
            &[
                ("/grub/grub.cfg", Content::File(menu.as_bytes())),
                ("/vmlinuz", Content::File(b"kernel")),
                ("/etc/kernel/cmdline", Content::File(b"root=x")),
            ],
        );
        make_ext4(&at("disk.ext4"), &at("boot"), 8 * MIB, BOOT_UUID, &[]);
        let out = boot(chain(&at("disk.ext4")), folder.path()).unwrap();
        assert_eq!(out.boot.source, Source::UsualNames);
        out.boot.remarks
    };
    let is_said = |remark: &String| remark.contains("more than 64 entries");
    assert!(!remarks(BOOT_ENTRIES_MAX).iter().any(is_said));
    assert!(remarks(BOOT_ENTRIES_MAX + 1).iter().any(is_said));
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
            &[piece(ESP_TYPE, &at("esp.fat"), ESP_PART)],
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
            piece(BOOT_TYPE, &at("boot.btrfs"), BOOT_PART),
            piece(LINUX_TYPE, &at("root.xfs"), ROOT_PART),
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
