//! What a host tells those who ask it, end to end: why a machine does not start, what policies warn of, what plugins did,
//! and that a kept placement decision can be decided again.

#![allow(clippy::unwrap_used)]

use dwcp_e2e::{Bed, BedOptions, Programs};
use dwcp_plugins::placement::Fleet;
use dwcp_plugins::{DecisionRecord, NoRecorder, Outcome, Sandbox, SandboxConfig, Setup, World};
use dwcp_sdk::types::{Binding, Decision, GuestSetup, PluginInstall, VmCreate};
use std::sync::Arc;

const PROJECT: &str = "default";

async fn bed() -> Bed {
    let programs = Programs::find().unwrap();
    let bed = Bed::start(&programs, Bed::run_id().unwrap(), &BedOptions::near()).await;
    bed.unwrap()
}

async fn install(bed: &Bed, reference: &str) -> dwcp_sdk::types::MarketplaceItem {
    let client = bed.left().client();
    let item = client.marketplace_get(reference).await.unwrap();
    let request = PluginInstall {
        reference: item.reference.clone(),
        digest: Some(item.digest.clone()),
        grant: item.capabilities.clone(),
    };
    client.plugin_install(&request).await.unwrap()
}

fn binding(action: &str, mode: &str) -> Binding {
    let binding = serde_json::json!({ "policy": "owners", "action": action, "mode": mode });
    serde_json::from_value(binding).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_says_why_and_what_it_kept() {
    let bed = bed().await;
    a_kernel_that_is_none_is_named(&bed).await;
    policies_that_warn_are_heard(&bed).await;
    policies_see_networks_and_no_secrets(&bed).await;
    a_placement_can_be_decided_again(&bed).await;
}

async fn a_kernel_that_is_none_is_named(bed: &Bed) {
    let client = bed.left().client();
    let image = client.image_put("none", b"no kernel\n".to_vec()).await;
    let request = VmCreate {
        kernel: Some(image.unwrap().digest),
        memory_bytes: Some(32 << 20),
        ..VmCreate::new("broken")
    };
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    let failed = client.operation_wait(&created.operation.id).await;
    let said = failed.unwrap_err().to_string();
    assert!(
        said.contains("It cannot run: ") && said.contains("kernel"),
        "{said}"
    );
    let vm = client.vm_get(PROJECT, "broken").await.unwrap();
    assert!(vm.reason.contains("kernel"), "{}", vm.reason);
}

async fn policies_that_warn_are_heard(bed: &Bed) {
    let client = bed.left().client();
    let engine = install(bed, "dwcp/policy-rego").await;
    let rego =
        "package dwcp.owners\n\ndeny contains \"nobody owns it\" if not input.object.tags.owner\n";
    client.policy_apply("owners", rego).await.unwrap();
    let mistyped = client.policy_bind(&binding("vm.craete", "enforce")).await;
    let said = mistyped.unwrap_err().to_string();
    assert!(said.contains("vm.create, vm.migrate, vm.receive"), "{said}");
    client
        .policy_bind(&binding("vm.create", "warn"))
        .await
        .unwrap();
    let image = client.image_put("guest", dwcp_guest::elf()).await.unwrap();
    let request = VmCreate {
        kernel: Some(image.digest),
        memory_bytes: Some(32 << 20),
        start: false,
        ..VmCreate::new("warned")
    };
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    assert_eq!(created.operation.warnings, ["owners: nobody owns it"]);
    let events = client.event_list(0, 100).await.unwrap();
    let warned =
        |kind: &str, message: &str| kind == "policy.warned" && message.contains("nobody owns it");
    assert!(
        events.iter().any(|e| warned(&e.kind, &e.message)),
        "{events:?}"
    );
    let name = engine.reference.split('@').next().unwrap().to_owned();
    let plugin = client.plugin_get(&name).await.unwrap();
    assert!(plugin.calls >= 1, "{plugin:?}");
}

async fn policies_see_networks_and_no_secrets(bed: &Bed) {
    let client = bed.left().client();
    let rego = "package dwcp.nets\n\ndeny contains \"not on default\" if {\n\tsome card in \
                input.object.networks\n\tcard.network == \"default\"\n}\n";
    client.policy_apply("nets", rego).await.unwrap();
    let bound = serde_json::json!({ "policy": "nets", "action": "vm.create", "mode": "enforce" });
    let bound = serde_json::from_value(bound).unwrap();
    client.policy_bind(&bound).await.unwrap();
    let image = client.image_put("guest", dwcp_guest::elf()).await.unwrap();
    let on = |networks: usize| VmCreate {
        kernel: Some(image.digest.clone()),
        memory_bytes: Some(32 << 20),
        networks: Some(vec!["default".parse().unwrap(); networks]),
        setup: Some(GuestSetup {
            ssh_keys: Vec::new(),
            user_data: Some("#cloud-config\npassword: opensesame\n".into()),
        }),
        start: false,
        ..VmCreate::new("netted")
    };
    let refused = client.vm_create(PROJECT, &on(1)).await.unwrap_err();
    let refused = format!("{refused:?}");
    assert!(refused.contains("not on default"), "{refused}");
    let refused = client.vm_create(PROJECT, &on(200)).await.unwrap_err();
    assert!(refused.to_string().contains("at most"), "{refused}");
    client.policy_unbind("nets", "vm.create").await.unwrap();
    client.vm_create(PROJECT, &on(1)).await.unwrap();
    let decisions = client.decision_list(None).first(100).await.unwrap();
    let decisions = serde_json::to_string(&decisions).unwrap();
    assert!(decisions.contains("user_data_bytes"), "{decisions}");
    assert!(!decisions.contains("opensesame"), "{decisions}");
}

async fn a_placement_can_be_decided_again(bed: &Bed) {
    let client = bed.left().client();
    install(bed, "dwcp/placement-default").await;
    let broken = client.vm_get(PROJECT, "broken").await.unwrap();
    let request = VmCreate {
        kernel: Some(broken.spec.kernel),
        memory_bytes: Some(32 << 20),
        start: false,
        ..VmCreate::new("placed")
    };
    let created = client.vm_create(PROJECT, &request).await.unwrap();
    let placement = created.vm.placement.unwrap();
    // It was durable before the answer.
    let kept = client.decision_get(&placement.decision).await.unwrap();
    let fleet: Fleet = serde_json::from_value(kept.fleet.clone().unwrap()).unwrap();
    let revision = kept.input["revision"].as_u64().unwrap();
    let record = record(&kept);
    let plugins = bed.left().dir().join("state/plugins/sha256");
    let wasm = std::fs::read(plugins.join(format!("{}.wasm", kept.digest))).unwrap();
    let again = tokio::task::spawn_blocking(move || {
        let dir = tempfile::tempdir().unwrap();
        let config = SandboxConfig::below(dir.path(), Arc::new(NoRecorder));
        let sandbox = Sandbox::new(config).unwrap();
        let compiled = sandbox.compile(&wasm).unwrap();
        let setup = Setup {
            limits: dwcp_plugins::Limits::placement(),
            ..Setup::default()
        };
        let plugin = sandbox.placement(&compiled, setup).unwrap();
        plugin.replay(&record, fleet, revision).unwrap().outcome
    });
    let Outcome::Answer(text) = again.await.unwrap() else {
        panic!("it failed this time");
    };
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["decisions"], kept.answer["decisions"]);
}

/// A decision as the sandbox knows it.
fn record(kept: &Decision) -> DecisionRecord {
    DecisionRecord {
        id: kept.id.clone(),
        at_ms: kept.time_ms,
        world: World::Placement,
        plugin: kept.plugin.clone(),
        digest: kept.digest.clone(),
        configuration: kept.configuration.clone(),
        input: kept.input.to_string(),
        outcome: Outcome::Answer(kept.answer.to_string()),
        duration_us: kept.duration_us,
    }
}
