//! `dwcp vm`: virtual machines from create to delete.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use dwcp_sdk::types::{
    CpuBaseline, DiskSpec, GuestSetup, MigrateRequest, NetworkSpec, Operation, RestartPolicy, Vm,
    VmCreate,
};
use futures::StreamExt;

use super::console::{self, ConsoleArgs};
use super::{fork, image, migration, running};
use crate::args::{baseline, digest, misunderstood, pair, restart_policy};
use crate::context::Context;
use crate::progress::{self, MigrationBar};
use crate::{table, units};

/// Commands about machines.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create a machine, from a disk image, a kernel, a template or a snapshot, and start it
    #[command(after_help = "Examples:
  dwcp vm create web --image ./debian.qcow2 --ssh-key ~/.ssh/id_ed25519.pub --disk data=10GiB
  dwcp vm create web --kernel ./vmlinuz --initrd ./initrd --cmdline console=ttyS0 --memory 1GiB --vcpus 2
  dwcp vm create web --template dwcp/worker --param memory_mib=512 --tag owner=me --tag project=shop
  dwcp vm create web2 --snapshot before-upgrade")]
    Create(Box<CreateArgs>),
    /// List the machines of the project
    List,
    /// Show a machine
    Show {
        /// Its name
        name: String,
    },
    /// Start a machine
    Start {
        /// Its name
        name: String,
    },
    /// Stop a machine by its power button; after 20 seconds its process is ended
    Stop {
        /// Its name
        name: String,
        /// At once, without asking the guest: what it has not written is lost
        #[arg(long)]
        force: bool,
    },
    /// Pause a machine: it stands still and keeps its memory
    Pause {
        /// Its name
        name: String,
    },
    /// Let a paused machine go on
    Resume {
        /// Its name
        name: String,
    },
    /// Reset a machine, as a reset button does: what it has not written is lost, and it boots
    Reset {
        /// Its name
        name: String,
    },
    /// Show what a running machine's processors and devices have done
    Stats {
        /// Its name
        name: String,
    },
    /// Ask a machine's guest to make do with less memory, or give it back
    #[command(
        after_help = "By the balloon: how far the guest is, `dwcp vm stats` shows. It is asked again whenever it starts.

Examples:
  dwcp vm memory web 512MiB
  dwcp vm memory web 1GiB"
    )]
    Memory {
        /// Its name
        name: String,
        /// What it keeps, such as 512MiB; all that it has gives everything back
        #[arg(value_parser = units::parse_size)]
        size: u64,
    },
    /// Make a disk of a machine longer, whether it runs or not
    #[command(after_help = "Example:
  dwcp vm resize-disk web root 40GiB")]
    ResizeDisk {
        /// The machine
        name: String,
        /// The disk
        disk: String,
        /// Its size from now on, such as 40GiB
        #[arg(value_parser = units::parse_size)]
        size: u64,
    },
    /// Connect standard input and output to a vsock port in a machine's guest
    #[command(
        after_help = "It needs neither a network nor an address of the guest. It ends when the guest closes; that standard input
has ended is not told to the guest. systemd 256 and later has an SSH server there:
  ssh -o ProxyCommand='dwcp vm connect web 22' root@web"
    )]
    Connect {
        /// Its name
        name: String,
        /// The port
        port: u32,
    },
    /// Let a stopped machine go on from a snapshot of it: what its disks held until now is lost
    #[command(after_help = "Example:
  dwcp vm restore web before-upgrade")]
    Restore {
        /// Its name
        name: String,
        /// The snapshot
        snapshot: String,
    },
    /// Make machines that go on from where a template stands still
    #[command(
        after_help = "A fork does not boot: its guest goes on with the template's next instruction, with memory, disks and an
address of its own. A machine becomes a template by --seal, and never runs again: its memory is sealed, and
its disks stay as they are for its forks.

