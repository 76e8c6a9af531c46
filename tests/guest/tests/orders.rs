//! What the guest takes from its command line.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "../guest/attacks.rs"]
mod attacks;
#[path = "../guest/fill.rs"]
mod fill;
#[path = "../guest/kind.rs"]
mod kind;
#[path = "../guest/orders.rs"]
mod orders;
#[path = "../guest/params.rs"]
mod params;

use attacks::{Assault, Attack};
use fill::Mix;
use kind::Kind;
use orders::{Ending, Orders};
use params::Params;
use proptest::prelude::*;

fn orders(line: &str) -> Orders {
    Params::parse(line.as_bytes()).orders
}

proptest! {
    #[test]
    fn any_command_line_is_read(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let params = Params::parse(&line);
        prop_assert!(params.ws_mib <= params.fill_mib);
    }

    #[test]
    fn any_order_is_read(line in "((disk|net|vsock|virtio|balloon|ip|peer|rng)=[a-z0-9:./]{0,24} ?){0,6}") {
        let orders = orders(&line);
        prop_assert!(orders.prefix <= 32);
    }

    #[test]
    fn addresses_are_read_as_they_are_written(address in any::<[u8; 4]>(), prefix in 0..=32_u8, port in any::<u16>()) {
        let [a, b, c, d] = address;
        let orders = orders(&format!("ip={a}.{b}.{c}.{d}/{prefix} peer={a}.{b}.{c}.{d}:{port} router={a}.{b}.{c}.{d}"));
        prop_assert_eq!((orders.address, orders.prefix), (address, prefix));
        prop_assert_eq!((orders.peer, orders.router), ((address, port), address));
    }
}

#[test]
fn parameters_are_taken_and_nonsense_is_not() {
    let params = Params::parse(
        b"console=ttyS0 fill_mib=256 ws_mib=32 rate=2000 verify=2 tsc_khz=2400000 seed=x",
    );
    assert_eq!(
        (params.fill_mib, params.ws_mib, params.rate),
        (256, 32, 2000)
    );
    assert_eq!((params.verify, params.tsc_khz), (2, 2_400_000));
    assert_eq!(params.seed, Params::parse(b"").seed);
    assert_eq!(params.orders, Orders::new());
    assert!(Params::parse(b"exit=reset").exit && !params.exit);
    assert_eq!(Params::parse(b"mix=zeros").mix, None);
    assert_eq!(Params::parse(b"mix=text").mix, Some(Mix::Text));
}

#[test]
fn orders_add_up() {
    assert!(!Orders::new().wants_devices());
    let some = orders("disk=check disk=read:8 disk=loop disk_at_mib=3 rng=64 then=power-off");
    assert!(some.disk_check && some.disk_loop && some.wants_devices());
    assert_eq!(
        (some.disk_read_mib, some.disk_bench_s, some.disk_at_mib),
        (8, 0, 3)
    );
    assert_eq!((some.rng_bytes, some.then), (64, Some(Ending::PowerOff)));
    let net = orders("net=dhcp net=echo:4000 net=send:5 net=loop net_bytes=99");
    assert!(net.net_dhcp && net.net_loop);
    assert_eq!(
        (net.net_echo, net.net_send, net.net_bytes),
        (Some(4000), 5, 99)
    );
    let vsock = orders("vsock=connect:1234:1000000 vsock=listen:5");
    assert_eq!(vsock.vsock_connect, Some((1234, 1_000_000)));
    assert_eq!(vsock.vsock_listen, Some(5));
    let leaves = orders("cpuid=1 cpuid=80000001 cpuid=d:1").leaves;
    let leaves: Vec<_> = leaves.into_iter().flatten().collect();
    assert_eq!(leaves, [(1, 0), (0x8000_0001, 0), (0xd, 1)]);
    let balloon = orders("balloon=follow balloon=report");
    assert!(balloon.balloon_follow && balloon.balloon_report);
}

#[test]
fn nonsense_is_not_taken() {
    for line in [
        "disk= disk=eat disk=check:5 disk=read disk=read:x",
        "net=echo:70000 net=fly ip=1.2.3 ip=1.2.3.256 peer=1.2.3.4.5:6 router=a.b.c.d",
        "vsock=connect:5 vsock=connect::9 vsock=listen vsock=listen:4294967296",
        "virtio=hostile virtio=hostile:sing virtio=hostile:loop:toaster virtio=hostile:loop:disk:0:0",
        "balloon=burst then=what",
        "cpuid=x cpuid=1: cpuid=123456789",
    ] {
        assert_eq!(orders(line), Orders::new(), "{line}");
    }
}

#[test]
fn assaults_are_taken_in_order_up_to_a_limit() {
    let line = "virtio=hostile:all virtio=hostile:loop:net:1 virtio=msix virtio=hostile:reset:rng";
    let taken = orders(line);
    assert!(taken.msix);
    let expected = [
        (None, Kind::Disk, None),
        (Some(Attack::Loop), Kind::Net, Some(1)),
        (Some(Attack::Reset), Kind::Rng, None),
    ]
    .map(|(attack, target, queue)| Assault {
        attack,
        target,
        queue,
    });
    let assaults: Vec<_> = taken.assaults.into_iter().flatten().collect();
    assert_eq!(assaults, expected);
    let many = orders(&"virtio=hostile:all ".repeat(20));
    assert!(many.assaults.iter().all(Option::is_some));
    for (attack, name) in Attack::ALL {
        assert_eq!(Attack::named(name.as_bytes()), Some(attack));
    }
}
