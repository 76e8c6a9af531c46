//! Starting the program without the launcher: the same descriptors in the same places, but none of the walls.
//!
//! The process bounds and confines itself as always; what the launcher adds
//! (namespaces, a user of its own, an empty root) is missing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use dwcp_channel::Channel;
use dwcp_image::protocol::{Answer, AnswerError, Task, receive};
use dwcp_jail::{Handover, LastWordsPipe};

/// What to start.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The `dwcp-image` program.
    pub program: &'a Path,
    /// What to do.
    pub task: &'a Task,
    /// The images, the topmost first; as many as the task says.
    pub images: Vec<File>,
    /// The files for kernel and initrd, for a job that boots.
    pub outputs: Option<(File, File)>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The answer, if there was one to believe.
    pub answer: Result<Answer, AnswerError>,
    /// Exit code or signal.
    pub status: ExitStatus,
    /// What the process said last, as `kind: text`.
    pub words: Option<String>,
}

impl Ended {
    /// Whether the process was ended because it used too much processor time.
    pub fn is_too_long(&self) -> bool {
        self.status.signal() == Some(libc::SIGXCPU)
    }
}

/// A program that was started. Killed when dropped.
#[derive(Debug)]
pub struct Started {
    running: Running,
    task: Task,
    channel: Channel,
    outputs: Option<(File, File)>,
    words: LastWordsPipe,
}

/// Starts the program.
pub fn start(plan: Plan<'_>) -> io::Result<Started> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut descriptors: Vec<OwnedFd> = vec![theirs.into()];
    descriptors.extend(plan.images.into_iter().map(OwnedFd::from));
    if let Some((kernel, initrd)) = &plan.outputs {
        descriptors.push(kernel.as_fd().try_clone_to_owned()?);
        descriptors.push(initrd.as_fd().try_clone_to_owned()?);
    }
    let json = serde_json::to_vec(plan.task)?;
    let (handover, words) = Handover::new(&json, descriptors).map_err(io::Error::other)?;
    let mut command = Command::new(plan.program);
    handover.prepare(&mut command);
    let child = command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    // Our copies of its descriptors go with the command, so that the socket closes when the process ends.
    drop(command);
    Ok(Started {
        running: Running(child),
        task: plan.task.clone(),
        channel: Channel::new(ours),
        outputs: plan.outputs,
        words,
    })
}

impl Started {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.running.0.id()
    }

    /// Waits at most `deadline` for its answer and its end; kills it after that.
    pub fn finish(mut self, deadline: Duration) -> io::Result<Ended> {
        let until = Instant::now() + deadline;
        let socket = self.channel.into_inner();
        socket.set_read_timeout(Some(deadline))?;
        let outputs = self.outputs.as_ref();
        let answer = receive(
            &mut Channel::new(socket),
            &self.task,
            outputs.map(|(kernel, initrd)| (kernel, initrd)),
        );
        let status = self.running.end(until)?;
        Ok(Ended {
            answer,
            status,
            words: said(self.words),
        })
    }
}

fn said(words: LastWordsPipe) -> Option<String> {
    const WAIT_MS: u16 = 1000;
    words.wait(WAIT_MS).map(|words| words.to_string())
}

/// A process that is killed when it is dropped.
#[derive(Debug)]
struct Running(Child);

impl Running {
    /// Waits until it has ended; kills it after `until`.
    fn end(&mut self, until: Instant) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                self.0.kill()?;
                return self.0.wait();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
