//! A guest that needs no operating system: it fills memory, keeps changing it, and never stops checking it.
//!
//! Built for a bare machine by `build.rs`; entered through PVH. It talks on the first serial port only. See `lib.rs`
//! for what it prints and obeys.
#![no_std]
#![no_main]
#![allow(dead_code)]

mod attacks;
mod balloon;
mod bench;
mod boot;
mod check;
mod clock;
mod disk;
mod fill;
mod interrupts;
mod kind;
mod libc;
mod memory;
mod net;
mod orders;
mod params;
mod pattern;
mod ports;
mod rng;
mod serial;
mod tasks;
mod virtio;
mod work;

use core::fmt::Write;

use clock::Clock;
use memory::Memory;
use params::Params;
use serial::Serial;
use work::Work;

/// First Rust code, in ring 3, interrupts off.
#[unsafe(no_mangle)]
extern "C" fn ring3_main() -> ! {
    let params = Params::parse(memory::command_line());
    if params.exit {
        serial::reset();
    }
    let khz = if params.tsc_khz == 0 {
        clock::khz()
    } else {
        params.tsc_khz
    };
    let _ = writeln!(Serial, "guest: up tsc_khz {khz}");
    if params.seed == 0 || params.mix.is_none() {
        refuse("seed must not be 0, and mix is reference, zero, random or text");
    }
    // SAFETY: called here only, once.
    let Some(memory) = (unsafe { Memory::divide(&params) }) else {
        refuse("fill_mib does not fit into memory");
    };
    let clock = Clock::new(khz);
    let spare = memory.spare.clone();
    let work = Work::prepare(memory, params, clock);
    let _ = writeln!(Serial, "guest: filled {} MiB", params.fill_mib);
    // SAFETY: called here only, once.
    let services = unsafe { tasks::carry_out(&params, clock, spare) };
    work.run(services)
}

fn refuse(why: &str) -> ! {
    let _ = writeln!(Serial, "guest: refused: {why}");
    serial::reset()
}

/// Where exceptions end up: `word0` and `word1` are the top of the exception's frame.
#[unsafe(no_mangle)]
extern "C" fn trap(vector: u64, word0: u64, word1: u64, cr2: u64) -> ! {
    let _ = writeln!(
        Serial,
        "guest: trap {vector} frame {word0:#x} {word1:#x} cr2 {cr2:#x}"
    );
    serial::reset()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Serial, "guest: {info}");
    serial::reset()
}
