//! The placement world: where a VM goes.
//!
//! Always: the plugin's state is the mirror's; a plugin that was thrown away is loaded from it at the next decision;
//! calls run one at a time, for the instance has state. The answer's indices are checked before they become names.
//! Never: capacity is not reserved here and hard constraints are not judged here.

mod answer;
mod columns;
mod fleet;
mod mirror;
mod question;

pub use fleet::{
    Answer, Batch, Candidate, Change, Decision, Factor, Fleet, FleetError, Free, Host, Region,
    Rejection, Relation, Request, Scope, Term,
};

use crate::{
    bindings::placement as bound,
    bindings::placement::exports::dwcp::placement::decisions as wit,
    counters::Usage,
    fault::{Fault, FaultKind},
    instance::Live,
    limits::Limits,
    plugin::{Plugin, digest},
    record::{DecisionRecord, Replay, ReplayError, Stamp, World},
    sandbox::{Compiled, OpenError, Sandbox, Setup},
};
use mirror::Mirror;
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

impl Limits {
    /// Limits for a placement plugin of a large fleet: 1 GiB, 5 s a batch, 60 s to load, 256 MiB of fleet.
    pub fn placement() -> Limits {
        Limits {
            memory_bytes: 1 << 30,
            call_ms: 5_000,
            start_ms: 60_000,
            concurrent_calls: 1,
            waiting_calls: 256,
            wait_ms: 30_000,
            input_bytes: 256 << 20,
            output_bytes: 16 << 20,
            ..Limits::default()
        }
    }
}

/// Why a fleet was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The fleet itself is wrong; the old one stays.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The plugin failed on it. The fleet is kept, and given to a new instance at the next decision.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// What is recorded as the input of a placement decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementInput {
    /// The fleet's revision.
    pub revision: u64,
    /// What was asked.
    pub batch: Batch,
}

/// An opened placement plugin.
pub struct Placement {
    plugin: Plugin,
    indices: bound::PlacementIndices,
    /// SHA-256 of the configuration.
    configuration: String,
    seat: Mutex<Option<Seat>>,
}

/// A fleet, and the instance that knows it.
struct Seat {
    mirror: Mirror,
    live: Option<Live<bound::Placement>>,
    /// Numbers the states as the plugin sees them; the caller's revisions may leap.
    serial: u64,
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.plugin.fmt(f)
    }
}

impl Sandbox {
    /// Opens a placement plugin. No instance is made before the first fleet is loaded.
    pub fn placement(
        self: &Arc<Self>,
        compiled: &Compiled,
        setup: Setup,
    ) -> Result<Placement, OpenError> {
        let configuration = digest([setup.configuration.as_str()]);
        let (plugin, indices) = Plugin::open(self, compiled, setup, World::Placement, 1, |pre| {
            bound::PlacementIndices::new(pre)
        })?;
        Ok(Placement {
            plugin,
            indices,
            configuration,
            seat: Mutex::new(None),
        })
    }
}

impl Placement {
    /// The component.
    pub fn compiled(&self) -> &Compiled {
        self.plugin.compiled()
    }

    /// What it did so far.
    pub fn usage(&self) -> Usage {
        self.plugin.usage()
    }

    /// The fleet's revision; none before the first load.
    pub fn revision(&self) -> Option<u64> {
        self.lock().as_ref().map(|seat| seat.mirror.revision)
    }

