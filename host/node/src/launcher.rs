//! The launcher, asked from asynchronous code: each request on a thread of the blocking pool, exits as a broadcast.
//!
//! The launcher is the one that knows which processes exist. It outlives the daemon; a daemon that starts asks it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dwcp_api::Fault;
use dwcp_api::service::Answer;
use dwcp_launch::address::Ipv4Prefix;
use dwcp_launch::protocol::{Child, ChildId, Needs, Network, NetworkKind, NicSpec, Side};
use dwcp_launch::{Client, ClientError};
use tokio::sync::broadcast;

use crate::errors::{chain, internal, unavailable};

/// Exits kept for a listener that is slow; one that lags asks the launcher for the list.
const EXITS_MAX: usize = 1024;

/// What the launcher tells unasked.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    /// A child ended.
    Exited(Child),
    /// The launcher is out of reach, which is told again and again. One that ended took its children with it.
    Gone,
    /// The launcher was out of reach and is back, perhaps as a new one that knows nothing of what ended meanwhile.
    Back,
}

/// The launcher.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    socket: Arc<PathBuf>,
    exits: broadcast::Sender<Notice>,
}

/// An id as the launcher wants it.
pub(crate) fn child_id(id: &str) -> Answer<ChildId> {
    id.parse()
        .map_err(|error| Fault::internal(format!("{id}: {error}")))
}

/// The id of the mover of a migration on this host.
pub(crate) fn mover_id(migration: &str, side: Side) -> String {
    match side {
        Side::Source | Side::PrivateSource => format!("{migration}-out"),
        Side::Destination => format!("{migration}-in"),
    }
}

fn known(client: &mut Client, id: &ChildId) -> Result<Option<Child>, ClientError> {
    Ok(client.list()?.into_iter().find(|child| child.id == *id))
}

fn wait_for_end(client: &mut Client, id: &ChildId) -> Result<(), ClientError> {
    while known(client, id)?.is_some_and(|child| child.is_running()) {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

impl Launcher {
    /// Connects once, to learn whether it is there, and begins to listen for exits.
    pub(crate) async fn open(socket: PathBuf) -> Result<Self, ClientError> {
        let (exits, _) = broadcast::channel(EXITS_MAX);
        let launcher = Self {
            socket: Arc::new(socket),
            exits,
        };
        let socket = launcher.socket.clone();
        let probe = tokio::task::spawn_blocking(move || Client::connect(&socket).map(drop)).await;
        match probe {
            Ok(answer) => answer?,
            Err(_) => return Err(ClientError::Unexpected),
        }
        let watching = launcher.clone();
        std::thread::Builder::new()
            .name("exits".into())
            .spawn(move || watching.watch())
            .map_err(|source| ClientError::Connect {
                path: launcher.socket.to_path_buf(),
                source,
            })?;
        Ok(launcher)
    }

    /// Exits from now on.
    pub(crate) fn exits(&self) -> broadcast::Receiver<Notice> {
        self.exits.subscribe()
    }

    /// Follows the launcher for as long as the process lives; a connection that breaks is made again.
    fn watch(&self) {
        // Whether it answered when it was last asked.
        let mut last = None;
        // No receiver only means that nobody waits for this notice.
        let tell = |notice| drop(self.exits.send(notice));
        loop {
            let exits = Client::connect(&self.socket).and_then(Client::watch);
            match exits {
                Ok(exits) => {
                    if last.replace(true).is_some() {
                        tell(Notice::Back);
                    }
                    for child in exits.map_while(Result::ok) {
                        tell(Notice::Exited(child));
                    }
                }
                Err(error) => {
                    if last.replace(false) != Some(false) {
                        tracing::error!("no word from the launcher: {}", chain(&error));
                    }
                    tell(Notice::Gone);
                }
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Client) -> Result<T, ClientError> + Send + 'static,
    ) -> Answer<T> {
        let socket = self.socket.clone();
        let asked = move || what(&mut Client::connect(&socket)?);
        match tokio::task::spawn_blocking(asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(unavailable(chain(&error))),
            Err(error) => Err(internal(error)),
        }
    }

    /// Starts a VMM, with the sealed memory of a template if it is to become a fork; `descriptors` are the control listener, the serial log, the images, and the disks.
    pub(crate) async fn spawn_vmm(
        &self,
        id: &str,
        needs: Needs,
        template: Option<&str>,
        config: serde_json::Value,
        descriptors: Vec<OwnedFd>,
        nics: Vec<NicSpec>,
    ) -> Answer<u32> {
        let id = child_id(id)?;
        let template = template.map(child_id).transpose()?;
        self.ask(move |client| {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            client.spawn_vmm_with(&id, needs, template.as_ref(), config, &borrowed, &nics)
        })
        .await
    }

    /// Ends a VMM, and seals its guest's memory as a template's, which the launcher keeps. Done also when it is.
    pub(crate) async fn seal(&self, id: &str) -> Answer<()> {
        let id = child_id(id)?;
        self.ask(move |client| {
            client.kill(&id)?;
            wait_for_end(client, &id)?;
            client.seal(&id)
        })
        .await
    }

    /// Starts a reader of images.
    pub(crate) async fn spawn_reader(
        &self,
        id: &str,
        config: serde_json::Value,
        descriptors: Vec<OwnedFd>,
    ) -> Answer<u32> {
        let id = child_id(id)?;
        self.ask(move |client| {
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            client.spawn_reader(&id, config, &borrowed)
        })
        .await
    }

    /// Makes a network, or finds that it is there.
    pub(crate) async fn ensure_network(
        &self,
        name: &str,
        kind: NetworkKind,
        subnet: Option<Ipv4Prefix>,
    ) -> Answer<Network> {
        let name = name.parse().map_err(internal)?;
        self.ask(move |client| client.ensure_network(&name, kind, subnet))
            .await
    }

    /// Starts a mover on the memory of `vm`.
    pub(crate) async fn spawn_mover(
        &self,
        id: &str,
        vm: &str,
        side: Side,
        config: serde_json::Value,
        control: OwnedFd,
    ) -> Answer<u32> {
        let (id, vm) = (child_id(id)?, child_id(vm)?);
        self.ask(move |client| client.spawn_mover(&id, &vm, side, config, &[control.as_fd()]))
            .await
    }

    /// Lets a VMM write longer files.
    pub(crate) async fn lengthen(&self, id: &str, file_bytes: u64) -> Answer<()> {
        let id = child_id(id)?;
        self.ask(move |client| client.lengthen(&id, file_bytes))
            .await
    }

    /// Every child that is not forgotten.
    pub(crate) async fn list(&self) -> Answer<Vec<Child>> {
        self.ask(Client::list).await
    }

    /// Ends a child, waits until it has ended, and forgets it. Done also when there is none.
    pub(crate) async fn end(&self, id: &str) -> Answer<()> {
        let id = child_id(id)?;
        self.ask(move |client| {
            if known(client, &id)?.is_none() {
                return Ok(());
            }
            client.kill(&id)?;
            wait_for_end(client, &id)?;
            match client.forget(&id) {
                // Somebody else forgot it between two requests.
                Err(ClientError::Refused(_)) => Ok(()),
                other => other,
            }
        })
        .await
    }

    /// Forgets an exited child.
    pub(crate) async fn forget(&self, id: &str) -> Answer<()> {
        let id = child_id(id)?;
        self.ask(move |client| match client.forget(&id) {
            Err(ClientError::Refused(_)) => Ok(()),
            other => other,
        })
        .await
    }
}
