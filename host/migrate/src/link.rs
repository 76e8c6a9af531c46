//! A stream as both sides of a transfer use it: frames out, checked frames in, and a pulse.
//!
//! A side that has nothing to say sends an empty acknowledgement every third of the idle timeout, so a peer that is
//! silent for all of it is gone, however long the daemons think between two rounds. Must not know pages.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use dwcp_wire::frame::{self, Frame, Kind};
use dwcp_wire::stream::{Ready, SecureStream, StreamError};

/// A handshake may take this long, or the idle timeout if that is shorter.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes queued beyond which a side first writes before it reads on.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// Why a stream is no longer served.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The transfer is over.
    Finished,
    /// The connection died; others may go on.
    Lost(String),
    /// The peer broke the protocol or gave up, or we cannot go on: the transfer has failed.
    Broken(String),
}

impl From<StreamError> for Ended {
    fn from(error: StreamError) -> Self {
        Self::Lost(chain(&error))
    }
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    let texts: Vec<String> = sources.map(ToString::to_string).collect();
    texts.join(": ")
}

/// An established stream of a transfer.
#[derive(Debug)]
pub(crate) struct Link {
    stream: SecureStream,
    transfer: u64,
    idle_timeout: Duration,
    heard: Instant,
    spoke: Instant,
}

impl Link {
    pub(crate) fn new(stream: SecureStream, transfer: u64, idle_timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            stream,
            transfer,
            idle_timeout,
            heard: now,
            spoke: now,
        }
    }

    pub(crate) fn stream(&self) -> &SecureStream {
        &self.stream
    }

    pub(crate) fn transfer(&self) -> u64 {
        self.transfer
    }

    /// Queues a frame.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<(), Ended> {
        self.spoke = Instant::now();
        Ok(self.stream.queue(frame)?)
    }

    /// Writes what the socket takes; returns how many bytes that were.
    pub(crate) fn flush(&mut self) -> Result<usize, Ended> {
        Ok(self.stream.flush()?)
    }

    /// Sleeps until something can be done, at most until the next pulse.
    pub(crate) fn wait(&self, call: Option<BorrowedFd<'_>>) -> Result<Ready, Ended> {
        let queued = self.stream.queued_bytes();
        let mut patience = self.idle_timeout.saturating_sub(self.heard.elapsed());
        if queued == 0 {
            let beat = self.idle_timeout / 3;
            patience = patience.min(beat.saturating_sub(self.spoke.elapsed()));
        }
        let read = queued < QUEUED_BYTES_MAX;
        let patience = patience.max(Duration::from_millis(1));
        Ok(self.stream.wait(call, read, patience)?)
    }

    /// Says that we live if it is time to, and finds out whether the peer does.
    pub(crate) fn pulse(&mut self) -> Result<(), Ended> {
        if self.heard.elapsed() >= self.idle_timeout {
            let seconds = self.idle_timeout.as_secs_f32();
            return Err(Ended::Lost(format!("The peer was silent for {seconds} s")));
        }
        if self.spoke.elapsed() >= self.idle_timeout / 3 && self.stream.queued_bytes() == 0 {
            self.send(&frame::ack(self.transfer, &[]))?;
        }
        Ok(())
    }

    /// Reads what is there; returns how many bytes came off the socket.
    pub(crate) fn fill(&mut self) -> Result<u64, Ended> {
        let before = self.stream.read_bytes();
        self.stream.fill()?;
        let read = self.stream.read_bytes() - before;
        if read > 0 {
            self.heard = Instant::now();
        }
        Ok(read)
    }

    /// Passes on every whole frame that has been read.
    pub(crate) fn frames(
        &mut self,
        mut each: impl FnMut(&Frame<'_>) -> Result<(), Ended>,
    ) -> Result<(), Ended> {
        loop {
            let broken = |error| Ended::Broken(chain(&error));
            let Some((frame, taken)) = frame::decode(self.stream.received()).map_err(broken)?
            else {
                return Ok(());
            };
            if frame.header.transfer != self.transfer {
                return Err(Ended::Broken(
                    "The peer sent a frame of another transfer".into(),
                ));
            }
            if frame.header.kind == Kind::Error {
                let text = frame::decode_error(frame.payload);
                return Err(Ended::Broken(format!("The peer gave up: {text}")));
            }
            each(&frame)?;
            self.stream.consume(taken);
        }
    }

    /// Ends the stream, telling the peer why if there is a reason.
    pub(crate) fn close(mut self, reason: Option<&str>) {
        if let Some(reason) = reason {
            // The peer may have gone already, and then there is nobody to tell.
            let _ = self.send(&frame::error(self.transfer, reason));
        }
        self.stream.close();
    }
}
