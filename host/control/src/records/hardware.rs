//! A machine's disks and networks, and what is known of an image that is a disk.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Digest;
use crate::names::Name;

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// Unique in the machine, where it is `/dev/disk/by-id/virtio-NAME`: 1 to 20 of `a-z`, `0-9` and `-`.
    #[schema(example = "data", max_length = 20)]
    pub name: String,
    /// What it begins as: an image that is a disk, which many machines may share; empty otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// Its size in bytes: a multiple of 512, at least that of its image. The image's if absent.
    #[serde(default)]
    pub size_bytes: u64,
    /// Whether the machine may not change it.
    #[serde(default)]
    pub read_only: bool,
    /// Most requests a second; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<u64>,
    /// Most bytes a second, both ways together; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
}

/// A network card of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// The network it is on. `default` reaches what the host reaches, under the host's address.
    pub network: Name,
    /// Its Ethernet address.
    #[schema(example = "02:c3:1f:0a:7b:00")]
    pub mac: String,
    /// Its IPv4 address, with the length of the network's prefix. The machine learns it by DHCP.
    #[schema(example = "10.83.0.5/24")]
    pub address: String,
    /// What the guest takes for these two, if it goes on from where another one was: they are mapped to each other, so
    /// that nothing inside must change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<CardInside>,
}

/// The addresses of a network card as its guest knows them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CardInside {
    /// Its Ethernet address.
    #[schema(example = "02:c3:1f:0a:7b:00")]
    pub mac: String,
    /// Its IPv4 address, with the length of the prefix that the guest knows.
    #[schema(example = "10.83.0.5/24")]
    pub address: String,
}

/// What a machine is told when it starts for the first time, by cloud-init's NoCloud data source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestSetup {
    /// SSH keys that may log in, as lines of `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// User data: `#cloud-config` or a script; at most 256 KiB. Whoever may see the machine may see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<String>,
}

/// How a file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// What is known of an image that is a disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskImage {
    /// How the file holds it.
    pub format: DiskFormat,
    /// Size of the disk that a machine sees, bytes.
    pub size_bytes: u64,
    /// The kernel that was found in it, stored as an image of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Digest>,
    /// The initial RAM disk that was found in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Digest>,
    /// The kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Why no kernel was found, or what else there is to know, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}
