//! Other hosts: the DWCP port where they arrive, and sessions to them.
//!
//! A connection says in its first 32 bytes what it is for. A session is then TLS with both certificates pinned; a stream
//! of a transfer is handed, untouched, to the mover that waits for it. Few may be undecided at once, and not for long.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use dwcp_api::Fault;
use dwcp_api::service::Answer;
use dwcp_control::Name;
use dwcp_control::ownership::{Outcome, Ownership};
use dwcp_control::records::{Capacity, Host, HostAdd};
use dwcp_wire::preamble::{PREAMBLE_BYTES, Preamble, Purpose};
use dwcp_wire::tls::{self, Fingerprint, Use};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::errors::{NodeError, chain, impossible, internal, record, unavailable};
use crate::incoming;
use crate::node::Node;
use crate::protocol::{Ask, Reply, SessionError, receive, send};
use crate::state::{Peer, peer_host};

/// Connections that have not said yet what they are for.
const UNDECIDED_MAX: usize = 64;
/// How long a connection may take to say what it is for, and a handshake to be made.
const ARRIVAL: Duration = Duration::from_secs(5);
/// How often peers are asked how they are.
const FOLLOW: Duration = Duration::from_secs(5);
/// How long a peer is waited for when somebody wants to see it.
const LOOK: Duration = Duration::from_secs(2);
/// How long a session may be silent.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
/// Sessions that other hosts may have open here.
pub(crate) const SESSIONS_MAX: usize = 64;
/// How long a peer may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Begins to listen on the DWCP port.
pub(crate) async fn listen(node: &Arc<Node>) -> Result<(), NodeError> {
    let address = node.config.peer_listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| NodeError::Listen { address, source })?;
    let node = node.clone();
    tokio::spawn(async move {
        let undecided = Arc::new(Semaphore::new(UNDECIDED_MAX));
        loop {
            let Ok((socket, from)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // Over the limit a connection is closed at once: those who are being looked at go first.
            if let Ok(permit) = undecided.clone().try_acquire_owned() {
                let node = node.clone();
                tokio::spawn(async move {
                    if let Err(error) = arrive(node, socket, permit).await {
                        tracing::debug!("a connection from {from} ended: {}", chain(&error));
                    }
                });
            }
        }
    });
    Ok(())
}

async fn arrive(
    node: Arc<Node>,
    mut socket: TcpStream,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> Result<(), SessionError> {
    let mut head = [0; PREAMBLE_BYTES];
    let read = tokio::time::timeout(ARRIVAL, socket.read_exact(&mut head));
    read.await.map_err(|_| SessionError::Deadline)??;
    let preamble = Preamble::decode(&head).map_err(std::io::Error::other)?;
    match preamble.purpose {
        Purpose::Stream => {
            let Some(mover) = node.transfers.mover(preamble.transfer) else {
                return Err(SessionError::Unexpected);
            };
            let socket = socket.into_std()?;
            socket.set_nonblocking(false)?;
            drop(permit);
            // A mover that does not read could hold this up: not on a thread that others need.
            let handed = tokio::task::spawn_blocking(move || mover.add_stream(socket)).await;
            handed
                .map_err(std::io::Error::other)?
                .map_err(std::io::Error::other)?;
            Ok(())
        }
        Purpose::Session => {
            let peers = node.records.all(&node.records.peers).await;
            let peers: Vec<Peer> = peers
                .map_err(std::io::Error::other)?
                .into_iter()
                .map(|found| found.value)
                .collect();
            let pins: Vec<Fingerprint> = peers
                .iter()
                .filter_map(|p| p.fingerprint.parse().ok())
                .collect();
            let config =
                tls::server(&node.keys.peer, &pins, Use::Session).map_err(std::io::Error::other)?;
            tune(&socket)?;
            let accepting = TlsAcceptor::from(config).accept(socket);
            let stream = tokio::time::timeout(ARRIVAL, accepting)
                .await
                .map_err(|_| SessionError::Deadline)??;
            drop(permit);
            let Ok(_session) = node.sessions.clone().try_acquire_owned() else {
                return Err(SessionError::Unexpected);
            };
            let shown = tls::peer_fingerprint(stream.get_ref().1.peer_certificates());
            let shown = shown.map(|f| f.to_string());
            let Some(peer) = peers
                .into_iter()
                .find(|p| Some(&p.fingerprint) == shown.as_ref())
            else {
                return Err(SessionError::Unexpected);
            };
            answer(&node, &peer, stream.into()).await
        }
    }
}

/// Keeps a dead link from looking like a slow one for ever.
fn tune(socket: &TcpStream) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    socket.set_nodelay(true)?;
    let patience_ms = u32::try_from(PATIENCE.as_millis()).unwrap_or(u32::MAX);
    setsockopt(socket, sockopt::TcpUserTimeout, &patience_ms)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &5)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &5)?;
    Ok(())
}

