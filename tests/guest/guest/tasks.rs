//! Carries out what the command line asks of devices, in a fixed order, and keeps what goes on beside the work.

use core::fmt::Write;
use core::ops::Range;

use crate::balloon::Balloon;
use crate::boot;
use crate::clock::Clock;
use crate::disk::{self, Disk, Repeat};
use crate::kind::Kind;
use crate::net::{self, Net, NetServices, Stack};
use crate::orders::Ending;
use crate::params::Params;
use crate::rng;
use crate::serial::{self, Serial};
use crate::virtio::dma::Arena;
use crate::virtio::pci::{Addresses, Function};
use crate::virtio::{self, Platform};
use crate::vsock::{self, Server, Vsock};

/// Devices of one kind that are looked at.
const DEVICES_MAX: usize = 8;

/// What goes on beside the work.
#[derive(Debug)]
pub struct Services {
    /// There is something; otherwise the work is not to be held up.
    is_any: bool,
    disks: [Option<Repeat>; DEVICES_MAX],
    nets: [Option<NetServices>; DEVICES_MAX],
    vsock: Option<Server>,
    balloon: Option<Balloon>,
}

impl Services {
    /// Nothing.
    fn none() -> Self {
        Self {
            is_any: false,
            disks: [const { None }; DEVICES_MAX],
            nets: [const { None }; DEVICES_MAX],
            vsock: None,
            balloon: None,
        }
    }

    /// Does what can be done without waiting.
    pub fn step(&mut self, now: u64) {
        if !self.is_any {
            return;
        }
        for disk in self.disks.iter_mut().flatten() {
            disk.step(now);
        }
        for net in self.nets.iter_mut().flatten() {
            net.step(now);
        }
        if let Some(server) = &mut self.vsock {
            server.step();
        }
        if let Some(balloon) = &mut self.balloon {
            balloon.step(now);
        }
    }

    /// Tells, once a second, what was done.
    pub fn tell(&mut self) {
        self.disks.iter_mut().flatten().for_each(Repeat::tell);
        self.nets.iter_mut().flatten().for_each(NetServices::tell);
        if let Some(balloon) = &mut self.balloon {
            balloon.tell();
        }
    }
}

/// Does everything that can be done at once; answers what is to go on.
///
/// # Safety
/// Call it once: it gives out the only references to the memory for devices.
pub unsafe fn carry_out(params: &Params, clock: Clock, spare: Range<u64>) -> Services {
    let mut services = Services::none();
    let orders = &params.orders;
    for (leaf, subleaf) in orders.leaves.iter().flatten() {
        let [eax, ebx, ecx, edx] = boot::cpuid(*leaf, *subleaf);
        let _ = writeln!(
            Serial,
            "guest: cpuid {leaf:x}:{subleaf:x}: eax {eax:#x} ebx {ebx:#x} ecx {ecx:#x} edx {edx:#x}"
        );
    }
    if orders.wants_devices() {
        services.is_any = true;
        let mut platform = Platform {
            clock,
            // SAFETY: once, by our own contract.
            arena: unsafe { Arena::new() },
            addresses: Addresses::new(),
            use_event_index: orders.event_index,
            use_indirect: orders.indirect,
        };
        test_transport(params, &mut platform);
        if orders.rng_bytes > 0 {
            each(Kind::Rng, |number, function| {
                rng::run(number, function, orders.rng_bytes, &mut platform);
            });
        }
        if orders.wants_disks() {
            run_disks(params, &mut platform, &mut services);
        }
        if orders.wants_nets() {
            run_nets(params, &mut platform, &mut services);
        }
        if orders.wants_vsock() {
            services.vsock = run_vsock(params, &mut platform);
        }
        if orders.wants_balloons() {
            services.balloon = run_balloon(params, spare, &mut platform);
        }
    }
    match orders.then {
        Some(Ending::Reset) => {
            let _ = writeln!(Serial, "guest: stopping");
            serial::reset()
        }
        Some(Ending::PowerOff) => {
            let _ = writeln!(Serial, "guest: powering off");
            serial::power_off()
        }
        None => services,
    }
}

/// Does something with each device of a kind; says so if there is none.
fn each(kind: Kind, mut run: impl FnMut(usize, Function)) {
    let mut count = 0;
    while count < DEVICES_MAX
        && let Some(function) = virtio::find(kind, count)
    {
        run(count, function);
        count += 1;
    }
    if count == 0 {
        let _ = writeln!(Serial, "guest: {}: no device", kind.name());
    }
}

