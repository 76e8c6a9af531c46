//! KVM as this program uses it: the machine, the state of one vCPU, and what the CPU offers.
//!
//! What always holds: the guest's memory outlives the machine that maps it. Must not know devices or requests.

mod cpuid;
mod feature_names;
mod msrs;
mod vcpu_state;
mod vm;

pub use cpuid::{CpuFeatures, TooFewFeatures, needed};
pub use feature_names::name as feature_name;
pub use vcpu_state::VcpuState;
pub use vm::{MachineState, Message, PINS, Vm};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::VcpuFd;

/// Why KVM could not do something.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The descriptor is not KVM, or an old one.
    #[error("The descriptor given for /dev/kvm speaks API {0}, not 12: is it /dev/kvm?")]
    Version(i32),
    /// KVM lacks something that every VM needs.
    #[error("KVM on this host lacks {0}")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("KVM refused to {action}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A saved register cannot have its value here.
    #[error("This host cannot give register {index:#x} the value {value:#x} that the guest had")]
    Msr {
        /// The model-specific register.
        index: u32,
        /// Its saved value.
        value: u64,
    },
    /// The state was saved on a CPU of another speed, and this one cannot scale.
    #[error(
        "The guest counts time at {saved} kHz, this host at {here} kHz, and its CPU cannot scale"
    )]
    TscSpeed {
        /// Where the state was saved.
        saved: u32,
        /// Here.
        here: u32,
    },
    /// The guest was told of CPU features that this host lacks.
    #[error(transparent)]
    Features(#[from] TooFewFeatures),
}

impl KvmError {
    pub(crate) fn refused(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |source| Self::Refused { action, source }
    }
}

/// Tells a fresh vCPU what it is.
pub fn set_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
    vcpu.set_cpuid2(&cpuid::to_kvm(entries)?)
        .map_err(KvmError::refused("set CPUID"))
}

/// Sets the registers that firmware would have set: fast strings, and all memory cached. A CPU without them does not
/// need them.
pub fn set_boot_registers(vcpu: &VcpuFd) -> Result<(), KvmError> {
    const FAST_STRINGS: u64 = 1;
    const ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
    msrs::try_write(vcpu, msrs::MISC_ENABLE, FAST_STRINGS)?;
    msrs::try_write(vcpu, msrs::MTRR_DEFAULT_TYPE, ENABLED_WRITE_BACK)?;
    Ok(())
}
