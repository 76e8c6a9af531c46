//! What `dwcp vm` does with machines that run: pause and resume, reset, statistics, memory, disks, connections.

use anyhow::Context as _;
use dwcp_sdk::types::{DeviceStats, VmPhase, VmStats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::vm::wait;
use crate::context::Context;
use crate::{table, units};

/// `dwcp vm pause`.
pub async fn pause(context: &Context, name: &str) -> anyhow::Result<()> {
    let operation = context.client.vm_pause(&context.project, name).await?;
    let operation = wait(context, &operation, "pausing").await?;
    context
        .output
        .done(&operation, &format!("{name} stands still"))
}

/// `dwcp vm resume`.
pub async fn resume(context: &Context, name: &str) -> anyhow::Result<()> {
    let operation = context.client.vm_resume(&context.project, name).await?;
    let operation = wait(context, &operation, "resuming").await?;
    context.output.done(&operation, &format!("{name} goes on"))
}

/// `dwcp vm reset`.
pub async fn reset(context: &Context, name: &str) -> anyhow::Result<()> {
    let operation = context.client.vm_reset(&context.project, name).await?;
    let operation = wait(context, &operation, "resetting").await?;
    context
        .output
        .done(&operation, &format!("{name} was reset, and runs"))
}

/// `dwcp vm stats`.
pub async fn stats(context: &Context, name: &str) -> anyhow::Result<()> {
    let stats = context.client.vm_stats(&context.project, name).await?;
    context.output.object(&stats, facts)?;
    if !context.output.json() {
        let headings = [
            "DEVICE",
            "REQUESTS",
            "FROM GUEST",
            "TO GUEST",
            "ERRORS",
            "STATE",
        ];
        let rows = stats.devices.iter().map(row).collect();
        let table = table::table(context.output.style, &headings, rows);
        context.output.text(&format!("\n{table}"))?;
    }
    Ok(())
}

fn facts(stats: &VmStats) -> Vec<(&'static str, String)> {
    let vcpus = stats.vcpus.iter().enumerate().map(|(number, vcpu)| {
        let cpu = units::duration(vcpu.cpu_ns / 1_000_000);
        format!("{number}: {cpu} of a processor, {} exits", vcpu.exits)
    });
    let balloon = match (stats.balloon_target_bytes, stats.balloon_bytes) {
        (0, 0) => "nothing".into(),
        (target, held) => format!("{} of {}", units::size(held), units::size(target)),
    };
    vec![
        ("vcpus", vcpus.collect::<Vec<_>>().join("\n")),
        ("memory", units::size(stats.memory_bytes)),
        ("given up", balloon),
        ("console", units::size(stats.console_bytes)),
    ]
}

fn row(device: &DeviceStats) -> Vec<String> {
    let state = if device.needs_reset {
        "needs reset"
    } else {
        "good"
    };
    vec![
        device.name.clone(),
        device.operations.to_string(),
        units::size(device.from_guest_bytes),
        units::size(device.to_guest_bytes),
        device.errors.to_string(),
        state.into(),
    ]
}

/// `dwcp vm memory`.
pub async fn memory(context: &Context, name: &str, bytes: u64) -> anyhow::Result<()> {
    let vm = context
        .client
        .vm_memory(&context.project, name, bytes)
        .await?;
    let (kept, all) = (units::size(bytes), units::size(vm.spec.memory_bytes));
    let sentence = match vm.phase {
        VmPhase::Running | VmPhase::Paused | VmPhase::Migrating => format!(
            "{name} is asked to make do with {kept} of its {all}; `dwcp vm stats {name}` shows how far it is"
        ),
        _ => format!("{name} is asked to make do with {kept} of its {all} when it starts"),
    };
    context.output.done(&vm, &sentence)
}

/// `dwcp vm resize-disk`.
pub async fn resize_disk(
    context: &Context,
    name: &str,
    disk: &str,
    bytes: u64,
) -> anyhow::Result<()> {
    let vm = context
        .client
        .vm_disk_resize(&context.project, name, disk, bytes)
        .await?;
    let sentence = format!("Disk {disk} of {name} has {}", units::size(bytes));
    context.output.done(&vm, &sentence)
}

/// `dwcp vm connect`: standard input and output are the stream.
pub async fn connect(context: &Context, name: &str, port: u32) -> anyhow::Result<()> {
    let mut stream = context
        .client
        .vm_connect(&context.project, name, port)
        .await?;
    let from_guest = async {
        let mut out = tokio::io::stdout();
        while let Some(bytes) = stream.output.next().await.context("The connection broke")? {
            out.write_all(&bytes).await?;
            out.flush().await?;
        }
        anyhow::Ok(())
    };
    let to_guest = async {
        let mut input = tokio::io::stdin();
        let mut piece = vec![0; 16 << 10];
        while let Ok(read @ 1..) = input.read(&mut piece).await {
            if stream.input.send(&piece[..read]).await.is_err() {
                // The other direction tells why.
                break;
            }
        }
        // What is said after the last question is still to come.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = from_guest => ended,
        () = to_guest => Ok(()),
    }
}
