//! Measurements in the Prometheus text format.

use std::fmt::Write;

use dwcp_control::records::VmPhase;

use crate::node::Node;

/// Everything that is measured, now.
pub(crate) async fn text(node: &Node) -> String {
    let mut text = String::new();
    if let Ok(vms) = node.vms().await {
        head(
            &mut text,
            "dwcp_vms",
            "gauge",
            "Machines on this host, by phase",
        );
        for (phase, name) in PHASES {
            let count = vms.iter().filter(|vm| vm.phase == phase).count();
            let _ = writeln!(text, "dwcp_vms{{phase=\"{name}\"}} {count}");
        }
    }
    if let Ok(capacity) = node.capacity().await {
        gauge(
            &mut text,
            "dwcp_memory_bytes",
            "Memory for machines",
            capacity.memory_bytes,
        );
        gauge(
            &mut text,
            "dwcp_memory_used_bytes",
            "Memory promised to machines",
            capacity.memory_used_bytes,
        );
        gauge(
            &mut text,
            "dwcp_vcpus_used",
            "Virtual CPUs promised to machines",
            u64::from(capacity.vcpus_used),
        );
    }
    let (hits, misses, _) = node.policies.cache();
    head(
        &mut text,
        "dwcp_policy_cache_total",
        "counter",
        "Policy decisions, by whether the cache had them",
    );
    let _ = writeln!(text, "dwcp_policy_cache_total{{result=\"hit\"}} {hits}");
    let _ = writeln!(text, "dwcp_policy_cache_total{{result=\"miss\"}} {misses}");
    head(
        &mut text,
        "dwcp_audit_entries_total",
        "counter",
        "Entries in the audit log",
    );
    let _ = writeln!(text, "dwcp_audit_entries_total {}", node.audit.size());
    if let Ok(plugins) = node.records.all(&node.records.plugins).await {
        head(
            &mut text,
            "dwcp_plugin_calls_total",
            "counter",
            "Calls of plugins since the daemon started",
        );
        let usage = plugins
            .iter()
            .map(|p| (&p.value, node.decider.usage(&p.value.digest)));
        let usage: Vec<_> = usage.collect();
        for (plugin, (calls, _)) in &usage {
            let _ = writeln!(
                text,
                "dwcp_plugin_calls_total{{plugin=\"{}\"}} {calls}",
                plugin.name
            );
        }
        head(
            &mut text,
            "dwcp_plugin_faults_total",
            "counter",
            "Calls of plugins that ended in a fault",
        );
        for (plugin, (_, faults)) in &usage {
            let _ = writeln!(
                text,
                "dwcp_plugin_faults_total{{plugin=\"{}\"}} {faults}",
                plugin.name
            );
        }
    }
    text
}

const PHASES: [(VmPhase, &str); 8] = [
    (VmPhase::Stopped, "stopped"),
    (VmPhase::Starting, "starting"),
    (VmPhase::Running, "running"),
    (VmPhase::Migrating, "migrating"),
    (VmPhase::Incoming, "incoming"),
    (VmPhase::InDoubt, "in-doubt"),
    (VmPhase::Crashed, "crashed"),
    (VmPhase::Moved, "moved"),
];

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    head(text, name, "gauge", help);
    let _ = writeln!(text, "{name} {value}");
}
