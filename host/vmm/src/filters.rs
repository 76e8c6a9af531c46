//! Which system calls each kind of thread keeps.
//!
//! A vCPU's thread runs the guest, sets interrupt lines and wakes the event loop and devices; it can neither open nor
//! receive anything. A device's thread waits, reads events, sends interrupts, and does what its device is for. The
//! event loop serves its socket and consoles, makes memfds for device states, and writes snapshots into files that it
//! is given. The thread that fills memory reads files that it is given. No thread can start another, open a file, or
//! make executable memory. Everything else ends the process, and its last words name the call.

use std::os::fd::AsRawFd;

use dwcp_jail::{Condition, ConfineError, LastWords, Rule, Scope, allow, confine, runtime_rules};

use crate::devices::Devices;
use crate::end::EndNotice;

/// Numbers of KVM's ioctls (Linux, include/uapi/linux/kvm.h): direction, size, type 0xae, number.
mod ioctl {
    const fn none(number: u32) -> u32 {
        0xae << 8 | number
    }

    const fn encode(direction: u32, number: u32, bytes: usize) -> u32 {
        direction << 30 | (bytes as u32) << 16 | 0xae << 8 | number
    }

    const fn to_kernel<T>(number: u32) -> u32 {
        encode(1, number, size_of::<T>())
    }

    const fn from_kernel<T>(number: u32) -> u32 {
        encode(2, number, size_of::<T>())
    }

    const fn both<T>(number: u32) -> u32 {
        encode(3, number, size_of::<T>())
    }

    use kvm_bindings as kvm;

    /// What a vCPU's thread asks of KVM.
    pub const VCPU: [u32; 26] = [
        none(0x80), // run
        from_kernel::<kvm::kvm_regs>(0x81),
        to_kernel::<kvm::kvm_regs>(0x82),
        from_kernel::<kvm::kvm_sregs>(0x83),
        to_kernel::<kvm::kvm_sregs>(0x84),
        both::<kvm::kvm_msrs>(0x88),
        to_kernel::<kvm::kvm_msrs>(0x89),
        from_kernel::<kvm::kvm_lapic_state>(0x8e),
        to_kernel::<kvm::kvm_lapic_state>(0x8f),
        to_kernel::<kvm::kvm_cpuid2>(0x90),
        from_kernel::<kvm::kvm_mp_state>(0x98),
        to_kernel::<kvm::kvm_mp_state>(0x99),
        from_kernel::<kvm::kvm_vcpu_events>(0x9f),
        to_kernel::<kvm::kvm_vcpu_events>(0xa0),
        from_kernel::<kvm::kvm_debugregs>(0xa1),
        to_kernel::<kvm::kvm_debugregs>(0xa2),
        none(0xa2), // set the speed of time
        none(0xa3), // get it
        from_kernel::<kvm::kvm_xsave>(0xa4),
        to_kernel::<kvm::kvm_xsave>(0xa5),
        from_kernel::<kvm::kvm_xcrs>(0xa6),
        to_kernel::<kvm::kvm_xcrs>(0xa7),
        none(0xad), // tell the guest that it stood still
        SEND_MESSAGE,
        ROUTE,
        HEAR,
    ];

    /// What the event loop asks of KVM, and of the userfaultfd.
    pub const MACHINE: [u32; 8] = [
        dwcp_memory::WATCH_REQUEST,
        SEND_MESSAGE,
        ROUTE,
        HEAR,
        to_kernel::<kvm::kvm_dirty_log>(0x42),
        to_kernel::<kvm::kvm_userspace_memory_region>(0x46),
        to_kernel::<kvm::kvm_clock_data>(0x7b),
        from_kernel::<kvm::kvm_clock_data>(0x7c),
    ];

    /// What a device's thread asks of KVM.
    pub const DEVICE: [u32; 1] = [SEND_MESSAGE];

    const HEAR: u32 = to_kernel::<kvm::kvm_ioeventfd>(0x79);
    const SEND_MESSAGE: u32 = to_kernel::<kvm::kvm_msi>(0xa5);
    const ROUTE: u32 = to_kernel::<kvm::kvm_irq_routing>(0x6a);
}

/// Gives up everything that a vCPU's thread does not need.
pub fn confine_vcpu(
    last_words: LastWords,
    devices: &Devices,
    end: &EndNotice,
) -> Result<(), ConfineError> {
    let mut rules = common_rules();
    rules.extend(ioctls(&ioctl::VCPU));
    for event in devices.events().chain([end.event()]) {
        let fd = event.as_raw_fd() as u32;
        rules.push(allow(libc::SYS_write).when(Condition::IntIs(0, fd)));
    }
    confine(last_words, &rules, Scope::ThisThread)
}

/// Gives up everything that a device's thread does not need; `own` is what only this kind of device does.
pub fn confine_device(last_words: LastWords, own: Vec<Rule>) -> Result<(), ConfineError> {
    let mut rules = common_rules();
    rules.extend(ioctls(&ioctl::DEVICE));
    rules.extend([libc::SYS_poll, libc::SYS_read].map(allow));
    rules.extend(own);
    confine(last_words, &rules, Scope::ThisThread)
}

/// Gives up everything that the event loop, and loading a kernel before it, do not need.
pub fn confine_event_loop(last_words: LastWords) -> Result<(), ConfineError> {
    let mut rules = common_rules();
    rules.extend(ioctls(&ioctl::MACHINE));
    rules.extend(
        [
            libc::SYS_accept4,
            libc::SYS_fstat,
            libc::SYS_fsync,
            libc::SYS_ftruncate,
            libc::SYS_lseek,
            libc::SYS_memfd_create,
            libc::SYS_newfstatat,
            libc::SYS_poll,
            libc::SYS_pread64,
            libc::SYS_pwrite64,
            libc::SYS_read,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_setsockopt,
            libc::SYS_socketpair,
            libc::SYS_statx,
            libc::SYS_tgkill,
            libc::SYS_write,
        ]
        .map(allow),
    );
    rules.push(fcntl(libc::F_ADD_SEALS));
    rules.push(fcntl(libc::F_GET_SEALS));
    confine(last_words, &rules, Scope::ThisThread)
}

/// Gives up everything that the thread which fills memory does not need.
pub fn confine_filler(last_words: LastWords) -> Result<(), ConfineError> {
    let mut rules = common_rules();
    rules.extend(ioctls(&dwcp_memory::FILL_REQUESTS));
    rules.extend([libc::SYS_read, libc::SYS_pread64].map(allow));
    confine(last_words, &rules, Scope::ThisThread)
}

fn common_rules() -> Vec<Rule> {
    let mut rules = runtime_rules();
    // Debug builds of the standard library look whether a descriptor is open before they close it.
    rules.push(fcntl(libc::F_GETFD));
    rules
}

fn fcntl(command: libc::c_int) -> Rule {
    allow(libc::SYS_fcntl).when(Condition::IntIs(1, command as u32))
}

fn ioctls(numbers: &[u32]) -> impl Iterator<Item = Rule> {
    numbers
        .iter()
        .map(|number| allow(libc::SYS_ioctl).when(Condition::IntIs(1, *number)))
}
