//! What a VM is made of: the JSON that the process reads from descriptor 4.
//!
//! Everything else (kernel, memory, sockets) comes as descriptors; a configuration never names a file.

use std::net::Ipv4Addr;
use std::num::NonZeroU64;

use dwcp_memory::MemorySize;
use serde::{Deserialize, Serialize};

use crate::baseline::Baseline;
use crate::dhcp::{DhcpError, Responder};

/// Most vCPUs of a VM.
pub const VCPUS_MAX: u8 = 32;
/// Least memory of a VM, in bytes (16 MiB).
pub const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// Most virtio devices of a VM.
pub const DEVICES_MAX: usize = crate::devices::FUNCTIONS_MAX;
/// Longest name of a disk, in bytes, as virtio has it.
pub const DISK_ID_BYTES_MAX: usize = 20;
/// Most files of a disk.
pub const CHAIN_FILES_MAX: usize = 8;
/// Most queues of a disk.
pub const DISK_QUEUES_MAX: u16 = 8;
/// Least payload of a card's frames, as IPv4 needs it.
pub const MTU_MIN: u16 = 576;
/// Least address of a guest; those below mean hosts.
pub const CID_MIN: u32 = 3;
/// Longest payload of a card's frames.
pub const MTU_MAX: u16 = 9000;
/// Longest kernel command line, in bytes, without what the VMM appends.
pub const CMDLINE_BYTES_MAX: usize = 1536;
/// Longest configuration, in bytes.
pub const CONFIG_BYTES_MAX: u64 = 64 << 10;

/// The configuration of one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The VM's id, for messages only: 1 to 64 of `a-z`, `0-9`, `-`.
    pub id: String,
    /// 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// Guest RAM in bytes: a multiple of 4096, at least [`MEMORY_BYTES_MIN`], equal to the memfd's length.
    pub memory_bytes: u64,
    /// What the guest is told of its CPU at most, all of which the host must have. One that was told elsewhere keeps
    /// what it was told, which must be within this.
    #[serde(default, skip_serializing_if = "is_host")]
    pub cpu: Baseline,
    /// Where the first instruction comes from.
    pub boot: Boot,
    /// Which life of the machine this is. Without it a fresh VM gets a random one, and one whose state is loaded keeps
    /// the one that it had; a guest that gets another one than it had is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// Virtio devices, in the order of their slots on the PCI bus. The same on both sides of a migration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
}

/// The number of a life of a machine, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Generation(pub [u8; 16]);

impl TryFrom<String> for Generation {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        let is_plain = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| is_plain);
        Ok(Self(number.ok_or(ConfigError::Generation)?.to_be_bytes()))
    }
}

impl From<Generation> for String {
    fn from(generation: Generation) -> Self {
        format!("{:032x}", u128::from_be_bytes(generation.0))
    }
}

/// A virtio device. Those that need a descriptor get it after the kernel and the initrd, in the order of the devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Device {
    /// Entropy of the host.
    Rng,
    /// A balloon, by which the guest gives up memory when asked, and tells of memory that it does not use.
    Balloon,
    /// A disk; one descriptor for each file of its chain, open for reading, the topmost for writing too unless the disk
    /// is read-only.
    Block {
        /// By what the guest knows it: 1 to [`DISK_ID_BYTES_MAX`] printable ASCII characters.
        id: String,
        /// Whether the guest may not change it.
        #[serde(default)]
        read_only: bool,
        /// What its chain of files is, the topmost first; 1 to [`CHAIN_FILES_MAX`]. Only the last may be raw.
        #[serde(default = "raw", skip_serializing_if = "is_raw")]
        chain: Vec<DiskFormat>,
        /// How many queues, 1 to [`DISK_QUEUES_MAX`].
        #[serde(default = "one")]
        queues: u16,
        /// How much the guest may do.
        #[serde(default)]
        limits: DiskLimits,
    },
    /// A console besides the serial port. Both say what they say to the same place; what is typed comes to this one
    /// while the guest's driver takes it, and to the serial port otherwise.
    Console(ConsoleSize),
    /// Sockets between host and guest; two descriptors, as [`crate::vsock`] says: a listening Unix socket, and one over
    /// which the host is asked for connections.
    Vsock {
        /// The guest's address, at least [`CID_MIN`] and less than `u32::MAX`.
        cid: u32,
    },
    /// A network card; one descriptor, a tap whose frames have a virtio header of 12 bytes. Comes after all disks and vsock.
    Net {
        /// Its address.
        mac: MacAddress,
        /// Longest payload of a frame, [`MTU_MIN`] to [`MTU_MAX`] bytes.
        #[serde(default = "mtu")]
        mtu: u16,
        /// What the guest learns when it asks by DHCP; without it nobody answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        told: Option<CardAddress>,
        /// How much may pass, each way.
        #[serde(default)]
        limits: NetLimits,
    },
}

