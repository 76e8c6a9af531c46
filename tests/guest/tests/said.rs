//! What the guest says of devices is read as it is written, and nothing else is.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;

use dwcp_guest::said::{
    BalloonFollow, BalloonFound, BalloonReported, Bench, Cpuid, DiskFound, DiskLoop, DiskRead,
    DiskResized, DiskStep, Hostile, Msix, NetEcho, NetFound, NetLease, NetLoop, NetSend, RngRead,
    VsockConnect, VsockFound, VsockReset, VsockServed,
};
use proptest::prelude::*;

/// One line of each kind, in the order of [`readers`].
const LINES: [&str; 22] = [
    "guest: rng 0: bytes 64 varied 1",
    "guest: disk 1: sectors 131072 features 0x120006644 queues 2 read_only 1 id \"a-b\"\r\n",
    "guest: disk 0: beyond ioerr",
    "guest: disk 0: read bytes 8192 sum 0xff wrong 1 outcome ok",
    "guest: disk 3: loop transfers 7 bad 0 errors 1 slow_us 900",
    "guest: disk 0: resized sectors 2048",
    "guest: net 0: mac 52:54:00:12:34:56 features 0x120010020 mtu 1500 link 1",
    "guest: net 0: dhcp address 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3 server 10.0.2.2 lease_s 86400",
    "guest: net 0: send sent 100 echoed 98 bad 1 lost 1",
    "guest: net 0: loop sent 9 echoed 8 bad 0 lost 0 slow_us 77",
    "guest: net 0: echoed 12",
    "guest: bench disk 0 random-1: operations 500 bytes 2048000 elapsed_us 1000000 median_us 9 p99_us 20 per_s 500 mb_s 2",
    "guest: disk 0: msix requests 3 interrupts 3 held 1",
    "guest: net 0: hostile loop queue 1 status 0x4f used 0 quiet 1 works 1",
    "guest: balloon 0: features 0x120000022 spare 12256",
    "guest: balloon 0: reported 11776",
    "guest: balloon 0: follow target 7168 actual 7000",
    "guest: vsock 0: cid 3 features 0x100000000",
    "guest: vsock 0: connect port 5 sent 10 echoed 9 bad 1 excess 0 sum 0x1 outcome ended",
    "guest: vsock 0: served peer_port 7 echoed 10 excess 0 sum 0x2 connections 1 end done",
    "guest: vsock 0: reset cid 4",
    "guest: cpuid 80000001:0: eax 0x1 ebx 0x2 ecx 0x400393 edx 0x23d3fbff",
];

/// Which readers take a line.
fn readers(line: &str) -> [bool; 22] {
    [
        RngRead::parse(line).is_some(),
        DiskFound::parse(line).is_some(),
        DiskStep::parse(line).is_some(),
        DiskRead::parse(line).is_some(),
        DiskLoop::parse(line).is_some(),
        DiskResized::parse(line).is_some(),
        NetFound::parse(line).is_some(),
        NetLease::parse(line).is_some(),
        NetSend::parse(line).is_some(),
        NetLoop::parse(line).is_some(),
        NetEcho::parse(line).is_some(),
        Bench::parse(line).is_some(),
        Msix::parse(line).is_some(),
        Hostile::parse(line).is_some(),
        BalloonFound::parse(line).is_some(),
        BalloonReported::parse(line).is_some(),
        BalloonFollow::parse(line).is_some(),
        VsockFound::parse(line).is_some(),
        VsockConnect::parse(line).is_some(),
        VsockServed::parse(line).is_some(),
        VsockReset::parse(line).is_some(),
        Cpuid::parse(line).is_some(),
    ]
}

#[test]
fn each_line_is_taken_by_its_reader_only() {
    for (number, line) in LINES.iter().enumerate() {
        let taken = readers(line);
        let expected: [bool; 22] = std::array::from_fn(|reader| reader == number);
        assert_eq!(taken, expected, "{line}");
    }
}

#[test]
fn what_is_no_record_is_not_taken() {
    for line in [
        "",
        "guest: disk 1: sectors 131072 features 0x12",
        "guest: disk 0: fault: its common structure cannot be used",
        "guest: disk 0: loop transfers 7 bad 0 errors x slow_us 900",
        "guest: disk: no device",
        "guest: net 0: no dhcp answer",
        "guest: net 0: echo port 7",
        "guest: net 0: hostile loop fault: no answer",
        "guest: tick 1 pages 2 gap_us 3 checked 4 bad 5",
    ] {
        assert_eq!(readers(line), [false; 22], "{line}");
    }
}

#[test]
fn fields_are_what_they_say() {
    let found = DiskFound::parse(LINES[1]).unwrap();
    assert_eq!(
        found,
        DiskFound {
            number: 1,
            sectors: 131_072,
            features: 0x1_2000_6644,
            queues: 2,
            read_only: true,
            id: "a-b".to_owned()
        }
    );
    let step = DiskStep::parse(LINES[2]).unwrap();
    assert_eq!((&*step.step, &*step.outcome), ("beyond", "ioerr"));
    let lease = NetLease::parse(LINES[7]).unwrap();
    assert_eq!(
        (&*lease.address, lease.router, lease.lease_s),
        ("10.0.2.15/24", Ipv4Addr::new(10, 0, 2, 2), 86_400)
    );
    let bench = Bench::parse(LINES[11]).unwrap();
    assert_eq!(
        (&*bench.name, bench.operations_per_s(), bench.median_us),
        ("disk 0 random-1", 500.0, 9)
    );
    let hostile = Hostile::parse(LINES[13]).unwrap();
    assert_eq!(
        (&*hostile.device, &*hostile.attack, hostile.status),
        ("net 0", "loop", 0x4f)
    );
}

proptest! {
    #[test]
    fn any_line_is_read(line in "(guest: )?(disk|rng|net|bench|vsock|balloon) ?[0-9]?:? ?[a-z0-9_ \"./]{0,80}") {
        readers(&line);
    }

    #[test]
    fn a_line_that_was_cut_short_is_not_taken(number in 0..LINES.len(), kept in 1..20_usize) {
        // The rates at the end of a measurement follow from the rest.
        let line = LINES[number].trim_end().split(" per_s").next().unwrap();
        let words: Vec<_> = line.split(' ').collect();
        prop_assume!(kept < words.len());
        let cut = words[..kept].join(" ");
        prop_assert!(!readers(&cut)[number], "{}", cut);
    }
}