Examples:
  dwcp vm fork web --seal --count 10
  dwcp vm fork web api-test"
    )]
    Fork(fork::ForkArgs),
    /// Delete a machine for ever
    #[command(visible_alias = "rm")]
    Delete {
        /// Its name
        name: String,
        /// Even if it runs
        #[arg(long)]
        force: bool,
    },
    /// Attach to a machine's console
    Console(ConsoleArgs),
    /// Print what a machine wrote on its serial line
    Log {
        /// Its name
        name: String,
        /// Go on as it writes more, until it stops
        #[arg(short, long)]
        follow: bool,
    },
    /// Say why a machine is on its host
    Why {
        /// Its name
        name: String,
    },
    /// Move a machine to another host while it runs
    #[command(after_help = "Example:
  dwcp vm migrate web --to right --max-pause 200ms")]
    Migrate(MigrateArgs),
}

/// The machine to create.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name, unique in the project
    name: String,
    /// Disk image to boot (qcow2 or raw, as vendors ship them): a file or oci:REFERENCE to add, or the digest of an image
    #[arg(long, value_name = "FILE", conflicts_with = "template")]
    image: Option<PathBuf>,
    /// Size of the disk that the image becomes, such as 20GiB; the image's own if absent
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, requires = "image")]
    disk_size: Option<u64>,
    /// One more disk, empty at first; may be given several times
    #[arg(long = "disk", value_name = "NAME=SIZE", value_parser = sized)]
    disks: Vec<(String, u64)>,
    /// Network to be on (`default`); may be given several times
    #[arg(long = "network", value_name = "NAME")]
    networks: Vec<String>,
    /// Be on no network, which a machine from an image otherwise is
    #[arg(long, conflicts_with = "networks")]
    no_network: bool,
    /// File with SSH public keys that may log in (cloud-init); may be given several times
    #[arg(long = "ssh-key", value_name = "FILE")]
    ssh_keys: Vec<PathBuf>,
    /// File with user data for cloud-init: `#cloud-config` or a script
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Kernel (bzImage, vmlinux or PVH ELF): a file to upload, or the digest of an image
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Firmware (PVH ELF) instead of a kernel, which finds on the disks what it boots: a file to upload, or the digest of
    /// an image
    #[arg(long, value_name = "FILE", conflicts_with_all = ["template", "kernel", "initrd", "cmdline"])]
    firmware: Option<PathBuf>,
    /// Snapshot to go on from instead of booting: the machine is what that one's was, with memory and disks of its own
    #[arg(long, value_name = "NAME", conflicts_with_all = ["template", "image", "kernel", "firmware"])]
    snapshot: Option<String>,
    /// Template, as PUBLISHER/NAME[@VERSION]
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// Parameter of the template; may be given several times
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = pair, requires = "template")]
    parameters: Vec<(String, String)>,
    /// Initial RAM disk: a file to upload, or the digest of an image
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Guest memory, such as 1GiB, which is what a machine from an image has otherwise
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    memory: Option<u64>,
    /// Virtual CPUs, 1 to 32
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    vcpus: Option<u8>,
    /// What the guest is told of its CPU: all that the host has, or a baseline that other hosts have too (`dwcp host cpu`)
    #[arg(long, value_name = "NAME", value_parser = baseline())]
    cpu: Option<CpuBaseline>,
    /// Memory of huge pages (2 MiB), which the host must have free; such a machine does not move and has no snapshots
    #[arg(long)]
    hugepages: bool,
    /// Label that policies see; may be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = pair)]
    tags: Vec<(String, String)>,
    /// Whether it is started again when its guest ends by itself: not (never), when it crashes (on-crash), or when it powers
    /// off too (always)
    #[arg(long, value_name = "POLICY", value_parser = restart_policy())]
    restart: Option<RestartPolicy>,
    /// Create it without starting it
    #[arg(long)]
    no_start: bool,
}

