//! IPv4 forwarding of this host, which NAT needs: turned on when the first NAT network is made, and off again.
//!
//! What always holds: a host that forwarded nothing before forwards nothing but launchers' networks afterwards. The
//! kernel has one switch for all interfaces, so while it is on because of us, the table [`GUARD`] drops the rest. The
//! table is also the note that it was us. A host that forwards already is left as it is. Several launchers in one
//! network namespace share the table; the last one takes it away.

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

/// Makes the host forward.
pub fn turn_on(nft: &Nft) -> Result<(), ForwardingError> {
    if fs::read_to_string(SWITCH)?.trim() != "0" {
        return Ok(());
    }
    nft.apply(&rules::guard())?;
    fs::write(SWITCH, "1")?;
    Ok(())
}

/// Makes the host forward no more, if it was us who made it. For when no launcher has a NAT network any more.
pub fn turn_off(nft: &Nft) -> Result<(), ForwardingError> {
    // Listing fails when there is no such table: then it was not us.
    match nft.apply(&format!("list table ip {GUARD}\n")) {
        Err(NftError::Refused(_) | NftError::Missing { .. }) => return Ok(()),
        other => other?,
    }
    fs::write(SWITCH, "0")?;
    nft.apply(&rules::unguard())?;
    Ok(())
}
