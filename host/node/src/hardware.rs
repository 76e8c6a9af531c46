//! A machine's hardware: its disks and what cloud-init is told, wished for, checked, made, and handed to its process
//! with its network cards.
//!
//! What always holds: a disk that a machine has written to is never made anew; an image below a disk is never written.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use dwcp_api::service::Answer;
use dwcp_control::Name;
use dwcp_control::records::{
    DiskFormat, DiskSpec, GuestSetup, Image, Origin, Vm, VmCreate, VmId, VmSpec,
};
use dwcp_image::{seed, volume};
use dwcp_launch::protocol::NicSpec;
use dwcp_vmm::config::{Device, DiskFormat as Layer, DiskLimits};

use crate::cards;
use crate::errors::{chain, conflict, internal, invalid, record};
use crate::guests;
use crate::node::Node;

/// Most disks of a machine.
const DISKS_MAX: usize = 16;
/// The disk that a machine boots from when it is made from an image.
pub(crate) const ROOT: &str = "root";
/// The disk from which cloud-init configures a machine.
const SEED: &str = "cidata";
/// Longest user data: it is part of the machine's record, which the store bounds.
const USER_DATA_BYTES_MAX: usize = 256 << 10;
/// The address of every guest: each has a host of its own to speak with, and nobody else.
const GUEST_CID: u32 = 3;
/// What a copy-on-write file needs beyond its disk's size: tables, a 32nd of it and a little.
const TABLES_BYTES: u64 = 64 << 20;

/// What a machine's process needs for its devices.
#[derive(Debug, Default)]
pub(crate) struct Hardware {
    /// Its devices.
    pub devices: Vec<Device>,
    /// What they need, in their order, without taps.
    pub descriptors: Vec<OwnedFd>,
    /// What taps are made from.
    pub nics: Vec<NicSpec>,
}

/// Checks what can be checked without looking at images and networks.
pub(crate) fn check(spec: &VmSpec) -> Answer<()> {
    cards::check(spec.networks.len())?;
    if spec.disks.len() > DISKS_MAX {
        return Err(invalid(format!("A machine has at most {DISKS_MAX} disks")));
    }
    let mut names = BTreeSet::from([SEED]);
    for disk in &spec.disks {
        let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if !(1..=20).contains(&disk.name.len()) || !disk.name.bytes().all(is_plain) {
            return Err(invalid(format!(
                "A disk's name is 1 to 20 of a-z, 0-9 and -, not {:?}",
                disk.name
            )));
        }
        if !names.insert(&disk.name) {
            return Err(invalid(format!(
                "There can be only one disk {} in a machine, and {SEED} is cloud-init's",
                disk.name
            )));
        }
        if disk.size_bytes == 0
            || !disk.size_bytes.is_multiple_of(512)
            || disk.size_bytes > 64 << 40
        {
            return Err(invalid(format!(
                "Disk {} needs a size: a multiple of 512 bytes, at most 64 TiB",
                disk.name
            )));
        }
        if [disk.operations_per_second, disk.bytes_per_second].contains(&Some(0)) {
            return Err(invalid(format!(
                "Disk {} would do nothing with a limit of 0: leave the limit out for none",
                disk.name
            )));
        }
        if disk.read_only && disk.image.is_none() {
            return Err(invalid(format!(
                "Disk {} is empty and read-only: name an image for it",
                disk.name
            )));
        }
    }
    Ok(())
}

/// Checks what cloud-init is to be told.
pub(crate) fn check_setup(spec: &VmSpec, id: &str, name: &Name) -> Answer<()> {
    let Some(setup) = &spec.setup else {
        return Ok(());
    };
    if setup
        .user_data
        .as_ref()
        .is_some_and(|text| text.len() > USER_DATA_BYTES_MAX)
    {
        return Err(invalid(format!(
            "User data has at most {} KiB",
            USER_DATA_BYTES_MAX >> 10
        )));
    }
    seed::check(&told(setup, id, name)).map_err(|error| invalid(chain(&error)))
}

fn told<'a>(setup: &'a GuestSetup, id: &'a str, name: &'a Name) -> seed::Seed<'a> {
    seed::Seed {
        instance_id: id,
        hostname: name.as_str(),
        ssh_keys: &setup.ssh_keys,
        user_data: setup.user_data.as_deref(),
        network: None,
    }
}

/// What a machine's devices are called, in the order in which [`Node::hardware`] makes them.
pub(crate) fn labels(spec: &VmSpec) -> Vec<String> {
    let mut labels: Vec<String> = ["rng", "balloon", "console"].map(Into::into).into();
    labels.extend(spec.disks.iter().map(|disk| disk.name.clone()));
    labels.extend(spec.setup.iter().map(|_| SEED.to_owned()));
    labels.push("vsock".into());
    labels.extend((0..spec.networks.len()).map(|number| format!("net-{number}")));
    labels
}

/// Length of the file of a disk of so many bytes, at most.
pub(crate) fn file_bytes(format: Layer, bytes: u64) -> u64 {
    match format {
        Layer::Raw => bytes,
        Layer::Qcow2 => bytes + bytes / 32 + TABLES_BYTES,
    }
}