/// What is done to devices before they are used, and leaves them reset.
fn test_transport(params: &Params, platform: &mut Platform) {
    let orders = &params.orders;
    if orders.msix {
        for kind in [Kind::Disk, Kind::Rng, Kind::Net] {
            each(kind, |number, function| {
                virtio::msix::run(kind, number, function, platform);
            });
        }
    }
    for assault in orders.assaults.iter().flatten() {
        let kind = assault.target;
        each(kind, |number, function| {
            virtio::assault(kind, number, function, assault, params.seed, platform);
        });
    }
}

fn run_disks(params: &Params, platform: &mut Platform, services: &mut Services) {
    let orders = &params.orders;
    each(Kind::Disk, |number, function| {
        if orders.disk_only.is_some_and(|only| only != number as u64) {
            return;
        }
        let mut run = || {
            let mut disk = Disk::open(number, function, platform)?;
            if orders.disk_check {
                disk::check(&mut disk, params, platform)?;
            }
            if orders.disk_read_mib > 0 {
                disk::read(&mut disk, params, platform)?;
            }
            if orders.disk_bench_s > 0 {
                disk::bench(&mut disk, params, platform)?;
            }
            if orders.disk_loop && disk.is_read_only() {
                let _ = writeln!(Serial, "guest: disk {number}: loop absent");
            } else if orders.disk_loop {
                services.disks[number] = Some(Repeat::new(disk, params, platform)?);
            }
            Ok::<(), virtio::Fault>(())
        };
        if let Err(fault) = run() {
            let _ = writeln!(Serial, "guest: disk {number}: fault: {fault}");
        }
    });
}

fn run_nets(params: &Params, platform: &mut Platform, services: &mut Services) {
    let orders = &params.orders;
    let clock = platform.clock;
    each(Kind::Net, |number, function| {
        if orders.net_only.is_some_and(|only| only != number as u64) {
            return;
        }
        let mut run = || {
            let net = Net::open(number, function, orders.offload, platform)?;
            let mut stack = Stack::new(net, orders.address, orders.prefix, orders.router, clock);
            if orders.net_dhcp {
                net::obtain_address(&mut stack, params, clock);
            }
            if orders.net_send > 0 {
                net::send(&mut stack, params, clock);
            }
            if orders.net_bench_s > 0 {
                net::bench(&mut stack, params, platform)?;
            }
            services.nets[number] = NetServices::new(stack, params, clock);
            Ok::<(), virtio::Fault>(())
        };
        if let Err(fault) = run() {
            let _ = writeln!(Serial, "guest: net {number}: fault: {fault}");
        }
    });
}

/// The first socket device; answers the service if there is to be one.
fn run_vsock(params: &Params, platform: &mut Platform) -> Option<Server> {
    let orders = &params.orders;
    let Some(function) = virtio::find(Kind::Vsock, 0) else {
        let _ = writeln!(Serial, "guest: vsock: no device");
        return None;
    };
    let mut run = || {
        let mut vsock = Vsock::open(0, function, platform)?;
        if let Some((port, bytes)) = orders.vsock_connect {
            vsock::connect(&mut vsock, port, bytes, params.seed, platform.clock);
        }
        match orders.vsock_listen {
            Some(port) => Server::new(vsock, port, platform).map(Some),
            None => Ok(None),
        }
    };
    run().unwrap_or_else(|fault: virtio::Fault| {
        let _ = writeln!(Serial, "guest: vsock 0: fault: {fault}");
        None
    })
}

/// The first balloon; answers it if it is to go on.
fn run_balloon(params: &Params, spare: Range<u64>, platform: &mut Platform) -> Option<Balloon> {
    let orders = &params.orders;
    let Some(function) = virtio::find(Kind::Balloon, 0) else {
        let _ = writeln!(Serial, "guest: balloon: no device");
        return None;
    };
    let run = || {
        let mut balloon = Balloon::open(0, function, spare, platform)?;
        if orders.balloon_report {
            balloon.report(platform.clock)?;
        }
        Ok::<_, virtio::Fault>(balloon)
    };
    match run() {
        Ok(balloon) => orders.balloon_follow.then_some(balloon),
        Err(fault) => {
            let _ = writeln!(Serial, "guest: balloon 0: fault: {fault}");
            None
        }
    }
}
