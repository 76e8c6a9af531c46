//! Seeds of files: kernels, device states, audit logs, marketplaces.

use dwcp_vmm::config::Generation;
use dwcp_vmm::state::StateWriter;
use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};

use crate::{Made, Seed};

/// All of them.
pub fn seeds() -> Made<Vec<Seed>> {
    let mut seeds = vec![
        ("kernel", "vmlinux", elf(None)),
        ("kernel", "pvh", elf(Some(0x10_0000))),
        ("kernel", "bzimage", bzimage()),
        ("device-state", "two-vcpus", device_state()?),
    ];
    seeds.extend(audit());
    seeds.extend(marketplace());
    Ok(seeds)
}

/// An ELF kernel of one segment, with a note that names a PVH entry or without; no initial RAM disk.
fn elf(pvh_entry: Option<u32>) -> Vec<u8> {
    const HEADER: u64 = 64;
    const ENTRY: u64 = 56;
    let segments = 1 + u16::from(pvh_entry.is_some());
    let content_at = HEADER + u64::from(segments) * ENTRY;
    let code = [0xf4u8; 16]; // hlt
    let mut bytes = vec![0; 4];
    bytes.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]); // an executable for x86-64
    bytes.extend(0x10_0000u64.to_le_bytes());
    bytes.extend(HEADER.to_le_bytes());
    bytes.extend([0; 8 + 4]);
    bytes.extend([64, 0, 56, 0]);
    bytes.extend(segments.to_le_bytes());
    bytes.extend([64, 0, 0, 0, 0, 0]);
    let segment = |kind: u32, offset: u64, address: u64, length: u64| {
        let mut entry = [kind.to_le_bytes(), 5u32.to_le_bytes()].concat();
        for word in [offset, address, address, length, length, 8] {
            entry.extend(word.to_le_bytes());
        }
        entry
    };
    bytes.extend(segment(1, content_at, 0x10_0000, code.len() as u64));
    let mut note = Vec::new();
    if let Some(entry) = pvh_entry {
        for word in [4u32, 4, 18] {
            note.extend(word.to_le_bytes()); // Xen's XEN_ELFNOTE_PHYS32_ENTRY
        }
        note.extend(b"Xen\0");
        note.extend(entry.to_le_bytes());
        bytes.extend(segment(
            4,
            content_at + code.len() as u64,
            0,
            note.len() as u64,
        ));
    }
    bytes.extend(code);
    bytes.extend(note);
    bytes
}

/// A bzImage of one sector of set-up and a little code, with an initial RAM disk of a page.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1; // sectors of set-up
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x200..0x202].copy_from_slice(&[0xeb, 0x66]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1; // loaded high
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x230..0x234].copy_from_slice(&0x20_0000u32.to_le_bytes());
    image[0x234] = 1; // relocatable
    image[0x236] = 1; // has a 64-bit entry
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x80_0000u32.to_le_bytes());
    image.extend([0xf4; 1024]);
    [&4096u32.to_le_bytes(), &image[..]].concat()
}

/// A state of two vCPUs as after a reset. The tuples have the fields of the VMM's own types.
fn device_state() -> Made<Vec<u8>> {
    let mut state = StateWriter::new();
    state.put("machine", 1, &(2u8, 256u64 << 20))?;
    for index in 0..2 {
        let cpuid = kvm_cpuid_entry2 {
            function: 1,
            ..Default::default()
        };
        let msr = kvm_msr_entry {
            index: 0x10,
            data: 5,
            ..Default::default()
        };
        let vcpu = (
            vec![cpuid],
            2_000_000u32,
            kvm_mp_state::default(),
            kvm_regs::default(),
            kvm_sregs::default(),
            Box::new(kvm_xsave::default()),
            Some(kvm_xcrs::default()),
            kvm_debugregs::default(),
            Box::new(kvm_lapic_state::default()),
            vec![msr],
            kvm_vcpu_events::default(),
        );
        state.put(&format!("vcpu.{index}"), 1, &vcpu)?;
    }
    state.put("kvm", 1, &(kvm_clock_data::default(), 7u64))?;
    state.put("ioapic", 1, &(0u8, 0u8, [1u64 << 16; 24], 0u32))?;
    let serial = (
        1u8,
        0u8,
        0u8,
        1u8,
        3u8,
        0x60u8,
        8u8,
        0xb0u8,
        0u8,
        vec![b'x'],
    );
    state.put("serial", 1, &serial)?;
    state.put("power", 1, &(0u16, 0u16, 1u16))?;
    state.put("generation", 1, &Generation([7; 16]))?;
    state.put("pci", 1, &0x8000_0800u32)?;
    let state = state.finish();
    // What the VMM would refuse is no start for a search.
    dwcp_vmm::fuzzing::read_device_state(&state)?;
    Ok(state)
}