/// Makes the file of a raw disk longer that nobody uses. Done also if there is none yet.
pub(crate) fn lengthen_raw(path: &Path, bytes: u64) -> std::io::Result<()> {
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    file.try_lock().map_err(std::io::Error::other)?;
    file.set_len(bytes.max(file.metadata()?.len()))?;
    file.sync_all()
}

/// Where programs of the host connect to the guest, and an end of what is asked over: the other end is given up, and
/// another takes its place before the machine runs.
fn vsock(dir: &Path) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let path = dir.join(guests::SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    let (_, asking) = guests::pair()?;
    Ok((listener.into(), asking))
}

/// Why a machine cannot move to another host, if its hardware holds it here.
pub(crate) fn bound(spec: &VmSpec) -> Option<&'static str> {
    if !spec.disks.is_empty() || spec.setup.is_some() {
        Some("it has disks, which do not move between hosts in this version of DWCP")
    } else if spec.hugepages {
        Some("its memory is of huge pages, which cannot be sent in this version of DWCP")
    } else if !spec.networks.is_empty() {
        Some(
            "it has an address of this host's own network, where it could not be reached from there",
        )
    } else {
        None
    }
}

impl Node {
    /// Length of the longest file that a machine's process writes: a disk, or a snapshot.
    pub(crate) fn longest_file(&self, vm: &Vm) -> u64 {
        let written = vm.spec.disks.iter().filter(|disk| !disk.read_only);
        let disks = written.map(|disk| {
            let format = own_file(disk, vm.origin.as_ref()).format;
            file_bytes(format, disk.size_bytes)
        });
        let snapshot = crate::snapshots::file_bytes(vm.spec.memory_bytes);
        disks.max().unwrap_or(0).max(snapshot)
    }

    /// Adds what a request asks for: the disk that is booted, more disks, what cloud-init is told.
    pub(crate) async fn wish_hardware(&self, spec: &mut VmSpec, request: &VmCreate) -> Answer<()> {
        if let Some(image) = &request.image {
            spec.disks.insert(
                0,
                DiskSpec {
                    name: ROOT.into(),
                    image: Some(image.clone()),
                    size_bytes: request.root_bytes.unwrap_or(0),
                    read_only: false,
                    operations_per_second: None,
                    bytes_per_second: None,
                },
            );
        } else if request.root_bytes.is_some() {
            return Err(invalid(
                "Only a machine from an image has a disk `root` with a size",
            ));
        }
        spec.disks.extend(request.disks.iter().cloned());
        for disk in &mut spec.disks {
            let Some(digest) = &disk.image else { continue };
            let image = self.disk_image(digest).await?;
            if disk.size_bytes == 0 || disk.read_only {
                disk.size_bytes = image.size_bytes;
            }
            if disk.size_bytes < image.size_bytes {
                return Err(invalid(format!(
                    "Disk {} cannot be smaller than its image of {} bytes",
                    disk.name, image.size_bytes
                )));
            }
        }
        Ok(())
    }

    /// What is known of an image that is a disk.
    pub(crate) async fn disk_image(
        &self,
        digest: &str,
    ) -> Answer<dwcp_control::records::DiskImage> {
        self.images.path(digest)?;
        let image = self.records.images.get(digest).await.map_err(record)?;
        let Some(Image { disk, label, .. }) = image.map(|found| found.value) else {
            return Err(dwcp_api::Fault::not_found(format!(
                "image {digest}: add it with `dwcp image add FILE`"
            )));
        };
        disk.ok_or_else(|| {
            invalid(format!(
                "Image {label} ({digest}) is no disk: a disk image is raw or qcow2, with a file system or partitions"
            ))
        })
    }

    /// Everything for the process of a machine, made where it is not there yet.
    pub(crate) async fn hardware(&self, vm: &Vm) -> Answer<Hardware> {
        let mut hardware = Hardware {
            devices: vec![Device::Rng],
            ..Hardware::default()
        };
        // A guest gives up pages of 4 KiB, which are no huge pages.
        if !vm.spec.hugepages {
            hardware.devices.push(Device::Balloon);
        }
        hardware.devices.push(Device::Console(Default::default()));
        let dir = self.vm_dir(&vm.id);
        for disk in &vm.spec.disks {
            self.add_disk(&mut hardware, &dir, vm, disk).await?;
        }
        let (id, name) = self.known_as(vm).await?;
        if let Some(setup) = &vm.spec.setup {
            let made = seed::make(&told(setup, &id, &name));
            let bytes = made.map_err(|error| invalid(chain(&error)))?;
            hardware
                .descriptors
                .push(in_memory(&bytes).map_err(internal)?);
            hardware
                .devices
                .push(block(SEED, true, vec![Layer::Raw], None));
        }
        let (listener, asking) = vsock(&dir).map_err(internal)?;
        hardware.descriptors.extend([listener, asking]);
        hardware.devices.push(Device::Vsock { cid: GUEST_CID });
        for card in &vm.spec.networks {
            hardware.devices.push(self.card(card, &name).await?);
            hardware.nics.push(cards::nic(card)?);
        }
        Ok(hardware)
    }