/// Serves one session until the peer closes it.
async fn answer(
    node: &Arc<Node>,
    peer: &Peer,
    mut stream: TlsStream<TcpStream>,
) -> Result<(), SessionError> {
    loop {
        let ask = tokio::time::timeout(IDLE, receive::<Ask>(&mut stream));
        let ask = ask.await.map_err(|_| SessionError::Deadline)??;
        // One that was removed meanwhile is nobody any more.
        let still = node.records.peers.get(peer.name.as_str()).await;
        let still = still.map_err(std::io::Error::other)?;
        if still.is_none_or(|found| found.value.fingerprint != peer.fingerprint) {
            return Err(SessionError::Unexpected);
        }
        let reply = match ask {
            Ask::Hello => match node.capacity().await {
                Ok(capacity) => Reply::Hello {
                    name: node.config.name.to_string(),
                    region: node.config.region.to_string(),
                    capacity,
                },
                Err(fault) => refused(&fault),
            },
            Ask::Outcome { vm, epoch } => match outcome(node, peer, &vm, epoch).await {
                Ok(outcome) => Reply::Outcome { epoch, outcome },
                Err(fault) => refused(&fault),
            },
            Ask::Offer(offer) => return incoming::serve(node, peer, *offer, stream).await,
            Ask::Image { .. } | Ask::Prepare | Ask::Commit { .. } | Ask::Abort { .. } => {
                Reply::Refused {
                    reason: "There is no migration on this session: offer one first".into(),
                }
            }
        };
        send(&mut stream, &reply).await?;
    }
}

pub(crate) fn refused(fault: &Fault) -> Reply {
    let mut reason = fault.message.clone();
    for detail in &fault.reasons {
        reason.push_str("; ");
        reason.push_str(detail);
    }
    Reply::Refused { reason }
}

/// What became of a machine under an epoch here. A source that asks has given up its own session: what was not taken by
/// now is refused, durably, before it is told.
async fn outcome(node: &Arc<Node>, peer: &Peer, vm: &str, epoch: u64) -> Answer<Outcome> {
    check_id(vm)?;
    if epoch > dwcp_control::ownership::EPOCH_MAX {
        return Err(impossible("Nobody can have reached that epoch"));
    }
    // One that is just being taken may still turn out never to have run: nothing is said of it before that is known.
    let life = node.life(vm);
    let _life = life.lock().await;
    let held = node.ownership(vm).await?;
    match Ownership::outcome(held.as_ref(), epoch) {
        Outcome::Undecided => {
            // Only what this peer offered, or what this host never heard of, is refused on its word.
            match &held {
                None => {}
                Some(Ownership::Expecting { from, .. }) if *from == peer.name => {}
                Some(held) => {
                    return Err(impossible(format!("That machine is {held} here")));
                }
            }
            // A taking that wins the race makes this refusal impossible, and is then the answer.
            let _ = node.own(vm, |held| Ownership::refuse(held, epoch)).await;
            let held = node.ownership(vm).await?;
            incoming::forget(node, vm).await;
            let outcome = Ownership::outcome(held.as_ref(), epoch);
            let who = format!("host:{}", peer.name);
            let detail = serde_json::json!({ "epoch": epoch, "outcome": outcome });
            node.audit(&who, "vm.outcome", vm, dwcp_audit::Outcome::Done, detail)
                .await?;
            Ok(outcome)
        }
        decided => Ok(decided),
    }
}

