//! Seeds that are JSON or plain text.

use dwcp_channel::Channel;
use dwcp_control::ownership::Ownership;
use dwcp_launch::protocol as launch;
use dwcp_migrate::protocol as mover;
use dwcp_vmm::config::{Boot, ConsoleSize, Device, Generation, VmConfig};
use dwcp_vmm::protocol as vmm;
use serde::Serialize;
use serde_json::json;

use crate::{Made, Seed};

const DIGEST: &str = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae";

/// All of them.
pub fn seeds() -> Made<Vec<Seed>> {
    let mut seeds = vec![
        ("planted", "nothing", b"nothing is here".to_vec()),
        ("last-words", "power-off", b"guest: power-off\n".to_vec()),
        (
            "last-words",
            "denied-twice",
            b"seccomp: openat\nerror: gone\nhal".to_vec(),
        ),
    ];
    seeds.extend(confined()?);
    seeds.extend(launcher()?);
    seeds.extend(records()?);
    seeds.extend(session()?);
    seeds.extend(names());
    seeds.push(("channel", "two-messages", channel()?));
    Ok(seeds)
}

fn text(message: &impl Serialize) -> Made<Vec<u8>> {
    Ok(serde_json::to_vec(message)?)
}

fn confined() -> Made<Vec<Seed>> {
    let fresh = VmConfig {
        id: "vm-1".into(),
        vcpus: 2,
        memory_bytes: 256 << 20,
        cpu: Default::default(),
        boot: Boot::Fresh {
            cmdline: "console=ttyS0".into(),
            initrd: true,
            firmware: false,
        },
        generation: Some(Generation([7; 16])),
        devices: vec![
            Device::Rng,
            Device::Balloon,
            Device::Console(ConsoleSize::default()),
            Device::Vsock { cid: 3 },
        ],
    };
    let incoming = VmConfig {
        boot: Boot::Incoming,
        generation: None,
        ..fresh.clone()
    };
    let status = vmm::Reply::Status(vmm::Status {
        phase: vmm::Phase::Running,
        epoch: 3,
        vcpus: 2,
        memory_bytes: 256 << 20,
        exits: vec![10, 20],
        cpu_ns: vec![30, 40],
        serial_bytes: 99,
        private_at: Vec::new(),
        missing_chunks: 0,
        changes_since: None,
        devices: Vec::new(),
    });
    let round = mover::RoundDone {
        pages: 10,
        ..mover::RoundDone::default()
    };
    let config = mover::MoverConfig {
        transfer: 7,
        side: mover::Side::Source,
        memory_bytes: 256 << 20,
        hosts: Vec::new(),
        certificate: mover::Bytes(vec![1, 2, 3]),
        key: mover::Bytes(vec![4, 5]),
        peer_sha256: DIGEST.parse()?,
        streams: 4,
        idle_timeout_ms: 30_000,
    };
    let refused = vmm::Reply::Refused {
        reason: "The VM is not paused".into(),
    };
    let failed = mover::Event::Failed {
        reason: "The peer was silent".into(),
    };
    Ok(vec![
        ("vmm-config", "fresh", text(&fresh)?),
        ("vmm-config", "incoming", text(&incoming)?),
        (
            "vmm-messages",
            "hello",
            text(&vmm::Request::Hello { versions: vec![1] })?,
        ),
        (
            "vmm-messages",
            "run",
            text(&vmm::Request::Run { epoch: 3 })?,
        ),
        (
            "vmm-messages",
            "stop",
            text(&vmm::Request::Stop { force: false })?,
        ),
        ("vmm-messages", "status", text(&status)?),
        (
            "vmm-messages",
            "dirty",
            text(&vmm::Reply::Dirty { pages: 7 })?,
        ),
        ("vmm-messages", "refused", text(&refused)?),
        ("mover-messages", "config", text(&config)?),
        ("mover-messages", "round", text(&mover::Command::Round)?),
        (
            "mover-messages",
            "round-done",
            text(&mover::Event::RoundDone(round))?,
        ),
        (
            "mover-messages",
            "complete",
            text(&mover::Event::Complete(Default::default()))?,
        ),
        (
            "mover-messages",
            "progress",
            text(&mover::Event::Progress(Default::default()))?,
        ),
        ("mover-messages", "failed", text(&failed)?),
    ])
}

fn launcher() -> Made<Vec<Seed>> {
    let id: launch::ChildId = "vm-1".parse()?;
    let spawn_vmm = launch::Request::SpawnVmm {
        template: None,
        id: id.clone(),
        memory_bytes: 256 << 20,
        config: json!({ "id": "vm-1", "vcpus": 2 }),
        file_bytes: 1 << 30,
        huge_pages: true,
        vcpus: 2,
        nics: Vec::new(),
    };
    let spawn_mover = launch::Request::SpawnMover {
        id: "m-1".parse()?,
        vm: id.clone(),
        side: launch::Side::Source,
        config: json!({ "streams": 4 }),
    };
    let child = launch::Child {
        id: id.clone(),
        kind: launch::ChildKind::Vmm,
        vm: id.clone(),
        pid: 77,
        state: launch::ChildState::Exited {
            code: Some(0),
            signal: None,
            last_words: Some("guest: power-off".into()),
        },
    };
    let hello = launch::Reply::Hello {
        version: 1,
        kvm: true,
        userfaultfd: false,
    };
    let children = launch::Reply::Children {
        children: vec![child],
    };
    Ok(vec![
        ("launcher-messages", "spawn-vmm", text(&spawn_vmm)?),
        ("launcher-messages", "spawn-mover", text(&spawn_mover)?),
        (
            "launcher-messages",
            "kill",
            text(&launch::Request::Kill { id })?,
        ),
        ("launcher-messages", "watch", text(&launch::Request::Watch)?),
        ("launcher-messages", "hello", text(&hello)?),
        ("launcher-messages", "children", text(&children)?),
    ])
}

