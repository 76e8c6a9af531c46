//! The registers that a fresh vCPU starts with, and the tables that they point to.

use dwcp_memory::GuestMemory;
use dwcp_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use kvm_bindings::{kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::{Entry, place};
use crate::kvm::{KvmError, set_boot_registers};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLED: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
/// The one flag that is always set.
const RFLAGS: u64 = 2;

/// Descriptors at these places in the table, for 64-bit code, 32-bit code, data and a task.
const GDT: [u64; 5] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0067,
];
const CODE32: u16 = 0x08;
const CODE64: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Writes descriptors, and page tables that map the first GiB onto itself.
pub fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let ram = memory.ram();
    for (at, descriptor) in (place::GDT.0..).step_by(8).zip(GDT) {
        ram.write_obj(descriptor, GuestAddress(at))?;
    }
    ram.write_obj(0u64, place::IDT)?;
    let root = place::PAGE_TABLES.0;
    let (second, third) = (root + 0x1000, root + 0x2000);
    ram.write_obj(second | 3, GuestAddress(root))?;
    ram.write_obj(third | 3, GuestAddress(second))?;
    let pages: Vec<u8> = (0..512u64)
        .flat_map(|page| (page << 21 | 0x83).to_le_bytes())
        .collect();
    ram.write_slice(&pages, GuestAddress(third))
}

/// Readies a fresh vCPU. The first one gets the entry; the others wait until the guest starts them.
pub fn prepare(vcpu: &VcpuFd, entry: Option<Entry>) -> Result<(), KvmError> {
    set_boot_registers(vcpu)?;
    connect_local_interrupts(vcpu)?;
    let Some(entry) = entry else {
        return Ok(());
    };
    let mut sregs = vcpu
        .get_sregs()
        .map_err(KvmError::refused("read special registers"))?;
    let regs = match entry {
        Entry::Linux { start } => {
            long_mode(&mut sregs);
            kvm_regs {
                rip: start.0,
                rsi: place::BOOT_PARAMS.0,
                rsp: place::STACK.0,
                rbp: place::STACK.0,
                rflags: RFLAGS,
                ..Default::default()
            }
        }
        Entry::Pvh { start } => {
            protected_mode(&mut sregs);
            kvm_regs {
                rip: start.0,
                rbx: place::START_INFO.0,
                rflags: RFLAGS,
                ..Default::default()
            }
        }
    };
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::refused("set special registers"))?;
    vcpu.set_regs(&regs)
        .map_err(KvmError::refused("set general registers"))
}

fn long_mode(sregs: &mut kvm_sregs) {
    segments(sregs, CODE64);
    sregs.cr3 = place::PAGE_TABLES.0;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.efer = EFER_LONG_MODE_ENABLED | EFER_LONG_MODE_ACTIVE;
}

fn protected_mode(sregs: &mut kvm_sregs) {
    segments(sregs, CODE32);
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
}

fn segments(sregs: &mut kvm_sregs, code: u16) {
    sregs.gdt.base = place::GDT.0;
    sregs.gdt.limit = (size_of_val(&GDT) - 1) as u16;
    sregs.idt.base = place::IDT.0;
    sregs.idt.limit = 7;
    let data = segment(DATA);
    sregs.cs = segment(code);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.tr) =
        (data, data, data, data, data, segment(TASK));
}

/// The descriptor at `selector` as the CPU would have loaded it.
fn segment(selector: u16) -> kvm_segment {
    let descriptor = GDT[usize::from(selector / 8)];
    let bits = |at: u32, count: u32| (descriptor >> at & ((1 << count) - 1)) as u8;
    let granular = bits(55, 1) == 1;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: 0,
        limit: if granular { limit << 12 | 0xfff } else { limit },
        selector,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        ..Default::default()
    }
}

/// Lets the non-maskable interrupt reach the vCPU, as firmware would.
fn connect_local_interrupts(vcpu: &VcpuFd) -> Result<(), KvmError> {
    const LINT1: usize = 0x360;
    const MODE_NMI: u32 = 4 << 8;
    let mut lapic = vcpu
        .get_lapic()
        .map_err(KvmError::refused("read the local APIC"))?;
    set_mode(&mut lapic, LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic)
        .map_err(KvmError::refused("set the local APIC"))
}

fn set_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    for (at, byte) in mode.to_le_bytes().into_iter().enumerate() {
        lapic.regs[register + at] = byte as i8;
    }
}
