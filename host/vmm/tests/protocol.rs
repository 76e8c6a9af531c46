//! The contracts that others are built against: the JSON of configuration and messages, and how a connection begins.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::net::UnixStream;

use common::{Bed, has_kvm};
use dwcp_channel::{Channel, ChannelError};
use dwcp_vmm::config::{Boot, CMDLINE_BYTES_MAX, ConfigError, VCPUS_MAX, VmConfig};
use dwcp_vmm::protocol::{Phase, Reply, Request, Status};
use proptest::prelude::*;
use serde_json::{Value, json, to_value};

#[test]
fn messages_have_the_form_that_is_agreed_on() {
    let requests = [
        (
            Request::Hello { versions: vec![1] },
            json!({"hello": {"versions": [1]}}),
        ),
        (Request::Run { epoch: 7 }, json!({"run": {"epoch": 7}})),
        (Request::Pause, json!("pause")),
        (
            Request::Resume { epoch: 8 },
            json!({"resume": {"epoch": 8}}),
        ),
        (
            Request::Stop { force: true },
            json!({"stop": {"force": true}}),
        ),
        (Request::Console, json!("console")),
        (
            Request::Balloon {
                device: "balloon-3".into(),
                pages: 9,
            },
            json!({"balloon": {"device": "balloon-3", "pages": 9}}),
        ),
        (Request::DirtyStart, json!("dirty-start")),
        (Request::DirtyHarvest, json!("dirty-harvest")),
        (Request::DirtyStop, json!("dirty-stop")),
        (Request::Save, json!("save")),
        (Request::Load, json!("load")),
        (Request::Status, json!("status")),
    ];
    for (request, json) in requests {
        assert_eq!(to_value(&request).unwrap(), json);
        assert_eq!(serde_json::from_value::<Request>(json).unwrap(), request);
    }
    let status = Status {
        phase: Phase::Paused,
        epoch: 3,
        vcpus: 1,
        memory_bytes: 1 << 25,
        exits: vec![5],
        cpu_ns: vec![7],
        serial_bytes: 6,
        private_at: Vec::new(),
        missing_chunks: 0,
        changes_since: None,
        devices: Vec::new(),
    };
    let replies = [
        (
            Reply::Hello { version: 1 },
            json!({"hello": {"version": 1}}),
        ),
        (Reply::Done, json!("done")),
        (Reply::Console, json!("console")),
        (Reply::Dirty { pages: 9 }, json!({"dirty": {"pages": 9}})),
        (Reply::State { bytes: 10 }, json!({"state": {"bytes": 10}})),
        (
            Reply::Status(status),
            json!({"status": {"phase": "paused", "epoch": 3, "vcpus": 1, "memory_bytes": 33_554_432,
                "exits": [5], "cpu_ns": [7], "serial_bytes": 6, "devices": []}}),
        ),
        (
            Reply::Refused {
                reason: "No".into(),
            },
            json!({"refused": {"reason": "No"}}),
        ),
    ];
    for (reply, json) in replies {
        assert_eq!(to_value(&reply).unwrap(), json);
        assert_eq!(serde_json::from_value::<Reply>(json).unwrap(), reply);
    }
}

fn config() -> Value {
    json!({"id": "vm-1", "vcpus": 2, "memory_bytes": 67_108_864,
        "boot": {"fresh": {"cmdline": "console=ttyS0", "initrd": false}}})
}

fn parse(config: &Value) -> Result<VmConfig, ConfigError> {
    VmConfig::parse(&serde_json::to_vec(config).unwrap())
}

