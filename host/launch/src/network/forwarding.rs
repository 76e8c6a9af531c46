//! IPv4 forwarding of this host, which NAT needs: turned on when the first NAT network is made, and off again.
//!
//! What always holds: a host that forwarded nothing before forwards nothing but launchers' networks afterwards. The
//! kernel has one switch for all interfaces, so while it is on because of us, the table [`GUARD`] drops the rest. The
//! table is also the note that it was us, for a launcher that was started since. A host that forwards already is left
//! as it is. Several launchers in one network namespace share the table; the last one takes it away.

use std::fs;
use std::io;

use super::nft::{Nft, NftError};
use super::rules;

/// The table's name.
pub const GUARD: &str = "dwcp-forwarding";
/// The switch, of the network namespace that the launcher is in.
const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";

/// Why forwarding could not be turned on.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    /// The guard could not be set.
    #[error("What this host must not forward could not be told to the packet filter")]
    Guard(#[from] NftError),
    /// The switch could not be used.
    #[error("{SWITCH} cannot be changed")]
    Switch(#[from] io::Error),
}

/// Makes the host forward; answers whether it does so because of launchers.
pub fn turn_on(nft: &Nft) -> Result<bool, ForwardingError> {
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
/// launcher has a NAT network any more.
pub fn turn_off(nft: &Nft, was_us: bool) -> Result<(), ForwardingError> {
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
