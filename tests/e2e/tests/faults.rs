//! Migrations under faults: processes killed and links cut at named steps, in an order that a seed decides.
//!
//! Each time what DESIGN.md 5 promises: never two runners; one runner again once the link is back; the guest's own memory
//! check passing; nothing left behind. Killing the process that runs the guest is a crash of the guest, and told as one.
//!
//! `DWCP_FAULT_SEED` repeats a run, `DWCP_FAULTS` sets how many faults there are.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dwcp_e2e::bed::{Bed, BedOptions};
use dwcp_e2e::memory_check::whole_pass;
use dwcp_e2e::programs::Programs;
use dwcp_e2e::steps::Steps;
use dwcp_e2e::traces::Traces;
use dwcp_guest::Tick;
use dwcp_launch::protocol::ChildKind;
use dwcp_sdk::types::{MigrateRequest, Vm, VmCreate, VmPhase};
use dwcp_vmm::client::VmmClient;
use dwcp_vmm::protocol::Phase;

const PROJECT: &str = "default";
const NAME: &str = "prey";
const FILL_MIB: u32 = 8;
/// The one deadline: how long anything may take to come to rest. Generous; nothing is measured with it.
const REST: Duration = Duration::from_secs(180);

const STEPS: [(usize, &str); 14] = [
    (0, "source.accepted"),
    (0, "source.prepared"),
    (0, "source.round"),
    (0, "source.pausing"),
    (0, "source.paused"),
    (0, "source.given"),
    (0, "source.committed"),
    (0, "source.answered"),
    (1, "destination.accepted"),
    (1, "destination.prepared"),
    (1, "destination.complete"),
    (1, "destination.committed"),
    (1, "destination.took"),
    (1, "destination.running"),
];

/// Harm that is done at a step. Sides are of the migration: 0 sends, 1 receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Daemon(usize),
    Mover(usize),
    /// The VMM that does not run the guest.
    IdleVmm,
    /// The VMM that runs the guest (or holds it, paused).
    RunningVmm,
    /// The link, for a moment: TCP gets over it.
    Blink,
    /// The link, until the source has given up.
    Cut,
}

const HARMS: [Harm; 7] = [
    Harm::Daemon(0),
    Harm::Daemon(1),
    Harm::Mover(0),
    Harm::Mover(1),
    Harm::IdleVmm,
    Harm::RunningVmm,
    Harm::Blink,
];

/// xorshift64: enough to shuffle by, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Whether there is surely something to harm at a step: a process is not there before it is made, nor when the other
/// side may have ended it in peace.
fn applies(step: &str, harm: Harm) -> bool {
    let accepted = matches!(step, "source.accepted" | "destination.accepted");
    let prepared = matches!(step, "source.prepared" | "destination.prepared");
    // The source has its answer by then, and tidies up beside us.
    let told = step == "destination.running";
    match harm {
        Harm::Mover(0) => !accepted && !prepared && !told,
        Harm::Mover(_) => !accepted && step != "source.answered",
        Harm::IdleVmm => !accepted && !told,
        _ => true,
    }
}

/// Every harm at every step, shuffled; the long cuts come once each, where they matter most, somewhere among the others.
fn plan(seed: u64, count: usize) -> Vec<(usize, &'static str, Harm)> {
    let mut random = Random(seed | 1);
    let mut all: Vec<_> = STEPS
        .iter()
        .flat_map(|(side, step)| HARMS.map(|harm| (*side, *step, harm)))
        .filter(|(_, step, harm)| applies(step, *harm))
        .collect();
    for n in (1..all.len()).rev() {
        all.swap(n, (random.next() % (n as u64 + 1)) as usize);
    }
    let cuts = [
        (0, "source.round", Harm::Cut),
        (0, "source.given", Harm::Cut),
        (1, "destination.took", Harm::Cut),
    ];
    let rest = count.saturating_sub(cuts.len());
    let mut plan: Vec<_> = all.iter().copied().cycle().take(rest).collect();
    for cut in cuts {
        let place = random.next() % (plan.len() as u64 + 1);
        plan.insert(place as usize, cut);
    }
    plan
}

/// Looks all the time at whether both hosts run the machine at once.
struct Watcher {
    stop: Arc<AtomicBool>,
    twice: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
}

