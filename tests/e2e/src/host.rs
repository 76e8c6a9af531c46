//! One host of the bed: its namespace, its launcher, its daemon, and a client of its API.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dwcp_sdk::{Client, Profile};
use dwcp_wan::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::programs::Programs;

/// How long a program may take to come up. Generous, for a busy machine: nothing is measured with it.
pub(crate) const COMES_UP: Duration = Duration::from_secs(120);
/// The user that the daemons become.
const DAEMON_UID: u32 = 64_100;

/// What a host is made with.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Its name, which is its region's too.
    pub name: String,
    /// Where the API listens: an address of its management interface.
    pub api: String,
    /// Where other hosts connect: its address on the emulated WAN.
    pub peer: String,
    /// First user id of its machines.
    pub uid_base: u32,
    /// The socket at which its daemon announces steps, if a test wants to hear them.
    pub steps: Option<PathBuf>,
    /// What stands beside the usual in its daemon's configuration.
    pub config: String,
}

/// A program of a host, which ends with its holder: also where a start is given up half-way.
#[derive(Debug)]
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// A host.
#[derive(Debug)]
pub struct TestHost {
    // Dropped in this order: the daemon before the launcher, both before their namespace.
    daemon: Option<Program>,
    launcher: Option<Program>,
    options: HostOptions,
    dir: PathBuf,
    programs: Programs,
    namespace: Namespace,
    client: Client,
}