/// How large a console is, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Default for ConsoleSize {
    fn default() -> Self {
        Self {
            columns: 80,
            rows: 24,
        }
    }
}

/// An Ethernet address, written as `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// What a guest learns of its card's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardAddress {
    /// Its address.
    pub address: Ipv4Addr,
    /// How many bits of it are the network's.
    pub prefix: u8,
    /// The way out of the network, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router: Option<Ipv4Addr>,
    /// Who resolves names; at most [`DNS_MAX`](crate::dhcp::DNS_MAX).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
    /// What the guest is called.
    pub hostname: String,
}

impl CardAddress {
    /// Who tells it.
    pub fn responder(&self, mac: MacAddress, mtu: u16) -> Result<Responder, DhcpError> {
        let Self {
            address,
            prefix,
            router,
            dns,
            hostname,
        } = self;
        Responder::new(mac.0, *address, *prefix, *router, dns, hostname, mtu)
    }
}

/// How much may pass a network card in each direction; nothing is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetLimits {
    /// Frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames_per_second: Option<NonZeroU64>,
    /// Bytes, headers included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU64>,
}

impl std::str::FromStr for MacAddress {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let digits = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = digits.ok_or(ConfigError::Mac)?;
        }
        let is_one_card = bytes[0] & 1 == 0 && bytes != [0; 6];
        if parts.next().is_some() || !is_one_card {
            return Err(ConfigError::Mac);
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(MacAddress([a, b, c, d, e, f]): MacAddress) -> Self {
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

fn mtu() -> u16 {
    1500
}

/// How a file holds a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

fn raw() -> Vec<DiskFormat> {
    vec![DiskFormat::Raw]
}

fn is_raw(chain: &[DiskFormat]) -> bool {
    chain == [DiskFormat::Raw]
}

/// How much a guest may do with a disk; nothing is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskLimits {
    /// Requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<NonZeroU64>,
    /// Bytes, both ways together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NonZeroU64>,
}

fn is_host(cpu: &Baseline) -> bool {
    *cpu == Baseline::Host
}

fn one() -> u16 {
    1
}

/// How a VM begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Boot {
    /// A kernel (descriptor 11) is loaded, with an initrd (descriptor 12) if there is one.
    Fresh {
        /// The kernel's command line, printable ASCII.
        cmdline: String,
        /// Whether descriptor 12 is an initrd.
        initrd: bool,
        /// Whether the kernel is a firmware: an ELF with a PVH entry, which gets no command line at all.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        firmware: bool,
    },
    /// The state of a VM that ran elsewhere will come by `Load`; its memory fills the memfd.
    Incoming,
    /// Nothing yet: memory is reserved and private, and a snapshot (`Restore`) or a template (`Fork`) is laid over it
    /// later. The memfd is not used.
    Shell,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the JSON that is expected.
    #[error("The configuration could not be understood")]
    Malformed(#[from] serde_json::Error),
    /// The id is empty, too long or has other characters.
    #[error("The VM id must be 1 to 64 of a-z, 0-9 and -")]
    Id,
    /// Too few or too many vCPUs.
    #[error("A VM has 1 to {VCPUS_MAX} vCPUs, not {0}")]
    Vcpus(u8),
    /// Too little memory, or no multiple of the page size.
    #[error("A VM has at least {MEMORY_BYTES_MIN} bytes of memory, in whole pages, not {0}")]
    Memory(u64),
    /// More devices than the bus has slots.
    #[error("A VM has at most {DEVICES_MAX} devices, not {0}")]
    Devices(usize),
    /// A disk's name or its number of queues.
    #[error(
        "A disk has 1 to {DISK_QUEUES_MAX} queues, and a name of 1 to {DISK_ID_BYTES_MAX} printable ASCII characters"
    )]
    Disk,
    /// A disk's files.
    #[error(
        "A disk has a chain of 1 to {CHAIN_FILES_MAX} files, of which only the last may be raw"
    )]
    Chain,
    /// An Ethernet address.
    #[error(
        "An Ethernet address is six pairs of hexadecimal digits with colons between, and means one card: 52:54:00:12:34:56"
    )]
    Mac,
    /// The payload of frames.
    #[error("A network card's frames carry {MTU_MIN} to {MTU_MAX} bytes, not {0}")]
    Mtu(u16),
    /// What a guest cannot be told.
    #[error("A network card cannot be told of")]
    Told(#[from] DhcpError),
    /// The number of a life.
    #[error("A generation is 32 hexadecimal digits")]
    Generation,
    /// The address of a guest.
    #[error("A guest's address is at least {CID_MIN} and less than 4294967295, not {0}")]
    Cid(u32),
    /// More than one of a device that there is one of.
    #[error("A VM has at most one of this device: {0}")]
    Twice(&'static str),
    /// Devices in the wrong order.
    #[error("A VM's disks and its vsock come before its network cards")]
    Order,
    /// More than a firmware takes.
    #[error("A firmware gets neither an initrd nor a command line")]
    Firmware,
    /// The command line is too long or not printable ASCII.
    #[error(
        "The kernel command line must be at most {CMDLINE_BYTES_MAX} printable ASCII characters"
    )]
    Cmdline,
}

