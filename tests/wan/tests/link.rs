//! The link does what it says, with the kernel's own TCP and UDP over it.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dwcp_wan::{Changes, Link, LinkOptions, Namespace, Queue, RunId, Settings, Stats};

const DEADLINE: Duration = Duration::from_secs(60);
const WAN: Settings = Settings {
    rate_mbit: 100.0,
    rtt_ms: 100.0,
    loss: 0.0,
    queue: Queue::Ms(200.0),
};
const FAST: Settings = Settings {
    rate_mbit: 1000.0,
    rtt_ms: 1.0,
    loss: 0.0,
    queue: Queue::Ms(50.0),
};

/// One test at a time: rates are measured, and the machine may have few processors.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

struct Bed {
    // Dropped in this order: the link before its namespaces.
    link: Option<Link>,
    left: Namespace,
    right: Namespace,
    run: RunId,
    directory: tempfile::TempDir,
    _alone: std::sync::MutexGuard<'static, ()>,
}

impl Bed {
    /// `None`, and a line that says why, where it cannot be had.
    fn new(name: &str, settings: Settings) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/net/tun").exists() {
            println!("SKIPPED {name}: needs root and /dev/net/tun");
            return None;
        }
        let alone = ALONE
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let run = RunId::new(&format!("wan{}-{number}", std::process::id())).unwrap();
        let left = Namespace::create(&run, "left").unwrap();
        let right = Namespace::create(&run, "right").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let options = LinkOptions {
            program: env!("CARGO_BIN_EXE_dwcp-wan").into(),
            control: directory.path().join("wan.sock"),
            left_address: "10.77.0.1/30".to_owned(),
            right_address: "10.77.0.2/30".to_owned(),
            settings,
            seed: 7,
        };
        let link = Link::start(&left, &right, &options).unwrap();
        Some(Self {
            link: Some(link),
            left,
            right,
            run,
            directory,
            _alone: alone,
        })
    }

    fn link(&mut self) -> &mut Link {
        self.link.as_mut().unwrap()
    }

    fn stats(&mut self) -> Stats {
        self.link().stats().unwrap()
    }

    /// A TCP connection from left to right, and how long it took to make it.
    fn connect(&self) -> (TcpStream, TcpStream, Duration) {
        let listener = self
            .right
            .enter(|| TcpListener::bind("10.77.0.2:0").unwrap())
            .unwrap();
        let address = listener.local_addr().unwrap();
        let start = Instant::now();
        let ours = self
            .left
            .enter(|| TcpStream::connect(address).unwrap())
            .unwrap();
        let took = start.elapsed();
        let (theirs, _) = listener.accept().unwrap();
        for socket in [&ours, &theirs] {
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket.set_write_timeout(Some(DEADLINE)).unwrap();
        }
        (ours, theirs, took)
    }

    fn udp(&self) -> (UdpSocket, UdpSocket, SocketAddr) {
        let theirs = self
            .right
            .enter(|| UdpSocket::bind("10.77.0.2:0").unwrap())
            .unwrap();
        let ours = self
            .left
            .enter(|| UdpSocket::bind("10.77.0.1:0").unwrap())
            .unwrap();
        let address = theirs.local_addr().unwrap();
        theirs.set_read_timeout(Some(DEADLINE)).unwrap();
        (ours, theirs, address)
    }

    /// Rates over `window`, after `warm_up`, of one TCP flow: what it delivered, and what the link carried, in Mbit/s.
    fn flow(&mut self, warm_up: Duration, window: Duration) -> (f64, f64) {
        let (mut ours, mut theirs, _) = self.connect();
        let received = AtomicU64::new(0);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let block = vec![0x5a; 64 << 10];
                loop {
                    if ours.write_all(&block).is_err() || stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
                let _ = ours.shutdown(std::net::Shutdown::Both);
            });
            scope.spawn(|| {
                let mut block = vec![0; 256 << 10];
                while let Ok(count @ 1..) = theirs.read(&mut block) {
                    received.fetch_add(count as u64, Ordering::Relaxed);
                }
            });
            // Not waiting for a condition: the rate over a stretch of time is what is measured.
            std::thread::sleep(warm_up);
            let (start, got) = (Instant::now(), received.load(Ordering::Relaxed));
            let carried = self.stats().left_to_right.bytes;
            std::thread::sleep(window);
            let carried = self.stats().left_to_right.bytes - carried;
            let got = received.load(Ordering::Relaxed) - got;
            let seconds = start.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            (got as f64 * 8e-6 / seconds, carried as f64 * 8e-6 / seconds)
        })
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_tcp_flow_fills_a_hundred_megabits_at_a_hundred_milliseconds() {
    let Some(mut bed) = Bed::new("one_tcp_flow", WAN) else {
        return;
    };
    let (_, _, took) = bed.connect();
    println!("connected in {took:?}");
    assert!(took >= Duration::from_millis(100), "{took:?}");
    let (delivered, carried) = bed.flow(Duration::from_secs(4), Duration::from_secs(4));
    println!("TCP delivered {delivered:.1} Mbit/s, the link carried {carried:.1}");
    assert!(delivered >= 85.0, "{delivered}");
    assert!(carried <= 102.0, "{carried}");
}

