//! One stream of a destination: reads frames, applies them, acknowledges them, all in one thread.
//!
//! Every byte here comes from a peer that may be hostile: what does not fit ends the transfer, and nothing is kept
//! beyond one frame and one decoded batch. Must not know the other streams.

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dwcp_wire::frame::{self, Counts, Frame, Kind};
use dwcp_wire::ladder::Decoder;
use dwcp_wire::stream::SecureStream;
use dwcp_wire::tcp;

use crate::crew::Assignment;
use crate::destination::Shared;
use crate::link::{Ended, HANDSHAKE_TIMEOUT, Link, chain};

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
    let mut receiver = match Receiver::accept(shared, member, socket) {
        Ok(receiver) => receiver,
        Err(why) => {
            let left = shared.crew.ended(false);
            return shared.lost(left, &why);
        }
    };
    let ended = receiver.run();
    let left = shared.crew.ended(true);
    let link = receiver.link;
    match ended {
        Ended::Finished => link.close(None),
        Ended::Lost(why) => shared.lost(left, &why),
        Ended::Broken(why) => {
            shared.fail(&why);
            link.close(Some(&why));
        }
    }
}

struct Receiver<'a> {
    shared: &'a Shared,
    member: usize,
    link: Link,
    decoder: Decoder,
    /// Frames to acknowledge.
    acks: Vec<u64>,
    /// The end, to be acknowledged when the transfer is complete.
    end: Option<u64>,
}

impl<'a> Receiver<'a> {
    fn accept(shared: &'a Shared, member: usize, socket: TcpStream) -> Result<Self, String> {
        let pages = shared.memory.size().pages();
        let decoder = Decoder::new(pages).map_err(|error| chain(&error))?;
        tcp::tune(&socket).map_err(|error| chain(&error))?;
        let deadline = HANDSHAKE_TIMEOUT.min(shared.idle_timeout);
        let stream = SecureStream::accept(socket, Arc::clone(&shared.tls), deadline)
            .map_err(|error| chain(&error))?;
        let read = stream.read_bytes();
        shared.wire_bytes.fetch_add(read, Ordering::Relaxed);
        shared.crew.established();
        Ok(Self {
            shared,
            member,
            link: Link::new(stream, shared.transfer, shared.idle_timeout),
            decoder,
            acks: Vec::new(),
            end: None,
        })
    }

    fn run(&mut self) -> Ended {
        // What came with the handshake is there already.
        let mut readable = true;
        loop {
            match self.turn(readable) {
                Ok(more) => readable = more,
                Err(ended) => return ended,
            }
        }
    }

    /// Reads if there is something, answers, and waits; returns whether there is something to read.
    fn turn(&mut self, readable: bool) -> Result<bool, Ended> {
        if readable {
            self.receive()?;
        }
        if let Some(reason) = self.shared.failure() {
            return Err(Ended::Broken(reason));
        }
        if self.end.is_some() && self.shared.is_complete() {
            self.acks.extend(self.end.take());
        }
        for acks in self.acks.chunks(frame::ACKS_MAX) {
            let ack = frame::ack(self.link.transfer(), acks);
            self.link.send(&ack)?;
        }
        self.acks.clear();
        self.link.pulse()?;
        self.link.flush()?;
        let answered = self.end.is_none() && self.link.stream().queued_bytes() == 0;
        if answered && self.shared.is_complete() && self.shared.crew.is_closed() {
            // The daemon has what it wanted, and the source its acknowledgements.
            return Err(Ended::Finished);
        }
        let ready = self.link.wait(self.shared.crew.call(self.member))?;
        if ready.called {
            self.shared.crew.heard(self.member);
        }
        Ok(ready.readable)
    }

    fn receive(&mut self) -> Result<(), Ended> {
        let shared = self.shared;
        let read = match self.link.fill() {
            // The source closes when all is acknowledged; that is how a good transfer ends.
            Err(Ended::Lost(_)) if shared.is_complete() => return Err(Ended::Finished),
            other => other?,
        };
        shared.wire_bytes.fetch_add(read, Ordering::Relaxed);
        let (decoder, acks, end) = (&mut self.decoder, &mut self.acks, &mut self.end);
        self.link.frames(|frame| {
            let sequence = frame.header.sequence;
            match apply(shared, decoder, frame).map_err(Ended::Broken)? {
                Answer::Nothing => {}
                Answer::Ack => acks.push(sequence),
                Answer::AckWhenComplete => *end = Some(sequence),
            }
            Ok(())
        })
    }
}

/// How a frame is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Nothing,
    Ack,
    AckWhenComplete,
}

/// Applies one frame, unless it has been applied; the text of an error says what the peer did.
pub(crate) fn apply(
    shared: &Shared,
    decoder: &mut Decoder,
    frame: &Frame<'_>,
) -> Result<Answer, String> {
    let header = &frame.header;
    let sequence = header.sequence;
    match header.kind {
        Kind::Pages | Kind::ZeroRuns => {
            if shared.claim(sequence)? {
                let batch = decoder
                    .decode(header.kind, header.offset, frame.payload)
                    .map_err(|error| chain(&error))?;
                shared.write(&batch)?;
                let mut added = Counts::default();
                match header.kind {
                    Kind::ZeroRuns => added.zero_pages = batch.pages(),
                    _ => added.data_pages = batch.pages(),
                }
                shared.applied(sequence, added)?;
            }
            Ok(Answer::Ack)
        }
        Kind::DeviceState => {
            if shared.claim(sequence)? {
                shared.write_state(header.offset, frame.payload)?;
                let added = Counts {
                    state_bytes: frame.payload.len() as u64,
                    ..Counts::default()
                };
                shared.applied(sequence, added)?;
            }
            Ok(Answer::Ack)
        }
        Kind::End => {
            let counts = Counts::decode(frame.payload).map_err(|error| chain(&error))?;
            shared.end(sequence, counts)?;
            Ok(Answer::AckWhenComplete)
        }
        // A pulse; only a destination acknowledges anything.
        Kind::Ack if frame.payload.is_empty() => Ok(Answer::Nothing),
        Kind::Ack | Kind::Error => Err("The peer sent what only a destination sends".into()),
    }
}
