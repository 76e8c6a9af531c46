//! One stream of a source: pulls work, encodes, writes, and reads acknowledgements, all in one thread.
//!
//! The socket's own buffer keeps the link busy while the next batch is encoded; the thread takes the next batch when
//! less than [`QUEUED_BYTES_LOW`] is left to write. Must not know how rounds follow one another.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dwcp_memory::PageIndex;
use dwcp_wire::frame::{self, Header, Kind};
use dwcp_wire::ladder::{PAGE_BYTES, PageLadder, Run};
use dwcp_wire::level::{self, Level, LevelChooser};
use dwcp_wire::stream::SecureStream;
use dwcp_wire::tcp::{self, TcpInfo};

use crate::crew::Assignment;
use crate::cursor::RUN_PAGES_MAX;
use crate::link::{Ended, HANDSHAKE_TIMEOUT, Link, chain};
use crate::source::{Shared, Unit, Work};

/// Bytes left to write below which the next batch is taken.
const QUEUED_BYTES_LOW: usize = 256 << 10;
/// Pages that one batch looks at before it goes, however many of them are zeros.
const LOOKED_AT_MAX: u64 = 16 << 10;

/// A member's life.
pub(crate) fn work(shared: &Shared, member: usize) {
    loop {
        match shared.crew.next() {
            Assignment::Serve(socket) => serve(shared, member, socket),
            Assignment::Unused => shared.fail("No stream of the transfer was opened in time"),
            Assignment::Leave => return,
        }
    }
}

fn serve(shared: &Shared, member: usize, socket: TcpStream) {
    let mut sender = match Sender::connect(shared, member, socket) {
        Ok(sender) => sender,
        Err(why) => {
            let left = shared.crew.ended(false);
            return shared.lost(member, 0, left, &why);
        }
    };
    let ended = sender.run();
    let left = shared.crew.ended(true);
    let Sender {
        link, unwritten, ..
    } = sender;
    match ended {
        Ended::Finished => link.close(None),
        Ended::Lost(why) => shared.lost(member, unwritten, left, &why),
        Ended::Broken(why) => {
            shared.fail(&why);
            link.close(Some(&why));
        }
    }
}

struct Sender<'a> {
    shared: &'a Shared,
    member: usize,
    link: Link,
    ladder: PageLadder,
    level: LevelChooser,
    copy: Vec<u8>,
    /// Frames queued and not yet all written.
    unwritten: usize,
    /// When the link was last looked at, and what it was like; none while idle.
    measured: Option<(Instant, TcpInfo)>,
    /// When the peer last acknowledged something or its kernel took something, and how much that had taken by then.
    moved: Instant,
    acked_by_kernel: u64,
}

impl<'a> Sender<'a> {
    fn connect(shared: &'a Shared, member: usize, socket: TcpStream) -> Result<Self, String> {
        let ladder = PageLadder::new().map_err(|error| chain(&error))?;
        tcp::tune(&socket).map_err(|error| chain(&error))?;
        let deadline = HANDSHAKE_TIMEOUT.min(shared.idle_timeout);
        let stream = SecureStream::connect(socket, Arc::clone(&shared.tls), deadline)
            .map_err(|error| chain(&error))?;
        let written = stream.written_bytes();
        shared.wire_bytes.fetch_add(written, Ordering::Relaxed);
        shared.crew.established();
        Ok(Self {
            shared,
            member,
            link: Link::new(stream, shared.transfer, shared.idle_timeout),
            ladder,
            level: LevelChooser::default(),
            copy: vec![0; RUN_PAGES_MAX as usize * PAGE_BYTES],
            unwritten: 0,
            measured: None,
            moved: Instant::now(),
            acked_by_kernel: 0,
        })
    }

    fn run(&mut self) -> Ended {
        loop {
            if let Err(ended) = self.turn() {
                return ended;
            }
        }
    }

    fn turn(&mut self) -> Result<(), Ended> {
        self.flush()?;
        let mut busy = self.link.stream().queued_bytes() > 0;
        while self.link.stream().queued_bytes() < QUEUED_BYTES_LOW {
            match self.shared.next_work(self.member) {
                Work::Send(unit) => {
                    self.unwritten += 1;
                    self.link.send(&unit.bytes)?;
                }
                Work::Encode(runs) => self.encode(runs)?,
                Work::Wait => break,
                Work::Close(None) => return Err(Ended::Finished),
                Work::Close(Some(reason)) => return Err(Ended::Broken(reason)),
            }
            busy = true;
            self.flush()?;
            self.measure(busy);
        }
        self.measure(busy);
        let ready = self.link.wait(self.shared.crew.call(self.member))?;
        if ready.called {
            self.shared.crew.heard(self.member);
        }
        if ready.readable {
            self.receive()?;
        }
        self.check_that_it_moves()?;
        self.link.pulse()
    }