/// Identities that another host names are UUIDs, written as they are written here.
pub(crate) fn check_id(id: &str) -> Answer<()> {
    match uuid::Uuid::parse_str(id) {
        Ok(uuid) if uuid.to_string() == id => Ok(()),
        _ => Err(crate::errors::invalid(
            "An identity that another host names is a UUID in lower case",
        )),
    }
}

/// A session to another host.
#[derive(Debug)]
pub(crate) struct Session {
    pub stream: TlsStream<TcpStream>,
    /// Round trip as the kernel measured it during the handshake, ms.
    pub rtt_ms: f64,
}

impl Session {
    /// Asks and waits for the answer.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> Result<Reply, SessionError> {
        send(&mut self.stream, ask).await?;
        self.reply().await
    }

    /// Waits for an answer; a refusal is an error.
    pub(crate) async fn reply(&mut self) -> Result<Reply, SessionError> {
        let reply = tokio::time::timeout(PATIENCE, receive(&mut self.stream));
        match reply.await.map_err(|_| SessionError::Deadline)?? {
            Reply::Refused { reason } => Err(SessionError::Refused(reason)),
            reply => Ok(reply),
        }
    }
}

/// A session's error as an answer.
pub(crate) fn session_fault(peer: &Name, error: SessionError) -> Fault {
    match error {
        SessionError::Refused(reason) => impossible(format!("{peer} refused: {reason}")),
        other => unavailable(format!("{peer}: {}", chain(&other))),
    }
}

/// Opens a session.
pub(crate) async fn connect(
    node: &Node,
    address: SocketAddr,
    fingerprint: &str,
) -> Result<Session, SessionError> {
    let pin: Fingerprint = fingerprint.parse().map_err(std::io::Error::other)?;
    let config =
        tls::client(&node.keys.peer, &[pin], Use::Session).map_err(std::io::Error::other)?;
    let opening = async {
        let mut socket = TcpStream::connect(address).await?;
        tune(&socket)?;
        socket.write_all(&Preamble::session().encode()).await?;
        let stream = TlsConnector::from(config)
            .connect(tls::server_name(), socket)
            .await?;
        Ok::<_, std::io::Error>(stream)
    };
    let stream = tokio::time::timeout(ARRIVAL * 2, opening)
        .await
        .map_err(|_| SessionError::Deadline)??;
    let rtt_ms = rtt_ms(stream.get_ref().0);
    Ok(Session {
        stream: stream.into(),
        rtt_ms,
    })
}

fn rtt_ms(socket: &TcpStream) -> f64 {
    dwcp_wire::tcp::info(socket).map_or(0.0, |info| f64::from(info.rtt_us) / 1000.0)
}

/// What a peer says of itself, now.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub region: Name,
    pub capacity: Capacity,
    pub rtt_ms: f64,
}

/// Asks a peer who it is and what it has left.
pub(crate) async fn hello(node: &Node, peer: &Peer) -> Result<Heard, SessionError> {
    let mut session = connect(node, peer.address, &peer.fingerprint).await?;
    let asked = Instant::now();
    let reply = session.ask(&Ask::Hello).await?;
    let rtt_ms = asked.elapsed().as_secs_f64() * 1000.0;
    match reply {
        Reply::Hello {
            region, capacity, ..
        } => Ok(Heard {
            region: Name::new(region).map_err(std::io::Error::other)?,
            capacity,
            rtt_ms: if session.rtt_ms > 0.0 {
                session.rtt_ms.min(rtt_ms)
            } else {
                rtt_ms
            },
        }),
        _ => Err(SessionError::Unexpected),
    }
}

