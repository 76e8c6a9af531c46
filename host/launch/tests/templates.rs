//! Memory that is sealed: given to what becomes a fork of it, and written by nobody any more.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Launcher, MEMORY_BYTES, StandIn, can_run, id};
use dwcp_launch::ClientError;
use dwcp_launch::protocol::{Needs, Side};
use serde_json::json;

fn shell(launcher: &Launcher, name: &str, bytes: u64) -> Result<StandIn, ClientError> {
    StandIn::start(|ours| {
        let (template, config) = (id("vm-1"), json!({}));
        let mut client = launcher.client();
        client.spawn_vmm_with(
            &id(name),
            Needs::memory(bytes),
            Some(&template),
            config,
            &[ours],
            &[],
        )
    })
}

fn refusal<T>(result: Result<T, ClientError>) -> String {
    match result {
        Err(ClientError::Refused(reason)) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn sealed_memory_is_shared_and_never_written() {
    if !can_run("sealed_memory_is_shared_and_never_written") {
        return;
    }
    let launcher = Launcher::start();
    let mut client = launcher.client();
    let mut vmm = launcher.vmm("vm-1");
    assert_eq!(vmm.ask("poke 2 5"), true);
    // Not while it could be written; nor is what runs, or is not there, a template.
    let running = refusal(client.seal(&id("vm-1")));
    assert!(running.contains("running"), "{running}");
    assert!(refusal(client.seal(&id("vm-2"))).contains("vm-2"));
    let early = refusal(shell(&launcher, "fork", MEMORY_BYTES));
    assert!(early.contains("not sealed"), "{early}");
    vmm.ask_last("exit 0");
    launcher.exit_of("vm-1");
    for _ in 0..2 {
        client.seal(&id("vm-1")).unwrap();
    }
    let other_size = refusal(shell(&launcher, "fork", 2 * MEMORY_BYTES));
    assert!(other_size.contains("size"), "{other_size}");

    let mut forks = ["one", "two"].map(|name| shell(&launcher, name, MEMORY_BYTES).unwrap());
    for fork in &mut forks {
        assert_eq!(fork.ask("peek 2"), 5);
        assert_eq!(fork.ask("poke 2 6"), false);
        assert_eq!(fork.report["descriptors"][2]["writable"], false);
        assert_eq!(fork.ask("peek 2"), 5);
    }
    // A fork's own pages are not in it, so nobody takes it for the fork's memory.
    let sent = client.spawn_mover(&id("m-2"), &id("one"), Side::Source, json!({}), &[]);
    assert!(refusal(sent).contains("one"));
    // Nor by who would receive a VM into it.
    let mut mover = launcher.mover("m", "vm-1", Side::Destination);
    assert_eq!(mover.ask("poke 0 6"), false);
    // Forks keep what they have when the template is forgotten, and no more are made.
    client.forget(&id("vm-1")).unwrap();
    assert_eq!(forks[0].ask("peek 2"), 5);
    assert!(refusal(shell(&launcher, "three", MEMORY_BYTES)).contains("vm-1"));
}
