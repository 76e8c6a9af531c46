//! How fast a guest's memory moves over loopback with TLS, and what it costs: `cargo bench -p dwcp-migrate`, with
//! `STREAMS`, `PACING` (bytes per second and stream) and `ROUNDS` from the environment.
//!
//! Both sides run in this process, without jail and launcher; the figures are for looking at the data path alone. The
//! guest is 1 GiB with 256 MiB in use: 30 % zero pages, 50 % text-like, 20 % random.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Guest, Random, configurations, content, next, pair, sink};
use dwcp_memory::{GuestMemory, PageIndex};
use dwcp_migrate::destination::Destination;
use dwcp_migrate::protocol::Event;
use dwcp_migrate::source::Source;
use dwcp_wire::tcp;

const PAGES: u64 = 256 << 10;
const USED_FROM: u64 = 16 << 10;
const USED: u64 = 64 << 10;

fn main() {
    let number = |name: &str, usual: u64| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(usual)
    };
    let streams = number("STREAMS", 4) as u8;
    let pacing = number("PACING", 0);
    println!("{streams} streams, pacing {pacing} bytes/s each (0: none)");
    for _ in 0..number("ROUNDS", 3) {
        measure(streams, (pacing > 0).then_some(pacing));
    }
}

fn measure(streams: u8, pacing: Option<u64>) {
    let (left, right) = (Guest::new(PAGES), Guest::new(PAGES));
    let mut random = Random(88_172_645_463_325_252);
    for page in USED_FROM..USED_FROM + USED {
        let content = content(&mut random);
        if content.iter().any(|byte| *byte != 0) {
            left.memory.write_pages(PageIndex(page), &content).unwrap();
        }
    }
    left.bitmap.set_all();
    let configs = configurations(PAGES, streams);
    let (source_sink, from_source) = sink();
    let (destination_sink, from_destination) = sink();
    let memory = GuestMemory::map(right.memory_fd(), right.memory.size()).unwrap();
    let (view, bitmap) = (left.view(), left.shared_bitmap());
    let source = Source::start(&configs.0, view, bitmap, source_sink).unwrap();
    let destination = Destination::start(&configs.1, memory, destination_sink).unwrap();
    for _ in 0..streams {
        let (near, far) = pair();
        tcp::set_pacing(&near, pacing).unwrap();
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
