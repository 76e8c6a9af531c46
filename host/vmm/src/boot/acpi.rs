//! The ACPI tables: processors and interrupts (MADT), power management (FADT), soft-off, the serial port, PCI, and the
//! number of the machine's life (DSDT).
//!
//! Ports follow what QEMU's q35 machine has, soft-off included (`0x2000` to port 0x604), so that a small kernel without
//! ACPI can power off too. Source: ACPI specification 6.5, chapters 5 and 19.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Method, Name, Notify,
    Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use dwcp_memory::GuestMemory;
use dwcp_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::place;
use crate::devices::{
    CONFIG_ADDRESS_PORT, IO_APIC_ADDRESS, SERIAL_LINE, SERIAL_PORT, SPACE_LAST, SPACE_START,
};

/// Status (2 bytes) and enable (2 bytes) of fixed power events.
pub const PM1_EVENT_PORT: u16 = 0x600;
/// Control of power states (2 bytes).
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// Line of the system control interrupt, level-triggered.
pub const SCI_LINE: u8 = 9;
/// Line of the interrupt that tells of another generation, edge-triggered.
pub const GENERATION_LINE: u8 = 5;
/// Where a guest resets the machine, by writing [`RESET_VALUE`].
pub const RESET_PORT: u16 = 0xcf9;
/// What to write to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 6;

const OEM: [u8; 6] = *b"DWCP  ";
const OEM_TABLE: [u8; 8] = *b"DWCPVMM ";
const LOCAL_APIC: u32 = 0xfee0_0000;
/// `iapc_boot_arch`: ISA devices (the serial port); no VGA; no CMOS clock; no 8042 keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2 | 1 << 5;

/// Writes all tables; answers where the RSDP is.
pub fn write_tables(memory: &GuestMemory, vcpus: u8) -> Result<GuestAddress, GuestMemoryError> {
    let mut room = Room {
        memory,
        next: GuestAddress(place::ACPI.0 + 64),
    };
    let facs = room.put(&bytes(&FACS::new()))?;
    let dsdt = room.put(dsdt().as_slice())?;
    let fadt = room.put(&bytes(&fadt(facs, dsdt)))?;
    let madt = room.put(madt(vcpus).as_slice())?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(fadt.0);
    xsdt.add_entry(madt.0);
    let xsdt = room.put(&bytes(&xsdt))?;
    memory
        .ram()
        .write_slice(&bytes(&Rsdp::new(OEM, xsdt.0)), place::ACPI)?;
    Ok(place::ACPI)
}

struct Room<'a> {
    memory: &'a GuestMemory,
    next: GuestAddress,
}

impl Room<'_> {
    fn put(&mut self, table: &[u8]) -> Result<GuestAddress, GuestMemoryError> {
        let at = self.next;
        let end = at.0 + table.len() as u64;
        debug_assert!(end <= place::GENERATION.0);
        self.memory.ram().write_slice(table, at)?;
        self.next = GuestAddress(end.next_multiple_of(16));
        Ok(at)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Soft-off is state 0 of the control register, and the serial port is where it always was.
fn dsdt() -> Sdt {
    let off = Package::new(vec![&ZERO, &ZERO, &ZERO, &ZERO]);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &ZERO);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_LINE.into());
    let ports = IO::new(SERIAL_PORT, SERIAL_PORT, 0, 8);
    let resources = ResourceTemplate::new(vec![&interrupt, &ports]);
    let resources = Name::new("_CRS".into(), &resources);
    let serial = Device::new("COM1".into(), vec![&hid, &uid, &resources]);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&bytes(&Name::new("_S5_".into(), &off)));
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A03"));
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(CONFIG_ADDRESS_PORT, CONFIG_ADDRESS_PORT, 1, 8);
    let windows = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        SPACE_START,
        SPACE_LAST,
        None,
    );
    let resources = ResourceTemplate::new(vec![&buses, &ports, &windows]);
    let resources = Name::new("_CRS".into(), &resources);
    let pci = Device::new("PCI0".into(), vec![&hid, &uid, &resources]);
    let mut devices = bytes(&serial);
    devices.extend(bytes(&pci));
    devices.extend(generation());
    let devices = Made(devices);
    dsdt.append_slice(&bytes(&Scope::new("_SB_".into(), vec![&devices])));
    dsdt
}

