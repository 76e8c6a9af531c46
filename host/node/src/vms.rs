//! Machines on this host: made, started, stopped, ended.
//!
//! Each step is safe to repeat: a start that was cut off is found again by [`crate::adopt`]. A machine is started and
//! resumed only with a run permit read from the store.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use dwcp_api::Fault;
use dwcp_api::service::Answer;
use dwcp_control::ownership::Ownership;
use dwcp_control::records::{Desired, Vm, VmPhase, VmSpec};
use dwcp_launch::protocol::{ChildKind, ChildState, Needs};
use dwcp_store::{Op, Revision, Txn, TypedError};
use dwcp_vmm::config::{Boot, VmConfig};
use tokio::sync::broadcast;

use crate::capacity;
use crate::errors::{conflict, impossible, internal, invalid, record};
use crate::hardware;
use crate::launcher::Notice;
use crate::node::Node;
use crate::state::{VmKey, object};

/// How long a guest may take to react to the power button before it is ended.
const POWER_BUTTON: Duration = Duration::from_secs(20);
/// How long a process that did not start its guest may take to end, before it is ended without having said why.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Checks a specification against what every host demands.
pub(crate) fn check(spec: &VmSpec) -> Answer<()> {
    const MIB: u64 = 1 << 20;
    if spec.memory_bytes < 16 * MIB
        || spec.memory_bytes > (1 << 40)
        || !spec.memory_bytes.is_multiple_of(2 * MIB)
    {
        return Err(invalid(
            "Memory is a multiple of 2 MiB, from 16 MiB to 1 TiB",
        ));
    }
    if !(1..=32).contains(&spec.vcpus) {
        return Err(invalid("A machine has 1 to 32 virtual CPUs"));
    }
    if spec.cmdline.len() > dwcp_vmm::config::CMDLINE_BYTES_MAX
        || spec.cmdline.bytes().any(|b| !(b' '..=b'~').contains(&b))
    {
        return Err(invalid(format!(
            "A command line has at most {} printable ASCII characters",
            dwcp_vmm::config::CMDLINE_BYTES_MAX
        )));
    }
    if spec.firmware && (spec.initrd.is_some() || !spec.cmdline.is_empty()) {
        return Err(invalid(
            "A firmware gets neither an initial RAM disk nor a command line: it finds on the disks what it boots",
        ));
    }
    hardware::check(spec)?;
    let tag = |text: &str| !text.is_empty() && text.len() <= 128;
    if spec.tags.len() > 64 || spec.tags.iter().any(|(k, v)| !tag(k) || v.len() > 256) {
        return Err(invalid(
            "A machine has at most 64 tags; a key has 1 to 128 bytes, a value at most 256",
        ));
    }
    Ok(())
}

impl Node {
    /// Records a new machine, if it fits, as owned by this host under epoch 1.
    pub(crate) async fn record_vm(&self, vm: &Vm) -> Answer<Revision> {
        let _promise = self.promise.lock().await;
        let capacity = self.capacity().await?;
        capacity::check(&capacity, &self.config, vm.spec.vcpus, vm.spec.memory_bytes)?;
        let disks = vm.spec.disks.iter().filter_map(|disk| disk.image.as_ref());
        for digest in disks.chain([&vm.spec.kernel]).chain(&vm.spec.initrd) {
            // Who deletes images holds the promise too.
            self.images.open_image(digest)?;
        }
        let key = VmKey {
            project: vm.project.clone(),
            name: vm.name.clone(),
        };
        let put = |op: Result<dwcp_store::Op, TypedError>| op.map_err(record);
        let owned = Ownership::Owned { epoch: vm.epoch };
        let txn = Txn::new()
            .when(dwcp_store::Compare::absent(self.records.vms.key(&key.id())))
            .then(put(self.records.vms.put_op(&key.id(), vm))?)
            .then(put(self.records.vm_keys.put_op(&vm.id, &key))?)
            .then(put(self.records.ownership.put_op(&vm.id, &owned))?);
        let outcome = self.records.store.transact(txn).await;
        let outcome = outcome.map_err(|e| record(e.into()))?;
        if outcome.succeeded {
            Ok(outcome.revision)
        } else {
            Err(conflict(format!(
                "A virtual machine {} exists in project {} already",
                vm.name, vm.project
            )))
        }
    }

    /// Starts a machine that this host owns and that has no process. Done also when it runs already.
    pub(crate) async fn start(&self, id: &str) -> Answer<()> {
        let life = self.life(id);
        let _life = life.lock().await;
        self.start_held(id).await
    }

