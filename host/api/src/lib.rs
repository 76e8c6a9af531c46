//! The HTTP API: routes, the OpenAPI document, authentication, and errors as problem details (RFC 9457).
//!
//! What the API can do is the trait [`Service`]; how it is done is somebody else's. Every request is authenticated
//! before anything else is looked at, every body and list is bounded, and no decision is made here.
//!
//! This crate must never know the store, the launcher, a virtual machine monitor or a plugin.

pub mod service;

pub use service::{Fault, FaultKind, Principal, Service};