    /// The fleet and its revision, as needed to replay a decision; none before the first load.
    pub fn fleet(&self) -> Option<(Fleet, u64)> {
        self.lock()
            .as_ref()
            .map(|seat| (seat.mirror.fleet(), seat.mirror.revision))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Seat>> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the fleet and gives it to the plugin.
    pub fn load(&self, fleet: Fleet, revision: u64) -> Result<(), LoadError> {
        let mirror = Mirror::new(fleet, revision)?;
        let _permit = self.plugin.enter()?;
        let mut held = self.lock();
        let live = held
            .take()
            .and_then(|seat| seat.live.map(|live| (live, seat.serial)));
        let (live, serial) = live.map_or((None, 0), |(live, serial)| (Some(live), serial));
        let seat = held.insert(Seat {
            mirror,
            live,
            serial,
        });
        let began = Instant::now();
        let result = self.inform(seat);
        self.plugin.count(began, &result, |fault| Some(fault.kind));
        Ok(result?)
    }

    /// Takes changes. They reach the plugin with the next decision.
    pub fn apply(&self, changes: &[Change], revision: u64) -> Result<(), FleetError> {
        match self.lock().as_mut() {
            Some(seat) => seat.mirror.apply(changes, revision),
            None => Err(FleetError::Range(
                "No fleet was loaded yet. Load one before its changes.".into(),
            )),
        }
    }

    /// Decides a batch on the present revision.
    pub fn decide(&self, stamp: &Stamp, batch: &Batch) -> Result<Answer, Fault> {
        let began = Instant::now();
        let mut revision = 0;
        let result = (|| {
            let _permit = self.plugin.enter()?;
            let mut held = self.lock();
            let seat = held.as_mut().ok_or_else(|| {
                Fault::new(
                    FaultKind::Start,
                    "No fleet was loaded into the placement plugin yet.",
                )
            })?;
            revision = seat.mirror.revision;
            self.decide_in(seat, batch)
        })();
        self.plugin.count(began, &result, |fault| Some(fault.kind));
        let input =
            serde_json::to_string(&PlacementInputRef { revision, batch }).unwrap_or_default();
        self.plugin.record(
            stamp,
            World::Placement,
            &self.configuration,
            input,
            result.as_ref(),
            began,
        );
        result
    }

    /// Decides a record again, in a fresh instance, on `fleet`, which must be of the record's revision.
    pub fn replay(
        &self,
        record: &DecisionRecord,
        fleet: Fleet,
        revision: u64,
    ) -> Result<Replay, ReplayError> {
        self.plugin.replay(record, &self.configuration, || {
            let input: PlacementInput = serde_json::from_str(&record.input)
                .map_err(|error| ReplayError::Damaged(error.to_string()))?;
            if input.revision != revision {
                return Err(ReplayError::OtherRevision {
                    recorded: input.revision,
                    ours: revision,
                });
            }
            let mirror = Mirror::new(fleet, revision)
                .map_err(|error| ReplayError::Damaged(error.to_string()))?;
            Ok(self.decide_in(
                &mut Seat {
                    mirror,
                    live: None,
                    serial: 0,
                },
                &input.batch,
            ))
        })
    }

    fn decide_in(&self, seat: &mut Seat, batch: &Batch) -> Result<Answer, Fault> {
        let rows = question::batch(&seat.mirror, batch)?;
        if rows.of.is_empty() {
            return Ok(answer::nowhere_for_all(&seat.mirror, batch, &rows));
        }
        // A plugin that has lost its state says so; it is loaded again, once.
        for _ in 0..2 {
            self.inform(seat)?;
            let serial = seat.serial;
            let said = match self.call(seat, |exports, store| {
                exports.call_decide(store, &rows.batch, serial)
            })? {
                Ok(said) => said,
                Err(refusal) => {
                    let lost = matches!(
                        refusal,
                        wit::Refusal::NotLoaded | wit::Refusal::OtherRevision(_)
                    );
                    self.discard(seat);
                    if lost {
                        continue;
                    }
                    return Err(refused("decide", &refusal));
                }
            };
            return answer::answer(&seat.mirror, batch, &rows, said)
                .inspect_err(|_| self.discard(seat));
        }
        Err(Fault::new(
            FaultKind::Answer,
            "The plugin forgets the fleet as soon as it was loaded.",
        ))
    }

    fn discard(&self, seat: &mut Seat) {
        seat.live = None;
    }

    fn call<R>(
        &self,
        seat: &mut Seat,
        f: impl FnOnce(
            &wit::Guest,
            &mut wasmtime::Store<crate::instance::Budget>,
        ) -> wasmtime::Result<R>,
    ) -> Result<R, Fault> {
        let Some(live) = seat.live.as_mut() else {
            return Err(Fault::new(
                FaultKind::Start,
                "The placement plugin has no instance.",
            ));
        };
        let result = self.plugin.call(live, |exports, store| {
            f(exports.dwcp_placement_decisions(), store)
        });
        result.inspect_err(|_| self.discard(seat))
    }

    /// Brings the instance to the mirror's state: a new one if there is none, changes if there are any.
    fn inform(&self, seat: &mut Seat) -> Result<(), Fault> {
        let result = self.try_inform(seat);
        if result.is_err() {
            self.discard(seat);
        }
        result
    }

    fn try_inform(&self, seat: &mut Seat) -> Result<(), Fault> {
        let fresh = seat.live.is_none();
        if !fresh && seat.mirror.pending.is_empty() {
            return Ok(());
        }
        let live = match &mut seat.live {
            Some(live) => live,
            none => none.insert(
                self.plugin
                    .start(|store, instance| self.indices.load(store, instance))?,
            ),
        };
        let changes = if fresh || seat.mirror.pending.all {
            let (fleet, rest) = columns::fleet(&seat.mirror);
            self.plugin.check_input(fleet_bytes(&seat.mirror))?;
            seat.serial += 1;
            let serial = seat.serial;
            self.plugin
                .feed(live, |exports, store| {
                    exports
                        .dwcp_placement_decisions()
                        .call_load(store, &fleet, serial)
                })?
                .map_err(|refusal| refused("load", &refusal))?;
            rest
        } else {
            columns::changes(&seat.mirror)
        };
        for change in changes {
            let base = seat.serial;
            seat.serial += 1;
            let serial = seat.serial;
            self.plugin
                .feed(live, |exports, store| {
                    exports
                        .dwcp_placement_decisions()
                        .call_apply(store, &change, base, serial)
                })?
                .map_err(|refusal| refused("apply", &refusal))?;
        }
        seat.mirror.told();
        Ok(())
    }
}

#[derive(Serialize)]
struct PlacementInputRef<'a> {
    revision: u64,
    batch: &'a Batch,
}

/// About how many bytes of columns a fleet makes.
fn fleet_bytes(mirror: &Mirror) -> usize {
    let names: usize = mirror
        .slots
        .iter()
        .map(|h| h.id.len() + 4 * h.labels.len() + 12 * h.members.len())
        .sum();
    let symbols: usize = mirror.symbols.iter().map(|s| s.len() + 8).sum();
    names + symbols + 80 * mirror.slots.len() + 4 * mirror.regions.len() * mirror.regions.len()
}

fn refused(what: &str, refusal: &wit::Refusal) -> Fault {
    let why = match refusal {
        wit::Refusal::NotLoaded => "it says that nothing was loaded".to_owned(),
        wit::Refusal::OtherRevision(has) => format!("it says that it has revision {has}"),
        wit::Refusal::Malformed(problem) => format!("{} {}", problem.path, problem.message),
    };
    Fault::new(
        FaultKind::Answer,
        format!("The plugin refused to {what}: {why}"),
    )
}