    /// The same, for one who holds the machine's life already.
    pub(crate) async fn start_held(&self, id: &str) -> Answer<()> {
        let Some(vm) = self.records.vm_by_id(id).await.map_err(record)? else {
            return Err(conflict("The machine was deleted meanwhile"));
        };
        if self.is_migrating(id) {
            return Err(conflict(format!(
                "A migration of {} is ending: start it when that is over",
                vm.name
            )));
        }
        match vm.phase {
            VmPhase::Running | VmPhase::Migrating => return Ok(()),
            VmPhase::Paused => {
                return Err(conflict(format!("{} is paused: resume it", vm.name)));
            }
            VmPhase::Stopped | VmPhase::Crashed | VmPhase::Starting => {}
            VmPhase::Incoming | VmPhase::InDoubt | VmPhase::Moved | VmPhase::Template => {
                return Err(conflict(format!(
                    "{} cannot be started here: {}",
                    vm.name, vm.reason
                )));
            }
        }
        if vm.desired != Desired::Running {
            return Err(conflict(format!("{} was told to stop meanwhile", vm.name)));
        }
        self.start_as(&vm, &vm).await
    }

    /// Starts a machine as `vm` says, which may be what a snapshot makes of what it was `before`. If it does not come to
    /// that, it stays what it was.
    pub(crate) async fn start_as(&self, before: &Vm, vm: &Vm) -> Answer<()> {
        let id = vm.id.as_str();
        let permit = self.permit(vm).await?;
        {
            let _promise = self.promise.lock().await;
            if !matches!(before.phase, VmPhase::Starting) {
                let capacity = self.capacity().await?;
                capacity::check(&capacity, &self.config, vm.spec.vcpus, vm.spec.memory_bytes)?;
            }
            self.phase(id, VmPhase::Starting, "").await?;
        }
        let started = self.spawn_and_run(vm, permit).await;
        match started {
            Ok(()) => {
                if vm.memory_target_bytes.is_some()
                    && let Err(fault) = self.aim(vm).await
                {
                    tracing::warn!("{} is not asked to give up memory: {fault}", vm.name);
                }
                let now = crate::state::now_ms();
                self.records
                    .change_vm(id, |vm| {
                        vm.phase = VmPhase::Running;
                        vm.reason.clear();
                        vm.started_ms = now;
                    })
                    .await
                    .map_err(record)?;
                let what = format!("{} runs on {}", vm.name, self.config.name);
                let at = object(&vm.project, &vm.name);
                self.events.emit("vm.started", &at, what).await;
                Ok(())
            }
            Err(fault) => {
                let fault = self.last_words(id).await.unwrap_or(fault);
                let _ = self.launcher.end(id).await;
                let now = self.records.vm_by_id(id).await.map_err(record)?;
                if now.is_some_and(|now| now.origin != vm.origin) {
                    self.remove_disks_of(vm);
                    self.phase(id, before.phase, &before.reason).await?;
                    return Err(fault);
                }
                self.phase(id, VmPhase::Crashed, &fault.message).await?;
                let at = object(&vm.project, &vm.name);
                self.events
                    .emit("vm.start-failed", &at, fault.message.clone())
                    .await;
                Err(fault)
            }
        }
    }