impl Watcher {
    fn start(sockets: [PathBuf; 2]) -> Self {
        let watcher = Self {
            stop: Arc::default(),
            twice: Arc::default(),
            looks: Arc::default(),
        };
        let (stop, twice, looks) = (
            watcher.stop.clone(),
            watcher.twice.clone(),
            watcher.looks.clone(),
        );
        std::thread::spawn(move || {
            let running = |socket: &PathBuf| {
                VmmClient::connect(socket)
                    .and_then(|mut vmm| vmm.status())
                    .is_ok_and(|status| status.phase == Phase::Running)
            };
            while !stop.load(Ordering::Relaxed) {
                // One look takes two questions: only if the first still runs after the second was seen to run, both did.
                if running(&sockets[0]) && running(&sockets[1]) && running(&sockets[0]) {
                    twice.store(true, Ordering::Relaxed);
                }
                looks.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        watcher
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Prey {
    bed: Bed,
    steps: [Steps; 2],
    traces: Traces,
    vm: String,
}

impl Prey {
    async fn start() -> anyhow::Result<Self> {
        let programs = Programs::find()?;
        let run = Bed::run_id()?;
        let dir = Bed::run_dir(&run);
        std::fs::create_dir_all(&dir)?;
        let listen = |side: &str| Steps::listen(&dir.join(format!("steps-{side}.sock")));
        let steps = [listen("left")?, listen("right")?];
        let options = BedOptions {
            steps: steps.each_ref().map(|s| Some(s.path().to_owned())),
            ..BedOptions::near()
        };
        let bed = Bed::start(&programs, run, &options).await?;
        let client = bed.left().client();
        let image = client.image_put("guest", dwcp_guest::elf()).await?;
        let request = VmCreate {
            kernel: Some(image.digest),
            cmdline: Some(format!("fill_mib={FILL_MIB} ws_mib=2 rate=500")),
            memory_bytes: Some(32 << 20),
            ..VmCreate::new(NAME)
        };
        let created = client.vm_create(PROJECT, &request).await?;
        client.operation_wait(&created.operation.id).await?;
        let vm = created.vm.id;
        let traces = Traces::of(bed.run().clone());
        Ok(Self {
            bed,
            steps,
            traces,
            vm,
        })
    }

    /// Which host runs the machine, 0 left or 1 right.
    async fn runner(&self) -> anyhow::Result<Option<usize>> {
        let mut found = None;
        for (side, host) in [self.bed.left(), self.bed.right()].into_iter().enumerate() {
            let vm = host.client().vm_get(PROJECT, NAME).await;
            if vm.is_ok_and(|vm| vm.phase == VmPhase::Running) {
                ensure!(found.is_none(), "Both hosts say that they run it");
                found = Some(side);
            }
        }
        Ok(found)
    }

    async fn seen(&self, side: usize) -> Option<Vm> {
        let host = [self.bed.left(), self.bed.right()][side];
        host.client().vm_get(PROJECT, NAME).await.ok()
    }

    /// One migration with one harm. Answers what came of it.
    async fn fault(&mut self, on: usize, step: &str, harm: Harm) -> anyhow::Result<String> {
        let source = self.runner().await?.context("Nobody runs it")?;
        let side = |of: usize| if of == 0 { source } else { 1 - source };
        let names = [self.bed.left().name(), self.bed.right().name()].map(str::to_owned);
        let caught = self.steps[side(on)].catch(step);
        let hosts = [self.bed.left(), self.bed.right()];
        let request = MigrateRequest::to(names[1 - source].as_str());
        let operation = hosts[source]
            .client()
            .vm_migrate(PROJECT, NAME, &request)
            .await?;
        let caught = tokio::time::timeout(REST, caught)
            .await
            .context("The migration did not come to this step")??;
        let ran_by = if matches!(step, "destination.took" | "destination.running")
            || (on == 0 && step == "source.answered")
        {
            1 - source
        } else {
            source
        };
        match harm {
            Harm::Daemon(of) => {
                self.bed.host_mut(side(of)).kill_daemon()?;
                drop(caught);
                self.bed.host_mut(side(of)).restart_daemon()?;
            }
            Harm::Mover(of) => {
                self.kill_child(side(of), ChildKind::Mover)?;
                drop(caught);
            }
            Harm::IdleVmm => {
                self.kill_child(1 - ran_by, ChildKind::Vmm)?;
                drop(caught);
            }
            Harm::RunningVmm => {
                self.kill_child(ran_by, ChildKind::Vmm)?;
                drop(caught);
            }
            Harm::Blink => {
                let before = self.lost()?;
                self.bed.link()?.cut()?;
                drop(caught);
                // Until something is lost: hosts ask each other how they are, if nothing else is to be said. TCP gets
                // over that.
                let deadline = Instant::now() + REST;
                while self.lost()? == before {
                    ensure!(Instant::now() < deadline, "A cut link loses nothing");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                self.bed.link()?.restore()?;
            }
            Harm::Cut => {
                self.bed.link()?.cut()?;
                drop(caught);
                let client = [self.bed.left(), self.bed.right()][source].client().clone();
                // It fails, or is in doubt: either way the source has given up waiting.
                let _ = tokio::time::timeout(REST, client.operation_wait(&operation.id)).await;
                self.bed.link()?.restore()?;
            }
        }
        self.comes_to_rest(source, harm).await
    }

    /// Packets that cuts of the link have cost so far.
    fn lost(&mut self) -> anyhow::Result<u64> {
        let stats = self.bed.link()?.stats()?;
        Ok(stats.left_to_right.dropped_cut + stats.right_to_left.dropped_cut)
    }

    fn kill_child(&self, side: usize, kind: ChildKind) -> anyhow::Result<()> {
        let host = [self.bed.left(), self.bed.right()][side];
        let mut killed = 0;
        for child in host.children()? {
            let here = kind == ChildKind::Mover || child.id.as_str() == self.vm;
            if child.kind == kind && here && child.is_running() {
                let pid = nix::unistd::Pid::from_raw(child.pid as i32);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
                killed += 1;
            }
        }
        ensure!(
            killed == 1,
            "There were {killed} processes to kill, not one"
        );
        Ok(())
    }

    /// Waits until one host runs it and nothing is under way, and looks at everything that must then hold.
    async fn comes_to_rest(&mut self, source: usize, harm: Harm) -> anyhow::Result<String> {
        let deadline = Instant::now() + REST;
        let mut crashed = false;
        let runner = loop {
            let seen = [self.seen(0).await, self.seen(1).await];
            let phase = |side: usize| seen[side].as_ref().map(|vm| vm.phase);
            let at_rest = |p: Option<VmPhase>| {
                matches!(
                    p,
                    None | Some(VmPhase::Running | VmPhase::Moved | VmPhase::Crashed)
                )
            };
            if at_rest(phase(0)) && at_rest(phase(1)) && self.migrations_ended().await {
                if let Some(side) = self.runner().await? {
                    break side;
                }
                let dead = (0..2).find(|side| phase(*side) == Some(VmPhase::Crashed));
                if let Some(side) = dead {
                    ensure!(
                        harm == Harm::RunningVmm,
                        "The guest was lost: {:?}",
                        seen[side].as_ref().map(|vm| vm.reason.clone())
                    );
                    crashed = true;
                    let client = [self.bed.left(), self.bed.right()][side].client();
                    let operation = client.vm_start(PROJECT, NAME).await?;
                    client.operation_wait(&operation.id).await?;
                }
            }
            if Instant::now() > deadline {
                bail!(
                    "It does not come to rest: left {:?}, right {:?}",
                    seen[0],
                    seen[1]
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.guest_is_well(runner, deadline).await?;
        self.nothing_left(runner, deadline).await?;
        let where_to = if runner == source { "stayed" } else { "moved" };
        Ok(if crashed {
            format!("the guest crashed and was started again; {where_to}")
        } else {
            where_to.to_owned()
        })
    }

    /// Directories of machines that their host has no record of.
    async fn strays(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        for host in [self.bed.left(), self.bed.right()] {
            let known = host.client().vm_list(PROJECT).first(100).await?;
            for entry in std::fs::read_dir(host.dir().join("state/vms"))? {
                let entry = entry?;
                if !known.iter().any(|vm| *vm.id == *entry.file_name()) {
                    strays.push(entry.path());
                }
            }
        }
        Ok(strays)
    }

    async fn migrations_ended(&self) -> bool {
        for host in [self.bed.left(), self.bed.right()] {
            match host.client().migration_list(PROJECT).first(5).await {
                Ok(migrations) if migrations.iter().all(|m| m.ended_ms.is_some()) => {}
                _ => return false,
            }
        }
        true
    }

    /// The guest says something new, and finds nothing wrong with its memory in a whole pass over it.
    async fn guest_is_well(&self, side: usize, deadline: Instant) -> anyhow::Result<()> {
        let host = [self.bed.left(), self.bed.right()][side];
        let before = host.serial_log(&self.vm).len();
        loop {
            let log = host.serial_log(&self.vm);
            let new = log.get(before.min(log.len())..).unwrap_or_default();
            let ticks: Vec<Tick> = new.lines().filter_map(Tick::parse).collect();
            ensure!(
                ticks.iter().all(|tick| tick.bad == 0),
                "The guest's memory check failed: {new}"
            );
            if let (Some(first), Some(last)) = (ticks.first(), ticks.last())
                && last.tick > first.tick
                && whole_pass(first, last, FILL_MIB)
            {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "The guest says nothing new: {new:?}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// One VMM on one side, no mover anywhere, and no machine's directory that no record names.
    async fn nothing_left(&mut self, runner: usize, deadline: Instant) -> anyhow::Result<()> {
        self.traces.note();
        loop {
            let there = [self.bed.left().children()?, self.bed.right().children()?];
            let good = there[runner].len() == 1
                && there[runner][0].is_running()
                && there[1 - runner].is_empty();
            let strays = self.strays().await?;
            if good && strays.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "Left behind: processes {there:?}, directories {strays:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Every harm appears in its place, and a seed says where.
#[test]
fn a_plan_is_the_seeds() {
    let cuts = |plan: &[(usize, &'static str, Harm)]| -> Vec<usize> {
        let is_cut =
            |(n, fault): (usize, &(usize, &str, Harm))| (fault.2 == Harm::Cut).then_some(n);
        plan.iter().enumerate().filter_map(is_cut).collect()
    };
    assert_eq!(plan(7, 52), plan(7, 52));
    assert_ne!(plan(7, 52), plan(8, 52));
    assert_eq!(plan(7, 52).len(), 52);
    let places: Vec<_> = (1..20).map(|seed| cuts(&plan(seed, 52))).collect();
    assert!(places.iter().all(|cuts| cuts.len() == 3));
    assert!(places.iter().any(|cuts| cuts[0] < 26), "{places:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_never_lost_and_never_runs_twice() {
    let seed = std::env::var("DWCP_FAULT_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()) ^ 0x9e37_79b9_7f4a_7c15);
    let count = std::env::var("DWCP_FAULTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(52);
    println!("DWCP_FAULT_SEED={seed} DWCP_FAULTS={count}");
    let mut prey = Prey::start().await.unwrap();
    let sockets = ["left", "right"].map(|name| {
        let vms = prey.bed.dir().join(name).join("state/vms");
        vms.join(&prey.vm).join("vmm.sock")
    });
    let watcher = Watcher::start(sockets);
    let runner = prey.runner().await.unwrap().unwrap();
    prey.guest_is_well(runner, Instant::now() + REST)
        .await
        .unwrap();
    for (n, (on, step, harm)) in plan(seed, count).into_iter().enumerate() {
        let began = Instant::now();
        let outcome = prey.fault(on, step, harm).await;
        for steps in &prey.steps {
            steps.disarm();
        }
        match outcome {
            Ok(outcome) => println!(
                "fault {:>3}: {harm:?} at {step}: {outcome} ({:.1} s)",
                n + 1,
                began.elapsed().as_secs_f64()
            ),
            Err(error) => {
                for name in ["left", "right"] {
                    let log = prey.bed.dir().join(name).join("dwcpd.log");
                    let log = std::fs::read_to_string(log).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(30).collect();
                    println!("--- {name}");
                    tail.iter().rev().for_each(|line| println!("{line}"));
                }
                panic!(
                    "fault {} ({harm:?} at {step}), seed {seed}: {error:#}",
                    n + 1
                );
            }
        }
        assert!(
            !watcher.twice.load(Ordering::Relaxed),
            "two runners after {harm:?} at {step}, seed {seed}"
        );
    }
    let looks = watcher.looks.load(Ordering::Relaxed);
    println!("looked {looks} times for two runners, and saw none");
    assert!(looks > 0);
    let Prey {
        bed, mut traces, ..
    } = prey;
    traces.note();
    assert!(
        traces.launchers() == 2 && traces.children() > 0,
        "{traces:?}"
    );
    drop(watcher);
    drop(bed);
    traces.gone().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launcher_that_dies_is_told_and_its_machines_start_again() {
    let mut prey = Prey::start().await.unwrap();
    prey.traces.note();
    let client = prey.bed.left().client().clone();
    let deadline = Instant::now() + REST;
    prey.guest_is_well(0, deadline).await.unwrap();
    prey.bed.host_mut(0).kill_launcher().unwrap();
    let seen = loop {
        let seen = prey.seen(0).await.unwrap();
        if seen.phase != VmPhase::Running {
            break seen;
        }
        assert!(Instant::now() < deadline, "it is said to run: {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(seen.phase, VmPhase::Crashed);
    assert!(seen.reason.contains("launcher"), "{}", seen.reason);
    let refused = client.vm_start(PROJECT, NAME).await.unwrap();
    let refused = client.operation_wait(&refused.id).await;
    let refused = format!("{:?}", refused.expect_err("nothing can start it"));
    assert!(refused.contains("dwcp-launch"), "{refused}");

    prey.bed.host_mut(0).restart_launcher().unwrap();
    let again = client.vm_start(PROJECT, NAME).await.unwrap();
    client.operation_wait(&again.id).await.unwrap();
    prey.guest_is_well(0, deadline).await.unwrap();
    prey.nothing_left(0, deadline).await.unwrap();
    let events = client.event_list(0, 1000).await.unwrap();
    for kind in ["host.launcher-gone", "host.launcher-back"] {
        let told = events.iter().filter(|event| event.kind == kind).count();
        assert_eq!(told, 1, "{kind}: {events:?}");
    }
    let Prey {
        bed, mut traces, ..
    } = prey;
    traces.note();
    drop(bed);
    traces.gone().unwrap();
}
