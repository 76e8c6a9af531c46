//! Steps 4, 5 and 7: the machine, its console, and what was recorded.

use anyhow::{Context, ensure};
use dwcp_guest::Tick;
use dwcp_sdk::Client;
use dwcp_sdk::types::VmCreate;

use super::{Arguments, say};
use crate::bed::Bed;
use crate::host::TestHost;
use crate::initramfs::Initramfs;
use crate::programs::Programs;

pub(crate) const PROJECT: &str = "default";
pub(crate) const NAME: &str = "worker";

pub(crate) async fn create(bed: &Bed, arguments: &Arguments) -> anyhow::Result<()> {
    let client = bed.left().client();
    let tags = [
        ("owner", "demo"),
        ("project", "demo"),
        ("environment", "test"),
        ("cost_center", "0"),
    ];
    let parameters = [
        ("memory_mib", arguments.memory_mib),
        ("fill", arguments.fill_mib),
        ("ws", arguments.working_set_mib),
        ("rate", arguments.dirty_pages),
    ];
    let linux = linux(client, arguments).await?;
    let own = |(key, value): (&str, String)| (key.to_owned(), value);
    let request = VmCreate {
        template: Some("dwcp/worker".into()),
        parameters: parameters.map(|(k, v)| own((k, v.to_string()))).into(),
        tags: tags.map(|(k, v)| own((k, v.to_owned()))).into(),
        kernel: linux.as_ref().map(|l| l.kernel.clone()),
        initrd: linux.as_ref().map(|l| l.initrd.clone()),
        cmdline: linux.map(|l| l.cmdline),
        ..VmCreate::new(NAME)
    };
    let created = client.vm_create(PROJECT, &request).await?;
    client.operation_wait(&created.operation.id).await?;
    let vm = client.vm_get(PROJECT, NAME).await?;
    let placement = vm.placement.context("No plugin placed the machine")?;
    say::done(format!(
        "{NAME} runs on {}, chosen by {} with {:.1} points:",
        vm.host, placement.plugin, placement.score
    ));
    for reason in &placement.reasons {
        say::line(format!("- {reason}"));
    }
    for alternative in &placement.alternatives {
        say::line(format!("- {alternative}"));
    }
    Ok(())
}

/// A Linux guest in place of the template's own, as `--linux` asks for.
struct Linux {
    kernel: String,
    initrd: String,
    cmdline: String,
}

async fn linux(client: &Client, arguments: &Arguments) -> anyhow::Result<Option<Linux>> {
    let Some(dir) = &arguments.linux else {
        return Ok(None);
    };
    let kernel = std::fs::read(dir.join("vmlinuz"))
        .with_context(|| format!("{} holds no vmlinuz", dir.display()))?;
    let worker = Programs::find()?.path("dwcp-linux-worker");
    let initramfs = Initramfs::of_worker(&std::fs::read(worker)?);
    let kernel = client.image_put("Debian cloud kernel", kernel).await?;
    let initrd = client.image_put("worker", initramfs).await?;
    say::done("Debian's cloud kernel and its worker are uploaded");
    Ok(Some(Linux {
        kernel: kernel.digest,
        initrd: initrd.digest,
        cmdline: format!(
            "console=ttyS0 reboot=t panic=-1 quiet fill_mib={} ws_mib={} rate={}",
            arguments.fill_mib, arguments.working_set_mib, arguments.dirty_pages
        ),
    }))
}

/// Lines of a machine's console, until `enough` says so.
pub(crate) async fn watch(
    host: &TestHost,
    mut enough: impl FnMut(&str) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut console = host.client().vm_console(PROJECT, NAME).await?;
    let mut text = String::new();
    while let Some(bytes) = console.output.next().await? {
        text.push_str(&String::from_utf8_lossy(&bytes));
        while let Some(end) = text.find('\n') {
            let line = text[..end].trim_end().to_owned();
            text.drain(..=end);
            if enough(&line)? {
                return Ok(());
            }
        }
    }
    anyhow::bail!("The console ended before the guest had said enough")
}

pub(crate) async fn console(bed: &Bed) -> anyhow::Result<()> {
    let mut ticks = 0;
    watch(bed.left(), |line| {
        say::line(line);
        if let Some(tick) = Tick::parse(line) {
            ensure!(tick.bad == 0, "The guest's memory check failed: {line}");
            ticks += 1;
        }
        Ok(ticks >= 3)
    })
    .await?;
    say::done("the guest works, and finds its memory as it wrote it");
    Ok(())
}

/// What both hosts have kept of all this: a host shows its own part, so each is asked.
pub(crate) async fn records(bed: &Bed) -> anyhow::Result<()> {
    let expected = [
        (bed.left(), ["vm.create", "vm.migrate"]),
        (bed.right(), ["host.add", "vm.receive"]),
    ];
    for (host, actions) in expected {
        decisions(host).await?;
        say::line(format!("events ({}):", host.name()));
        for event in host.client().event_list(0, 100).await? {
            say::line(format!("  {:<20} {}", event.kind, event.message));
        }
        audit(host, &actions).await?;
    }
    Ok(())
}

async fn decisions(host: &TestHost) -> anyhow::Result<()> {
    let decisions = host.client().decision_list(None).first(100).await?;
    ensure!(
        !decisions.is_empty(),
        "No decision was recorded on {}",
        host.name()
    );
    say::line(format!("decisions ({}):", host.name()));
    for decision in decisions.iter().rev() {
        say::line(format!(
            "  {:<10} {:<32} {:>6} µs  {}",
            decision.world, decision.plugin, decision.duration_us, decision.subject
        ));
    }
    Ok(())
}

/// The audit log: the entries about machines, and how many others there are.
async fn audit(host: &TestHost, actions: &[&str]) -> anyhow::Result<()> {
    let checkpoint = host.client().audit_checkpoint().await?;
    ensure!(!checkpoint.note.is_empty(), "There is no checkpoint");
    let records = host.client().audit_entries(0, 1000).await?;
    let mut entries = Vec::new();
    for record in &records {
        let entry: serde_json::Value = serde_json::from_str(&record.entry)?;
        entries.push((record.index, entry));
    }
    let text = |entry: &serde_json::Value, field: &str| {
        entry[field].as_str().unwrap_or_default().to_owned()
    };
    for wanted in actions {
        ensure!(
            entries
                .iter()
                .any(|(_, entry)| text(entry, "action") == *wanted),
            "The audit log of {} has no {wanted}",
            host.name()
        );
    }
    say::line(format!(
        "audit log ({}), {} entries under a signed checkpoint:",
        host.name(),
        entries.len()
    ));
    for (index, entry) in &entries {
        say::line(format!(
            "  {index:>3} {:<16} {:<8} {}",
            text(entry, "action"),
            text(entry, "outcome"),
            text(entry, "object")
        ));
    }
    Ok(())
}
