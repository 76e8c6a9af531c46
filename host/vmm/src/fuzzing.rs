//! Doors for fuzzing: what a kernel image or a device state from a stranger reaches before KVM has a say.
//!
//! Always holds: what is called here is what the process itself calls. Must not know what is a good input.

use std::fs::File;

use dwcp_memory::GuestMemory;
use serde::{Serialize, de::DeserializeOwned};

use crate::boot::{self, Entry, Fresh};
use crate::config::Generation;
use crate::devices::{FUNCTIONS_MAX, FunctionState, IoApicState, PowerState, SerialRegisters};
use crate::kvm::{MachineState, VcpuState};
use crate::state::{StateError, StateReader, StateWriter};

pub use crate::boot::BootError;
pub use crate::devices::fuzzing::*;

/// Puts a kernel and what belongs to it in guest memory, as a fresh start does; answers where its first instruction is.
///
/// # Errors
/// When the guest cannot be booted.
pub fn load_kernel(
    kernel: File,
    initrd: Option<File>,
    cmdline: &str,
    memory: &GuestMemory,
) -> Result<u64, BootError> {
    let fresh = Fresh {
        kernel,
        initrd,
        cmdline,
        is_firmware: false,
        vcpus: 2,
        tsc_khz: 2_000_000,
    };
    match boot::load(fresh, memory)? {
        Entry::Linux { start } | Entry::Pvh { start } => Ok(start.0),
    }
}

/// Reads a device state as a machine does that is asked to `Load` it, up to where its values are handed to KVM and the
/// devices, and writes what was read. The machine has whatever virtio devices the state has.
///
/// # Errors
/// When it is refused.
pub fn read_device_state(bytes: &[u8]) -> Result<Vec<u8>, StateError> {
    let mut copy = Copy {
        from: StateReader::new(bytes)?,
        to: StateWriter::new(),
    };
    let (vcpus, _) = copy.section::<(u8, u64)>("machine")?;
    for index in 0..vcpus {
        copy.section::<Box<VcpuState>>(&format!("vcpu.{index}"))?;
    }
    copy.section::<MachineState>("kvm")?;
    copy.section::<IoApicState>("ioapic")?;
    copy.section::<SerialRegisters>("serial")?;
    copy.section::<PowerState>("power")?;
    copy.section::<Generation>("generation")?;
    copy.section::<u32>("pci")?;
    for kind in ["rng", "balloon", "block", "console", "vsock", "net"] {
        for slot in 1..=FUNCTIONS_MAX {
            match copy.section::<FunctionState>(&format!("{kind}-{slot}")) {
                Ok(_) | Err(StateError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    copy.from.finish()?;
    Ok(copy.to.finish())
}

struct Copy<'a> {
    from: StateReader<'a>,
    to: StateWriter,
}

impl Copy<'_> {
    fn section<T: Serialize + DeserializeOwned>(&mut self, name: &str) -> Result<T, StateError> {
        let value: T = self.from.take(name, 1)?;
        self.to.put(name, 1, &value)?;
        Ok(value)
    }
}
