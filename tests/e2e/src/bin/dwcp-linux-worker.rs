//! The work of the demonstration's Linux guest, as its first and only process: fills memory, keeps writing to a part of
//! it, checks every page that it wrote, and says once a second how that goes, in the words of the freestanding guest
//! ([`dwcp_guest::Tick`]), so that whoever watches need not know which guest it is.
//!
//! Parameters on the kernel's command line: `fill_mib` (16), `ws_mib` (4), `rate` pages a second (1000).

use std::time::{Duration, Instant};

const WORDS: usize = 512;
type Page = [u64; WORDS];

/// xorshift64, as the freestanding guest has it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// A sum in which every word and its place count.
fn sum(page: &Page) -> u64 {
    page.iter().fold(0u64, |sum, word| {
        sum.rotate_left(5) ^ word.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

fn parameter(cmdline: &str, name: &str, default: usize) -> usize {
    cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or(default)
}

fn main() {
    use nix::mount::{MsFlags, mount};
    let _ = std::fs::create_dir_all("/proc");
    let none = None::<&str>;
    if let Err(error) = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none) {
        println!("guest: refused: /proc cannot be mounted: {error}");
    }
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let fill = parameter(&cmdline, "fill_mib", 16).max(1) * 256;
    let set = (parameter(&cmdline, "ws_mib", 4) * 256).clamp(1, fill);
    let rate = parameter(&cmdline, "rate", 1000) as u64;
    println!("guest: up, Linux");
    let mut random = Random(88_172_645_463_325_252);
    let mut pages: Vec<Page> = (0..fill).map(|n| made(n, &mut random)).collect();
    let mut sums: Vec<u64> = pages.iter().map(sum).collect();
    println!("guest: filled {} MiB", fill / 256);
    work(&mut pages, &mut sums, set, rate, &mut random);
}

/// A page as the freestanding guest fills it: of ten pages three are zeros, five look like text, two are random.
fn made(number: usize, random: &mut Random) -> Page {
    let mut page = [0; WORDS];
    match number % 10 {
        0..3 => {}
        3..8 => page
            .iter_mut()
            .for_each(|word| *word = TEXT[random.below(TEXT.len())]),
        _ => page.iter_mut().for_each(|word| *word = random.next()),
    }
    page
}

const TEXT: [u64; 8] = [
    u64::from_le_bytes(*b"the page"),
    u64::from_le_bytes(*b" memory "),
    u64::from_le_bytes(*b"migrate "),
    u64::from_le_bytes(*b" region "),
    u64::from_le_bytes(*b"policy: "),
    u64::from_le_bytes(*b"stream, "),
    u64::from_le_bytes(*b" virtual"),
    u64::from_le_bytes(*b"machine."),
];

fn work(pages: &mut [Page], sums: &mut [u64], set: usize, rate: u64, random: &mut Random) -> ! {
    let began = Instant::now();
    let (mut written, mut checked, mut bad, mut tick) = (0u64, 0u64, 0u64, 0u64);
    let (mut last, mut said, mut gap) = (began, began, Duration::ZERO);
    let mut next = 0;
    loop {
        let now = Instant::now();
        gap = gap.max(now - last);
        last = now;
        let due = (now - began).as_millis() as u64 * rate / 1000;
        while written < due {
            let page = random.below(set);
            let (one, two) = (random.below(WORDS), random.below(WORDS));
            pages[page][one] = pages[page][one].wrapping_add(1);
            pages[page][two] = random.next();
            sums[page] = sum(&pages[page]);
            written += 1;
        }
        for _ in 0..64 {
            // Through a black box: what the compiler knows of the page is not what memory holds.
            let page = std::hint::black_box(&pages[next]);
            bad += u64::from(sum(page) != sums[next]);
            checked += 1;
            next = (next + 1) % pages.len();
        }
        if now - said >= Duration::from_secs(1) {
            tick += 1;
            println!(
                "guest: tick {tick} pages {written} gap_us {} checked {checked} bad {bad}",
                gap.as_micros()
            );
            (said, gap) = (now, Duration::ZERO);
            last = Instant::now();
        }
    }
}