/// Where a machine goes.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Its name
    name: String,
    /// The host to go to
    #[arg(long, value_name = "HOST")]
    to: String,
    /// TLS streams, 1 to 64; 4 if absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    streams: Option<u8>,
    /// The pause that the guest may see, such as 300ms
    #[arg(long, value_name = "DURATION", value_parser = units::parse_duration)]
    max_pause: Option<std::time::Duration>,
}

/// Does it.
pub async fn run(context: &Context, command: VmCommand) -> anyhow::Result<()> {
    let (client, output, project) = (&context.client, context.output, &context.project);
    match command {
        VmCommand::Create(args) => create(context, *args).await,
        VmCommand::List => {
            let machines = client.vm_list(project).all().await?;
            let headings = [
                "NAME", "PHASE", "HOST", "VCPUS", "MEMORY", "TEMPLATE", "CREATED",
            ];
            output.list(&machines, &headings, row)
        }
        VmCommand::Show { name } => output.object(&client.vm_get(project, &name).await?, facts),
        VmCommand::Start { name } => {
            let operation = client.vm_start(project, &name).await?;
            let operation = wait(context, &operation, "starting").await?;
            output.done(&operation, &format!("{name} runs"))
        }
        VmCommand::Stop { name, force } => {
            let operation = client.vm_stop(project, &name, force).await?;
            let operation = wait(context, &operation, "stopping").await?;
            let how = match operation.message.as_str() {
                "" => String::new(),
                how => format!(" ({how})"),
            };
            output.done(&operation, &format!("{name} is stopped{how}"))
        }
        VmCommand::Pause { name } => running::pause(context, &name).await,
        VmCommand::Resume { name } => running::resume(context, &name).await,
        VmCommand::Reset { name } => running::reset(context, &name).await,
        VmCommand::Stats { name } => running::stats(context, &name).await,
        VmCommand::Memory { name, size } => running::memory(context, &name, size).await,
        VmCommand::ResizeDisk { name, disk, size } => {
            running::resize_disk(context, &name, &disk, size).await
        }
        VmCommand::Connect { name, port } => running::connect(context, &name, port).await,
        VmCommand::Restore { name, snapshot } => {
            let operation = client.vm_restore(project, &name, &snapshot).await?;
            let operation = wait(context, &operation, "restoring").await?;
            output.done(&operation, &format!("{name} goes on from {snapshot}"))
        }
        VmCommand::Fork(args) => fork::run(context, args).await,
        VmCommand::Delete { name, force } => {
            client.vm_delete(project, &name, force).await?;
            output.gone(&format!("{name} is gone"))
        }
        VmCommand::Console(args) => console::run(context, args).await,
        VmCommand::Log { name, follow } => {
            let mut log = Box::pin(client.vm_log(project, &name, follow).await?);
            while let Some(piece) = log.next().await {
                output.bytes(&piece?)?;
            }
            Ok(())
        }
        VmCommand::Why { name } => why(context, &name).await,
        VmCommand::Migrate(args) => migrate(context, args).await,
    }
}

/// Waits for the end of an operation.
pub async fn wait(
    context: &Context,
    operation: &Operation,
    what: &str,
) -> anyhow::Result<Operation> {
    let bar = progress::waiting(what);
    let operation = context.client.operation_wait(&operation.id).await;
    bar.finish_and_clear();
    Ok(operation?)
}

