//! All of the guest's drivers at once against QEMU's devices: block, net (user mode), entropy, balloon.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{Machine, has_qemu};
use dwcp_guest::Tick;
use dwcp_guest::said::{
    BalloonFollow, BalloonFound, BalloonReported, Bench, DiskLoop, Hostile, Msix, NetFound,
    NetLease, NetLoop, NetSend, RngRead,
};

const DISK: &str = "virtio-blk-pci,disable-legacy=on,drive=d";
const NET: &str = "virtio-net-pci,disable-legacy=on,netdev=n,mac=52:54:00:aa:bb:cc,romfile=";
const RNG: &str = "virtio-rng-pci,disable-legacy=on";
const BALLOON: &str = "virtio-balloon-pci,disable-legacy=on,free-page-reporting=on";
const DEADLINE: Duration = Duration::from_secs(120);

fn disk_image(directory: &Path) -> String {
    let path = directory.join("disk");
    fs::write(&path, vec![0; 4 << 20]).unwrap();
    format!("if=none,id=d,format=raw,file={}", path.display())
}

/// Sends back every datagram, on a port of the loopback interface.
struct Echo {
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let port = socket.local_addr().unwrap().port();
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                if let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..bytes], from).unwrap();
                }
            }
        });
        Self {
            port,
            is_over,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It only ends early by a panic that the test sees as lost datagrams.
            let _ = thread.join();
        }
    }
}

#[test]
fn every_device_is_driven_beside_the_work() {
    if !has_qemu("every_device_is_driven_beside_the_work") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let monitor = directory.path().join("monitor");
    let echo = Echo::start();
    let cmdline = format!(
        "fill_mib=8 rng=100 disk=loop net=dhcp net=send:50 net=bench:1 net=loop peer=10.0.2.2:{} balloon=report balloon=follow",
        echo.port
    );
    let mut machine = Machine::start(
        &cmdline,
        &[
            "-drive",
            &disk_image(directory.path()),
            "-device",
            DISK,
            "-netdev",
            "user,id=n",
            "-device",
            NET,
            "-device",
            RNG,
            "-device",
            BALLOON,
            "-monitor",
            &format!("unix:{},server=on,wait=off", monitor.display()),
        ],
    );
    let busy = |line: &str| NetLoop::parse(line).filter(|seen| seen.echoed > 20);
    let net = machine.wait("verified datagrams", busy);
    let busy = |line: &str| DiskLoop::parse(line).filter(|seen| seen.transfers > 100);
    let disk = machine.wait("verified transfers", busy);
    assert_eq!((disk.bad, disk.errors, net.bad), (0, 0, 0));

    let rng = machine.all(RngRead::parse);
    assert!(rng.len() == 1 && rng[0].bytes == 100 && rng[0].varied);
    let found = &machine.all(NetFound::parse)[0];
    assert_eq!((&*found.mac, found.link), ("52:54:00:aa:bb:cc", true));
    let lease = &machine.all(NetLease::parse)[0];
    assert_eq!(
        (&*lease.address, lease.router, lease.dns),
        (
            "10.0.2.15/24",
            Ipv4Addr::new(10, 0, 2, 2),
            Ipv4Addr::new(10, 0, 2, 3)
        )
    );
    let sent = &machine.all(NetSend::parse)[0];
    assert_eq!((sent.sent, sent.echoed, sent.bad), (50, 50, 0));
    let names: Vec<_> = machine.all(Bench::parse);
    assert_eq!(names.len(), 2);
    assert!(names.iter().all(|bench| bench.operations > 10));

    let spare = machine.all(BalloonFound::parse)[0].spare;
    let reported = machine.all(BalloonReported::parse)[0].reported;
    assert!(reported > 0 && reported <= spare && reported.is_multiple_of(512));
    let mut monitor = UnixStream::connect(&monitor).unwrap();
    for (mib, pages) in [(112, 4096), (126, 512), (128, 0)] {
        writeln!(monitor, "balloon {mib}").unwrap();
        machine.wait("balloon", |line| {
            BalloonFollow::parse(line).filter(|seen| seen.target == pages && seen.actual == pages)
        });
    }
    let tick = machine.wait("tick", Tick::parse);
    assert_eq!(tick.bad, 0, "{}", machine.text());
}

#[test]
fn datagrams_from_outside_are_sent_back() {
    if !has_qemu("datagrams_from_outside_are_sent_back") {
        return;
    }
    // A port that was free a moment ago.
    let port = UdpSocket::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .unwrap()
        .port();
    let mut machine = Machine::start(
        "fill_mib=4 net=echo ip=10.0.2.15/24 offload=1 indirect=1",
        &[
            "-netdev",
            &format!("user,id=n,hostfwd=udp:127.0.0.1:{port}-10.0.2.15:7"),
            "-device",
            NET,
        ],
    );
    machine.wait_for_text("echo port 7");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let message: Vec<u8> = (0..1400_u32).map(|n| n as u8).collect();
    let until = Instant::now() + DEADLINE;
    let mut answer = [0; 2000];
    loop {
        socket.send(&message).unwrap();
        if let Ok(bytes) = socket.recv(&mut answer) {
            assert_eq!(answer[..bytes], message);
            break;
        }
        assert!(Instant::now() < until, "no echo:\n{}", machine.text());
    }
}

#[test]
fn devices_interrupt_and_survive_misuse() {
    if !has_qemu("devices_interrupt_and_survive_misuse") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    // Not the longest of buffers to the entropy device: QEMU gathers 4 GiB of entropy first.
    let mut machine = Machine::start(
        "fill_mib=4 verify=2 virtio=msix virtio=hostile:all:disk virtio=hostile:all:net \
         virtio=hostile:all:balloon virtio=hostile:loop:rng virtio=hostile:random:rng",
        &[
            "-drive",
            &disk_image(directory.path()),
            "-device",
            DISK,
            "-netdev",
            "user,id=n,restrict=on",
            "-device",
            NET,
            "-device",
            RNG,
            "-device",
            BALLOON,
        ],
    );
    let tick = machine.wait("a whole round of verification", |line| {
        Tick::parse(line).filter(|tick| tick.checked > 4 * 256)
    });
    assert_eq!(tick.bad, 0, "{}", machine.text());
    let interrupts = machine.all(Msix::parse);
    assert_eq!(interrupts.len(), 3, "{}", machine.text());
    for seen in interrupts {
        assert_eq!((seen.interrupts, seen.held), (seen.requests, true));
    }
    let attacks = machine.all(Hostile::parse);
    assert_eq!(attacks.len(), 3 * 14 + 2, "{}", machine.text());
    for seen in &attacks {
        assert!(seen.quiet && seen.works, "{seen:?}");
    }
    // What names no memory is never done; most of it breaks the device at once, unless QEMU has no time to look.
    for seen in attacks.iter().filter(|seen| seen.device == "disk 0") {
        let is_undoable = ["loop", "next", "index", "outside"].contains(&&*seen.attack);
        assert!(!is_undoable || seen.used == 0, "{seen:?}");
    }
    assert!(attacks.iter().any(|seen| seen.status & 0x40 != 0));
}
