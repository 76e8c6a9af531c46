//! `grub.cfg` as `grub-mkconfig` generates it: the first menu entry with a kernel whose files exist.
//!
//! What always holds: nothing is executed: `set` is remembered in the order of the file, conditions are not decided
//! (what both branches of an `if` say is read one after the other), and of an entry the first `linux` and the first
//! `initrd` count. That is what Debian's and Ubuntu's files need; one that computes its entries is not understood, and
//! then the search goes on.

mod script;

use super::{Candidate, Located, Search, Source};
use crate::limits::BOOT_ENTRIES_MAX;
use crate::partitions::Role;
use crate::shown::shown;
use script::MenuEntry;

/// Where the file is: in a root that has its own `/boot`, and in a boot partition.
const PLACES: [&str; 4] = [
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];

/// Looks through the files.
pub(super) fn find(search: &mut Search<'_>) -> Option<Candidate> {
    let order = [Role::ExtendedBoot, Role::Root, Role::Other];
    for (part, volume) in search.system.volumes(&order) {
        for place in PLACES {
            let Some(text) = search.text(volume, place) else {
                continue;
            };
            let menu = script::read_menu(&text);
            // Said first: the entries that lead nowhere may take every remark that there is room for.
            if menu.is_cut {
                search.remark(format!(
                    "{place} has more than {BOOT_ENTRIES_MAX} entries; the rest was not read"
                ));
            }
            for entry in menu.entries {
                if let Some(found) = candidate(search, part, place, &entry) {
                    return Some(found);
                }
            }
        }
    }
    None
}

/// The entry's files, if they exist.
fn candidate(
    search: &mut Search<'_>,
    part: usize,
    place: &str,
    entry: &MenuEntry,
) -> Option<Candidate> {
    let (kernel_path, options) = entry.linux.split_first()?;
    let parts = places_to_look(search, part, entry);
    let label = format!("{place}, '{}'", shown(&entry.title));
    let Some(kernel) = locate(search, &parts, kernel_path) else {
        search.remark(format!("{label}: there is no {}", shown(kernel_path)));
        return None;
    };
    if !search.takes_initrds(&label, entry.initrd.len()) {
        return None;
    }
    let mut initrds = Vec::new();
    for path in &entry.initrd {
        // It is where the kernel is.
        let Some(initrd) = locate(search, &[kernel.part], path) else {
            search.remark(format!("{label}: there is no {}", shown(path)));
            return None;
        };
        initrds.push(initrd);
    }
    Some(Candidate {
        source: Source::Grub,
        kernel,
        initrds,
        options: options.join(" "),
    })
}

/// The file systems in which the entry's paths may be meant: the one it searches for, then the one of the file itself,
/// then the others.
fn places_to_look(search: &Search<'_>, own: usize, entry: &MenuEntry) -> Vec<usize> {
    let searched = entry
        .root_uuid
        .as_ref()
        .and_then(|uuid| search.system.volume_by_uuid(&uuid.to_ascii_lowercase()));
    if let Some((part, _)) = searched {
        return vec![part];
    }
    let others = search.system.volumes(&[]).into_iter().map(|(part, _)| part);
    std::iter::once(own)
        .chain(others.filter(|part| *part != own))
        .collect()
}

fn locate(search: &mut Search<'_>, parts: &[usize], path: &str) -> Option<Located> {
    let path = without_device(path).to_owned();
    parts
        .iter()
        .find_map(|part| search.locate(*part, std::slice::from_ref(&path)))
}

/// Takes off a device in front of a path: `(hd0,gpt1)/vmlinuz`.
fn without_device(path: &str) -> &str {
    path.strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map_or(path, |(_, path)| path)
}
