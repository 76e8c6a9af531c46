//! The usual names: `/vmlinuz`, `/boot/vmlinuz`, and the newest `vmlinuz-*`.
//!
//! What always holds: a kernel goes with the initrd of the same version; a command line is made from what the disk
//! shows, for there is none to read but `/etc/kernel/cmdline`.

use super::version::compare;
use super::{BootError, Candidate, Located, Search, Source};
use crate::partitions::Role;

/// Names that point to the kernel to boot, each with the initrd that goes with it.
const LINKS: [(&str, &[&str]); 3] = [
    ("/vmlinuz", &["/initrd.img"]),
    ("/boot/vmlinuz", &["/boot/initrd.img", "/boot/initrd"]),
    ("/boot/bzImage", &["/boot/initrd"]),
];
/// Directories with kernels by version: of a root, and of a boot partition.
const DIRECTORIES: [&str; 2] = ["/boot", ""];
const PREFIX: &str = "vmlinuz-";
const COMMAND_LINE: &str = "/etc/kernel/cmdline";

/// Looks for the usual names.
pub(super) fn find(search: &mut Search<'_>) -> Result<Option<Candidate>, BootError> {
    let order = [Role::ExtendedBoot, Role::Root];
    let volumes = search.system.volumes(&order);
    let found = volumes
        .iter()
        .find_map(|(part, _)| by_link(search, *part))
        .or_else(|| {
            volumes
                .iter()
                .find_map(|(part, _)| by_version(search, *part))
        });
    let Some((kernel, initrd)) = found else {
        return Ok(None);
    };
    let written = volumes
        .iter()
        .find_map(|(_, volume)| search.text(volume, COMMAND_LINE));
    let options = match written {
        Some(options) => options,
        None => {
            let root = search.system.root_argument().ok_or(BootError::NoRoot)?;
            format!("{root} ro")
        }
    };
    Ok(Some(Candidate {
        source: Source::UsualNames,
        kernel,
        initrds: initrd.into_iter().collect(),
        options,
    }))
}

fn by_link(search: &mut Search<'_>, part: usize) -> Option<(Located, Option<Located>)> {
    LINKS.iter().find_map(|(kernel, initrds)| {
        let kernel = search.locate(part, &[(*kernel).to_owned()])?;
        let initrds: Vec<String> = initrds.iter().map(|&path| path.to_owned()).collect();
        Some((kernel, search.locate(part, &initrds)))
    })
}

fn by_version(search: &mut Search<'_>, part: usize) -> Option<(Located, Option<Located>)> {
    let volume = search.system.parts.get(part)?.volume.as_ref()?;
    for directory in DIRECTORIES {
        let path = if directory.is_empty() { "/" } else { directory };
        let names = search.names(volume, path);
        let newest = names
            .iter()
            .filter_map(|name| name.strip_prefix(PREFIX))
            .max_by(|a, b| compare(a, b));
        let Some(version) = newest else { continue };
        let kernel = format!("{directory}/{PREFIX}{version}");
        if let Some(kernel) = search.locate(part, &[kernel]) {
            let initrds = [
                format!("{directory}/initrd.img-{version}"),
                format!("{directory}/initramfs-{version}.img"),
                format!("{directory}/initramfs-{version}"),
                format!("{directory}/initrd-{version}"),
            ];
            return Some((kernel, search.locate(part, &initrds)));
        }
    }
    None
}
