//! What the command line asks of devices. Several words with the same key add up: `disk=check disk=loop`.

/// An IPv4 address; all zeros is none.
pub type Address = [u8; 4];

/// The orders with their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// `rng=`: bytes of entropy to read.
    pub rng_bytes: u64,
    /// `disk=check`: write, read back, discard, write zeroes.
    pub disk_check: bool,
    /// `disk=read:`: MiB that must hold the seeded pattern.
    pub disk_read_mib: u64,
    /// `disk=bench:`: seconds per measurement.
    pub disk_bench_s: u64,
    /// `disk=loop`: one verified transfer after the other beside the work.
    pub disk_loop: bool,
    /// `disk_at_mib=`: where on the disk.
    pub disk_at_mib: u64,
    /// `disk_mib=`: how much of it is written and read.
    pub disk_mib: u64,
    /// `disk_only=`: the one disk that is meant; all if not given.
    pub disk_only: Option<u64>,
    /// `io_rate=`: transfers begun per second beside the work; 0 for none.
    pub io_rate: u64,
    /// `event_idx=0`: do not use VIRTIO_F_EVENT_IDX.
    pub event_index: bool,
    /// `indirect=1`: use VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// `then=`: how to end after all of it; none to go on with the work.
    pub then: Option<Ending>,
}

/// How the guest ends when its orders are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `then=reset`
    Reset,
    /// `then=power-off`
    PowerOff,
}

impl Orders {
    /// Nothing to do.
    pub fn new() -> Self {
        Self {
            rng_bytes: 0,
            disk_check: false,
            disk_read_mib: 0,
            disk_bench_s: 0,
            disk_loop: false,
            disk_at_mib: 0,
            disk_mib: 1,
            disk_only: None,
            io_rate: 1000,
            event_index: true,
            indirect: false,
            then: None,
        }
    }

    /// Takes a word of the command line; ignores what it does not know.
    pub fn take(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"rng" => set(&mut self.rng_bytes, value),
            b"disk" => self.take_disk(value),
            b"disk_at_mib" => set(&mut self.disk_at_mib, value),
            b"disk_mib" => set(&mut self.disk_mib, value),
            b"disk_only" => self.disk_only = number(value),
            b"io_rate" => set(&mut self.io_rate, value),
            b"event_idx" => self.event_index = value != b"0",
            b"indirect" => self.indirect = value == b"1",
            b"then" => {
                self.then = match value {
                    b"reset" => Some(Ending::Reset),
                    b"power-off" => Some(Ending::PowerOff),
                    _ => None,
                }
            }
            _ => {}
        }
    }

    fn take_disk(&mut self, value: &[u8]) {
        match split(value) {
            (b"check", None) => self.disk_check = true,
            (b"loop", None) => self.disk_loop = true,
            (b"read", Some(mib)) => set(&mut self.disk_read_mib, mib),
            (b"bench", Some(seconds)) => set(&mut self.disk_bench_s, seconds),
            _ => {}
        }
    }

    /// Whether there is anything to do with disks.
    pub fn wants_disks(&self) -> bool {
        self.disk_check || self.disk_loop || self.disk_read_mib > 0 || self.disk_bench_s > 0
    }

    /// Whether there is anything to do with any device.
    pub fn wants_devices(&self) -> bool {
        self.rng_bytes > 0 || self.wants_disks()
    }
}

/// What is before the first colon, and what is after it.
fn split(value: &[u8]) -> (&[u8], Option<&[u8]>) {
    match value.iter().position(|byte| *byte == b':') {
        Some(colon) => (&value[..colon], Some(&value[colon + 1..])),
        None => (value, None),
    }
}

/// A decimal number.
pub fn number(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    (digits && !value.is_empty() && value.len() <= 19).then(|| {
        value
            .iter()
            .fold(0, |n, digit| n * 10 + u64::from(digit - b'0'))
    })
}

/// Takes a decimal number; leaves the default for anything else.
pub fn set(target: &mut u64, value: &[u8]) {
    if let Some(number) = number(value) {
        *target = number;
    }
}
