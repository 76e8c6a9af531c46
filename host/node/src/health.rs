//! What machines' devices suffer, told to the operator: the guest hears of each failed request itself, and the operator
//! of the first, and of how many there were since.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_control::records::{DeviceStats, Vm, VmPhase};

use crate::node::Node;
use crate::running::shown;
use crate::state::object;

/// How often machines are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long nothing more is told of a device, so that a guest that breaks its own devices fills no log.
const QUIET: Duration = Duration::from_secs(600);

/// What was told of a device.
#[derive(Debug, Default)]
struct Told {
    errors: u64,
    at: Option<Instant>,
}

impl Told {
    /// How many errors there are to tell of now, if any.
    fn news(&mut self, errors: u64, now: Instant) -> Option<u64> {
        // Counters begin anew with the process.
        self.errors = self.errors.min(errors);
        let more = errors - self.errors;
        let is_quiet = self.at.is_some_and(|at| now < at + QUIET);
        if more == 0 || is_quiet {
            return None;
        }
        *self = Self {
            errors,
            at: Some(now),
        };
        Some(more)
    }
}

impl Node {
    /// Looks at machines for as long as the daemon runs.
    pub(crate) fn watch_devices(self: Arc<Self>) {
        tokio::spawn(async move {
            let mut told = HashMap::new();
            loop {
                tokio::time::sleep(LOOK).await;
                let Ok(vms) = self.vms().await else { continue };
                told.retain(|(id, _): &(String, String), _| vms.iter().any(|vm| vm.id == *id));
                for vm in vms.iter().filter(|vm| vm.phase == VmPhase::Running) {
                    self.look_at_devices(vm, &mut told).await;
                }
            }
        });
    }

    async fn look_at_devices(&self, vm: &Vm, told: &mut HashMap<(String, String), Told>) {
        let life = self.life(&vm.id);
        // Whoever has it keeps the machine's process busy, perhaps for long; there is a next time.
        let Ok(_life) = life.try_lock() else { return };
        let Ok(status) = self.vmm(&vm.id, |vmm| vmm.status()).await else {
            return;
        };
        for device in shown(&vm.spec, &status).devices {
            let known = told
                .entry((vm.id.clone(), device.name.clone()))
                .or_default();
            if let Some(more) = known.news(device.errors, Instant::now()) {
                let at = object(&vm.project, &vm.name);
                let message = sentence(vm, &device, more);
                self.events.emit("vm.device-errors", &at, message).await;
            }
        }
    }
}

fn sentence(vm: &Vm, device: &DeviceStats, more: u64) -> String {
    let state = match device.needs_reset {
        true => "; its driver broke the rules, and has to reset it",
        false => "",
    };
    format!(
        "{}: {more} requests to its device {} failed{state} (`dwcp vm stats {}` counts them)",
        vm.name, device.name, vm.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_at_once_and_then_together() {
        let (mut told, begin) = (Told::default(), Instant::now());
        assert_eq!(told.news(0, begin), None);
        assert_eq!(told.news(3, begin), Some(3));
        assert_eq!(told.news(3, begin + QUIET), None);
        assert_eq!(told.news(8, begin + QUIET / 2), None);
        assert_eq!(told.news(9, begin + QUIET), Some(6));
        // The process was started anew, and counts from nothing.
        assert_eq!(told.news(2, begin + QUIET * 2), None);
        assert_eq!(told.news(4, begin + QUIET * 3), Some(2));
    }
}
