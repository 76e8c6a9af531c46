//! The default placement: five weighted factors, hard limits as filters, and its reasons in words.
//!
//! What always holds:
//! - Limits are filters: a host over any limit is not a candidate, whatever else speaks for it.
//! - Two hosts of equal score are told apart by their ids, so that an answer depends on nothing but the
//!   configuration, the state and the batch.
//! - Changes applied give the same state as loading it anew (`tests` compare).
//!
//! What it must not know: the time, chance, or anything that the host did not put into state or batch.

mod request;
mod score;
mod settings;
mod state;
#[cfg(test)]
mod tests;

#[allow(missing_docs)]
mod bindings {
    wit_bindgen::generate!({
        path: ["../../wit/types", "../../wit/placement"],
        world: "dwcp:placement/placement",
        additional_derives: [PartialEq],
        generate_all,
    });
}

use std::cell::RefCell;

use bindings::exports::dwcp::placement::decisions::{
    Answer, Batch, Changes, Fleet, Guest as Decisions, Refusal,
};
use bindings::exports::dwcp::types::plugin::{Guest as Plugin, Identity, Problem};
use settings::Settings;
use state::State;

struct PlacementDefault;

#[derive(Default)]
struct Instance {
    settings: Settings,
    state: Option<State>,
}

thread_local! {
    static INSTANCE: RefCell<Instance> = RefCell::default();
}

impl Plugin for PlacementDefault {
    fn manifest() -> Identity {
        Identity {
            name: env!("CARGO_PKG_NAME").to_owned(),
            publisher: "dwcp".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            world: "dwcp:placement/placement@0.1.0".to_owned(),
            capabilities: Vec::new(),
            configuration_schema: settings::SCHEMA.to_owned(),
        }
    }

    fn set_up(configuration: String) -> Result<(), Vec<Problem>> {
        let settings = Settings::read(&configuration).map_err(|message| {
            let path = String::new();
            vec![Problem { path, message }]
        })?;
        INSTANCE.with_borrow_mut(|instance| instance.settings = settings);
        Ok(())
    }
}

impl Decisions for PlacementDefault {
    fn load(fleet: Fleet, revision: u64) -> Result<(), Refusal> {
        let state = State::load(fleet, revision)?;
        INSTANCE.with_borrow_mut(|instance| instance.state = Some(state));
        Ok(())
    }

    fn apply(changes: Changes, base: u64, revision: u64) -> Result<(), Refusal> {
        INSTANCE.with_borrow_mut(|instance| {
            let state = instance.state.as_mut().ok_or(Refusal::NotLoaded)?;
            state.apply(changes, base, revision)
        })
    }

    fn decide(batch: Batch, revision: u64) -> Result<Answer, Refusal> {
        INSTANCE.with_borrow_mut(|instance| {
            let state = instance.state.as_mut().ok_or(Refusal::NotLoaded)?;
            score::decide(&instance.settings, state, &batch, revision)
        })
    }
}

bindings::export!(PlacementDefault with_types_in bindings);
