//! Where a host is, how it proves itself, and with which key one comes.

use std::fmt;

/// How to reach a host's API.
#[derive(Clone, PartialEq, Eq)]
pub struct Profile {
    /// `https://IP:PORT` or `https://NAME:PORT`.
    pub address: String,
    /// The certificate authority that the host's certificate must be from, PEM. No other is believed.
    pub ca_pem: String,
    /// The API key.
    pub api_key: String,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is a secret.
        f.debug_struct("Profile")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
