//! Movers as this host runs them: started through the launcher, told what to do, listened to; and the table by which an
//! arriving stream finds the mover that waits for it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use dwcp_api::service::Answer;
use dwcp_launch::protocol::Side as LaunchSide;
use dwcp_migrate::client::MoverClient;
use dwcp_migrate::protocol::{Event, MoverConfig, Side};
use tokio::sync::mpsc;

use crate::errors::{chain, internal, unavailable};
use crate::launcher::mover_id;
use crate::node::Node;

/// How long a peer's mover may be silent before its stream counts as dead, ms.
pub(crate) const IDLE_MS: u64 = 20_000;

/// The movers that wait for streams, by transfer number.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    waiting: Mutex<HashMap<u64, Arc<MoverClient>>>,
}

impl Transfers {
    /// The mover that waits for streams of a transfer.
    pub(crate) fn mover(&self, transfer: u64) -> Option<Arc<MoverClient>> {
        self.lock().get(&transfer).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<MoverClient>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running mover. [`Mover::end`] ends it; a daemon that dies lets go of its socket, which ends it too.
#[derive(Debug)]
pub(crate) struct Mover {
    /// For commands; they only write to a local socket.
    pub client: Arc<MoverClient>,
    /// What it says.
    pub events: mpsc::Receiver<(Event, Option<OwnedFd>)>,
    id: String,
    transfer: u64,
}

impl Mover {
    /// Starts a mover for a migration on the memory of `vm`, and waits until it is confined and ready.
    pub(crate) async fn start(
        node: &Node,
        migration: &str,
        vm: &str,
        config: MoverConfig,
    ) -> Answer<Self> {
        let side = match config.side {
            Side::Source if config.hosts.is_empty() => LaunchSide::Source,
            Side::Source => LaunchSide::PrivateSource,
            Side::Destination => LaunchSide::Destination,
        };
        let (ours, theirs) = UnixStream::pair().map_err(internal)?;
        let id = mover_id(migration, side);
        let transfer = config.transfer;
        let json = serde_json::to_value(&config).map_err(internal)?;
        node.launcher
            .spawn_mover(&id, vm, side, json, theirs.into())
            .await?;
        let client = Arc::new(MoverClient::new(ours).map_err(internal)?);
        let events = listen(client.clone());
        let mut mover = Self {
            client: client.clone(),
            events,
            id,
            transfer,
        };
        if let Err(fault) = mover.ready().await {
            mover.end(node).await;
            return Err(fault);
        }
        if side == LaunchSide::Destination {
            node.transfers.lock().insert(transfer, client);
        }
        Ok(mover)
    }

    async fn ready(&mut self) -> Answer<()> {
        match self.next().await? {
            (Event::Ready, _) => Ok(()),
            (other, _) => Err(unavailable(format!("The mover began with {other:?}"))),
        }
    }

    /// The number that its streams' preambles carry.
    pub(crate) fn transfer(&self) -> u64 {
        self.transfer
    }

    /// The next thing it says; a failure or its end is a fault.
    pub(crate) async fn next(&mut self) -> Answer<(Event, Option<OwnedFd>)> {
        match self.events.recv().await {
            Some((Event::Failed { reason }, _)) => {
                Err(unavailable(format!("The transfer failed: {reason}")))
            }
            Some(event) => Ok(event),
            None => Err(unavailable("The mover ended before the transfer did")),
        }
    }

    /// Ends it, whatever it does.
    pub(crate) async fn end(self, node: &Node) {
        node.transfers.lock().remove(&self.transfer);
        if let Err(fault) = node.launcher.end(&self.id).await {
            tracing::warn!("mover {} is not ended: {fault}", self.id);
        }
    }
}

/// Reads events on a thread of its own, for as long as the mover speaks.
fn listen(client: Arc<MoverClient>) -> mpsc::Receiver<(Event, Option<OwnedFd>)> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::task::spawn_blocking(move || {
        loop {
            match client.next_event() {
                Ok(event) => {
                    if sender.blocking_send(event).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::debug!("a mover says no more: {}", chain(&error));
                    return;
                }
            }
        }
    });
    receiver
}