#[test]
fn a_flood_is_let_through_at_the_rate() {
    let Some(mut bed) = Bed::new("a_flood", WAN) else {
        return;
    };
    for rate_mbit in [100.0, 20.0] {
        bed.link()
            .set(Changes {
                rate_mbit: Some(rate_mbit),
                ..Changes::default()
            })
            .unwrap();
        let (ours, _theirs, address) = bed.udp();
        let stop = AtomicBool::new(false);
        let carried = std::thread::scope(|scope| {
            scope.spawn(|| {
                // In small pieces, so that the machine is not busy with the flood alone.
                while !stop.load(Ordering::Relaxed) {
                    (0..20).for_each(|_| drop(ours.send_to(&[0; 1400], address)));
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            std::thread::sleep(Duration::from_secs(1));
            let (start, before) = (Instant::now(), bed.stats().left_to_right.bytes);
            std::thread::sleep(Duration::from_secs(2));
            let carried = bed.stats().left_to_right.bytes - before;
            let rate = carried as f64 * 8e-6 / start.elapsed().as_secs_f64();
            stop.store(true, Ordering::Relaxed);
            rate
        });
        println!("asked for {rate_mbit} Mbit/s, carried {carried:.2}");
        assert!((carried / rate_mbit - 1.0).abs() <= 0.02, "{carried}");
    }
    assert!(bed.stats().left_to_right.dropped_queue > 0);
}

#[test]
fn a_fast_link_is_fast() {
    let Some(mut bed) = Bed::new("a_fast_link", FAST) else {
        return;
    };
    let (delivered, carried) = bed.flow(Duration::from_secs(1), Duration::from_secs(2));
    println!("TCP delivered {delivered:.0} Mbit/s, the link carried {carried:.0}");
    assert!(delivered >= 150.0, "{delivered}");
}

#[test]
fn a_cut_stops_everything_and_a_restored_link_goes_on() {
    let Some(mut bed) = Bed::new("a_cut", FAST) else {
        return;
    };
    let (mut ours, mut theirs, _) = bed.connect();
    bed.link().cut().unwrap();
    bed.link().cut().unwrap();
    assert!(bed.link().reset_stats().unwrap().cut);
    ours.write_all(b"through the dark").unwrap();
    wait_for("the cut to swallow something", || {
        bed.stats().left_to_right.dropped_cut > 0
    });
    // An acknowledgement that left the link as it was cut may be counted; what is sent now is not.
    let carried = bed.stats().bytes();
    wait_for("the cut to swallow it again", || {
        bed.stats().left_to_right.dropped_cut > 1
    });
    assert_eq!(bed.stats().bytes(), carried);
    bed.link().restore().unwrap();
    let mut text = [0; 16];
    theirs.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"through the dark");
    assert!(!bed.stats().cut);
}

#[test]
fn what_is_under_way_does_not_survive_the_shortest_cut() {
    let slow = Settings {
        rtt_ms: 2000.0,
        ..WAN
    };
    let Some(mut bed) = Bed::new("the_shortest_cut", slow) else {
        return;
    };
    let (ours, theirs, address) = bed.udp();
    ours.send_to(b"lost", address).unwrap();
    // Not before it is under way: what the link has not taken yet, a cut that is over does not touch.
    wait_for("the packet to be under way", || {
        bed.stats().left_to_right.taken == 1
    });
    bed.link().cut().unwrap();
    bed.link().restore().unwrap();
    ours.send_to(b"found", address).unwrap();
    let mut packet = [0; 16];
    let length = theirs.recv(&mut packet).unwrap();
    assert_eq!(&packet[..length], b"found");
    assert_eq!(bed.stats().left_to_right.dropped_cut, 1);
}

#[test]
fn loss_is_counted() {
    let lossy = Settings {
        loss: 0.1,
        rtt_ms: 0.0,
        ..FAST
    };
    let Some(mut bed) = Bed::new("loss", lossy) else {
        return;
    };
    let (ours, _theirs, address) = bed.udp();
    for number in 0..1000u64 {
        ours.send_to(&[0; 100], address).unwrap();
        // One at a time, so that none is lost for another reason.
        wait_for("the packet to be counted", || {
            let counts = bed.stats().left_to_right;
            counts.packets + counts.dropped_loss > number
        });
    }
    let counts = bed.stats().left_to_right;
    println!("{counts:?}");
    assert!((60..140).contains(&counts.dropped_loss), "{counts:?}");
    assert_eq!(counts.bytes, counts.packets * 128);
}

#[test]
fn a_quiet_link_carries_nothing() {
    let Some(mut bed) = Bed::new("a_quiet_link", FAST) else {
        return;
    };
    // What came up with the devices has passed when an echo has; after it nothing comes by itself.
    bed.connect();
    let counts = bed.link().reset_stats().unwrap();
    assert!(
        counts.left_to_right.taken >= 2 && counts.right_to_left.taken >= 1,
        "{counts:?}"
    );
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let Some(mut bed) = Bed::new("nonsense", WAN) else {
        return;
    };
    let bad = Changes {
        rate_mbit: Some(-1.0),
        ..Changes::default()
    };
    assert!(
        bed.link()
            .set(bad)
            .unwrap_err()
            .to_string()
            .contains("rate")
    );
    let mut client =
        std::os::unix::net::UnixStream::connect(bed.directory.path().join("wan.sock")).unwrap();
    client.write_all(b"explode\n").unwrap();
    let mut answer = [0; 8];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"{\"error\"");
    client.write_all(&[b'x'; 4096]).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert_eq!(bed.stats(), Stats::default());
}

#[test]
fn nothing_is_left_behind() {
    let Some(mut bed) = Bed::new("nothing_is_left", FAST) else {
        return;
    };
    let devices = |namespace: &Namespace| {
        let text =
            namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/dev").unwrap());
        text.unwrap()
            .lines()
            .filter(|line| line.contains("wan:"))
            .count()
    };
    assert_eq!((devices(&bed.left), devices(&bed.right)), (1, 1));
    drop(bed.link.take());
    assert_eq!((devices(&bed.left), devices(&bed.right)), (0, 0));
    assert!(!bed.directory.path().join("wan.sock").exists());
    let paths = [bed.left.path(), bed.right.path()];
    assert_eq!(Namespace::remove_all(&bed.run), 2);
    assert!(paths.iter().all(|path| !path.exists()));
    assert_eq!(Namespace::remove_all(&bed.run), 0);
}

#[test]
fn it_ends_on_a_signal_and_with_its_devices() {
    let Some(bed) = Bed::new("it_ends", FAST) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let run = RunId::new(&format!("{}-x", bed.run.as_str())).unwrap();
    for with_signal in [true, false] {
        let left = Namespace::create(&run, "left").unwrap();
        let right = Namespace::create(&run, "right").unwrap();
        let control = directory.path().join("wan.sock");
        let mut process = std::process::Command::new(env!("CARGO_BIN_EXE_dwcp-wan"))
            .args(["--left", left.name(), "--right", right.name(), "--control"])
            .arg(&control)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        process
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut ready)
            .unwrap();
        assert_eq!(&ready, b"ready\n");
        if with_signal {
            // SAFETY: our own child, which has not been waited for.
            unsafe { libc::kill(process.id() as i32, libc::SIGTERM) };
            assert_eq!(process.wait().unwrap().code(), Some(0));
        } else {
            let mut delete = left.command("ip").unwrap();
            assert!(
                delete
                    .args(["link", "delete", "wan"])
                    .status()
                    .unwrap()
                    .success()
            );
            assert_eq!(process.wait().unwrap().code(), Some(1));
        }
        assert!(!control.exists());
    }
}

#[test]
fn run_ids_are_plain() {
    assert!(RunId::new("a-1").is_ok());
    for bad in ["", "A", "a/b", "..", &"a".repeat(33)] {
        assert!(RunId::new(bad).is_err(), "{bad}");
    }
}
