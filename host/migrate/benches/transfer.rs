//! How fast a guest's memory moves with TLS, and what it costs: `cargo bench -p dwcp-migrate`, over loopback; with
//! `WAN` (path of the program `dwcp-wan`), `MBIT` and `RTT_MS` from the environment, over an emulated link. `STREAMS`
//! and `ROUNDS` as they say.
//!
//! Both sides run in this process, without jail and launcher; the figures are for looking at the data path alone. The
//! guest is 1 GiB with 256 MiB in use: 30 % zero pages, 50 % text-like, 20 % random.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use common::{Guest, Random, configurations, content, next, pair, sink};
use dwcp_memory::{GuestMemory, PageIndex};
use dwcp_migrate::destination::Destination;
use dwcp_migrate::protocol::Event;
use dwcp_migrate::source::Source;
use dwcp_wan::{Link, LinkOptions, Namespace, Queue, RunId, Settings};

const PAGES: u64 = 256 << 10;
const USED_FROM: u64 = 16 << 10;
const USED: u64 = 64 << 10;

fn main() {
    let number = |name: &str, usual: u64| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(usual)
    };
    let streams = number("STREAMS", 4) as u8;
    let wan = std::env::var_os("WAN").map(|program| {
        let (rate, rtt) = (number("MBIT", 100), number("RTT_MS", 100));
        println!("over {rate} Mbit/s, {rtt} ms");
        Wan::start(program.into(), rate as f64, rtt as f64)
    });
    for _ in 0..number("ROUNDS", 3) {
        measure(streams, wan.as_ref());
    }
}

/// Two namespaces and the link between them.
struct Wan {
    left: Namespace,
    right: Namespace,
    _link: Link,
    _directory: tempfile::TempDir,
}

impl Wan {
    fn start(program: std::path::PathBuf, rate_mbit: f64, rtt_ms: f64) -> Self {
        let run = RunId::new(&format!("mv{}", std::process::id())).unwrap();
        let left = Namespace::create(&run, "left").unwrap();
        let right = Namespace::create(&run, "right").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let options = LinkOptions {
            program,
            control: directory.path().join("control"),
            left_address: "10.77.0.1/30".into(),
            right_address: "10.77.0.2/30".into(),
            settings: Settings {
                rate_mbit,
                rtt_ms,
                loss: 0.0,
                queue: Queue::Ms(100.0),
            },
            seed: 1,
        };
        let link = Link::start(&left, &right, &options).unwrap();
        Self {
            left,
            right,
            _link: link,
            _directory: directory,
        }
    }

    /// A connection across: a socket belongs to the namespace that it was made in.
    fn pair(&self) -> (TcpStream, TcpStream) {
        let listen = || TcpListener::bind("10.77.0.2:0").unwrap();
        let listener = self.right.enter(listen).unwrap();
        let address = listener.local_addr().unwrap();
        let near = self.left.enter(|| TcpStream::connect(address).unwrap());
        (near.unwrap(), listener.accept().unwrap().0)
    }
}

fn measure(streams: u8, wan: Option<&Wan>) {
    let (left, right) = (Guest::new(PAGES), Guest::new(PAGES));
    let mut random = Random(88_172_645_463_325_252);
    for page in USED_FROM..USED_FROM + USED {
        let content = content(&mut random);
        if content.iter().any(|byte| *byte != 0) {
            left.memory.write_pages(PageIndex(page), &content).unwrap();
        }
    }
    left.memory.mark_present(&left.bitmap).unwrap();
    let configs = configurations(PAGES, streams);
    let (source_sink, from_source) = sink();
    let (destination_sink, from_destination) = sink();
    let memory = GuestMemory::map(right.memory_fd(), right.memory.size()).unwrap();
    let (view, bitmap) = (left.view(), left.shared_bitmap());
    let source = Source::start(&configs.0, view, bitmap, source_sink).unwrap();
    let destination = Destination::start(&configs.1, memory, destination_sink).unwrap();
    for _ in 0..streams {
        let (near, far) = wan.map_or_else(pair, Wan::pair);
        source.add_stream(near);
        destination.add_stream(far);
    }
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    source.finish(b"state");
    assert_eq!(next(&from_source).0, Event::Flushed);
    let Event::RoundDone(done) = next(&from_source).0 else {
        panic!("the round failed");
    };
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    assert!(matches!(next(&from_destination).0, Event::Complete(_)));
    let used_mb = USED as f64 * 4096.0 / 1e6;
    println!(
        "{seconds:.2} s, {cpu:.2} CPU s, {:.0} guest MB/CPU s, {:.0} guest MB/s, {:.1} MB on the wire",
        used_mb / cpu,
        used_mb / seconds,
        done.wire_bytes as f64 / 1e6
    );
    left.assert_same(&right);
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    // SAFETY: all-zero is a valid value, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    [usage.ru_utime, usage.ru_stime]
        .map(|time| time.tv_sec as f64 + time.tv_usec as f64 / 1e6)
        .iter()
        .sum()
}
