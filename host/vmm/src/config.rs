//! What a VM is made of: the JSON that the process reads from descriptor 4.
//!
//! Everything else (kernel, memory, sockets) comes as descriptors; a configuration never names a file.

use dwcp_memory::MemorySize;
use serde::{Deserialize, Serialize};

/// Most vCPUs of a VM.
pub const VCPUS_MAX: u8 = 32;
/// Least memory of a VM, in bytes (16 MiB).
pub const MEMORY_BYTES_MIN: u64 = 16 << 20;
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
    /// Where the first instruction comes from.
    pub boot: Boot,
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
    /// The command line is too long or not printable ASCII.
    #[error(
        "The kernel command line must be at most {CMDLINE_BYTES_MAX} printable ASCII characters"
    )]
    Cmdline,
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
