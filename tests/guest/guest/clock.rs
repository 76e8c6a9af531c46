//! Time by the time stamp counter, which ring 3 may read everywhere.

use core::arch::x86_64::{__cpuid, _rdtsc};

/// Ticks since some moment.
pub fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and ring 3 may use it.
    unsafe { _rdtsc() }
}

/// Ticks per millisecond, as the hypervisor or the CPU states it; 2.4 GHz if neither does.
pub fn khz() -> u64 {
    const GUESS_KHZ: u64 = 2_400_000;
    if __cpuid(0x4000_0000).eax >= 0x4000_0010 {
        let stated = __cpuid(0x4000_0010).eax;
        if stated != 0 {
            return stated.into();
        }
    }
    if __cpuid(0).eax >= 0x15 {
        let ratio = __cpuid(0x15);
        if ratio.eax != 0 && ratio.ebx != 0 && ratio.ecx != 0 {
            return u64::from(ratio.ecx) * u64::from(ratio.ebx) / u64::from(ratio.eax) / 1000;
        }
    }
    GUESS_KHZ
}
