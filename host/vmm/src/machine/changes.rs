//! Which pages changed, for everybody who wants to know: a mover, and the next incremental snapshot.
//!
//! What always holds: the logs (KVM's of vCPUs, memory's of devices) are kept as long as somebody wants to know, and no
//! longer, for a logged guest pays a fault for each page that it writes. To read a log empties it, so what is read goes
//! to all of them.

use dwcp_memory::DirtyBitmap;
use dwcp_snapshot::SnapshotDigest;

use super::{Machine, RequestError};
use crate::kvm::{KvmError, Vm};

/// The logs and those who read them.
#[derive(Debug)]
pub(super) struct Changes {
    /// Shared with movers.
    moved: DirtyBitmap,
    /// Whether a mover wants to know.
    is_moving: bool,
    /// Pages for a snapshot: those that changed since `since`, or while one is written, those that it is to hold.
    kept: DirtyBitmap,
    /// The snapshot since which changes are kept, if any are.
    since: Option<SnapshotDigest>,
}

impl Changes {
    /// Nobody wants to know yet.
    pub fn new(moved: DirtyBitmap, kept: DirtyBitmap) -> Self {
        Self {
            moved,
            is_moving: false,
            kept,
            since: None,
        }
    }

    /// The snapshot since which changes are kept.
    pub fn since(&self) -> Option<SnapshotDigest> {
        self.since
    }

    /// Room for the pages of the next snapshot. Whoever adds to it makes that snapshot longer, never wrong; it is empty
    /// when no changes are kept.
    pub fn kept(&self) -> &DirtyBitmap {
        if self.since.is_none() {
            self.kept.clear_all();
        }
        &self.kept
    }

    /// From here on changes are kept since a snapshot that was just written, or for no snapshot. No vCPU may run.
    pub fn keep_since(
        &mut self,
        vm: &Vm,
        snapshot: Option<SnapshotDigest>,
    ) -> Result<(), KvmError> {
        match snapshot {
            Some(_) => {
                self.begin(vm)?;
                self.harvest(vm)?;
                self.kept.clear_all();
                self.since = snapshot;
                Ok(())
            }
            None => {
                self.since = None;
                self.end_unless_wanted(vm)
            }
        }
    }

    /// Tells everybody what changed since the last time.
    pub fn harvest(&self, vm: &Vm) -> Result<(), KvmError> {
        let readers: Vec<_> = [
            self.is_moving.then_some(&self.moved),
            self.since.is_some().then_some(&self.kept),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !readers.is_empty() {
            vm.harvest_log(&readers)?;
            vm.memory().drain_log(&readers);
        }
        Ok(())
    }

    fn begin(&self, vm: &Vm) -> Result<(), KvmError> {
        if self.is_moving || self.since.is_some() {
            return Ok(());
        }
        vm.memory().start_tracking();
        vm.start_log()
    }

    fn end_unless_wanted(&self, vm: &Vm) -> Result<(), KvmError> {
        if self.is_moving || self.since.is_some() {
            return Ok(());
        }
        vm.memory().stop_tracking();
        vm.stop_log()
    }
}

impl Machine {
    /// Begins to log which pages change, and marks all that is there: a new mover has none of it.
    pub fn dirty_start(&mut self) -> Result<(), RequestError> {
        self.refuse_while_filled()?;
        let memory = self.vm.memory();
        let changes = &mut self.changes;
        changes.begin(&self.vm)?;
        changes.harvest(&self.vm)?;
        changes.is_moving = true;
        // After the log has begun: what appears from now on is in one or the other.
        changes.moved.clear_all();
        memory.mark_present(&changes.moved)?;
        Ok(())
    }

    /// Adds what changed to the shared bitmap; answers how many bits are set in it.
    pub fn dirty_harvest(&mut self) -> Result<u64, RequestError> {
        if !self.changes.is_moving {
            return Err(RequestError::NotTracking);
        }
        self.changes.harvest(&self.vm)?;
        Ok(self.changes.moved.count())
    }

    /// No mover wants to know any more.
    pub fn dirty_stop(&mut self) -> Result<(), RequestError> {
        if self.changes.is_moving {
            self.changes.is_moving = false;
            self.changes.end_unless_wanted(&self.vm)?;
        }
        Ok(())
    }
}
