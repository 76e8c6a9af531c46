//! Where daemons announce the steps of a migration and wait to be let on: a fault test catches one step, does its harm,
//! and lets the rest run.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// A step that a daemon waits at. Dropping it lets the daemon on.
#[derive(Debug)]
pub struct Caught {
    socket: UnixStream,
}

impl Drop for Caught {
    fn drop(&mut self) {
        // A daemon that was killed meanwhile is not there to be told.
        let _ = self.socket.write_all(b"on\n");
    }
}

#[derive(Debug, Default)]
struct Trap {
    armed: Option<(String, oneshot::Sender<Caught>)>,
    seen: Vec<String>,
}

/// The steps of one daemon.
#[derive(Clone, Debug)]
pub struct Steps {
    path: PathBuf,
    trap: Arc<Mutex<Trap>>,
}

impl Steps {
    /// Listens at `path`.
    pub fn listen(path: &Path) -> std::io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
        let steps = Self {
            path: path.to_owned(),
            trap: Arc::default(),
        };
        let serving = steps.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                serving.serve(socket);
            }
        });
        Ok(steps)
    }

    /// The socket, for `DWCP_STEPS`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Catches the next time that a daemon comes to `step`.
    pub fn catch(&self, step: &str) -> oneshot::Receiver<Caught> {
        let (sender, receiver) = oneshot::channel();
        self.lock().armed = Some((step.to_owned(), sender));
        receiver
    }

    /// Catches nothing any more; answers the steps that were passed since it was last asked.
    pub fn disarm(&self) -> Vec<String> {
        let mut trap = self.lock();
        trap.armed = None;
        std::mem::take(&mut trap.seen)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Trap> {
        self.trap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, socket: UnixStream) {
        let mut line = String::new();
        if BufReader::new(&socket).read_line(&mut line).is_err() {
            return;
        }
        let step = line.trim();
        let mut trap = self.lock();
        trap.seen.push(step.to_owned());
        let caught = Caught { socket };
        if trap.armed.as_ref().is_some_and(|(armed, _)| armed == step)
            && let Some((_, sender)) = trap.armed.take()
        {
            // A test that is gone drops it, which lets the daemon on.
            let _ = sender.send(caught);
        }
    }
}
