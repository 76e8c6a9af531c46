//! What guests are told of their CPU: which baselines this host offers, and whether a guest that was told something
//! elsewhere can go on here.
//!
//! Only KVM knows what it can offer, and this program has none. So a machine's process without a machine in it is asked,
//! once: it is made as every other one is, and ended again.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use dwcp_api::service::Answer;
use dwcp_control::records::{CpuBaseline, HostCpu, OfferedBaseline, VmSpec};
use dwcp_launch::protocol::Needs;
use dwcp_snapshot::Cpu;
use dwcp_vmm::baseline::Baseline;
use dwcp_vmm::config::{Boot, MEMORY_BYTES_MIN, VmConfig};

use crate::errors::{impossible, internal};
use crate::node::Node;

/// The id of the process that is asked; no machine has it.
pub(crate) const PROBE: &str = "cpu-probe";

/// A baseline as a machine's process knows it.
fn known(baseline: CpuBaseline) -> Baseline {
    match baseline {
        CpuBaseline::Host => Baseline::Host,
        CpuBaseline::V1 => Baseline::V1,
        CpuBaseline::V2 => Baseline::V2,
        CpuBaseline::V3 => Baseline::V3,
        CpuBaseline::V4 => Baseline::V4,
    }
}

impl Node {
    /// What a machine's guest is told here: its own baseline, or all that this host gives to anybody.
    pub(crate) fn baseline(&self, spec: &VmSpec) -> Baseline {
        known(match spec.cpu {
            CpuBaseline::Host => self.config.cpu_baseline,
            named => named,
        })
    }

    /// All that a guest can be told here.
    async fn offered_cpu(&self) -> Answer<&Cpu> {
        self.cpu.get_or_try_init(|| self.ask_for_cpu()).await
    }

    async fn ask_for_cpu(&self) -> Answer<Cpu> {
        self.launcher.end(PROBE).await?;
        let asked = self.ask_probe().await;
        let asked = match asked {
            Ok(cpu) => Ok(cpu),
            Err(fault) => Err(self.last_words(PROBE).await.unwrap_or(fault)),
        };
        let ended = self.launcher.end(PROBE).await;
        let _ = tokio::fs::remove_dir_all(self.vm_dir(PROBE)).await;
        ended.and(asked)
    }

    async fn ask_probe(&self) -> Answer<Cpu> {
        let dir = self.vm_dir(PROBE);
        let _ = tokio::fs::remove_dir_all(&dir).await;
        tokio::fs::create_dir_all(&dir).await.map_err(internal)?;
        let listener = UnixListener::bind(dir.join("vmm.sock")).map_err(internal)?;
        let log = std::fs::File::create_new(dir.join("serial.log")).map_err(internal)?;
        let config = VmConfig {
            id: PROBE.into(),
            vcpus: 1,
            memory_bytes: MEMORY_BYTES_MIN,
            cpu: known(self.config.cpu_baseline),
            boot: Boot::Shell,
            devices: Vec::new(),
            generation: None,
        };
        let json = serde_json::to_value(&config).map_err(internal)?;
        let descriptors = vec![OwnedFd::from(listener), OwnedFd::from(log)];
        let needs = Needs::memory(MEMORY_BYTES_MIN);
        self.launcher
            .spawn_vmm(PROBE, needs, None, json, descriptors, Vec::new())
            .await?;
        Ok(self.vmm(PROBE, |vmm| vmm.cpu()).await?.offered)
    }

    /// This host's CPU as the API shows it.
    pub(crate) async fn host_cpu(&self) -> Answer<HostCpu> {
        let cpu = self.offered_cpu().await?;
        let baselines = [
            CpuBaseline::Host,
            CpuBaseline::V4,
            CpuBaseline::V3,
            CpuBaseline::V2,
            CpuBaseline::V1,
        ];
        let shown = |name| OfferedBaseline {
            name,
            features: match name {
                CpuBaseline::Host => cpu.features.iter().cloned().collect(),
                named => known(named).features().into_iter().collect(),
            },
            lacking: lacking(&known(name).features(), cpu),
        };
        Ok(HostCpu {
            vendor: cpu.vendor.clone(),
            limit: self.config.cpu_baseline,
            baselines: baselines.into_iter().map(shown).collect(),
        })
    }

    /// Refuses a baseline that this host cannot offer, with what it lacks.
    pub(crate) async fn check_baseline(&self, wanted: CpuBaseline) -> Answer<()> {
        if wanted.is_host() {
            return Ok(());
        }
        let (cpu, wanted) = (self.offered_cpu().await?, known(wanted));
        let lacking = lacking(&wanted.features(), cpu);
        if lacking.is_empty() {
            return Ok(());
        }
        Err(impossible(format!(
            "{} lacks CPU features of {}: {}{} (`dwcp host cpu` lists what it offers)",
            self.config.name,
            wanted.name(),
            lacking.join(", "),
            self.limited(),
        )))
    }

    /// What a machine's guest was told of its CPU. A process of a version that cannot say told it of all that there is
    /// here, whatever the configuration says now.
    pub(crate) async fn told_cpu(&self, id: &str) -> Answer<Cpu> {
        match self.vmm(id, |vmm| vmm.cpu()).await {
            Ok(cpu) => Ok(cpu.told),
            Err(fault) if !self.config.cpu_baseline.is_host() => Err(impossible(format!(
                "What the guest was told of its CPU is not known ({fault}), and this host's `cpu.baseline` may be less: \
                 stop and start the machine first"
            ))),
            Err(fault) => {
                tracing::warn!("{id} does not say what its guest was told of its CPU: {fault}");
                Ok(self.offered_cpu().await?.clone())
            }
        }
    }

    /// Refuses a guest that was told of something that this host lacks.
    pub(crate) async fn check_guest_cpu(&self, told: &Cpu) -> Answer<()> {
        let cpu = self.offered_cpu().await?;
        if told.vendor != cpu.vendor {
            return Err(impossible(format!(
                "The guest was told that its CPU is of {}, and this host's is of {}",
                told.vendor, cpu.vendor
            )));
        }
        let lacking = lacking(&told.features, cpu);
        if lacking.is_empty() {
            return Ok(());
        }
        Err(impossible(format!(
            "{} lacks CPU features that the guest may be using: {}{} (a machine made with `--cpu` and a baseline that \
             both hosts offer could go)",
            self.config.name,
            lacking.join(", "),
            self.limited(),
        )))
    }

    /// That it is the configuration which makes this host lack something, if it may be.
    fn limited(&self) -> String {
        match self.config.cpu_baseline {
            CpuBaseline::Host => String::new(),
            limit => format!(
                "; it offers no more than {}, by `cpu.baseline` in its configuration",
                known(limit).name()
            ),
        }
    }
}

/// What is wanted and not there.
fn lacking(wanted: &std::collections::BTreeSet<String>, cpu: &Cpu) -> Vec<String> {
    wanted.difference(&cpu.features).cloned().collect()
}