impl Device {
    fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Rng | Self::Balloon | Self::Console(_) => Ok(()),
            Self::Block {
                id, queues, chain, ..
            } => {
                let is_chain = (1..=CHAIN_FILES_MAX).contains(&chain.len());
                let mut above = chain.iter().rev().skip(1);
                if !is_chain || above.any(|format| *format == DiskFormat::Raw) {
                    return Err(ConfigError::Chain);
                }
                let is_named = (1..=DISK_ID_BYTES_MAX).contains(&id.len());
                let is_plain = id.bytes().all(|byte| byte.is_ascii_graphic());
                let has_queues = (1..=DISK_QUEUES_MAX).contains(queues);
                let fits = is_named && is_plain && has_queues;
                fits.then_some(()).ok_or(ConfigError::Disk)
            }
            Self::Vsock { cid } => {
                let fits = (CID_MIN..u32::MAX).contains(cid);
                fits.then_some(()).ok_or(ConfigError::Cid(*cid))
            }
            Self::Net { mac, mtu, told, .. } => {
                if !(MTU_MIN..=MTU_MAX).contains(mtu) {
                    return Err(ConfigError::Mtu(*mtu));
                }
                if let Some(told) = told {
                    told.responder(*mac, *mtu)?;
                }
                Ok(())
            }
        }
    }
}

impl VmConfig {
    /// Reads and checks a configuration.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_slice(json)?;
        config.check()?;
        Ok(config)
    }

    /// Checks every range that the documentation of the fields states.
    pub fn check(&self) -> Result<(), ConfigError> {
        let id_char = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if !(1..=64).contains(&self.id.len()) || !self.id.bytes().all(id_char) {
            return Err(ConfigError::Id);
        }
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        self.memory_size()?;
        if self.devices.len() > DEVICES_MAX {
            return Err(ConfigError::Devices(self.devices.len()));
        }
        self.devices.iter().try_for_each(Device::check)?;
        let is_console = |device: &Device| matches!(device, Device::Console(_));
        let is_vsock = |device: &Device| matches!(device, Device::Vsock { .. });
        if self
            .devices
            .iter()
            .filter(|device| is_console(device))
            .count()
            > 1
        {
            return Err(ConfigError::Twice("console"));
        }
        if self
            .devices
            .iter()
            .filter(|device| is_vsock(device))
            .count()
            > 1
        {
            return Err(ConfigError::Twice("vsock"));
        }
        let mut is_card = self.devices.iter().map(|d| matches!(d, Device::Net { .. }));
        let mut is_before = self
            .devices
            .iter()
            .rev()
            .map(|d| matches!(d, Device::Block { .. } | Device::Vsock { .. }));
        if let (Some(first), Some(last)) = (is_card.position(|is| is), is_before.position(|is| is))
            && first + last + 1 < self.devices.len()
        {
            return Err(ConfigError::Order);
        }
        if let Boot::Fresh {
            cmdline,
            initrd,
            firmware: true,
        } = &self.boot
            && (*initrd || !cmdline.is_empty())
        {
            return Err(ConfigError::Firmware);
        }
        if let Boot::Fresh { cmdline, .. } = &self.boot {
            let printable = |c: u8| (b' '..=b'~').contains(&c);
            if cmdline.len() > CMDLINE_BYTES_MAX || !cmdline.bytes().all(printable) {
                return Err(ConfigError::Cmdline);
            }
        }
        Ok(())
    }

    /// The guest's memory as a checked size.
    pub fn memory_size(&self) -> Result<MemorySize, ConfigError> {
        let size = MemorySize::new(self.memory_bytes);
        size.ok()
            .filter(|size| size.bytes() >= MEMORY_BYTES_MIN)
            .ok_or(ConfigError::Memory(self.memory_bytes))
    }
}
