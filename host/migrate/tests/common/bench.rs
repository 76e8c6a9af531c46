//! Both sides of a transfer within one process.

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::Receiver;

use dwcp_migrate::Said;
use dwcp_migrate::destination::Destination;
use dwcp_migrate::protocol::{Complete, Event, MoverConfig, RoundDone};
use dwcp_migrate::source::Source;

use super::{Guest, next, pair, sink};

/// Both sides of a transfer, and their guests.
pub struct Bench {
    pub source: Source,
    pub destination: Destination,
    pub from_source: Receiver<Said>,
    pub from_destination: Receiver<Said>,
    pub left: Guest,
    pub right: Guest,
}

impl Bench {
    pub fn new(pages: u64, configs: &(MoverConfig, MoverConfig)) -> Self {
        let (left, right) = (Guest::new(pages), Guest::new(pages));
        let (source_sink, from_source) = sink();
        let (destination_sink, from_destination) = sink();
        let (view, bitmap) = (left.view(), left.shared_bitmap());
        let memory = dwcp_memory::GuestMemory::map(right.memory_fd(), right.memory.size()).unwrap();
        Self {
            source: Source::start(&configs.0, view, bitmap, source_sink).unwrap(),
            destination: Destination::start(&configs.1, memory, destination_sink).unwrap(),
            from_source,
            from_destination,
            left,
            right,
        }
    }

    /// Opens streams; returns the source's ends, for measuring and cutting.
    pub fn streams(&self, count: usize) -> Vec<TcpStream> {
        (0..count)
            .map(|_| {
                let (near, far) = pair();
                let copy = near.try_clone().unwrap();
                self.source.add_stream(near);
                self.destination.add_stream(far);
                copy
            })
            .collect()
    }

    pub fn round_done(&self) -> RoundDone {
        match next(&self.from_source).0 {
            Event::RoundDone(done) => done,
            other => panic!("{other:?} instead of the end of a round"),
        }
    }

    /// The final round and its confirmations; checks the device state and the memory.
    pub fn finish(&self, state: &[u8]) -> (RoundDone, Complete) {
        self.source.finish(state);
        assert_eq!(next(&self.from_source).0, Event::Flushed);
        let done = self.round_done();
        let (event, fd) = next(&self.from_destination);
        let Event::Complete(complete) = event else {
            panic!("{event:?} instead of completion");
        };
        let file = File::from(fd.unwrap());
        let mut arrived = vec![0; state.len() + 1];
        let length = file.read_at(&mut arrived, 0).unwrap();
        assert!(arrived[..length] == *state);
        assert!(
            file.write_at(b"x", 0).is_err(),
            "the device state is sealed"
        );
        self.left.assert_same(&self.right);
        (done, complete)
    }
}