    /// As what a machine's guest knows itself: in a life that goes on from another one's, as that one.
    async fn known_as(&self, vm: &Vm) -> Answer<(VmId, Name)> {
        if vm.origin.is_some()
            && vm.started_ms == 0
            && let Some(lower) = self.below(vm).await?.into_iter().next()
        {
            return Ok((lower.id, lower.name));
        }
        Ok((vm.id.clone(), vm.name.clone()))
    }

    async fn add_disk(
        &self,
        hardware: &mut Hardware,
        dir: &Path,
        vm: &Vm,
        disk: &DiskSpec,
    ) -> Answer<()> {
        let mut layers = Vec::new();
        let mut files = Vec::new();
        if !disk.read_only {
            let own = own_file(disk, vm.origin.as_ref());
            layers.push(own.format);
            files.push(alone(volume(dir, vm, disk, &own)?, disk)?);
            for lower in self.below(vm).await? {
                let (path, format) = lower.file(disk);
                layers.push(format);
                files.push(File::open(path).map_err(internal)?);
            }
        }
        if let Some(digest) = &disk.image {
            let image = self.disk_image(digest).await?;
            layers.push(match image.format {
                DiskFormat::Raw => Layer::Raw,
                DiskFormat::Qcow2 => Layer::Qcow2,
            });
            files.push(self.images.open_image(digest)?);
        }
        hardware
            .descriptors
            .extend(files.into_iter().map(OwnedFd::from));
        hardware
            .devices
            .push(block(&disk.name, disk.read_only, layers, Some(disk)));
        Ok(())
    }
}

/// The file that a machine writes a disk to.
pub(crate) struct OwnFile {
    /// Its name among the machine's files.
    pub name: String,
    /// Its name in a snapshot.
    pub kept_name: String,
    pub format: Layer,
}

/// What a disk is written to by a machine that went on from `origin`, or from nothing. One that stands on something is
/// an overlay, and one of another restore another file.
pub(crate) fn own_file(disk: &DiskSpec, origin: Option<&Origin>) -> OwnFile {
    let (format, ending) = match (&disk.image, origin) {
        (None, None) => (Layer::Raw, "raw"),
        _ => (Layer::Qcow2, "qcow2"),
    };
    let kept_name = format!("disk-{}.{ending}", disk.name);
    let name = match origin {
        None => kept_name.clone(),
        Some(origin) => format!("disk-{}.{}.{ending}", disk.name, origin.restore),
    };
    OwnFile {
        name,
        kept_name,
        format,
    }
}

/// Opens the file of a machine's disk; makes it if the machine has never run.
fn volume(dir: &Path, vm: &Vm, disk: &DiskSpec, own: &OwnFile) -> Answer<File> {
    let path = dir.join(&own.name);
    let open = || File::options().read(true).write(true).open(&path);
    match open() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && vm.started_ms == 0 => {
            make_volume(&path, disk.size_bytes, own.format).map_err(internal)?;
            open().map_err(internal)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(conflict(format!(
            "The file of disk {} of {} is gone ({}): put it back from a copy",
            disk.name,
            vm.name,
            path.display()
        ))),
        other => other.map_err(internal),
    }
}

/// Takes a disk's file for one process: the lock goes with the descriptor, and ends with the last process that has it.
fn alone(file: File, disk: &DiskSpec) -> Answer<File> {
    // SAFETY: plain system call on an open descriptor.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    match nix::errno::Errno::result(locked) {
        Ok(_) => Ok(file),
        Err(nix::errno::Errno::EWOULDBLOCK) => Err(conflict(format!(
            "Disk {} is in use by another process, perhaps one that is still ending: try again",
            disk.name
        ))),
        Err(errno) => Err(internal(errno)),
    }
}

/// A file gets its name when it is whole and on disk.
fn make_volume(path: &Path, bytes: u64, format: Layer) -> std::io::Result<()> {
    let temporary: PathBuf = path.with_extension("new");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&temporary)?;
    let made = match format {
        Layer::Raw => volume::create_raw(&file, bytes),
        Layer::Qcow2 => volume::create_qcow2(file, bytes),
    };
    made.map_err(std::io::Error::other)?;
    std::fs::rename(&temporary, path)?;
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// A file without a name, open for reading only.
fn in_memory(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create(c"dwcp-seed", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    Ok(File::open(path)?.into())
}

fn block(id: &str, read_only: bool, chain: Vec<Layer>, limits: Option<&DiskSpec>) -> Device {
    let limit = |rate: Option<u64>| rate.and_then(std::num::NonZeroU64::new);
    Device::Block {
        id: id.to_owned(),
        read_only,
        chain,
        queues: 1,
        limits: DiskLimits {
            operations_per_second: limit(limits.and_then(|disk| disk.operations_per_second)),
            bytes_per_second: limit(limits.and_then(|disk| disk.bytes_per_second)),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_volume_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk-a.raw");
        make_volume(&path, 1 << 20, Layer::Raw).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
