//! A disk image as vendors ship them, whose kernel is our guest.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What makes it.
pub const TOOLS: [&str; 2] = ["mkfs.ext4", "qemu-img"];
const MIB: u64 = 1 << 20;

/// A disk image as vendors ship them: ext4, a kernel, and GRUB's configuration. The kernel is our guest.
pub fn vendor(scratch: &Path) -> PathBuf {
    let root = scratch.join("root");
    std::fs::create_dir_all(root.join("boot/grub")).unwrap();
    std::fs::write(root.join("boot/vmlinuz-6.12.0-cloud"), dwcp_guest::elf()).unwrap();
    let configuration = "menuentry 'Vendor' {\n\
        linux /boot/vmlinuz-6.12.0-cloud root=UUID=11111111-2222-3333-4444-555555555555 ro fill_mib=4 seed=99 \
        disk=check disk=read:12 disk_only=1 disk_mib=2 net=dhcp net=echo:7 balloon=report\n}\n";
    std::fs::write(root.join("boot/grub/grub.cfg"), configuration).unwrap();
    let raw = scratch.join("disk.raw");
    std::fs::File::create(&raw)
        .unwrap()
        .set_len(32 * MIB)
        .unwrap();
    let uuid = "11111111-2222-3333-4444-555555555555";
    run(
        "mkfs.ext4",
        &["-q", "-U", uuid, "-d", root.to_str().unwrap()],
        &raw,
    );
    let image = scratch.join("vendor.qcow2");
    let raw = raw.to_str().unwrap();
    run("qemu-img", &["convert", "-O", "qcow2", raw], &image)
}

/// Runs a tool over a file, which is its last argument.
pub fn run(program: &str, arguments: &[&str], file: &Path) -> PathBuf {
    let done = Command::new(program)
        .args(arguments)
        .arg(file)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    file.to_owned()
}

/// Whether a tool is on this machine.
pub fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
        || Command::new(program).arg("-V").output().is_ok()
}