/// Where the number of the machine's life lies, and the device whose interrupt tells of another one (ACPI 6.5, 5.6.9).
fn generation() -> Vec<u8> {
    let place = place::GENERATION.0;
    let (low, high) = (place as u32, (place >> 32) as u32);
    let hid = Name::new("_HID".into(), &"VMGENCTR");
    let cid = Name::new("_CID".into(), &"VM_Gen_Counter");
    let name = Name::new("_DDN".into(), &"VM_Gen_Counter");
    let place = Name::new("ADDR".into(), &Package::new(vec![&low, &high]));
    let number = Device::new("VGEN".into(), vec![&hid, &cid, &name, &place]);
    let hid = Name::new("_HID".into(), &"ACPI0013");
    let uid = Name::new("_UID".into(), &ZERO);
    let interrupt = Interrupt::new(true, true, false, false, GENERATION_LINE.into());
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt]));
    let number_path = Path::new("\\_SB_.VGEN");
    let changed = Notify::new(&number_path, &0x80u8);
    let event = Method::new("_EVT".into(), 1, true, vec![&changed]);
    let events = Device::new("GED_".into(), vec![&hid, &uid, &resources, &event]);
    let mut both = bytes(&number);
    both.extend(bytes(&events));
    both
}

/// What was made before.
struct Made(Vec<u8>);

impl Aml for Made {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn fadt(facs: GuestAddress, dsdt: GuestAddress) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .firmware_ctrl_32(facs.0 as u32)
        .dsdt_32(dsdt.0 as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(SCI_LINE).into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT_PORT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL_PORT).into();
    fadt.pm1_cnt_len = 2;
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = GAS::new(
        Space::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        RESET_PORT.into(),
    );
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// One local APIC a vCPU, one I/O APIC, and the power interrupt is a level, active high.
fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 36, 4, OEM, OEM_TABLE, 1);
    madt.append_slice(&LOCAL_APIC.to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes()); // no old interrupt controllers
    for id in 0..vcpus {
        madt.append_slice(&[0, 8, id, id, 1, 0, 0, 0]);
    }
    let mut io_apic = [1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    io_apic[4..8].copy_from_slice(&(IO_APIC_ADDRESS as u32).to_le_bytes());
    madt.append_slice(&io_apic);
    madt.append_slice(&interrupt_override(SCI_LINE, 0b1101));
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]); // every CPU's second local pin is the non-maskable interrupt
    madt
}

fn interrupt_override(line: u8, flags: u16) -> [u8; 10] {
    let mut entry = [2, 10, 0, line, line, 0, 0, 0, 0, 0];
    entry[8..].copy_from_slice(&flags.to_le_bytes());
    entry
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::VCPUS_MAX;
    use dwcp_memory::{MemorySize, create_memory};

    fn read(memory: &GuestMemory, at: u64, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        memory
            .ram()
            .read_slice(&mut buffer, GuestAddress(at))
            .unwrap();
        buffer
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A table whose checksum has been checked.
    fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
        assert!(
            (place::ACPI.0..place::HIGH_START.0).contains(&at),
            "{at:#x}"
        );
        let length = number(&read(memory, at + 4, 4)) as usize;
        let table = read(memory, at, length);
        assert_eq!(
            table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
            0
        );
        table
    }

    #[test]
    fn tables_are_found_from_the_root_with_right_checksums() {
        let size = MemorySize::mib(16).unwrap();
        let memory = GuestMemory::map(create_memory(size).unwrap(), size).unwrap();
        let root = write_tables(&memory, VCPUS_MAX).unwrap();
        let rsdp = read(&memory, root.0, 36);
        assert_eq!(rsdp[..8], *b"RSD PTR ");
        let xsdt = table(&memory, number(&rsdp[24..32]));
        let tables: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|at| table(&memory, number(at)))
            .collect();
        let [fadt, madt] = &tables[..] else {
            panic!("{tables:?}")
        };
        assert_eq!((&fadt[..4], &madt[..4]), (&b"FACP"[..], &b"APIC"[..]));
        assert_eq!(table(&memory, number(&fadt[40..44]))[..4], *b"DSDT");
        assert_eq!(read(&memory, number(&fadt[36..40]), 4), b"FACS");
        let mut processors = 0;
        let mut rest = &madt[44..];
        while let [kind, length, ..] = rest {
            processors += u8::from(*kind == 0);
            rest = &rest[usize::from(*length)..];
        }
        assert_eq!(processors, VCPUS_MAX);
    }
}
