//! The Rust SDK: an asynchronous client of a DWCP host's API.
//!
//! ```no_run
//! # async fn example() -> dwcp_sdk::Result<()> {
//! use dwcp_sdk::{Client, Profile, types::VmCreate};
//!
//! let client = Client::new(Profile {
//!     address: "https://127.0.0.1:4610".into(),
//!     ca_pem: std::env::var("CA_PEM").unwrap_or_default(),
//!     api_key: std::env::var("API_KEY").unwrap_or_default(),
//! })?;
//! let created = client.vm_create("default", &VmCreate {
//!     template: Some("dwcp/worker".into()),
//!     ..VmCreate::new("web")
//! }).await?;
//! client.operation_wait(&created.operation.id).await?;
//! # Ok(()) }
//! ```
//!
//! What always holds: the host is believed only if its certificate is from the profile's own authority; a change is
//! carried out once, however often the connection breaks; an error carries the host's problem with its reasons.
//!
//! This crate knows the API's document (`host/api/openapi.json`, which a test compares with [`types`]) and no part of
//! the host.

mod calls;
mod console;
mod error;
mod pages;
mod profile;
mod sse;
mod tls;
mod transport;
pub mod types;

pub use calls::{EventFollow, Uploaded, WAIT_UNREACHABLE_MAX};
pub use console::{Console, ConsoleInput, ConsoleOutput};
pub use error::{Error, Result};
pub use pages::Listing;
pub use profile::Profile;
pub use transport::Client;
