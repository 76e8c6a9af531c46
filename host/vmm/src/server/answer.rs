//! One request, one reply.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Next, Server};
use crate::end::GuestEnd;
use crate::machine::RequestError;
use crate::protocol::{CpuStatus, Reply, Request, VERSIONS};
use crate::state::{STATE_BYTES_MAX, StateError};

type Answer = (Reply, Option<OwnedFd>);

impl Server {
    /// Reads a request from a connection and answers it.
    pub(super) fn serve_one(&mut self, at: usize) -> Next {
        let connection = &mut self.connections[at];
        let Ok((request, fds)) = connection.channel.receive::<Request>() else {
            return Next::Drop;
        };
        let is_greeting = matches!(request, Request::Hello { .. });
        if !is_greeting && !connection.has_greeted {
            let reason = "The first request must be Hello".to_owned();
            let _ = connection.channel.send(&Reply::Refused { reason }, &[]);
            return Next::Drop;
        }
        let ends = request == (Request::Stop { force: true });
        let (reply, fd) = match self.carry_out(request, fds) {
            Ok(answer) => answer,
            Err(error) => (
                Reply::Refused {
                    reason: crate::process::sentence(&error),
                },
                None,
            ),
        };
        let connection = &mut self.connections[at];
        connection.has_greeted |= matches!(reply, Reply::Hello { .. });
        let fds: Vec<_> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = connection.channel.send(&reply, &fds);
        match (ends, sent) {
            (true, _) => Next::End(GuestEnd::Stopped),
            (false, Ok(())) => Next::Keep,
            (false, Err(_)) => Next::Drop,
        }
    }

    fn carry_out(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Answer, RequestError> {
        let machine = &mut self.machine;
        let done = Ok((Reply::Done, None));
        match request {
            Request::Hello { versions } => Ok((greet(&versions), None)),
            Request::Run { epoch } => machine.run(epoch).and(done),
            Request::Pause => machine.pause().and(done),
            Request::Resume { epoch } => machine.resume(epoch).and(done),
            Request::Stop { force: true } => done,
            Request::Stop { force: false } => machine.press_power_button().and(done),
            Request::Console => {
                let fd = self.consoles.attach()?;
                Ok((Reply::Console, Some(fd)))
            }
            Request::Resize { device, bytes } => machine.resize(&device, bytes).and(done),
            Request::Host => {
                let host = fds.into_iter().next().ok_or(RequestError::NoFile)?;
                machine.hear(host).and(done)
            }
            Request::Balloon { device, pages } => machine.aim(&device, pages).and(done),
            Request::DirtyStart => machine.dirty_start().and(done),
            Request::DirtyHarvest => {
                let pages = machine.dirty_harvest()?;
                Ok((Reply::Dirty { pages }, None))
            }
            Request::DirtyStop => machine.dirty_stop().and(done),
            Request::Save => state(machine.save()?),
            Request::SaveTemplate => state(machine.save_template()?),
            Request::Load => {
                let state = fds.into_iter().next().ok_or(StateError::Truncated)?;
                let bytes = read_state(File::from(state))?;
                machine.load(&bytes).and(done)
            }
            Request::Snapshot(order) => {
                let file = fds.into_iter().next().ok_or(RequestError::NoFile)?;
                let digest = machine.write_snapshot(&File::from(file), order)?;
                Ok((Reply::Snapshot { digest }, None))
            }
            Request::Restore => machine.restore(fds).and(done),
            Request::Fork => {
                let state = fds.into_iter().next().ok_or(StateError::Truncated)?;
                let state = read_state(File::from(state))?;
                machine.fork(&state).and(done)
            }
            Request::Status => Ok((Reply::Status(machine.status()), None)),
            Request::Cpu => {
                let (told, offered) = machine.cpu();
                Ok((Reply::Cpu(CpuStatus { told, offered }), None))
            }
        }
    }
}

fn greet(versions: &[u32]) -> Reply {
    match VERSIONS.iter().find(|version| versions.contains(version)) {
        Some(version) => Reply::Hello { version: *version },
        None => Reply::Refused {
            reason: format!("This VMM speaks versions {VERSIONS:?}"),
        },
    }
}

/// A memfd with these bytes that nobody can change.
fn sealed(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(c"dwcp-device-state", flags)?);
    file.write_all(bytes)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
    Ok(file.into())
}

/// Copies a state out of a descriptor, so that it cannot change while it is being checked.
fn state(state: Vec<u8>) -> Result<Answer, RequestError> {
    let bytes = state.len() as u64;
    Ok((Reply::State { bytes }, Some(sealed(&state)?)))
}

fn read_state(file: File) -> Result<Vec<u8>, RequestError> {
    let length = file.metadata()?.len();
    if length > STATE_BYTES_MAX as u64 {
        return Err(StateError::TooLong(length).into());
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
