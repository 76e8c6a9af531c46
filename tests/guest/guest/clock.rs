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

/// Turns ticks into time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    khz: u64,
}

impl Clock {
    /// A clock of so many ticks per millisecond.
    pub fn new(khz: u64) -> Self {
        Self { khz: khz.max(1) }
    }

    /// Ticks per second.
    pub fn ticks_per_s(self) -> u64 {
        self.khz.saturating_mul(1000)
    }

    /// Ticks as microseconds.
    pub fn microseconds(self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1000 / u128::from(self.khz)) as u64
    }

    /// A moment `ms` milliseconds from now.
    pub fn deadline_ms(self, ms: u64) -> Deadline {
        Deadline(now().saturating_add(ms.saturating_mul(self.khz)))
    }
}

/// A moment that comes.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(u64);

impl Deadline {
    /// Whether it has come.
    pub fn is_over(self) -> bool {
        core::hint::spin_loop();
        now() >= self.0
    }
}

/// Something to do every so often; after a standstill it does not catch up by more than one second's worth.
#[derive(Debug)]
pub struct Pace {
    period: u64,
    due: u64,
    hz: u64,
}

impl Pace {
    /// Due `per_s` times a second, never if that is 0; for the first time after one period.
    pub fn new(per_s: u64, hz: u64, now: u64) -> Self {
        let period = if per_s == 0 {
            u64::MAX
        } else {
            (hz / per_s).max(1)
        };
        Self {
            period,
            due: now.saturating_add(period),
            hz,
        }
    }

    /// Whether it is due; if so, it is due again a period later.
    pub fn is_due(&mut self, now: u64) -> bool {
        if now < self.due {
            return false;
        }
        self.due = self
            .due
            .max(now.saturating_sub(self.hz))
            .saturating_add(self.period);
        true
    }
}
