//! Debian's `docker-registry` on loopback, and `skopeo`, which brings images there.
//!
//! What always holds: the registry ends when it is dropped, and its files are in a directory of the test's own.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// Who may use a registry that asks: `ada`, with this password.
pub const PASSWORD: &str = "open sesame";
/// The password's bcrypt.
const HASH: &str = "$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";

/// A registry that runs.
pub struct Registry {
    /// `127.0.0.1` and its port.
    pub address: String,
    files: PathBuf,
    process: Child,
}

/// A certificate's file, and its key's.
pub struct Identity<'a> {
    pub certificate: &'a Path,
    pub key: &'a Path,
}

impl Registry {
    /// Starts one; with an identity it speaks TLS and asks who somebody is.
    pub fn start(files: &Path, identity: Option<Identity<'_>>) -> Self {
        std::fs::create_dir_all(files).unwrap();
        let mut configuration = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            files.display()
        );
        if let Some(identity) = identity {
            let users = files.join("users");
            std::fs::write(&users, format!("ada:{HASH}\n")).unwrap();
            configuration += &format!(
                "  tls:\n    certificate: {}\n    key: {}\nauth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                identity.certificate.display(),
                identity.key.display(),
                users.display()
            );
        }
        let path = files.join("config.yml");
        std::fs::write(&path, configuration).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(path);
        command.env("OTEL_TRACES_EXPORTER", "none");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: between fork and exec, this makes one system call and touches no memory of ours.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = lines.by_ref().find_map(|line| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("listening on ")?;
            Some(rest.split([',', '"', ' ']).next().unwrap().to_owned())
        });
        // Who does not read what it says stops it.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            address: address.expect("docker-registry does not listen"),
            files: files.to_owned(),
            process,
        }
    }

    /// Brings an image of a layout here, all platforms of it.
    pub fn push(&self, layout: &Path, tag: &str, name: &str) {
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--all", "--preserve-digests"]);
        command.args(["--dest-tls-verify=false", "--dest-creds"]);
        command.arg(format!("ada:{PASSWORD}"));
        command.arg(format!("oci:{}:{tag}", layout.display()));
        command.arg(format!("docker://{}/{name}", self.address));
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "skopeo, {tag}: {said}");
    }

    /// Where a blob is stored.
    pub fn blob(&self, hex: &str) -> PathBuf {
        let blobs = self.files.join("docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