/// What policies let pass, and warn of.
pub fn warn(operation: &Operation) {
    for warning in &operation.warnings {
        eprintln!("warning: {warning}");
    }
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    if let Some(missing) = missing(&args) {
        misunderstood(&missing);
    }
    let setup = setup(&args)?;
    let disk = |(name, size_bytes): (String, u64)| DiskSpec::empty(&name, size_bytes);
    let networks = (args.no_network || !args.networks.is_empty()).then_some(args.networks);
    let request = VmCreate {
        image: content(context, args.image).await?,
        root_bytes: args.disk_size,
        disks: args.disks.into_iter().map(disk).collect(),
        networks,
        setup,
        template: args.template,
        snapshot: args.snapshot,
        parameters: args.parameters.into_iter().collect(),
        kernel: content(context, args.kernel).await?,
        initrd: content(context, args.initrd).await?,
        cmdline: args.cmdline,
        memory_bytes: args.memory,
        vcpus: args.vcpus,
        cpu: args.cpu,
        hugepages: args.hugepages,
        firmware: content(context, args.firmware).await?,
        restart: args.restart,
        tags: args.tags.into_iter().collect(),
        start: !args.no_start,
        ..VmCreate::new(args.name)
    };
    let created = context.client.vm_create(&context.project, &request).await?;
    warn(&created.operation);
    let name = &created.vm.name;
    wait(context, &created.operation, "starting")
        .await
        .with_context(|| {
            format!(
                "{name} was created, and did not start: mend what is wrong and `dwcp vm start {name}`, or `dwcp vm delete \
                 {name}`"
            )
        })?;
    let vm = context
        .client
        .vm_get(&context.project, &created.vm.name)
        .await?;
    let mut sentence = format!(
        "{} is {} on {}: {}, {} vCPU",
        vm.name,
        vm.phase,
        vm.host,
        units::size(vm.spec.memory_bytes),
        vm.spec.vcpus
    );
    if let Some(placement) = &vm.placement {
        sentence += &format!("\nchosen by {}:", placement.plugin);
        for reason in &placement.reasons {
            sentence += &format!("\n  • {reason}");
        }
    }
    context.output.done(&vm, &sentence)
}

/// What was not said of a machine that has to be.
fn missing(args: &CreateArgs) -> Option<String> {
    let is_made = args.image.is_some() || args.template.is_some() || args.snapshot.is_some();
    let kernel = args.kernel.as_ref().or(args.firmware.as_ref());
    match (is_made, kernel, args.memory) {
        (false, None, _) => Some(format!(
            "Say what {} is made from: --image FILE, --kernel FILE with --memory SIZE, --template NAME or --snapshot NAME",
            args.name
        )),
        (false, Some(_), None) => Some(format!(
            "Say how much memory {} has, such as --memory 1GiB",
            args.name
        )),
        _ => None,
    }
}

/// What cloud-init is told.
fn setup(args: &CreateArgs) -> anyhow::Result<Option<GuestSetup>> {
    if args.ssh_keys.is_empty() && args.user_data.is_none() {
        return Ok(None);
    }
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path);
        text.with_context(|| format!("{} could not be read", path.display()))
    };
    let mut ssh_keys = Vec::new();
    for path in &args.ssh_keys {
        let text = read(path)?;
        let lines = text.lines().map(str::trim);
        let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        ssh_keys.extend(keys.map(str::to_owned));
    }
    Ok(Some(GuestSetup {
        ssh_keys,
        user_data: args.user_data.as_ref().map(read).transpose()?,
    }))
}

/// Reads `NAME=SIZE`.
fn sized(text: &str) -> Result<(String, u64), String> {
    let (name, size) = pair(text)?;
    Ok((name, units::parse_size(&size)?))
}

/// The digest of a file, uploaded if need be, or a digest that was given as such.
async fn content(context: &Context, file: Option<PathBuf>) -> anyhow::Result<Option<String>> {
    let Some(file) = file else {
        return Ok(None);
    };
    let named = file.to_str().and_then(|text| digest(text).ok());
    match named {
        Some(digest) if !file.exists() => Ok(Some(digest)),
        _ => Ok(Some(image::add(context, &file, None).await?.digest)),
    }
}

async fn why(context: &Context, name: &str) -> anyhow::Result<()> {
    let vm = context.client.vm_get(&context.project, name).await?;
    let Some(placement) = vm.placement else {
        anyhow::bail!(
            "No plugin chose the host of {name}: none of the placement world was installed when it was created, or it \
             failed, and {name} was made on the host that was asked (`dwcp decision list --vm {name}` lists what was \
             decided)"
        );
    };
    context.output.object(&placement, |placement| {
        vec![
            ("host", placement.host.clone()),
            ("score", format!("{:.3}", placement.score)),
            ("decided by", placement.plugin.clone()),
            ("because", placement.reasons.join("\n")),
            ("not chosen", placement.alternatives.join("\n")),
            ("decision", placement.decision.clone()),
        ]
    })
}

