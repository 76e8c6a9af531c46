//! IPv4 forwarding of this host, which NAT needs: turned on when the first NAT network is made, and off again.
//!
//! What always holds: a host that forwarded nothing before forwards nothing but launchers' networks afterwards. The
//! kernel has one switch for all interfaces, so while it is on because of us, the table [`GUARD`] drops the rest. The
//! table is also the note that it was us, for a launcher that was started since. A host that forwards already is left
//! as it is. Several launchers in one network namespace share the table; the last one takes it away, and one at a time
//! decides, by the [`lock`].

use std::fs;
use std::io;
use std::time::Duration;

use super::lock::Lock;
use super::nft::{Nft, NftError};
use super::rules;

/// The table's name.
pub const GUARD: &str = "dwcp-forwarding";
/// The switch, of the network namespace that the launcher is in.
const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
/// What the lock is on; no prefix is called so.
const LOCK: &str = "ip-forwarding";
/// Whoever has the lock runs `nft` twice at most, which takes tens of milliseconds, or as long as `nft` is given.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why forwarding could not be turned on.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// The guard could not be set.
    #[error("What this host must not forward could not be told to the packet filter")]
    Guard(#[from] NftError),
    /// Another launcher does not come to an end.
    #[error(
        "Another launcher has been changing for {} s whether this host forwards",
        PATIENCE.as_secs()
    )]
    Busy,
    /// The lock cannot be taken.
    #[error("The lock on whether this host forwards cannot be taken in /run")]
    Lock(#[source] io::Error),
    /// The switch could not be used.
    #[error("{SWITCH} cannot be changed")]
    Switch(#[from] io::Error),
}

/// Keeps all other launchers of this network namespace from turning forwarding on or off, until it is dropped.
pub fn lock() -> Result<Lock, ForwardingError> {
    let lock = Lock::take(LOCK, PATIENCE).map_err(ForwardingError::Lock)?;
    lock.ok_or(ForwardingError::Busy)
}

/// Makes the host forward; answers whether it does so because of launchers.
pub fn turn_on(nft: &Nft, _alone: &Lock) -> Result<bool, ForwardingError> {
    if fs::read_to_string(SWITCH)?.trim() != "0" {
        return is_guarded(nft);
    }
    guard(nft)?;
    fs::write(SWITCH, "1")?;
    Ok(true)
}

/// Sets the guard, which may be there.
pub fn guard(nft: &Nft) -> Result<(), ForwardingError> {
    Ok(nft.apply(&rules::guard())?)
}

/// Makes the host forward no more, if it was launchers who made it: the caller knows, or the guard says so. For when no
/// launcher has a NAT network any more, which is found out under the lock too.
pub fn turn_off(nft: &Nft, was_us: bool, _alone: &Lock) -> Result<(), ForwardingError> {
    if was_us || is_guarded(nft)? {
        fs::write(SWITCH, "0")?;
        nft.apply(&rules::unguard())?;
    }
    Ok(())
}

fn is_guarded(nft: &Nft) -> Result<bool, ForwardingError> {
    // Listing fails when there is no such table.
    match nft.apply(&format!("list table ip {GUARD}\n")) {
        Ok(()) => Ok(true),
        Err(NftError::Refused(_) | NftError::Missing { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
