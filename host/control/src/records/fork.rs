//! Forks: machines that go on from where another one stands still.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::names::Name;

/// Makes machines of a template, which go on from where it stands still, each with memory and disks of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// What the fork is called; only one is made then. Without it forks are called like the template, with the first
    /// numbers after it that are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// How many are made, 1 to 64; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 64)]
    pub count: Option<u32>,
    /// Make the machine a template if it is none: it stands still from then on, its memory is sealed, and its guest goes
    /// on in forks only.
    #[serde(default)]
    pub seal: bool,
}