    /// Why a machine's process ended at once, in its own words, if it did. That its socket broke is known before its end
    /// is: the launcher is asked until it has seen that, or until the process has been given its time to end.
    pub(crate) async fn last_words(&self, id: &str) -> Option<Fault> {
        let deadline = tokio::time::Instant::now() + LAST_WORDS;
        loop {
            let children = self.launcher.list().await.ok()?;
            let child = children.into_iter().find(|c| c.id.as_str() == id)?;
            if let ChildState::Exited { last_words, .. } = &child.state {
                let words = match last_words {
                    Some(words) => words.strip_prefix("error: ").unwrap_or(words).to_owned(),
                    None => verdict(&child.state).1,
                };
                return Some(impossible(format!("It cannot run: {words}")));
            }
            if tokio::time::Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn spawn_and_run(&self, vm: &Vm, permit: u64) -> Answer<()> {
        if let Some(origin) = vm.origin.as_ref().filter(|_| vm.started_ms == 0) {
            return self.go_on_from(vm, origin, permit).await;
        }
        // The host's limit may be a later one than the machine.
        self.check_baseline(vm.spec.cpu).await?;
        let mut images = vec![self.images.open_image(&vm.spec.kernel)?];
        if let Some(initrd) = &vm.spec.initrd {
            images.push(self.images.open_image(initrd)?);
        }
        let boot = Boot::Fresh {
            cmdline: vm.spec.cmdline.clone(),
            initrd: vm.spec.initrd.is_some(),
            firmware: vm.spec.firmware,
        };
        let images = images.into_iter().map(OwnedFd::from).collect();
        self.spawn_vmm(vm, boot, images).await?;
        self.lengthen_all(vm).await?;
        self.vmm(&vm.id, move |vmm| vmm.run(permit)).await
    }

    /// Makes the process of a machine; nothing runs in it yet.
    pub(crate) async fn spawn_vmm(&self, vm: &Vm, boot: Boot, images: Vec<OwnedFd>) -> Answer<()> {
        self.launcher.end(&vm.id).await?;
        let dir = self.vm_dir(&vm.id);
        tokio::fs::create_dir_all(&dir).await.map_err(internal)?;
        // What is in it is to be found after a power failure too.
        let above = std::fs::File::open(self.config.dir("vms")).map_err(internal)?;
        above.sync_all().map_err(internal)?;
        let hardware = self.hardware(vm).await?;
        let socket = dir.join("vmm.sock");
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(internal(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&socket).map_err(internal)?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(dir.join("serial.log"))
            .map_err(internal)?;
        let origin = vm.origin.as_ref().filter(|origin| origin.template);
        let origin = origin.filter(|_| boot == Boot::Shell);
        let template = origin.map(|origin| origin.snapshot_id.as_str());
        let config = VmConfig {
            id: vm.id.clone(),
            vcpus: vm.spec.vcpus,
            memory_bytes: vm.spec.memory_bytes,
            cpu: self.baseline(&vm.spec),
            boot,
            devices: hardware.devices,
            generation: None,
        };
        let json = serde_json::to_value(&config).map_err(internal)?;
        let mut descriptors = vec![OwnedFd::from(listener), OwnedFd::from(log)];
        descriptors.extend(images);
        descriptors.extend(hardware.descriptors);
        let needs = Needs {
            memory_bytes: vm.spec.memory_bytes,
            huge_pages: vm.spec.hugepages,
            vcpus: vm.spec.vcpus.into(),
            file_bytes: self.longest_file(vm),
        };
        self.launcher
            .spawn_vmm(&vm.id, needs, template, json, descriptors, hardware.nics)
            .await?;
        // Before its guest runs, which may connect at once.
        self.listen_to_guest(&vm.id).await;
        Ok(())
    }

    /// The epoch under which this host may run a machine now, or why it may not.
    pub(crate) async fn permit(&self, vm: &Vm) -> Answer<u64> {
        let held = self.ownership(&vm.id).await?;
        held.as_ref()
            .and_then(Ownership::run_permit)
            .ok_or_else(|| {
                let held = held.map_or("unknown here".into(), |held| held.to_string());
                conflict(format!("{} may not run here: it is {held}", vm.name))
            })
    }

    /// Sets a machine's phase and the reason for it.
    pub(crate) async fn phase(&self, id: &str, phase: VmPhase, reason: &str) -> Answer<()> {
        self.records
            .change_vm(id, |vm| {
                vm.phase = phase;
                vm.reason = reason.to_owned();
            })
            .await
            .map_err(record)?;
        Ok(())
    }

    /// Stops a machine: by its power button, and after a while (or at once, if `force`) by ending its process.
    pub(crate) async fn stop(&self, id: &str, force: bool) -> Answer<String> {
        let mut notices = self.launcher.exits();
        // What has no process has no power button either.
        let force = force || self.is_down(id).await?;
        {
            if force {
                // Whoever waits for its process is freed by its end.
                self.end_now(id).await?;
            }
            let life = self.life(id);
            let _life = life.lock().await;
            // Its guest may have reset itself while its life was another's.
            let force = force || self.is_down(id).await?;
            self.still_running(id, force).await?;
            self.records
                .change_vm(id, |vm| vm.desired = Desired::Stopped)
                .await
                .map_err(record)?;
            if force {
                self.launcher.end(id).await?;
                let now = self.records.vm_by_id(id).await.map_err(record)?;
                if now.is_some_and(|vm| vm.phase != VmPhase::Stopped) {
                    self.ended(id, VmPhase::Stopped, FORCED).await?;
                }
                return Ok("Its process was ended".into());
            }
            self.vmm(id, |vmm| vmm.stop(false)).await?;
        }
        let gone = async {
            loop {
                match notices.recv().await {
                    Ok(Notice::Exited(child)) if child.id.as_str() == id => return,
                    Err(broadcast::error::RecvError::Closed) => return,
                    _ => {}
                }
            }
        };
        if tokio::time::timeout(POWER_BUTTON, gone).await.is_ok() {
            self.look_after(id).await;
            let now = self.records.vm_by_id(id).await.map_err(record)?;
            return match now {
                Some(vm) if vm.phase != VmPhase::Stopped => Err(conflict(format!(
                    "Something else was done with {} meanwhile: it is {:?}",
                    vm.name, vm.phase
                ))),
                _ => Ok("The guest powered off".into()),
            };
        }
        let life = self.life(id);
        let _life = life.lock().await;
        self.still_running(id, force).await?;
        self.launcher.end(id).await?;
        let why = format!(
            "did not react to the power button within {} s, and was ended",
            POWER_BUTTON.as_secs()
        );
        self.ended(id, VmPhase::Stopped, &why).await?;
        Ok(format!("The guest {why}"))
    }

    /// Whether a machine waits for its next start.
    async fn is_down(&self, id: &str) -> Answer<bool> {
        let vm = self.records.vm_by_id(id).await.map_err(record)?;
        let is_down = |phase| {
            matches!(
                phase,
                VmPhase::Crashed | VmPhase::Starting | VmPhase::Stopped
            )
        };
        Ok(vm.is_some_and(|vm| is_down(vm.phase)))
    }

    /// Ends a machine's process whoever is at it, so that it can be told no more to run. Not one that is between two
    /// hosts, which is for both of them to settle.
    pub(crate) async fn end_now(&self, id: &str) -> Answer<()> {
        let Some(vm) = self.records.vm_by_id(id).await.map_err(record)? else {
            return Err(conflict("The machine was deleted meanwhile"));
        };
        let is_its_own = matches!(
            vm.phase,
            VmPhase::Running
                | VmPhase::Paused
                | VmPhase::Starting
                | VmPhase::Crashed
                | VmPhase::Stopped
        );
        if !is_its_own || self.is_migrating(id) {
            return Err(conflict(format!(
                "{} does not run here: {}",
                vm.name, vm.reason
            )));
        }
        self.records
            .change_vm(id, |vm| vm.desired = Desired::Stopped)
            .await
            .map_err(record)?;
        self.launcher.end(id).await
    }

    /// A stop finds its machine as it was when it was asked for, or says how it is now.
    async fn still_running(&self, id: &str, force: bool) -> Answer<()> {
        let vm = self.records.vm_by_id(id).await.map_err(record)?;
        match vm {
            Some(vm) if vm.phase == VmPhase::Running => Ok(()),
            // Nothing runs in it yet, or any more, and nothing will.
            Some(vm)
                if force
                    && matches!(
                        vm.phase,
                        VmPhase::Starting | VmPhase::Crashed | VmPhase::Stopped
                    ) =>
            {
                Ok(())
            }
            Some(vm) if vm.phase == VmPhase::Paused && force => Ok(()),
            Some(vm) if vm.phase == VmPhase::Paused => Err(conflict(format!(
                "{} is paused, and feels no power button: resume it, or stop it by force",
                vm.name
            ))),
            Some(vm) => Err(conflict(format!(
                "{} does not run here any more: {}",
                vm.name, vm.reason
            ))),
            None => Err(conflict("The machine was deleted meanwhile")),
        }
    }

    /// Removes a machine with all that is its own. It must not run, and the caller holds its life.
    pub(crate) async fn remove(&self, vm: &Vm) -> Answer<()> {
        self.launcher.end(&vm.id).await?;
        self.forgive(&vm.id);
        self.shells.claim(&vm.id);
        // First what takes room, then the record by which it is found: one that is cut off is done by asking again.
        match tokio::fs::remove_dir_all(self.vm_dir(&vm.id)).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(internal(error));
            }
            _ => {}
        }
        let key = VmKey {
            project: vm.project.clone(),
            name: vm.name.clone(),
        };
        let records = &self.records;
        let mut txn = Txn::new()
            .then(Op::delete(records.vms.key(&key.id())))
            .then(Op::delete(records.vm_keys.key(&vm.id)));
        // What is known of its epochs stays for a machine that another host may still ask about.
        if let Some(Ownership::Owned { epoch: 1 }) = self.ownership(&vm.id).await? {
            txn = txn.then(Op::delete(records.ownership.key(&vm.id)));
        }
        let removed = records.store.transact(txn).await;
        removed.map(drop).map_err(|error| record(error.into()))
    }

    /// Notes that a machine's process is gone.
    pub(crate) async fn ended(&self, id: &str, phase: VmPhase, reason: &str) -> Answer<()> {
        let changed = self
            .records
            .change_vm(id, |vm| {
                vm.phase = phase;
                vm.reason = reason.to_owned();
                if phase == VmPhase::Stopped {
                    vm.desired = Desired::Stopped;
                }
            })
            .await
            .map_err(record)?;
        if let Some(vm) = changed {
            let kind = match phase {
                VmPhase::Crashed => "vm.crashed",
                _ => "vm.stopped",
            };
            let at = object(&vm.project, &vm.name);
            self.events
                .emit(kind, &at, format!("{}: {reason}", vm.name))
                .await;
        }
        Ok(())
    }

    /// Listens to the launcher for as long as the daemon runs.
    pub(crate) fn follow_exits(self: Arc<Self>, mut notices: broadcast::Receiver<Notice>) {
        tokio::spawn(async move {
            let mut told = false;
            loop {
                match notices.recv().await {
                    // An old exit told again changes nothing: what is looked at is how the machine is now.
                    Ok(Notice::Exited(child)) if child.kind == ChildKind::Vmm => {
                        // Whoever is at it may take long, and others have ended too.
                        let node = self.clone();
                        tokio::spawn(async move { node.look_after(child.id.as_str()).await });
                    }
                    Ok(Notice::Exited(_)) => {}
                    Ok(Notice::Gone) => {
                        if !std::mem::replace(&mut told, true) {
                            self.events.emit("host.launcher-gone", "host", GONE).await;
                        }
                        self.launcher_is_gone().await;
                    }
                    Ok(Notice::Back) => {
                        if std::mem::take(&mut told) {
                            let message = "the launcher is there again";
                            self.events
                                .emit("host.launcher-back", "host", message)
                                .await;
                        }
                        self.look_after_all().await;
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => self.look_after_all().await,
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }
}

/// What an operator is told, and can do, when the launcher does not answer.
const GONE: &str = "the launcher does not answer: machines can be neither started nor ended until it is there again (start \
                    dwcp-launch, or start dwcpd again as root, which starts it)";

/// Why a machine does not run whose process was ended because somebody wanted that.
pub(crate) const FORCED: &str = "stopped by force";

/// Whether a process was ended from outside.
pub(crate) fn was_killed(state: &ChildState) -> bool {
    matches!(
        state,
        ChildState::Exited {
            signal: Some(libc::SIGKILL),
            ..
        }
    )
}

/// What the end of a VMM means for its machine.
pub(crate) fn verdict(state: &ChildState) -> (VmPhase, String) {
    let ChildState::Exited {
        code,
        signal,
        last_words,
    } = state
    else {
        return (VmPhase::Running, String::new());
    };
    match last_words.as_deref() {
        Some("guest: power-off") => (VmPhase::Stopped, "the guest powered off".into()),
        Some("guest: reset") => (VmPhase::Starting, "the guest reset itself".into()),
        Some(words) => (VmPhase::Crashed, words.to_owned()),
        None => {
            let how = match (code, signal) {
                (_, Some(signal)) => format!("its process was ended by signal {signal}"),
                (Some(code), _) => format!("its process ended with code {code}"),
                (None, None) => "its process ended".into(),
            };
            (VmPhase::Crashed, how)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: Option<i32>, signal: Option<i32>, words: Option<&str>) -> ChildState {
        ChildState::Exited {
            code,
            signal,
            last_words: words.map(str::to_owned),
        }
    }

    #[test]
    fn a_guest_that_ends_itself_has_not_crashed() {
        let (phase, _) = verdict(&exit(Some(0), None, Some("guest: power-off")));
        assert_eq!(phase, VmPhase::Stopped);
        let (phase, _) = verdict(&exit(Some(0), None, Some("guest: reset")));
        assert_eq!(phase, VmPhase::Starting);
        let (phase, why) = verdict(&exit(Some(159), None, Some("seccomp: openat")));
        assert_eq!((phase, why.as_str()), (VmPhase::Crashed, "seccomp: openat"));
        let (phase, why) = verdict(&exit(None, Some(9), None));
        assert_eq!(phase, VmPhase::Crashed);
        assert!(why.contains("signal 9"), "{why}");
    }
}
