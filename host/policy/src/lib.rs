//! Which policies are in force, where, and what they say of a request.
//!
//! A policy is a set of documents (Rego source) decided by the Rego component, or a component of its own. It is bound
//! to actions, for all projects or one, and enforced, warned of, or only tried. Asking gives one [`Outcome`] over all
//! policies bound to the action.
//!
//! Always:
//! - What denies is never loosened by a fault: a policy that fails, is missing or cannot be compiled denies what it is
//!   bound to, with the reason.
//! - A policy that is refused leaves its predecessor in force.
//! - An outcome from the cache is the outcome that evaluating would give: the key covers the whole question and the
//!   whole set in force.
//! - Every question is recorded, from the cache or not.
//!
//! Never: what a request means, who asks it, or what is done with the outcome.

mod binding;
mod cache;
mod canonical;
mod engine;
mod outcome;
mod set;

pub use binding::{Action, Binding, Mode};
pub use canonical::canonical;
pub use engine::{Engine, Judge, SandboxEngine, Source};
pub use outcome::{Finding, MissingFact, Outcome, Question};
pub use set::{ApplyError, BindError, PolicySet, PolicyStatus, RemoveError};

pub use dwcp_plugins::{ConfigureError, Diagnostic, Document, Fact, Reason, Stamp, Summary};