impl TestHost {
    /// Makes a host in `namespace`, its files in `dir`.
    pub fn start(
        programs: &Programs,
        namespace: Namespace,
        dir: PathBuf,
        options: HostOptions,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(dir.join("state"))?;
        nix::unistd::chown(
            &dir.join("state"),
            Some(DAEMON_UID.into()),
            Some(DAEMON_UID.into()),
        )?;
        write_config(&dir, programs, &options)?;
        let launcher = start_launcher(programs, &namespace, &dir, &options)?;
        let (daemon, profile) = start_daemon(programs, &namespace, &dir, &options)?;
        let client = Client::new(profile)?;
        Ok(Self {
            options,
            dir,
            programs: programs.clone(),
            namespace,
            launcher: Some(launcher),
            daemon: Some(daemon),
            client,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// A client of its API, with the admin key.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where its API listens.
    pub fn api(&self) -> &str {
        &self.options.api
    }

    /// Where other hosts connect.
    pub fn peer_address(&self) -> &str {
        &self.options.peer
    }

    /// The directory of its files: logs, configuration, state.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory with the command line's profile (`XDG_CONFIG_HOME`).
    pub fn profile_dir(&self) -> PathBuf {
        self.dir.join("profile")
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// What a machine printed on its serial line here so far.
    pub fn serial_log(&self, vm: &str) -> String {
        let path = self.dir.join("state/vms").join(vm).join("serial.log");
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
    }

    /// The children of its launcher.
    pub fn children(&self) -> anyhow::Result<Vec<dwcp_launch::protocol::Child>> {
        let mut client = dwcp_launch::Client::connect(&self.dir.join("launch.sock"))?;
        Ok(client.list()?)
    }

    /// Kills the daemon as a crash would (SIGKILL). Machines and launcher go on.
    pub fn kill_daemon(&mut self) -> anyhow::Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.0.kill()?;
            daemon.0.wait()?;
        }
        Ok(())
    }

    /// Starts the daemon again.
    pub fn restart_daemon(&mut self) -> anyhow::Result<()> {
        ensure!(self.daemon.is_none(), "The daemon of {} runs", self.name());
        let (daemon, _) = start_daemon(&self.programs, &self.namespace, &self.dir, &self.options)?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Kills the launcher as a crash would (SIGKILL). Its children end with it.
    pub fn kill_launcher(&mut self) -> anyhow::Result<()> {
        if let Some(mut launcher) = self.launcher.take() {
            launcher.0.kill()?;
            launcher.0.wait()?;
        }
        Ok(())
    }

    /// Starts the launcher again.
    pub fn restart_launcher(&mut self) -> anyhow::Result<()> {
        ensure!(
            self.launcher.is_none(),
            "The launcher of {} runs",
            self.name()
        );
        let launcher = start_launcher(&self.programs, &self.namespace, &self.dir, &self.options)?;
        self.launcher = Some(launcher);
        Ok(())
    }

    /// Ends daemon and launcher; the launcher ends its children.
    pub fn stop(&mut self) {
        drop(self.daemon.take());
        drop(self.launcher.take());
    }
}

/// SIGTERM, then SIGKILL to a program that does not end. Done also when it has ended.
pub(crate) fn end(child: &mut Child) {
    // One that was waited for has an id no more: somebody else may have it.
    if let Ok(Some(_)) = child.try_wait() {
        return;
    }
    let pid = Pid::from_raw(child.id() as i32);
    let _ = kill(pid, Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(15);
    while Instant::now() < deadline {
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn log(path: &Path) -> anyhow::Result<fs::File> {
    Ok(fs::File::options().create(true).append(true).open(path)?)
}

fn write_config(dir: &Path, programs: &Programs, options: &HostOptions) -> anyhow::Result<()> {
    // The daemon is an ordinary user, who need not be able to reach the build directory.
    let marketplace = dir.join("marketplace");
    copy_tree(programs.marketplace(), &marketplace)?;
    let text = format!(
        r#"name = "{name}"
region = "{name}"
state = "{state}"
user = "{DAEMON_UID}"

[api]
listen = "{api}"

[peer]
listen = "{peer}"

[launcher]
socket = "{launcher}"

[marketplace]
layout = "{marketplace}"

[[plugins.trusted_keys]]
name = "build"
file = "{key}"

{more}
"#,
        name = options.name,
        more = options.config,
        state = dir.join("state").display(),
        api = options.api,
        peer = options.peer,
        launcher = dir.join("launch.sock").display(),
        key = marketplace.join("cosign.pub").display(),
        marketplace = marketplace.display(),
    );
    fs::write(dir.join("dwcpd.toml"), text)?;
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Starts the launcher and waits until it answers.
fn start_launcher(
    programs: &Programs,
    namespace: &Namespace,
    dir: &Path,
    options: &HostOptions,
) -> anyhow::Result<Program> {
    let launcher = namespace
        .command(programs.path("dwcp-launch"))?
        .arg("--socket")
        .arg(dir.join("launch.sock"))
        .arg("--allow-uid")
        .arg(DAEMON_UID.to_string())
        .arg("--uid-base")
        .arg(options.uid_base.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log(&dir.join("launcher.log"))?)
        .spawn()
        .map(Program)
        .context("The launcher does not start")?;
    let deadline = Instant::now() + COMES_UP;
    while dwcp_launch::Client::connect(&dir.join("launch.sock")).is_err() {
        ensure!(
            Instant::now() < deadline,
            "The launcher of {} does not answer; see {}",
            options.name,
            dir.join("launcher.log").display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(launcher)
}

/// Starts the daemon and waits until it says that it listens; answers with the admin's profile.
fn start_daemon(
    programs: &Programs,
    namespace: &Namespace,
    dir: &Path,
    options: &HostOptions,
) -> anyhow::Result<(Program, Profile)> {
    let mut command = namespace.command(programs.path("dwcpd"))?;
    command
        .arg("--config")
        .arg(dir.join("dwcpd.toml"))
        .env("XDG_CONFIG_HOME", dir.join("profile"))
        .env_remove("DWCP_STEPS")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log(&dir.join("dwcpd.log"))?);
    if let Some(steps) = &options.steps {
        command.env("DWCP_STEPS", steps);
    }
    let mut daemon = command
        .spawn()
        .map(Program)
        .context("dwcpd does not start")?;
    let out = daemon.0.stdout.take().context("dwcpd has an output")?;
    let mut lines = BufReader::new(out).lines();
    let mut up = false;
    for line in lines.by_ref() {
        if line?.contains("other hosts") {
            up = true;
            break;
        }
    }
    if !up {
        drop(daemon);
        let log = fs::read_to_string(dir.join("dwcpd.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        bail!(
            "dwcpd of {} did not come up; it said last: {}",
            options.name,
            tail.into_iter().rev().collect::<Vec<_>>().join(" / ")
        );
    }
    Ok((daemon, profile(dir)?))
}

fn profile(dir: &Path) -> anyhow::Result<Profile> {
    let text = fs::read_to_string(dir.join("profile/dwcp/config.toml"))
        .context("dwcpd wrote no profile")?;
    let file: toml::Table = toml::from_str(&text)?;
    let field = |name: &str| -> anyhow::Result<String> {
        let found = file
            .get("profiles")
            .and_then(|p| p.get("default"))
            .and_then(|p| p.get(name))
            .and_then(toml::Value::as_str);
        Ok(found.context("The profile lacks a field")?.to_owned())
    };
    Ok(Profile {
        address: field("address")?,
        ca_pem: field("ca")?,
        api_key: field("key")?,
    })
}