/// Steps: 9 an entry, 1 a commit, 7 its hashes, 4 raw bytes, 6 a cut, 5 a new segment.
fn audit() -> Vec<Seed> {
    let text = "fuzz.example/log\n3\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
    let kept = r#"{"note":"n","tree":{"size":1,"roots":["47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="]}}"#;
    let note = format!("{text}\n\u{2014} fuzz.example/log AAAAAAAA\n");
    let mut proof = vec![5];
    for number in [2u64, 3] {
        proof.extend(number.to_le_bytes());
    }
    proof.extend([0, 2, 255, 3, 2, 0, 3, 1, 0, 2, 0]);
    vec![
        ("audit-log", "two-groups", vec![9, 9, 1, 7, 9, 1, 7]),
        ("audit-log", "torn", vec![9, 1, 7, 9, 9, 1, 6, 20, 0]),
        (
            "audit-log",
            "two-segments",
            vec![9, 1, 7, 5, 9, 1, 4, 3, 0, 1, 2, 3],
        ),
        ("audit-log", "foreign", vec![0, 2, 0, b'{', b'}', 2, 7]),
        ("audit-proofs", "checkpoint", text.into()),
        ("audit-proofs", "note", note.into_bytes()),
        ("audit-proofs", "kept", kept.into()),
        ("audit-proofs", "proof", proof),
    ]
}

fn marketplace() -> Vec<Seed> {
    let index = r#"{"schemaVersion":2,"manifests":[
{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%D1","size":%S1,
"annotations":{"org.opencontainers.image.ref.name":"dwcp/x:0.1.0"}},
{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%D2","size":%S2,
"annotations":{"org.opencontainers.image.ref.name":"dwcp/x:sha256-0.sig"}}]}"#;
    let manifest = |config: &str, layer: &str| {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"%D4","size":%S4}},
"layers":[{{"mediaType":"{layer}","digest":"%D5","size":%S5,
"annotations":{{"org.opencontainers.image.title":"a"}}}}],
"annotations":{{"org.opencontainers.image.vendor":"dwcp","org.opencontainers.image.title":"x",
"org.opencontainers.image.version":"0.1.0","org.opencontainers.image.licenses":"Apache-2.0"}}}}"#
        )
    };
    let signatures = r#"{"schemaVersion":2,
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%D5","size":%S5},
"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"%D3","size":%S3,
"annotations":{"dev.cosignproject.cosign/signature":"MEUCIQ=="}}]}"#;
    let payload = r#"{"critical":{"identity":{"docker-reference":"dwcp/x"},
"image":{"docker-manifest-digest":"sha256:0"},"type":"cosign container image signature"},"optional":null}"#;
    let plugin = manifest("application/vnd.wasm.config.v0+json", "application/wasm");
    let plugin_config = r#"{"architecture":"wasm","os":"wasip2","layerDigests":["%D5"],
"component":{"exports":["a"],"imports":["b"],"target":"dwcp:placement/placement@0.1.0"}}"#;
    let template = manifest(
        "application/vnd.dwcp.template.config.v1+json",
        "application/vnd.dwcp.template.v1+toml",
    );
    let template_config = r#"{"expander":"dwcp/template-default@0.1.0"}"#;
    let join = |manifest: &str, config: &str| {
        let texts = [index, manifest, signatures, payload, config, "{}"];
        texts.map(str::as_bytes).join(&0xff)
    };
    vec![
        ("marketplace", "plugin", join(&plugin, plugin_config)),
        ("marketplace", "template", join(&template, template_config)),
    ]
}
