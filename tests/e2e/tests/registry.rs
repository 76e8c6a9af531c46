//! Disks come from a real registry: what others have pushed there becomes a machine, and what is missing, foreign,
//! altered or not for everybody is said in a sentence.

#![allow(clippy::unwrap_used)]

#[path = "registry/layout.rs"]
mod layout;
#[path = "registry/real.rs"]
mod real;
#[path = "images/vendor.rs"]
mod vendor;

use std::path::Path;
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dwcp_e2e::{Bed, BedOptions, Programs};
use layout::{Layout, TAR, archive, hex};
use real::{Identity, PASSWORD, Registry};
use serde_json::{Value, json};

const NAME: &str = "disks_come_from_a_registry";
const REGISTRY_TOOLS: [&str; 2] = ["docker-registry", "skopeo"];

#[tokio::test(flavor = "multi_thread")]
async fn disks_come_from_a_registry() {
    let mut tools = vendor::TOOLS.iter().chain(&REGISTRY_TOOLS);
    if let Some(tool) = tools.find(|tool| !vendor::is_there(tool)) {
        println!("SKIPPED {NAME}: there is no {tool}");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let disk = std::fs::read(vendor::vendor(scratch.path())).unwrap();
    let layout = scratch.path().join("layout");
    let built = build(&layout, &disk);
    let registry = Registry::start(&scratch.path().join("open"), None);
    for tag in ["container", "file", "foreign", "no-disk"] {
        registry.push(&layout, tag, &format!("disks/{tag}:1"));
    }
    let programs = Programs::find().unwrap();
    let bed = bed(&programs).await;
    let dwcp = Dwcp {
        program: programs.path("dwcp"),
        bed: &bed,
        variables: Vec::new(),
    };
    let at = |name: &str| format!("oci:{}/disks/{name}", registry.address);

    // From a layer's folder, of the image for this platform; the host looks into it as into any disk.
    let image = dwcp.json(&["image", "add", &at("container:1")]);
    assert_eq!(image["digest"], hex(&disk));
    assert_eq!(image["label"], at("container:1").trim_start_matches("oci:"));
    assert_eq!(image["disk"]["format"], "qcow2");
    assert!(image["disk"]["kernel"].is_string());
    // By digest, from a layout, and as a file that is the layer: all the same disk.
    let digest = built.container["digest"].as_str().unwrap();
    for from in [
        at(&format!("container@{digest}")),
        at("file:1"),
        format!("oci-layout:{}:container", layout.display()),
    ] {
        assert_eq!(
            dwcp.json(&["image", "add", &from])["digest"],
            hex(&disk),
            "{from}"
        );
    }
    let from = at("file:1");
    let created = [
        "vm",
        "create",
        "web",
        "--image",
        &from,
        "--memory",
        "64MiB",
        "--tag",
        "owner=ada",
    ];
    let vm = dwcp.json(&created);
    assert_eq!(vm["phase"], "running", "{vm}");
    assert_eq!(vm["spec"]["disks"][0]["image"], hex(&disk));

    for (name, said) in [
        ("container:2", "has no \"2\" in disks/container"),
        ("nothing:1", "has no \"1\" in disks/nothing"),
        (
            "foreign:1",
            "It lists no image for amd64, only for arm64, s390x",
        ),
        ("no-disk:1", "It holds no disk"),
    ] {
        dwcp.refused(&["image", "add", &at(name)], said);
    }
    alter(&registry.blob(&built.layer));
    dwcp.refused(
        &["image", "add", &at("file:1")],
        "was altered: what came has the digest",
    );
    dwcp.vm_gone("web");
    asks_who_somebody_is(scratch.path(), &layout, dwcp);
}

async fn bed(programs: &Programs) -> Bed {
    let bed = Bed::start(programs, Bed::run_id().unwrap(), &BedOptions::near()).await;
    bed.unwrap()
}

/// A registry with a certificate of its own, and with users.
fn asks_who_somebody_is(scratch: &Path, layout: &Path, mut dwcp: Dwcp<'_>) {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (scratch.join("own.pem"), scratch.join("own.key"));
    std::fs::write(&certificate, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    let identity = Identity {
        certificate: &certificate,
        key: &key,
    };
    let registry = Registry::start(&scratch.join("closed"), Some(identity));
    registry.push(layout, "container", "disks/container:1");
    let add = [
        "image",
        "add",
        &format!("oci:{}/disks/container:1", registry.address),
    ];

    dwcp.refused(
        &add,
        "to plain HTTP, and over TLS it was: invalid peer certificate",
    );
    dwcp.variables
        .push(("SSL_CERT_FILE", certificate.display().to_string()));
    dwcp.refused(&add, "asks for a login");
    let login = scratch.join("auth.json");
    dwcp.variables
        .push(("REGISTRY_AUTH_FILE", login.display().to_string()));
    for (password, is_good) in [("wrong", false), (PASSWORD, true)] {
        keep(&login, &registry.address, password);
        match is_good {
            true => assert_eq!(dwcp.json(&add)["disk"]["format"], "qcow2"),
            false => dwcp.refused(&add, "refuses the login in"),
        }
    }
}

/// Keeps a login as `podman login` does.
fn keep(file: &Path, registry: &str, password: &str) {
    let auth = STANDARD.encode(format!("ada:{password}"));
    let kept = json!({ "auths": { registry: { "auth": auth } } });
    std::fs::write(file, kept.to_string()).unwrap();
}

/// What is in the layout.
struct Built {
    container: Value,
    layer: String,
}

fn build(root: &Path, disk: &[u8]) -> Built {
    let mut layout = Layout::new(root);
    let in_folder = layout.blob(TAR, &archive("disk/vendor.qcow2", disk));
    let other = layout.blob(TAR, &archive("etc/motd", b"hello"));
    let amd64 = layout.image("amd64", &[in_folder, other.clone()]);
    let arm64 = layout.image("arm64", std::slice::from_ref(&other));
    let s390x = layout.image("s390x", &[other.clone(), other.clone()]);
    let container = layout.index(&[arm64.clone(), amd64]);
    layout.name("container", &container);
    let foreign = layout.index(&[arm64, s390x]);
    layout.name("foreign", &foreign);
    let no_disk = layout.image("amd64", &[other]);
    layout.name("no-disk", &no_disk);
    let layer = layout.file("application/x-qemu-disk", "vendor.qcow2", disk);
    let file = layout.image("amd64", &[layer]);
    layout.name("file", &file);
    Built {
        container,
        layer: hex(disk),
    }
}

/// Changes a byte in the middle of a file.
fn alter(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The command line, as a person at the left host.
struct Dwcp<'a> {
    program: std::path::PathBuf,
    bed: &'a Bed,
    variables: Vec<(&'static str, String)>,
}

impl Dwcp<'_> {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear();
        command.env("XDG_CONFIG_HOME", self.bed.left().profile_dir());
        command.env("HOME", self.bed.dir());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let done = self.run(&[arguments, &["-o", "json"]].concat());
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {said}");
        serde_json::from_slice(&done.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str], expected: &str) {
        let done = self.run(arguments);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }

    fn vm_gone(&self, name: &str) {
        let done = self.run(&["vm", "delete", name, "--force"]);
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
