//! What the command line asks for. Unknown words are ignored: a VMM may add its own.

use crate::fill::Mix;
use crate::orders::{Orders, set};

/// The parameters with their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// `fill_mib=`: memory that is filled, MiB.
    pub fill_mib: u64,
    /// `ws_mib=`: the part of it that is written again and again, MiB; at most `fill_mib`.
    pub ws_mib: u64,
    /// `rate=`: pages written per second; 0 for none.
    pub rate: u64,
    /// `seed=`: of the one random sequence that decides contents and places; not 0.
    pub seed: u64,
    /// `verify=`: 0 nothing, 1 every page written, 2 also that untouched pages of the fill are still zero.
    pub verify: u64,
    /// `tsc_khz=`: how fast the time stamp counter counts; 0 to find out.
    pub tsc_khz: u64,
    /// `exit=reset`: reset at once.
    pub exit: bool,
    /// `mix=`: what the fill consists of; `None` if it named something unknown.
    pub mix: Option<Mix>,
    /// What is asked of devices.
    pub orders: Orders,
}

impl Params {
    /// Reads a command line.
    pub fn parse(line: &[u8]) -> Self {
        let mut params = Self {
            fill_mib: 16,
            ws_mib: 4,
            rate: 1000,
            seed: 88_172_645_463_325_252,
            verify: 1,
            tsc_khz: 0,
            exit: false,
            mix: Some(Mix::Reference),
            orders: Orders::new(),
        };
        for word in line.split(|byte| *byte == b' ') {
            let Some(equals) = word.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (key, value) = (&word[..equals], &word[equals + 1..]);
            match key {
                b"fill_mib" => set(&mut params.fill_mib, value),
                b"ws_mib" => set(&mut params.ws_mib, value),
                b"rate" => set(&mut params.rate, value),
                b"seed" => set(&mut params.seed, value),
                b"verify" => set(&mut params.verify, value),
                b"tsc_khz" => set(&mut params.tsc_khz, value),
                b"exit" => params.exit = value == b"reset",
                b"mix" => params.mix = Mix::named(value),
                _ => params.orders.take(key, value),
            }
        }
        params.ws_mib = params.ws_mib.min(params.fill_mib);
        params
    }
}
