//! What the fake's machines and plugins do.

use bytes::Bytes;
use dwcp_api::Principal;
use dwcp_api::service::{Answer, Console, Fault, FaultKind, Versioned};
use dwcp_control::Name;
use dwcp_control::records::{
    Desired, MarketplaceItem, MigrateRequest, MigrationPhase, Operation, OperationState, Plugin,
    PluginInstall, Template, Vm, VmPhase,
};
use futures::StreamExt;

use super::fake::{Fake, finished, found, refuse};
use super::sample::{self, NOW_MS, digest_of};

pub(super) fn key_of(project: &Name, name: &Name) -> (String, String) {
    (project.to_string(), name.to_string())
}

pub(super) fn object_of(project: &Name, name: &Name) -> String {
    format!("projects/{project}/vms/{name}")
}

impl Fake {
    pub(super) fn vm(&self, project: &Name, name: &Name) -> Answer<Versioned<Vm>> {
        let state = self.state();
        let vm = state.vms.get(&key_of(project, name)).cloned();
        vm.ok_or_else(|| Fault::not_found(format!("machine {name} in project {project}")))
    }

    pub(super) fn set_vm(&self, vm: Vm) -> Versioned<Vm> {
        let mut state = self.state();
        let vm = state.versioned(vm);
        let key = key_of(&vm.value.project, &vm.value.name);
        state.vms.insert(key, vm.clone());
        vm
    }

    pub(super) fn turn(&self, project: &Name, name: &Name, to: Desired) -> Answer<()> {
        let mut vm = self.vm(project, name)?.value;
        vm.desired = to;
        vm.phase = match to {
            Desired::Running => VmPhase::Running,
            Desired::Stopped => VmPhase::Stopped,
        };
        self.set_vm(vm);
        Ok(())
    }

    /// Changes a machine and tells of it.
    pub(super) fn change(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        kind: &str,
        change: impl FnOnce(&mut Vm),
    ) -> Answer<Versioned<Vm>> {
        let mut vm = self.vm(project, name)?.value;
        change(&mut vm);
        let vm = self.set_vm(vm);
        self.happened(&who.name, kind, &object_of(project, name), "It changed");
        Ok(vm)
    }

    /// Attaches to a guest that says what it hears in capitals.
    pub(super) fn attach(&self, project: &Name, name: &Name) -> Answer<Console> {
        if self.vm(project, name)?.value.phase != VmPhase::Running {
            return refuse(
                FaultKind::Conflict,
                "The machine does not run; start it first",
            );
        }
        let (input, mut typed) = tokio::sync::mpsc::channel::<Bytes>(16);
        if name.as_str() == "flood" {
            let attached = std::sync::Arc::clone(&self.attached);
            let flood =
                futures::stream::repeat(Bytes::from(vec![b'x'; 32 << 10])).map(move |piece| {
                    let _attached = &attached;
                    Ok(piece)
                });
            return Ok(Console {
                output: Box::pin(flood),
                input,
            });
        }
        let (printed, output) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(16);
        tokio::spawn(async move {
            let mut print = Ok(Bytes::from_static(b"booted\r\n"));
            loop {
                if printed.send(print).await.is_err() {
                    return;
                }
                match typed.recv().await {
                    Some(bytes) if bytes.starts_with(b"exit") => return,
                    Some(bytes) => print = Ok(bytes.to_ascii_uppercase().into()),
                    None => return,
                }
            }
        });
        let output = futures::stream::unfold(output, |mut output| async move {
            output.recv().await.map(|piece| (piece, output))
        });
        Ok(Console {
            output: Box::pin(output),
            input,
        })
    }

    /// Moves a machine in three rounds; one named `doubt` does not know whether it arrived.
    pub(super) fn migrate(
        &self,
        who: &Principal,
        project: &Name,
        name: &Name,
        request: MigrateRequest,
    ) -> Answer<Operation> {
        let mut vm = self.vm(project, name)?.value;
        found(&self.state().hosts, "host", request.to.as_str())?;
        let object = object_of(project, name);
        let operation = sample::operation("vm.migrate", &object);
        let mut migration = sample::migration(&vm, &request);
        let mut states = Vec::new();
        for number in 1..=3 {
            migration = sample::next_round(migration, number);
            let mut state = operation.clone();
            state.migration = Some(Box::new(migration.clone()));
            states.push(state);
        }
        let doubtful = name.as_str() == "doubt";
        if doubtful {
            migration.phase = MigrationPhase::InDoubt;
            migration.reason = "The link was cut behind the commit".into();
        } else {
            migration = sample::arrived(migration);
            vm.phase = VmPhase::Moved;
            vm.host = request.to;
            vm.epoch += 1;
            self.set_vm(vm);
        }
        let mut last = finished(operation.clone());
        if doubtful {
            last.state = OperationState::Failed;
            last.message = migration.reason.clone();
        }
        last.migration = Some(Box::new(migration.clone()));
        states.push(last);
        let kept = self.state().versioned(migration.clone());
        self.state().migrations.insert(migration.id.clone(), kept);
        self.happened(&who.name, "vm.migrated", &object, "It moved");
        Ok(self.operate(operation, states))
    }

    /// Installs what is signed and whose capabilities are granted.
    pub(super) fn install(
        &self,
        who: &Principal,
        mut item: MarketplaceItem,
        request: PluginInstall,
    ) -> Answer<MarketplaceItem> {
        if let Some(problem) = item.signature_problem {
            return refuse(FaultKind::Impossible, &problem);
        }
        if request.digest.is_some_and(|digest| digest != item.digest) {
            return refuse(FaultKind::Impossible, "It is not what was shown");
        }
        let kept_back: Vec<String> = item
            .capabilities
            .iter()
            .filter(|capability| !request.grant.contains(capability))
            .cloned()
            .collect();
        if !kept_back.is_empty() {
            return Err(Fault {
                kind: FaultKind::Impossible,
                message: "It needs capabilities that were not granted".into(),
                reasons: kept_back,
            });
        }
        let (name, version) = item.reference.split_once('@').unwrap();
        let (name, version) = (name.to_owned(), version.to_owned());
        let signed_by = item.signed_by.clone().unwrap_or_default();
        let mut state = self.state();
        if item.kind == "template" {
            let template = state.versioned(Template {
                name: name.clone(),
                version,
                description: item.description.clone(),
                plugin: "dwcp/template-default".into(),
                digest: item.digest.clone(),
                signed_by,
                kernel: Some(digest_of(b"kernel")),
                initrd: None,
                media_type: "application/toml".into(),
                document: "memory = \"512MiB\"\n".into(),
                installed_ms: NOW_MS,
            });
            state.templates.insert(name, template);
        } else {
            let plugin = state.versioned(Plugin {
                name: name.clone(),
                version,
                world: item.world.clone(),
                digest: item.digest.clone(),
                signed_by,
                capabilities: item.capabilities.clone(),
                active: true,
                installed_ms: NOW_MS,
                calls: 3,
                faults: 0,
            });
            state.plugins.insert(name, plugin);
        }
        drop(state);
        item.installed = true;
        self.happened(&who.name, "plugin.installed", &item.reference, "Installed");
        Ok(item)
    }
}
