//! The one device-state format, for migration, snapshots and forks.
//!
//! ```text
//! "DWCPDEV\0"  format: u32  sections: u32
//! per section: name length: u8, name, version: u32, length: u32, bytes
//! SHA-256 of all that precedes
//! ```
//! Numbers are little-endian; a section's bytes are `postcard`. Each device owns its section and its version. What is
//! damaged, cut off, foreign or newer is refused with the reason, before anything of it is used: the hash is against
//! accidents, not against a hostile author, whose values KVM and the devices check as they would the guest's own.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// The first bytes of a state.
pub const MAGIC: [u8; 8] = *b"DWCPDEV\0";
/// The format that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Longest state, in bytes.
pub const STATE_BYTES_MAX: usize = 16 << 20;
/// Most sections.
const SECTIONS_MAX: u32 = 256;
/// Longest name of a section, in bytes.
const NAME_BYTES_MAX: u8 = 32;
const HASH_BYTES: usize = 32;

/// Why a device state cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It does not begin as a device state does.
    #[error("This is no device state of DWCP")]
    Foreign,
    /// Some of its end is missing.
    #[error("The device state is cut off")]
    Truncated,
    /// Its hash or its structure is wrong.
    #[error("The device state is damaged")]
    Damaged,
    /// It is longer than [`STATE_BYTES_MAX`].
    #[error("The device state has {0} bytes, more than {STATE_BYTES_MAX}")]
    TooLong(u64),
    /// It is of a format that this program does not know yet.
    #[error(
        "The device state is of format {0}, newer than {FORMAT}: upgrade this host before the other"
    )]
    Newer(u32),
    /// A section is of a version that this program does not know yet.
    #[error(
        "Section {name} of the device state is of version {found}, newer than {known}: upgrade this host before the other"
    )]
    NewerSection {
        /// Whose section.
        name: String,
        /// Its version.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// A device has no section.
    #[error("The device state has no section {0}")]
    Missing(String),
    /// A section belongs to no device here.
    #[error("The device state has a section {0}, for a device that this VM does not have")]
    Unknown(String),
}

/// A state being written.
#[derive(Debug)]
pub struct StateWriter {
    bytes: Vec<u8>,
    sections: u32,
}

impl StateWriter {
    /// An empty state.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        Self { bytes, sections: 0 }
    }

    /// Adds the section of one device.
    pub fn put<T: Serialize>(
        &mut self,
        name: &str,
        version: u32,
        value: &T,
    ) -> Result<(), StateError> {
        let body = postcard::to_stdvec(value).map_err(|_| StateError::Damaged)?;
        debug_assert!(name.len() <= NAME_BYTES_MAX.into());
        self.bytes.push(name.len() as u8);
        self.bytes.extend(name.as_bytes());
        self.bytes.extend(version.to_le_bytes());
        self.bytes.extend((body.len() as u32).to_le_bytes());
        self.bytes.extend(body);
        self.sections += 1;
        match self.bytes.len() {
            length if length > STATE_BYTES_MAX => Err(StateError::TooLong(length as u64)),
            _ => Ok(()),
        }
    }

    /// The finished state.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes[12..16].copy_from_slice(&self.sections.to_le_bytes());
        let hash = Sha256::digest(&self.bytes);
        self.bytes.extend(hash);
        self.bytes
    }
}

/// A state being read: whole, undamaged, and of a known format.
#[derive(Debug)]
pub struct StateReader<'a> {
    sections: Vec<Section<'a>>,
}

#[derive(Debug)]
struct Section<'a> {
    name: &'a str,
    version: u32,
    body: &'a [u8],
}

impl<'a> StateReader<'a> {
    /// Checks everything that can be checked without knowing the devices.
    pub fn new(bytes: &'a [u8]) -> Result<Self, StateError> {
        if bytes.len() > STATE_BYTES_MAX + HASH_BYTES {
            return Err(StateError::TooLong(bytes.len() as u64));
        }
        let magic = &bytes[..bytes.len().min(MAGIC.len())];
        if magic != &MAGIC[..magic.len()] || magic.is_empty() {
            return Err(StateError::Foreign);
        }
        let mut head = Cursor(bytes.get(MAGIC.len()..).ok_or(StateError::Truncated)?);
        let format = head.number()?;
        if format > FORMAT {
            return Err(StateError::Newer(format));
        }
        let split = bytes
            .len()
            .checked_sub(HASH_BYTES)
            .ok_or(StateError::Truncated)?;
        let (content, hash) = bytes.split_at(split);
        let mut cursor = Cursor(
            content
                .get(MAGIC.len() + 4..)
                .ok_or(StateError::Truncated)?,
        );
        let count = cursor.number()?;
        if count > SECTIONS_MAX || format == 0 {
            return Err(StateError::Damaged);
        }
        let sections = (0..count)
            .map(|_| cursor.section())
            .collect::<Result<Vec<_>, _>>()?;
        let names_differ = |at: usize| sections[..at].iter().all(|s| s.name != sections[at].name);
        let is_whole = cursor.0.is_empty() && (0..sections.len()).all(names_differ);
        if !is_whole || Sha256::digest(content)[..] != *hash {
            return Err(StateError::Damaged);
        }
        Ok(Self { sections })
    }

    /// Takes the section of one device, of `version` or older.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, version: u32) -> Result<T, StateError> {
        let at = self
            .sections
            .iter()
            .position(|section| section.name == name);
        let at = at.ok_or_else(|| StateError::Missing(name.to_owned()))?;
        let section = self.sections.swap_remove(at);
        if section.version > version {
            return Err(StateError::NewerSection {
                name: name.to_owned(),
                found: section.version,
                known: version,
            });
        }
        match postcard::take_from_bytes(section.body) {
            Ok((value, [])) => Ok(value),
            _ => Err(StateError::Damaged),
        }
    }

    /// Refuses what no device took.
    pub fn finish(self) -> Result<(), StateError> {
        match self.sections.first() {
            Some(section) => Err(StateError::Unknown(section.name.to_owned())),
            None => Ok(()),
        }
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(StateError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, StateError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn section(&mut self) -> Result<Section<'a>, StateError> {
        let length = self.take(1)?[0];
        if length > NAME_BYTES_MAX {
            return Err(StateError::Damaged);
        }
        let name =
            std::str::from_utf8(self.take(length.into())?).map_err(|_| StateError::Damaged)?;
        let version = self.number()?;
        let bytes = self.number()? as usize;
        let body = self.take(bytes)?;
        Ok(Section {
            name,
            version,
            body,
        })
    }
}
