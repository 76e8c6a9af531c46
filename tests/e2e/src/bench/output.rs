//! What a guest says, read from a pipe: the first byte is the sign that it runs.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A guest that has not said anything after this long never will.
const DEADLINE: Duration = Duration::from_secs(30);
/// More than this the guest does not say before it is heard.
const BYTES_MAX: usize = 64 << 10;

/// The reading end.
#[derive(Debug)]
pub struct Output {
    pipe: std::fs::File,
    said: Vec<u8>,
}

impl Output {
    /// A pipe: what is said, and where to say it.
    pub fn pipe() -> anyhow::Result<(Self, OwnedFd)> {
        let (read, write) = std::io::pipe()?;
        Ok((Self::of(read), write.into()))
    }

    /// What comes out of a pipe.
    pub fn of(pipe: impl Into<OwnedFd>) -> Self {
        Self {
            pipe: pipe.into().into(),
            said: Vec::new(),
        }
    }

    /// Waits for the first sign.
    pub fn wait(&self) -> anyhow::Result<()> {
        self.wait_for(DEADLINE)
    }

    /// Waits until the guest has told of its work, which only a guest does that found its memory as it was.
    pub fn wait_for_tick(&mut self) -> anyhow::Result<()> {
        self.wait_for_text("guest: tick ")
    }

    /// Waits until it has said this.
    pub fn wait_for_text(&mut self, text: &str) -> anyhow::Result<()> {
        let until = Instant::now() + DEADLINE;
        loop {
            let said = String::from_utf8_lossy(&self.said);
            if said.contains(text) {
                return Ok(());
            }
            ensure!(
                self.said.len() < BYTES_MAX,
                "The guest did not say {text:?}, but: {said}"
            );
            self.wait_for(until.saturating_duration_since(Instant::now()))?;
            let mut bytes = [0; 4096];
            let count = self.pipe.read(&mut bytes)?;
            if count == 0 {
                bail!("The guest has ended and said: {said}");
            }
            self.said.extend_from_slice(&bytes[..count]);
        }
    }

    fn wait_for(&self, longest: Duration) -> anyhow::Result<()> {
        let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(longest)?;
        ensure!(
            poll(&mut fds, timeout)? > 0,
            "The guest is not heard of; so far it said: {}",
            String::from_utf8_lossy(&self.said)
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    #[test]
    fn a_guest_is_heard_and_its_end_is_seen() {
        let (mut output, write) = Output::pipe().unwrap();
        let mut write = std::fs::File::from(write);
        write.write_all(b"d 0\nguest: tick 4 pages").unwrap();
        output.wait().unwrap();
        output.wait_for_tick().unwrap();
        drop(write);
        assert!(output.wait_for_text("never").is_err());
    }
}