    /// Measures the link while there is something to send.
    fn measure(&mut self, busy: bool) {
        let elapsed = self.measured.map(|(at, _)| at.elapsed());
        match elapsed {
            Some(elapsed) if elapsed < level::WINDOW => return,
            None if !busy => return,
            _ => {}
        }
        let Ok(info) = tcp::info(self.link.stream().socket()) else {
            return;
        };
        if let (Some(elapsed), Some((_, before))) = (elapsed, self.measured) {
            let bytes = info.acked_bytes.saturating_sub(before.acked_bytes);
            let unsent = info.unsent_bytes > 0 || self.link.stream().queued_bytes() > 0;
            let by_receiver = info
                .receiver_limited_us
                .saturating_sub(before.receiver_limited_us);
            let limited = unsent && u128::from(by_receiver) < elapsed.as_micros() / 2;
            if busy {
                self.level.delivered(bytes, elapsed, limited);
            }
        }
        self.measured = busy.then(|| (Instant::now(), info));
    }

    fn flush(&mut self) -> Result<(), Ended> {
        let written = self.link.flush()?;
        let counter = &self.shared.wire_bytes;
        counter.fetch_add(written as u64, Ordering::Relaxed);
        if self.link.stream().queued_bytes() == 0 && self.unwritten > 0 {
            self.shared.written(std::mem::take(&mut self.unwritten));
        }
        Ok(())
    }

    /// Copies and encodes a batch, and queues its frames.
    fn encode(&mut self, runs: Vec<Run>) -> Result<(), Ended> {
        let begun = Instant::now();
        let level = self.level.choose();
        self.ladder.set_level(level);
        self.fill_ladder(runs)?;
        let copied = begun.elapsed();
        let mut encoded = Vec::with_capacity(3);
        let effort = self
            .ladder
            .finish(|part| encoded.push(part))
            .map_err(|error| Ended::Broken(chain(&error)))?;
        if level != Level::Raw {
            self.level.encoded(level, &effort, begun.elapsed() - copied);
        }
        let first = self.shared.reserve(encoded.len() as u64);
        let units: Vec<Arc<Unit>> = encoded
            .into_iter()
            .zip(first..)
            .map(|(part, sequence)| {
                let mut bytes = part.buffer;
                let header = Header {
                    kind: part.kind,
                    transfer: self.shared.transfer,
                    sequence,
                    offset: part.offset,
                };
                frame::seal(&mut bytes, &header);
                Arc::new(Unit {
                    sequence,
                    bytes,
                    pages: part.pages,
                    kind: part.kind,
                })
            })
            .collect();
        self.shared.encoded(self.member, &units);
        self.unwritten += units.len();
        units
            .iter()
            .try_for_each(|unit| self.link.send(&unit.bytes))
    }

    /// Copies the pages of `runs` into the ladder, and of more when most of them are zeros.
    fn fill_ladder(&mut self, mut runs: Vec<Run>) -> Result<(), Ended> {
        let wanted: u64 = runs.iter().map(|run| run.pages).sum();
        let wanted = wanted as usize;
        let mut looked_at = 0;
        loop {
            for run in &runs {
                let copy = &mut self.copy[..run.pages as usize * PAGE_BYTES];
                self.shared
                    .memory
                    .read_pages(PageIndex(run.first), copy)
                    .map_err(|error| Ended::Broken(chain(&error)))?;
                let (pages, _) = copy.as_chunks::<PAGE_BYTES>();
                for (page, content) in (run.first..).zip(pages) {
                    self.ladder.push(page, content);
                }
                looked_at += run.pages;
            }
            let missing = wanted.saturating_sub(self.ladder.content_pages());
            let room = missing.min(self.ladder.room());
            if missing <= wanted / 2 || looked_at >= LOOKED_AT_MAX || room == 0 {
                return Ok(());
            }
            runs = self.shared.more_pages(room);
            if runs.is_empty() {
                return Ok(());
            }
        }
    }

    fn receive(&mut self) -> Result<(), Ended> {
        let (shared, moved) = (self.shared, &mut self.moved);
        self.link.fill()?;
        self.link.frames(|frame| {
            if frame.header.kind != Kind::Ack {
                return Err(Ended::Broken(
                    "The peer sent what only a source sends".into(),
                ));
            }
            let broken = |error| Ended::Broken(chain(&error));
            let sequences = frame::decode_ack(frame.payload).map_err(broken)?;
            if !frame.payload.is_empty() {
                *moved = Instant::now();
            }
            let acked = shared.acked(sequences);
            acked.map_err(|why| Ended::Broken(why.into()))
        })
    }

    /// A peer whose pulse beats, but who neither takes nor acknowledges what it is sent, is as good as gone.
    fn check_that_it_moves(&mut self) -> Result<(), Ended> {
        if !self.shared.owes(self.member) {
            self.moved = Instant::now();
        }
        if self.moved.elapsed() < self.shared.idle_timeout {
            return Ok(());
        }
        let info = tcp::info(self.link.stream().socket());
        let acked = info.map_or(self.acked_by_kernel, |info| info.acked_bytes);
        if acked == self.acked_by_kernel {
            return Err(Ended::Lost("The peer takes nothing any more".into()));
        }
        self.acked_by_kernel = acked;
        self.moved = Instant::now();
        Ok(())
    }
}
