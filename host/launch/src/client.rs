//! The client's side of the launcher's protocol. Blocking: one request, one reply.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_channel::{Channel, ChannelError};

use crate::address::{Ipv4Prefix, NetworkName};
use crate::protocol::{
    Child, ChildId, Needs, Network, NetworkKind, NicSpec, Reply, Request, Side, VERSION,
};

/// The launcher answers within milliseconds; one that takes this long is taken for broken.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a request to the launcher failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error(
        "The launcher could not be reached at {path}: is dwcp-launch running, and does it allow this user?"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The launcher understood and declined.
    #[error("The launcher refused: {0}")]
    Refused(String),
    /// The connection broke; whether the request was carried out is unknown until `list` says so.
    #[error("The connection to the launcher broke")]
    Channel(#[from] ChannelError),
    /// The reply does not fit the request.
    #[error(
        "The launcher answered something else than was asked: use a launcher of the same release"
    )]
    Unexpected,
}

/// What the launcher's machine can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// `/dev/kvm` is there.
    pub kvm: bool,
    /// `/dev/userfaultfd` is there.
    pub userfaultfd: bool,
}

/// A connection to the launcher.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    abilities: Abilities,
}

impl Client {
    /// Connects to the launcher's socket and agrees on the version.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let failed = |source| ClientError::Connect {
            path: path.to_owned(),
            source,
        };
        let socket = UnixStream::connect(path).map_err(failed)?;
        socket
            .set_read_timeout(Some(REPLY_TIMEOUT))
            .and_then(|()| socket.set_write_timeout(Some(REPLY_TIMEOUT)))
            .map_err(failed)?;
        let mut client = Self {
            channel: Channel::new(socket),
            abilities: Abilities {
                kvm: false,
                userfaultfd: false,
            },
        };
        match client.ask(&Request::Hello { version: VERSION }, &[])? {
            Reply::Hello {
                kvm, userfaultfd, ..
            } => client.abilities = Abilities { kvm, userfaultfd },
            _ => return Err(ClientError::Unexpected),
        }
        Ok(client)
    }

    /// What the launcher's machine could do when this client connected.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Makes memory for a VM and starts its VMM; answers the process id. `descriptors` arrive at 9 and up.
    pub fn spawn_vmm(
        &mut self,
        id: &ChildId,
        memory_bytes: u64,
        config: serde_json::Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<u32, ClientError> {
        self.spawn_vmm_with(
            id,
            Needs::memory(memory_bytes),
            None,
            config,
            descriptors,
            &[],
        )
    }

    /// Seals the memory of a VM whose VMM has ended. Done also when it is sealed already.
    pub fn seal(&mut self, id: &ChildId) -> Result<(), ClientError> {
        self.done(&Request::Seal { id: id.clone() })
    }

    /// [`Client::spawn_vmm`] with all that a VM may need, with the memory of a template that was sealed if it is to become a
    /// fork, and with network interfaces; their taps arrive after `descriptors`.
    pub fn spawn_vmm_with(
        &mut self,
        id: &ChildId,
        needs: Needs,
        template: Option<&ChildId>,
        config: serde_json::Value,
        descriptors: &[BorrowedFd<'_>],
        nics: &[NicSpec],
    ) -> Result<u32, ClientError> {
        let request = Request::SpawnVmm {
            id: id.clone(),
            memory_bytes: needs.memory_bytes,
            template: template.cloned(),
            config,
            file_bytes: needs.file_bytes,
            huge_pages: needs.huge_pages,
            vcpus: needs.vcpus,
            nics: nics.to_vec(),
        };
        self.spawn(&request, descriptors)
    }

    /// Starts a mover on a VM's memory; answers the process id. `descriptors` arrive at 7 and up.
    pub fn spawn_mover(
        &mut self,
        id: &ChildId,
        vm: &ChildId,
        side: Side,
        config: serde_json::Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<u32, ClientError> {
        let request = Request::SpawnMover {
            id: id.clone(),
            vm: vm.clone(),
            side,
            config,
        };
        self.spawn(&request, descriptors)
    }

    /// Starts a reader of images; answers the process id. `descriptors` arrive at 5 and up.
    pub fn spawn_reader(
        &mut self,
        id: &ChildId,
        config: serde_json::Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<u32, ClientError> {
        let request = Request::SpawnReader {
            id: id.clone(),
            config,
        };
        self.spawn(&request, descriptors)
    }

    /// Lets a running VMM write files of `file_bytes`.
    pub fn lengthen(&mut self, id: &ChildId, file_bytes: u64) -> Result<(), ClientError> {
        self.done(&Request::Lengthen {
            id: id.clone(),
            file_bytes,
        })
    }

    /// Every child that is not forgotten, ascending by id.
    pub fn list(&mut self) -> Result<Vec<Child>, ClientError> {
        match self.ask(&Request::List, &[])? {
            Reply::Children { children } => Ok(children),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Ends a child at once. When this returns its end is ordered, not yet seen: `watch` shows it.
    pub fn kill(&mut self, id: &ChildId) -> Result<(), ClientError> {
        self.done(&Request::Kill { id: id.clone() })
    }

    /// Forgets an exited child, and a VM's memory with it. Refused while it runs.
    pub fn forget(&mut self, id: &ChildId) -> Result<(), ClientError> {
        self.done(&Request::Forget { id: id.clone() })
    }

    /// Makes a network, or finds that it is there as asked for. Without a subnet the launcher chooses one.
    pub fn ensure_network(
        &mut self,
        name: &NetworkName,
        kind: NetworkKind,
        subnet: Option<Ipv4Prefix>,
    ) -> Result<Network, ClientError> {
        let request = Request::EnsureNetwork {
            name: name.clone(),
            kind,
            subnet,
        };
        match self.ask(&request, &[])? {
            Reply::Network { network } => Ok(network),
            _ => Err(ClientError::Unexpected),
        }
    }

    /// Removes a network. Refused while a VM is on it.
    pub fn remove_network(&mut self, name: &NetworkName) -> Result<(), ClientError> {
        self.done(&Request::RemoveNetwork { name: name.clone() })
    }

    /// Turns the connection into a stream of exits: first those that are kept, then each as it happens.
    pub fn watch(mut self) -> Result<Exits, ClientError> {
        self.done(&Request::Watch)?;
        let socket = self.channel.into_inner();
        socket.set_read_timeout(None).map_err(ChannelError::Io)?;
        Ok(Exits {
            channel: Some(Channel::new(socket)),
        })
    }

    fn spawn(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<u32, ClientError> {
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        match self.ask(request, &raw)? {
            Reply::Spawned { pid } => Ok(pid),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn done(&mut self, request: &Request) -> Result<(), ClientError> {
        match self.ask(request, &[])? {
            Reply::Done => Ok(()),
            _ => Err(ClientError::Unexpected),
        }
    }

    fn ask(&mut self, request: &Request, descriptors: &[RawFd]) -> Result<Reply, ClientError> {
        self.channel.send(request, descriptors)?;
        match self.channel.receive()? {
            (Reply::Refused { reason }, _) => Err(ClientError::Refused(reason)),
            (reply, _) => Ok(reply),
        }
    }
}

/// Exits of children, as they happen. Ends after the first error: connect again and watch again, nothing is lost.
#[derive(Debug)]
pub struct Exits {
    channel: Option<Channel>,
}

impl Iterator for Exits {
    type Item = Result<Child, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let answer = match self.channel.as_mut()?.receive() {
            Ok((Reply::Exited { child }, _)) => return Some(Ok(child)),
            Ok(_) => ClientError::Unexpected,
            Err(error) => error.into(),
        };
        self.channel = None;
        Some(Err(answer))
    }
}