fn vm() -> serde_json::Value {
    json!({
        "id": "01936f3e-0000-7000-8000-000000000001", "project": "default", "name": "web-1",
        "spec": {
            "kernel": DIGEST, "cmdline": "console=ttyS0", "memory_bytes": 268_435_456, "vcpus": 2,
            "restart": "on-crash", "tags": { "tier": "small" },
        },
        "template": "dwcp/worker@0.1.0", "desired": "running", "phase": "running", "reason": "", "host": "left",
        "epoch": 3, "created_ms": 1, "started_ms": 2,
        "placement": {
            "decision": "d-1", "plugin": "dwcp/placement-default@0.1.0", "host": "left", "score": 0.75,
            "reasons": ["most room"], "alternatives": ["right"],
        },
    })
}

fn migration() -> serde_json::Value {
    json!({
        "id": "01936f3e-0000-7000-8000-000000000002", "vm": "01936f3e-0000-7000-8000-000000000001",
        "project": "default", "vm_name": "web-1", "from": "left", "to": "right", "side": "source",
        "phase": "copying", "reason": "", "epoch": 4, "started_ms": 5,
        "progress": {
            "round": 1, "pages_sent": 2, "pages_total": 3, "wire_bytes": 4, "dirty_pages_per_s": 1.5,
            "rate_bytes_per_s": 2.5,
        },
        "rounds": [{
            "number": 1, "pages": 2, "zero_pages": 1, "wire_bytes": 4, "duration_ms": 5, "dirty_pages": 6,
            "decision": "another round",
        }],
    })
}

fn records() -> Made<Vec<Seed>> {
    let create = json!({
        "name": "web-1", "template": "dwcp/worker", "parameters": { "memory_mib": "512" }, "vcpus": 2, "start": false,
    });
    let host = json!({ "name": "right", "address": "192.0.2.7:4600", "fingerprint": DIGEST });
    let given = Ownership::Given {
        next: 4,
        to: "right".parse()?,
        migration: "m-1".into(),
    };
    Ok(vec![
        ("records", "create", text(&create)?),
        ("records", "host", text(&host)?),
        ("records", "vm", text(&vm())?),
        ("records", "migration", text(&migration())?),
        ("records", "given", text(&given)?),
    ])
}

fn session() -> Made<Vec<Seed>> {
    let offer = json!({
        "migration": "01936f3e-0000-7000-8000-000000000002", "transfer": 7, "vm": vm(), "epoch": 3,
        "certificate_sha256": DIGEST, "streams": 4, "cpu_features": ["avx2", "sse4_2"],
    });
    let asks = [
        json!("hello"),
        json!({ "offer": offer }),
        json!({ "image": { "digest": DIGEST, "label": "kernel", "size_bytes": 10 } }),
        json!("prepare"),
        json!({ "commit": { "epoch": 4 } }),
    ];
    let replies = [
        json!({ "hello": { "name": "right", "region": "home", "capacity": {
            "cpus": 8, "vcpus_used": 2, "memory_bytes": 1, "memory_used_bytes": 1, "vms": 1,
        } } }),
        json!({ "accepted": { "epoch": 4, "certificate_sha256": DIGEST, "missing": [DIGEST] } }),
        json!("done"),
        json!({ "took": { "epoch": 4 } }),
        json!({ "outcome": { "epoch": 4, "outcome": "took" } }),
        json!({ "refused": { "reason": "There is no room" } }),
    ];
    let end = [
        json!({ "outcome": { "vm": "v", "epoch": 4 } }),
        json!({ "abort": { "reason": "no" } }),
    ];
    Ok(vec![
        ("session", "questions", framed(&asks)?),
        ("session", "answers", framed(&replies)?),
        ("session", "end", framed(&end)?),
        ("session", "offer", text(&offer)?),
    ])
}

/// As a session carries messages: each behind its length.
fn framed(messages: &[serde_json::Value]) -> Made<Vec<u8>> {
    let mut bytes = Vec::new();
    for message in messages {
        let body = text(message)?;
        bytes.extend(u32::try_from(body.len())?.to_le_bytes());
        bytes.extend(body);
    }
    Ok(bytes)
}

fn names() -> Vec<Seed> {
    let digest = format!("sha256:{DIGEST}");
    vec![
        ("names", "name", b"web-1".to_vec()),
        (
            "names",
            "reference",
            b"dwcp/placement-default@0.1.0-beta.1".to_vec(),
        ),
        ("names", "digest", digest.into_bytes()),
        ("names", "fingerprint", DIGEST.into()),
        ("names", "log-key", log_key().into_bytes()),
        ("names", "public-key", public_key().into_bytes()),
    ]
}

fn log_key() -> String {
    dwcp_audit::Signer::from_seed("left.example/log", &[1; 32])
        .map(|signer| signer.verifier().to_string())
        .unwrap_or_default()
}

fn public_key() -> String {
    dwcp_marketplace::SigningKey::generate()
        .and_then(|key| key.public_pem())
        .unwrap_or_default()
}

/// Two messages as a channel sends them, taken three bytes at a time.
fn channel() -> Made<Vec<u8>> {
    use std::io::Read;
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair()?;
    let mut channel = Channel::new(ours);
    channel.send(&vmm::Request::Run { epoch: 3 }, &[])?;
    channel.send(
        &json!({ "refused": { "reason": "The VM is not paused" } }),
        &[],
    )?;
    drop(channel);
    let mut bytes = vec![2];
    theirs.read_to_end(&mut bytes)?;
    Ok(bytes)
}