#[test]
fn a_configuration_is_read_and_its_ranges_are_checked() {
    assert_eq!(to_value(parse(&config()).unwrap()).unwrap(), config());
    let mut incoming = config();
    incoming["boot"] = json!("incoming");
    assert_eq!(parse(&incoming).unwrap().boot, Boot::Incoming);
    for (key, bad) in [
        ("id", json!("")),
        ("id", json!("a/b")),
        ("id", json!("x".repeat(65))),
        ("vcpus", json!(0)),
        ("vcpus", json!(VCPUS_MAX + 1)),
        ("memory_bytes", json!(0)),
        ("memory_bytes", json!(67_108_865)),
        ("memory_bytes", json!(4096)),
        (
            "boot",
            json!({"fresh": {"cmdline": "a\nb", "initrd": false}}),
        ),
        (
            "boot",
            json!({"fresh": {"cmdline": "x".repeat(CMDLINE_BYTES_MAX + 1), "initrd": false}}),
        ),
        ("boot", json!("warm")),
        ("kernel", json!("/boot/vmlinuz")),
        ("generation", json!("00112233445566778899aabbccddeef")),
        ("generation", json!("+0112233445566778899aabbccddeeff")),
        ("devices", json!([{"vsock": {"cid": 2}}])),
        ("devices", json!([{"vsock": {"cid": u32::MAX}}])),
        (
            "devices",
            json!([{"vsock": {"cid": 3}}, {"vsock": {"cid": 4}}]),
        ),
        ("devices", json!([{"console": {}}, {"console": {}}])),
    ] {
        let mut config = config();
        config[key] = bad;
        assert!(parse(&config).is_err(), "{config}");
    }
}

proptest! {
    #[test]
    fn no_configuration_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
        let _ = VmConfig::parse(&bytes);
        let mut changed = serde_json::to_vec(&config()).unwrap();
        let at = at.index(changed.len());
        changed[at] = bytes.first().copied().unwrap_or(0);
        let _ = VmConfig::parse(&changed);
    }
}

#[test]
fn devices_and_generation_have_the_form_that_is_agreed_on() {
    let mut config = config();
    config["generation"] = json!("00112233445566778899aabbccddeeff");
    config["devices"] =
        json!(["rng", "balloon", {"console": {"columns": 80, "rows": 24}}, {"vsock": {"cid": 3}}]);
    assert_eq!(to_value(parse(&config).unwrap()).unwrap(), config);
    config["devices"][2] = json!({"console": {}});
    assert!(parse(&config).is_ok());
}

#[test]
fn a_connection_begins_with_a_greeting_in_a_common_version() {
    if !has_kvm("a_connection_begins_with_a_greeting_in_a_common_version") {
        return;
    }
    let bed = Bed::new(16);
    let vmm = bed.incoming("greeted");
    let connect = || {
        let path = bed.directory.path().join("greeted.sock");
        Channel::new(UnixStream::connect(path).unwrap())
    };
    let mut rude = connect();
    rude.send(&Request::Status, &[]).unwrap();
    assert!(matches!(
        rude.receive::<Reply>().unwrap().0,
        Reply::Refused { .. }
    ));
    assert!(matches!(rude.receive::<Reply>(), Err(ChannelError::Closed)));

    let mut future = connect();
    future
        .send(
            &Request::Hello {
                versions: vec![900, 901],
            },
            &[],
        )
        .unwrap();
    assert!(matches!(
        future.receive::<Reply>().unwrap().0,
        Reply::Refused { .. }
    ));
    future
        .send(
            &Request::Hello {
                versions: vec![900, 1],
            },
            &[],
        )
        .unwrap();
    assert_eq!(
        future.receive::<Reply>().unwrap().0,
        Reply::Hello { version: 1 }
    );

    let mut babbler = connect();
    babbler.send(&json!({"open": "/etc/passwd"}), &[]).unwrap();
    assert!(matches!(
        babbler.receive::<Reply>(),
        Err(ChannelError::Closed)
    ));
    // All that did no harm to others.
    future.send(&Request::Status, &[]).unwrap();
    assert!(matches!(
        future.receive::<Reply>().unwrap().0,
        Reply::Status(_)
    ));
    assert_eq!(vmm.client().unwrap().status().unwrap().phase, Phase::Idle);
}
