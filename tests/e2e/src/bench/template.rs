//! A guest that ran until it worked and then stood still: written as a snapshot, or kept as a template.
//!
//! What becomes a snapshot is started without the launcher, as it is not what is measured; the launcher keeps a template,
//! and gives its memory to shells. Devices are those of the [`Shape`].

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use dwcp_guest::Tick;
use dwcp_launch::protocol::ChildId;
use dwcp_memory::MemorySize;
use dwcp_snapshot::seal::{self, Trust};
use dwcp_snapshot::{Draft, Snapshot, SnapshotName};
use dwcp_vmm::client::VmmClient;
use dwcp_vmm::spawn::{GuestFiles, Plan, Spawned, spawn};

use super::launcher::Bench;
use super::machine::{Shape, fresh, open_disk};
use crate::programs::Programs;

/// A guest that does not work by then never will.
const DEADLINE: Duration = Duration::from_secs(60);
/// The guest tells of its work once a second, and its clock goes on while it stands still: after this long it speaks
/// as soon as it runs.
pub const QUIET: Duration = Duration::from_millis(1200);

/// A sealed template, which the launcher keeps.
#[derive(Debug)]
pub struct Template {
    id: ChildId,
    state: OwnedFd,
}

impl Template {
    /// Makes one. Takes as long as the guest needs to begin its work.
    pub fn make(bench: &Bench, shape: Shape, cmdline: &str) -> anyhow::Result<Self> {
        let mut client = bench.client()?;
        let vm = bench.prepare("template", shape, cmdline)?;
        vm.spawn(&mut client)?;
        let mut control = vm.connect()?;
        control.run(1)?;
        wait_for_work(|| vm.said())?;
        control.pause()?;
        let (state, _) = control.save_template()?;
        let id = vm.id().clone();
        let mut exits = bench.client()?.watch()?;
        client.kill(&id)?;
        exits.next().context("The launcher tells no exits")??;
        client.seal(&id)?;
        std::thread::sleep(QUIET);
        Ok(Self { id, state })
    }

    /// By what the launcher knows it.
    pub fn id(&self) -> &ChildId {
        &self.id
    }

    /// Device state.
    pub fn state(&self) -> BorrowedFd<'_> {
        self.state.as_fd()
    }
}

/// Waits until a guest tells of its work.
fn wait_for_work(said: impl Fn() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        let said = said()?;
        if said.lines().any(|line| Tick::parse(line).is_some()) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "The guest does not work: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A published snapshot whose memory has been checked.
#[derive(Debug)]
pub struct Stored {
    directory: File,
    name: SnapshotName,
}

impl Stored {
    /// Takes one.
    pub fn take(
        bench: &Bench,
        programs: &Programs,
        shape: Shape,
        cmdline: &str,
    ) -> anyhow::Result<Self> {
        let mut standing = Standing::make(bench, programs, shape, cmdline)?;
        let directory = File::open(bench.dir())?;
        let name: SnapshotName = "snapshot".parse()?;
        let draft = Draft::create(directory.as_fd(), &name)?;
        standing
            .client
            .snapshot(draft.file().as_fd(), Default::default())?;
        let snapshot = draft.publish()?;
        seal::ensure(directory.as_fd(), &name, &snapshot, &mut |_| {
            ControlFlow::Continue(())
        })?;
        drop(standing);
        std::thread::sleep(QUIET);
        Ok(Self { directory, name })
    }

    /// Opens it as the daemon does: header and tables are checked, and that memory was.
    pub fn open(&self) -> anyhow::Result<Snapshot> {
        let directory = self.directory.as_fd();
        let snapshot = dwcp_snapshot::open(directory, &self.name)?;
        let trust = seal::ensure(directory, &self.name, &snapshot, &mut |_| {
            ControlFlow::Continue(())
        })?;
        ensure!(trust == Trust::Sealed, "The snapshot's seal did not hold");
        Ok(snapshot)
    }
}

/// A guest that stands still.
struct Standing {
    _vmm: Spawned,
    client: VmmClient,
    /// The other end of its card.
    _network: Option<UnixDatagram>,
}

impl Standing {
    fn make(
        bench: &Bench,
        programs: &Programs,
        shape: Shape,
        cmdline: &str,
    ) -> anyhow::Result<Self> {
        let config = shape.config("template", fresh(cmdline))?;
        let guest = GuestFiles::new(MemorySize::new(config.memory_bytes)?)?;
        let mut devices: Vec<OwnedFd> = vec![open_disk(&bench.disk()?)?.into()];
        let network = match shape.card {
            Some(_) => {
                let (ours, theirs) = UnixDatagram::pair()?;
                devices.push(theirs.into());
                Some(ours)
            }
            None => None,
        };
        let vmm = spawn(Plan {
            program: &programs.path("dwcp-vmm"),
            directory: bench.dir(),
            config: &config,
            guest: &guest,
            kernel: Some((File::open(bench.kernel()?)?, None)),
            devices,
        })?;
        let mut client = vmm.client()?;
        client.run(1)?;
        wait_for_work(|| Ok(fs::read_to_string(vmm.log())?))?;
        client.pause()?;
        Ok(Self {
            _vmm: vmm,
            client,
            _network: network,
        })
    }
}