/// Asks every peer how it is, again and again, for as long as the daemon runs.
pub(crate) fn follow(node: Arc<Node>) {
    tokio::spawn(async move {
        loop {
            let peers = node.records.all(&node.records.peers).await;
            let peers: Vec<Peer> = peers
                .unwrap_or_default()
                .into_iter()
                .map(|found| found.value)
                .collect();
            let asked = futures::future::join_all(peers.iter().map(|peer| hello(&node, peer)));
            let answers = asked.await;
            {
                let mut heard = node.heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.clear();
                for (peer, answer) in peers.iter().zip(answers) {
                    if let Ok(answer) = answer {
                        heard.insert(peer.name.clone(), answer);
                    }
                }
            }
            tokio::time::sleep(FOLLOW).await;
        }
    });
}

/// A peer as the API shows it, asked now but not waited for longer than [`LOOK`].
pub(crate) async fn look(node: &Node, peer: &Peer) -> Host {
    let problem = match tokio::time::timeout(LOOK, hello(node, peer)).await {
        Ok(Ok(heard)) => {
            return Host {
                region: heard.region,
                reachable: true,
                rtt_ms: Some(heard.rtt_ms),
                capacity: Some(heard.capacity),
                cpu: None,
                ..peer_host(peer)
            };
        }
        Ok(Err(error)) => chain(&error),
        Err(_) => format!("no answer within {} s", LOOK.as_secs()),
    };
    Host {
        problem: Some(problem),
        ..peer_host(peer)
    }
}

/// Introduces a peer. It need not answer yet: two hosts that do not know each other have to be introduced one after the
/// other, and each answers only whom it knows.
pub(crate) async fn add(node: &Node, host: &HostAdd) -> Answer<Peer> {
    if host.name == node.config.name {
        return Err(crate::errors::conflict(format!(
            "{} is this host's own name",
            host.name
        )));
    }
    let address: SocketAddr = host
        .address
        .parse()
        .map_err(|_| crate::errors::invalid("An address is IP:PORT, such as 192.0.2.7:4600"))?;
    let pin: Fingerprint = host.fingerprint.parse().map_err(|_| {
        crate::errors::invalid(
            "A fingerprint is 64 hexadecimal digits: `dwcp host show` on the other host prints it",
        )
    })?;
    if pin.to_string() == node.keys.fingerprint() {
        return Err(crate::errors::invalid(
            "That is this host's own fingerprint: give the other host's",
        ));
    }
    let peer = Peer {
        name: host.name.clone(),
        address,
        fingerprint: pin.to_string(),
        region: host.name.clone(),
    };
    let exists = node.records.peers.get(peer.name.as_str()).await;
    if exists.map_err(record)?.is_some() {
        return Err(crate::errors::conflict(format!(
            "A host {} is known already: remove it first",
            peer.name
        )));
    }
    node.records
        .peers
        .create(peer.name.as_str(), &peer)
        .await
        .map_err(record)?;
    Ok(peer)
}

/// The peer of a name.
pub(crate) async fn find(node: &Node, name: &Name) -> Answer<Peer> {
    let found = node.records.peers.get(name.as_str()).await;
    found.map_err(record)?.map(|f| f.value).ok_or_else(|| {
        Fault::not_found(format!(
            "host {name}: introduce it with `dwcp host add {name} --address IP:PORT --fingerprint …`"
        ))
    })
}

/// Opens one stream of a transfer, its preamble sent, for a mover.
pub(crate) async fn stream(
    address: SocketAddr,
    transfer: u64,
    number: u16,
) -> Answer<std::net::TcpStream> {
    let opening = async {
        let mut socket = TcpStream::connect(address).await?;
        let head = Preamble::stream(transfer, number).encode();
        socket.write_all(&head).await?;
        let socket = socket.into_std()?;
        socket.set_nonblocking(false)?;
        Ok::<_, std::io::Error>(socket)
    };
    match tokio::time::timeout(ARRIVAL * 2, opening).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => Err(unavailable(format!("No stream to {address}: {error}"))),
        Err(_) => Err(internal(SessionError::Deadline)),
    }
}
