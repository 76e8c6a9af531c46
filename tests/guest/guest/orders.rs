//! What the command line asks of devices. Several words with the same key add up: `disk=check disk=loop`.

use crate::attacks::Assault;

/// Assaults that a command line can ask for.
const ASSAULTS_MAX: usize = 8;

/// Leaves that a command line can ask for.
const LEAVES_MAX: usize = 8;

/// An IPv4 address; all zeros is none.
pub type Address = [u8; 4];

/// The port of the echo service (RFC 862).
const ECHO_PORT: u16 = 7;

/// The orders with their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// `cpuid=`: leaves and subleaves to tell of.
    pub leaves: [Option<(u32, u32)>; LEAVES_MAX],
    /// `virtio=msix`: find out whether devices interrupt.
    pub msix: bool,
    /// `virtio=hostile:…`: misbehave towards devices.
    pub assaults: [Option<Assault>; ASSAULTS_MAX],
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
    /// `net=dhcp`: get an address by DHCP.
    pub net_dhcp: bool,
    /// `net=send:`: datagrams to send to the peer.
    pub net_send: u64,
    /// `net=bench:`: seconds per measurement.
    pub net_bench_s: u64,
    /// `net=echo`, `net=echo:PORT`: send back what comes to a port.
    pub net_echo: Option<u16>,
    /// `net=loop`: one verified datagram after the other beside the work.
    pub net_loop: bool,
    /// `net_bytes=`: payload of a datagram.
    pub net_bytes: u64,
    /// `net_only=`: the one interface that is meant; all if not given.
    pub net_only: Option<u64>,
    /// `ip=ADDRESS/PREFIX`: own address.
    pub address: Address,
    /// Bits of it that name the network.
    pub prefix: u8,
    /// `router=ADDRESS`: the way to other networks.
    pub router: Address,
    /// `peer=ADDRESS:PORT`: who sends back what it is sent.
    pub peer: (Address, u16),
    /// `offload=1`: let the network device compute sums and spread frames over buffers.
    pub offload: bool,
    /// `balloon=follow`: give pages to the host as it asks.
    pub balloon_follow: bool,
    /// `balloon=report`: tell it of those that are free.
    pub balloon_report: bool,
    /// `vsock=connect:PORT:BYTES`: send to a port of the host, which sends back.
    pub vsock_connect: Option<(u32, u64)>,
    /// `vsock=listen:PORT`: send back what comes to a port.
    pub vsock_listen: Option<u32>,
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
            leaves: [None; LEAVES_MAX],
            msix: false,
            assaults: [None; ASSAULTS_MAX],
            rng_bytes: 0,
            disk_check: false,
            disk_read_mib: 0,
            disk_bench_s: 0,
            disk_loop: false,
            disk_at_mib: 0,
            disk_mib: 1,
            disk_only: None,
            net_dhcp: false,
            net_send: 0,
            net_bench_s: 0,
            net_echo: None,
            net_loop: false,
            net_bytes: 1000,
            net_only: None,
            address: [0; 4],
            prefix: 24,
            router: [0; 4],
            peer: ([0; 4], ECHO_PORT),
            offload: false,
            balloon_follow: false,
            balloon_report: false,
            vsock_connect: None,
            vsock_listen: None,
            io_rate: 1000,
            event_index: true,
            indirect: false,
            then: None,
        }
    }

    /// Takes a word of the command line; ignores what it does not know.
    pub fn take(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"cpuid" => self.take_leaf(value),
            b"virtio" => self.take_virtio(value),
            b"rng" => set(&mut self.rng_bytes, value),
            b"disk" => self.take_disk(value),
            b"disk_at_mib" => set(&mut self.disk_at_mib, value),
            b"disk_mib" => set(&mut self.disk_mib, value),
            b"disk_only" => self.disk_only = number(value),
            b"net" => self.take_net(value),
            b"net_bytes" => set(&mut self.net_bytes, value),
            b"net_only" => self.net_only = number(value),
            b"ip" => self.take_address(value),
            b"router" => self.router = address(value).unwrap_or(self.router),
            b"peer" => self.take_peer(value),
            b"offload" => self.offload = value == b"1",
            b"balloon" if value == b"follow" => self.balloon_follow = true,
            b"balloon" if value == b"report" => self.balloon_report = true,
            b"vsock" => self.take_vsock(value),
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

    fn take_leaf(&mut self, value: &[u8]) {
        let (leaf, subleaf) = split(value);
        let subleaf = subleaf.map_or(Some(0), hexadecimal);
        let free = self.leaves.iter_mut().find(|place| place.is_none());
        if let Some(place) = free {
            *place = hexadecimal(leaf).zip(subleaf);
        }
    }

    fn take_virtio(&mut self, value: &[u8]) {
        match split(value) {
            (b"msix", None) => self.msix = true,
            (b"hostile", Some(what)) => {
                let free = self.assaults.iter_mut().find(|place| place.is_none());
                if let Some(place) = free {
                    *place = Assault::parse(what);
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

    fn take_net(&mut self, value: &[u8]) {
        match split(value) {
            (b"dhcp", None) => self.net_dhcp = true,
            (b"loop", None) => self.net_loop = true,
            (b"echo", None) => self.net_echo = Some(ECHO_PORT),
            (b"echo", Some(port)) => self.net_echo = self::port(port),
            (b"send", Some(count)) => set(&mut self.net_send, count),
            (b"bench", Some(seconds)) => set(&mut self.net_bench_s, seconds),
            _ => {}
        }
    }

    fn take_vsock(&mut self, value: &[u8]) {
        let port = |digits| number(digits).and_then(|port| u32::try_from(port).ok());
        match split(value) {
            (b"listen", Some(digits)) => self.vsock_listen = port(digits),
            (b"connect", Some(rest)) => {
                let (digits, bytes) = split(rest);
                self.vsock_connect = port(digits).zip(bytes.and_then(number));
            }
            _ => {}
        }
    }

    fn take_address(&mut self, value: &[u8]) {
        let mut parts = value.splitn(2, |byte| *byte == b'/');
        let prefix = |digits| number(digits).filter(|prefix| *prefix <= 32);
        if let Some(address) = parts.next().and_then(address) {
            self.address = address;
            self.prefix = parts.next().and_then(prefix).unwrap_or(24) as u8;
        }
    }

    fn take_peer(&mut self, value: &[u8]) {
        let (head, tail) = split(value);
        if let Some(address) = address(head) {
            self.peer = (address, tail.and_then(port).unwrap_or(ECHO_PORT));
        }
    }

    /// Whether there is anything to do with networks.
    pub fn wants_nets(&self) -> bool {
        let is_any_count = self.net_send > 0 || self.net_bench_s > 0;
        is_any_count || self.net_dhcp || self.net_loop || self.net_echo.is_some()
    }

    /// Whether there is anything to do with disks.
    pub fn wants_disks(&self) -> bool {
        self.disk_check || self.disk_loop || self.disk_read_mib > 0 || self.disk_bench_s > 0
    }

    /// Whether there is anything to do with balloons.
    pub fn wants_balloons(&self) -> bool {
        self.balloon_follow || self.balloon_report
    }

    /// Whether there is anything to do with sockets.
    pub fn wants_vsock(&self) -> bool {
        self.vsock_connect.is_some() || self.vsock_listen.is_some()
    }

    /// Whether there is anything to do with any device.
    pub fn wants_devices(&self) -> bool {
        let is_any_assault = self.assaults.iter().any(Option::is_some);
        let is_any_use = self.rng_bytes > 0 || self.wants_disks() || self.wants_nets();
        self.msix || is_any_assault || is_any_use || self.wants_balloons() || self.wants_vsock()
    }
}

/// What is before the first colon, and what is after it.
fn split(value: &[u8]) -> (&[u8], Option<&[u8]>) {
    match value.iter().position(|byte| *byte == b':') {
        Some(colon) => (&value[..colon], Some(&value[colon + 1..])),
        None => (value, None),
    }
}

fn port(value: &[u8]) -> Option<u16> {
    number(value).and_then(|port| u16::try_from(port).ok())
}

/// An IPv4 address in its usual form.
fn address(value: &[u8]) -> Option<Address> {
    let mut parts = value.split(|byte| *byte == b'.');
    let mut address = [0; 4];
    for byte in &mut address {
        *byte = u8::try_from(number(parts.next()?)?).ok()?;
    }
    parts.next().is_none().then_some(address)
}

/// A hexadecimal number without a prefix.
fn hexadecimal(value: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(value).ok()?;
    u32::from_str_radix(text, 16).ok()
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
