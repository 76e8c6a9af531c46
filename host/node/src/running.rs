//! What can be done with a machine while it runs: stand still and go on, be reset, be looked at, get less memory or
//! longer disks.

use std::os::fd::AsFd;

use dwcp_api::Fault;
use dwcp_api::service::Answer;
use dwcp_control::Name;
use dwcp_control::records::{
    Desired, DeviceStats, DiskResize, MemoryTarget, VcpuStats, Vm, VmPhase, VmSpec, VmStats,
};
use dwcp_store::Versioned;
use dwcp_vmm::config::DiskFormat as Layer;
use dwcp_vmm::protocol::{DeviceStatus, Status};

use crate::errors::{conflict, impossible, internal, invalid, record};
use crate::forks::not_a_template;
use crate::hardware::{self, own_file};
use crate::node::Node;
use crate::state::object;

/// Pages by which a balloon counts.
const PAGE_BYTES: u64 = 4096;
/// Memory that a guest keeps at least: less than the least that a machine has, it could not run on.
const MEMORY_KEPT_MIN: u64 = 16 << 20;

impl Node {
    /// Stops a machine's virtual CPUs.
    pub(crate) async fn pause(&self, id: &str) -> Answer<String> {
        let life = self.life(id);
        let _life = life.lock().await;
        let vm = self
            .in_phase(id, VmPhase::Running, "is not running")
            .await?;
        let paused = self.vmm(id, |vmm| vmm.pause()).await;
        let paused = match paused {
            Ok(()) => self.phase(id, VmPhase::Paused, "it was paused").await,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = paused {
            // It may stand still all the same.
            self.unsettle(id);
            return Err(fault);
        }
        let message = format!("{} stands still", vm.name);
        let at = object(&vm.project, &vm.name);
        self.events.emit("vm.paused", &at, message.clone()).await;
        Ok(message)
    }

    /// Lets a paused machine go on.
    pub(crate) async fn resume(&self, id: &str) -> Answer<String> {
        let life = self.life(id);
        let _life = life.lock().await;
        let vm = self.in_phase(id, VmPhase::Paused, "is not paused").await?;
        let permit = self.permit(&vm).await?;
        self.vmm(id, move |vmm| vmm.resume(permit)).await?;
        self.phase(id, VmPhase::Running, "").await?;
        let message = format!("{} goes on", vm.name);
        let at = object(&vm.project, &vm.name);
        self.events.emit("vm.resumed", &at, message.clone()).await;
        Ok(message)
    }

    /// Ends a machine's process and starts it anew.
    pub(crate) async fn reset(&self, id: &str) -> Answer<String> {
        let life = self.life(id);
        let _life = life.lock().await;
        let Some(vm) = self.records.vm_by_id(id).await.map_err(record)? else {
            return Err(conflict("The machine was deleted meanwhile"));
        };
        not_a_template(&vm)?;
        let is_here = matches!(vm.phase, VmPhase::Running | VmPhase::Paused);
        if !is_here || vm.desired != Desired::Running || self.is_migrating(id) {
            return Err(conflict(format!(
                "{} does not run here, or is being stopped",
                vm.name
            )));
        }
        // Whoever finds it without its process is to start it.
        self.phase(id, VmPhase::Starting, "it is being reset")
            .await?;
        self.launcher.end(id).await?;
        let starting = Vm {
            phase: VmPhase::Starting,
            ..vm
        };
        self.start_as(&starting, &starting).await?;
        Ok(format!("{} was reset, and runs", starting.name))
    }

    async fn in_phase(&self, id: &str, phase: VmPhase, not: &str) -> Answer<Vm> {
        let vm = self.records.vm_by_id(id).await.map_err(record)?;
        let Some(vm) = vm else {
            return Err(conflict("The machine was deleted meanwhile"));
        };
        not_a_template(&vm)?;
        if vm.phase != phase || self.is_migrating(id) {
            return Err(conflict(format!(
                "{} {not}: it is {}",
                vm.name,
                word(vm.phase)
            )));
        }
        Ok(vm)
    }

    /// What a machine has done since its process was started.
    pub(crate) async fn stats(&self, project: &Name, name: &Name) -> Answer<VmStats> {
        let vm = self.find_vm(project, name).await?.value;
        if !is_there(&vm) {
            runs(&vm)?;
        }
        let status = self.vmm(&vm.id, |vmm| vmm.status()).await?;
        Ok(shown(&vm.spec, &status))
    }

    /// Asks a machine's guest to make do with less memory, now and whenever it starts.
    pub(crate) async fn set_memory(
        &self,
        project: &Name,
        name: &Name,
        target: &MemoryTarget,
    ) -> Answer<Versioned<Vm>> {
        let (_life, vm) = self.hold(project, name).await?;
        let vm = vm.value;
        not_a_template(&vm)?;
        if vm.spec.hugepages {
            return Err(impossible(format!(
                "{name}'s memory is of huge pages, of which a guest gives up none"
            )));
        }
        let (bytes, all) = (target.target_bytes, vm.spec.memory_bytes);
        if !bytes.is_multiple_of(PAGE_BYTES) || !(MEMORY_KEPT_MIN..=all).contains(&bytes) {
            return Err(invalid(format!(
                "{name} can have {} to {} MiB of its memory, in steps of {PAGE_BYTES} bytes",
                MEMORY_KEPT_MIN >> 20,
                all >> 20
            )));
        }
        let changed = self
            .records
            .change_vm(&vm.id, |vm| {
                vm.memory_target_bytes = (bytes < all).then_some(bytes);
            })
            .await;
        if let Some(vm) = changed.map_err(record)?
            && is_there(&vm)
        {
            self.aim(&vm).await?;
        }
        self.find_vm(project, name).await
    }

    /// Has a machine's balloon aim at what its record says.
    pub(crate) async fn aim(&self, vm: &Vm) -> Answer<()> {
        let all = vm.spec.memory_bytes;
        let kept = vm.memory_target_bytes.unwrap_or(all);
        let pages = u32::try_from((all - kept.min(all)) / PAGE_BYTES).unwrap_or(u32::MAX);
        self.vmm(&vm.id, move |vmm| {
            let status = vmm.status()?;
            match balloon(&status) {
                Some(balloon) => vmm.balloon(&balloon.name, pages),
                None => Ok(()),
            }
        })
        .await
    }

    /// Makes one of a machine's disks longer.
    pub(crate) async fn resize_disk(
        &self,
        project: &Name,
        name: &Name,
        disk: &str,
        resize: &DiskResize,
    ) -> Answer<Versioned<Vm>> {
        let (_life, vm) = self.hold(project, name).await?;
        let vm = vm.value;
        not_a_template(&vm)?;
        let Some(at) = vm.spec.disks.iter().position(|of| of.name == disk) else {
            return Err(Fault::not_found(format!("disk {disk} of {name}")));
        };
        let mut longer = vm.spec.clone();
        longer.disks[at].size_bytes = resize.size_bytes;
        hardware::check(&longer)?;
        let now = &vm.spec.disks[at];
        if now.read_only || resize.size_bytes < now.size_bytes {
            return Err(invalid(format!(
                "Disk {disk} has {} bytes: only a disk that is written can be resized, and only be made longer",
                now.size_bytes
            )));
        }
        if !matches!(
            vm.phase,
            VmPhase::Running | VmPhase::Paused | VmPhase::Stopped | VmPhase::Crashed
        ) || self.is_migrating(&vm.id)
        {
            return Err(conflict(format!(
                "{name} cannot be changed now: {}",
                vm.reason
            )));
        }
        let own = own_file(now, vm.origin.as_ref());
        let size_bytes = resize.size_bytes;
        let runs = is_there(&vm);
        if runs {
            self.may_write(&vm, own.format, size_bytes).await?;
        }
        // First what is wanted: whatever is cut off after this, the next start does.
        let changed = self.records.change_vm(&vm.id, |vm| {
            if let Some(disk) = vm.spec.disks.get_mut(at) {
                disk.size_bytes = size_bytes;
            }
        });
        changed.await.map_err(record)?;
        if runs {
            self.lengthen(&vm, disk, size_bytes).await?;
        } else if own.format == Layer::Raw {
            let path = self.vm_dir(&vm.id).join(&own.name);
            let resized =
                tokio::task::spawn_blocking(move || hardware::lengthen_raw(&path, size_bytes));
            resized.await.map_err(internal)?.map_err(internal)?;
        }
        self.find_vm(project, name).await
    }

    /// Lets a machine's process write a disk that is to have so many bytes.
    async fn may_write(&self, vm: &Vm, format: Layer, bytes: u64) -> Answer<()> {
        let (longest, may) = (hardware::file_bytes(format, bytes), self.longest_file(vm));
        if longest > may {
            self.launcher.lengthen(&vm.id, longest).await?;
        }
        Ok(())
    }

    /// Has a machine's process make a disk as long as its record says, which costs nothing if it is. What a guest wrote
    /// to its disk, headers included, is read by nobody else.
    pub(crate) async fn lengthen(&self, vm: &Vm, disk: &str, bytes: u64) -> Answer<()> {
        let labels = hardware::labels(&vm.spec);
        let at = labels.iter().position(|label| label == disk);
        self.vmm(&vm.id, move |vmm| {
            let status = vmm.status()?;
            match at.and_then(|at| status.devices.get(at)) {
                Some(device) => vmm.resize(&device.name, bytes),
                None => Ok(()),
            }
        })
        .await
    }

    /// The same for every disk, before a machine runs.
    pub(crate) async fn lengthen_all(&self, vm: &Vm) -> Answer<()> {
        for disk in vm.spec.disks.iter().filter(|disk| !disk.read_only) {
            self.lengthen(vm, &disk.name, disk.size_bytes).await?;
        }
        Ok(())
    }

    /// Gives a machine's process whom to ask when its guest connects to the host, and answers: with a connection to the
    /// socket `vsock.sock_PORT` among the machine's files, as programs know it from Firecracker.
    pub(crate) async fn listen_to_guest(&self, id: &str) {
        if let Err(fault) = self.try_listen_to_guest(id).await {
            tracing::warn!("connections of machine {id} to its host are refused: {fault}");
        }
    }

    async fn try_listen_to_guest(&self, id: &str) -> Answer<()> {
        let (ours, theirs) = crate::guests::pair().map_err(internal)?;
        self.vmm(id, move |vmm| vmm.host(theirs.as_fd())).await?;
        crate::guests::answer(ours, self.vm_dir(id)).map_err(internal)
    }
}

/// A phase as the API writes it.
fn word(phase: VmPhase) -> String {
    let word = serde_json::to_value(phase).ok();
    word.and_then(|word| word.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// Says what to do about a machine whose guest cannot be spoken with.
pub(crate) fn runs(vm: &Vm) -> Answer<()> {
    not_a_template(vm)?;
    match vm.phase {
        VmPhase::Running | VmPhase::Migrating => Ok(()),
        VmPhase::Paused => Err(conflict(format!(
            "{} is paused: `dwcp vm resume {}` lets it go on",
            vm.name, vm.name
        ))),
        VmPhase::Stopped | VmPhase::Crashed => Err(conflict(format!(
            "{} is {}: `dwcp vm start {}` starts it",
            vm.name,
            word(vm.phase),
            vm.name
        ))),
        _ => Err(conflict(format!(
            "{} does not run here now: it is {}",
            vm.name,
            word(vm.phase)
        ))),
    }
}

/// Whether a machine's process is here and answers.
fn is_there(vm: &Vm) -> bool {
    matches!(
        vm.phase,
        VmPhase::Running | VmPhase::Paused | VmPhase::Migrating
    )
}

fn balloon(status: &Status) -> Option<&DeviceStatus> {
    status
        .devices
        .iter()
        .find(|device| device.balloon.is_some())
}

/// A process's counters by the names that the machine's owner knows.
pub(crate) fn shown(spec: &VmSpec, status: &Status) -> VmStats {
    let labels = hardware::labels(spec);
    let label = |(name, device): (&String, &DeviceStatus)| DeviceStats {
        name: name.clone(),
        operations: device.operations,
        from_guest_bytes: device.read_bytes,
        to_guest_bytes: device.written_bytes,
        errors: device.errors,
        needs_reset: device.needs_reset,
    };
    let held = balloon(status).and_then(|device| device.balloon);
    let bytes = |pages: u32| u64::from(pages) * PAGE_BYTES;
    let vcpus = status.exits.iter().zip(&status.cpu_ns);
    VmStats {
        vcpus: vcpus
            .take(spec.vcpus.into())
            .map(|(exits, cpu_ns)| VcpuStats {
                exits: *exits,
                cpu_ns: *cpu_ns,
            })
            .collect(),
        memory_bytes: status.memory_bytes,
        balloon_target_bytes: held.map_or(0, |balloon| bytes(balloon.target_pages)),
        balloon_bytes: held.map_or(0, |balloon| bytes(balloon.actual_pages)),
        console_bytes: status.serial_bytes,
        devices: labels.iter().zip(&status.devices).map(label).collect(),
    }
}
