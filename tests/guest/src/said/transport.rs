//! What is said of any kind of device as such.

use super::Said;

/// `virtio=msix`: interrupts of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msix {
    /// `disk 0`, `net 0`.
    pub device: String,
    /// Requests made, one after the other.
    pub requests: u64,
    /// Interrupts that came of them.
    pub interrupts: u64,
    /// One that was masked was held back, and came when it was let go.
    pub held: bool,
}

impl Msix {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let said = Said::parse(line)?;
        said.text.strip_prefix("msix ")?;
        Some(Self {
            device: said.subject.to_owned(),
            requests: said.value("requests")?,
            interrupts: said.value("interrupts")?,
            held: said.value("held")?,
        })
    }
}

/// `virtio=hostile:`: what one attack did to a device. That it is said shows that the guest lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostile {
    /// `disk 0`, `net 0`.
    pub device: String,
    /// Name of the attack.
    pub attack: String,
    /// The queue that was misused.
    pub queue: u64,
    /// Status of the device afterwards; 0x40 is "needs reset".
    pub status: u64,
    /// Requests that it put into the used ring.
    pub used: u64,
    /// After a reset it left alone what it had known of.
    pub quiet: bool,
    /// After that it answered an ordinary request.
    pub works: bool,
}

impl Hostile {
    /// Reads a line.
    pub fn parse(line: &str) -> Option<Self> {
        let said = Said::parse(line)?;
        Some(Self {
            device: said.subject.to_owned(),
            attack: said.value("hostile")?,
            queue: said.value("queue")?,
            status: said.value("status")?,
            used: said.value("used")?,
            quiet: said.value("quiet")?,
            works: said.value("works")?,
        })
    }
}
