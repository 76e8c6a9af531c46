//! Measurements in the Prometheus text format.

use std::fmt::Write;

use dwcp_control::records::{Plugin, VmPhase};

use crate::node::Node;

/// Everything that is measured, now. What cannot be read is left out.
pub(crate) async fn text(node: &Node) -> String {
    let mut text = String::new();
    machines(node, &mut text).await;
    decisions(node, &mut text);
    plugins(node, &mut text).await;
    text
}

async fn machines(node: &Node, text: &mut String) {
    if let Ok(vms) = node.vms().await {
        let help = "Machines on this host, by phase";
        head(text, "dwcp_vms", "gauge", help);
        for (phase, name) in PHASES {
            let count = vms.iter().filter(|vm| vm.phase == phase).count();
            let _ = writeln!(text, "dwcp_vms{{phase=\"{name}\"}} {count}");
        }
    }
    if let Ok(capacity) = node.capacity().await {
        let used = capacity.memory_used_bytes;
        let vcpus = u64::from(capacity.vcpus_used);
        for (name, help, value) in [
            (
                "dwcp_memory_bytes",
                "Memory for machines",
                capacity.memory_bytes,
            ),
            (
                "dwcp_memory_used_bytes",
                "Memory promised to machines",
                used,
            ),
            (
                "dwcp_vcpus_used",
                "Virtual CPUs promised to machines",
                vcpus,
            ),
        ] {
            head(text, name, "gauge", help);
            let _ = writeln!(text, "{name} {value}");
        }
    }
}

fn decisions(node: &Node, text: &mut String) {
    let (hits, misses, _) = node.policies.cache();
    let name = "dwcp_policy_cache_total";
    let help = "Policy decisions, by whether the cache had them";
    head(text, name, "counter", help);
    let _ = writeln!(text, "{name}{{result=\"hit\"}} {hits}");
    let _ = writeln!(text, "{name}{{result=\"miss\"}} {misses}");
    let name = "dwcp_audit_entries_total";
    head(text, name, "counter", "Entries in the audit log");
    let _ = writeln!(text, "{name} {}", node.audit.size());
}

async fn plugins(node: &Node, text: &mut String) {
    let Ok(plugins) = node.records.all(&node.records.plugins).await else {
        return;
    };
    let usage = |p: &dwcp_store::Versioned<Plugin>| {
        let (calls, faults) = node.decider.usage(&p.value.digest);
        (p.value.name.clone(), calls, faults)
    };
    let usage: Vec<_> = plugins.iter().map(usage).collect();
    let name = "dwcp_plugin_calls_total";
    let help = "Calls of plugins since the daemon started";
    head(text, name, "counter", help);
    for (plugin, calls, _) in &usage {
        let _ = writeln!(text, "{name}{{plugin=\"{plugin}\"}} {calls}");
    }
    let name = "dwcp_plugin_faults_total";
    let help = "Calls of plugins that ended in a fault";
    head(text, name, "counter", help);
    for (plugin, _, faults) in &usage {
        let _ = writeln!(text, "{name}{{plugin=\"{plugin}\"}} {faults}");
    }
}

const PHASES: [(VmPhase, &str); 9] = [
    (VmPhase::Stopped, "stopped"),
    (VmPhase::Starting, "starting"),
    (VmPhase::Running, "running"),
    (VmPhase::Paused, "paused"),
    (VmPhase::Migrating, "migrating"),
    (VmPhase::Incoming, "incoming"),
    (VmPhase::InDoubt, "in-doubt"),
    (VmPhase::Crashed, "crashed"),
    (VmPhase::Moved, "moved"),
];

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