async fn migrate(context: &Context, args: MigrateArgs) -> anyhow::Result<()> {
    let request = MigrateRequest {
        to: args.to,
        streams: args.streams,
        pause_ms: args
            .max_pause
            .map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)),
    };
    let (client, project) = (&context.client, &context.project);
    let operation = client.vm_migrate(project, &args.name, &request).await?;
    warn(&operation);
    let mut bar = MigrationBar::new(&args.name);
    let ended = client
        .operation_watch(&operation.id, |operation| bar.show(operation))
        .await;
    bar.finish();
    let operation = ended?;
    match operation.migration.as_deref() {
        Some(migration) => context
            .output
            .done(migration, migration::totals(migration).trim_end()),
        None => context.output.done(
            &operation,
            &format!("{} moved to {}", args.name, request.to),
        ),
    }
}

fn row(vm: &Vm) -> Vec<String> {
    vec![
        vm.name.clone(),
        vm.phase.to_string(),
        vm.host.clone(),
        vm.spec.vcpus.to_string(),
        units::size(vm.spec.memory_bytes),
        vm.template.clone().unwrap_or_else(|| "-".into()),
        units::moment(vm.created_ms),
    ]
}

fn facts(vm: &Vm) -> Vec<(&'static str, String)> {
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    vec![
        ("name", vm.name.clone()),
        ("project", vm.project.clone()),
        ("id", vm.id.clone()),
        ("phase", vm.phase.to_string()),
        ("reason", vm.reason.clone()),
        ("wanted", vm.desired.to_string()),
        ("host", vm.host.clone()),
        ("epoch", vm.epoch.to_string()),
        ("memory", memory(vm)),
        ("vcpus", vm.spec.vcpus.to_string()),
        ("cpu", vm.spec.cpu.to_string()),
        ("template", optional(&vm.template)),
        (
            "origin",
            vm.origin
                .as_ref()
                .map_or(String::new(), |origin| origin.snapshot.clone()),
        ),
        (
            if vm.spec.firmware {
                "firmware"
            } else {
                "kernel"
            },
            vm.spec.kernel.clone(),
        ),
        ("initrd", optional(&vm.spec.initrd)),
        ("cmdline", vm.spec.cmdline.clone()),
        ("disks", lines(vm.spec.disks.iter().map(disk))),
        ("networks", lines(vm.spec.networks.iter().map(network))),
        ("restart", vm.spec.restart.to_string()),
        ("tags", table::pairs(&vm.spec.tags)),
        ("created", units::moment(vm.created_ms)),
        ("started", units::moment(vm.started_ms)),
    ]
}

fn memory(vm: &Vm) -> String {
    let mut all = units::size(vm.spec.memory_bytes);
    if vm.spec.hugepages {
        all += ", of huge pages";
    }
    match vm.memory_target_bytes {
        Some(target) => format!("{all}, of which it is to use {}", units::size(target)),
        None => all,
    }
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.collect::<Vec<_>>().join("\n")
}

fn disk(disk: &DiskSpec) -> String {
    let access = if disk.read_only { ", read-only" } else { "" };
    let image = match &disk.image {
        Some(digest) => format!(" over image {}", digest.get(..12).unwrap_or(digest)),
        None => String::new(),
    };
    format!(
        "{}: {}{image}{access}",
        disk.name,
        units::size(disk.size_bytes)
    )
}

fn network(card: &NetworkSpec) -> String {
    let own = format!("{}: {}, {}", card.network, card.address, card.mac);
    match &card.inside {
        Some(inside) => format!(
            "{own}; its guest knows it as {}, {}",
            inside.address, inside.mac
        ),
        None => own,
    }
}
