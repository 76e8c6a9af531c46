//! The configuration: a TOML file, flags over it, and a value for every key that neither gives.
//!
//! Every key is documented in the book ("The configuration file"), and a key that is not known is refused by name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Parser;
use dwcp_control::Name;
use dwcp_control::records::CpuBaseline;
use dwcp_node::{NodeConfig, TrustedKey};
use serde::Deserialize;

/// Where the configuration is looked for when no flag names it.
const FILE: &str = "/etc/dwcp/dwcpd.toml";
/// The user that the daemon becomes when it is started by root and no user `dwcp` exists.
pub(crate) const UID_DEFAULT: u32 = 64_100;

/// The DWCP daemon: API, store, plugins and migration of one host.
///
/// Started as root it starts dwcp-launch if none answers, and then becomes an ordinary user for good. Without any
/// configuration it makes its state, its certificate authority and an admin key, and listens on loopback.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Arguments {
    /// The configuration file [default: /etc/dwcp/dwcpd.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything durable lies [default: /var/lib/dwcp]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// This host's name [default: the machine's host name]
    #[arg(long)]
    name: Option<String>,
    /// This host's region [default: its name]
    #[arg(long)]
    region: Option<String>,
    /// Where the API listens [default: 127.0.0.1:4610]
    #[arg(long, value_name = "IP:PORT")]
    api_listen: Option<SocketAddr>,
    /// Where other hosts connect [default: 127.0.0.1:4600]
    #[arg(long, value_name = "IP:PORT")]
    peer_listen: Option<SocketAddr>,
    /// The launcher's socket [default: launch.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    launch_socket: Option<PathBuf>,
    /// The user to become when started by root: a name or a number [default: dwcp, or 64100]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Check the configuration, say what it comes to, and end
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    name: Option<String>,
    region: Option<String>,
    state: Option<PathBuf>,
    user: Option<String>,
    api: Listen,
    peer: Listen,
    launcher: Launcher,
    marketplace: Marketplace,
    plugins: Plugins,
    capacity: Capacity,
    cpu: Cpu,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Listen {
    listen: Option<SocketAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Launcher {
    socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Marketplace {
    layout: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Plugins {
    trusted_keys: Vec<KeyFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    name: String,
    file: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Capacity {
    vcpus_per_cpu: Option<u32>,
    memory_mib: Option<u64>,
    fork_shells: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Cpu {
    baseline: CpuBaseline,
}

/// What the daemon was told, completed.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) node: NodeConfig,
    /// The user to become: a name or a number.
    pub(crate) user: Option<String>,
}

impl Config {
    /// Reads file and flags.
    pub(crate) fn read(arguments: &Arguments) -> anyhow::Result<Self> {
        let file = match &arguments.config {
            Some(path) => parse(path)?,
            None if Path::new(FILE).exists() => parse(Path::new(FILE))?,
            None => File::default(),
        };
        let name = arguments
            .name
            .clone()
            .or(file.name)
            .map_or_else(host_name, |text| Name::new(text).context("`name`"))?;
        let region = match arguments.region.clone().or(file.region) {
            Some(text) => Name::new(text).context("`region`")?,
            None => name.clone(),
        };
        let state_dir = arguments
            .state
            .clone()
            .or(file.state)
            .unwrap_or_else(|| "/var/lib/dwcp".into());
        let state_dir = std::path::absolute(state_dir)?;
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let vcpus_per_cpu = file.capacity.vcpus_per_cpu.unwrap_or(8);
        if !(1..=64).contains(&vcpus_per_cpu) {
            bail!("`capacity.vcpus_per_cpu` is from 1 to 64, not {vcpus_per_cpu}");
        }
        let fork_shells = file.capacity.fork_shells.unwrap_or(2);
        if fork_shells > 16 {
            bail!("`capacity.fork_shells` is at most 16, not {fork_shells}");
        }
        let mut trusted_keys = Vec::new();
        for key in &file.plugins.trusted_keys {
            trusted_keys.push(read_key(&key.name, &key.file)?);
        }
        let mut marketplace = file.marketplace.layout;
        if marketplace.is_none()
            && let Some(bundled) = bundled_marketplace()
        {
            // What came with this program is as trusted as the program.
            trusted_keys.push(read_key("bundled", &bundled.join("cosign.pub"))?);
            marketplace = Some(bundled);
        }
        Ok(Self {
            node: NodeConfig {
                name,
                region,
                launch_socket: arguments
                    .launch_socket
                    .clone()
                    .or(file.launcher.socket)
                    .unwrap_or_else(|| state_dir.join("launch.sock")),
                api_listen: arguments
                    .api_listen
                    .or(file.api.listen)
                    .unwrap_or_else(|| loopback(4610)),
                peer_listen: arguments
                    .peer_listen
                    .or(file.peer.listen)
                    .unwrap_or_else(|| loopback(4600)),
                marketplace,
                trusted_keys,
                vcpus_per_cpu,
                cpu_baseline: file.cpu.baseline,
                fork_shells,
                memory_bytes: file.capacity.memory_mib.map(|mib| mib << 20),
                state_dir,
            },
            user: arguments.user.clone().or(file.user),
        })
    }
}

fn parse(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("The configuration {} cannot be read", path.display()))?;
    toml::from_str(&text).with_context(|| format!("The configuration {}", path.display()))
}

fn read_key(name: &str, file: &Path) -> anyhow::Result<TrustedKey> {
    let pem = std::fs::read_to_string(file)
        .with_context(|| format!("The trusted key {} cannot be read", file.display()))?;
    Ok(TrustedKey {
        name: name.into(),
        pem,
    })
}

/// The marketplace that lies beside the program: installed (`../share/dwcp/marketplace`), or in a build directory.
fn bundled_marketplace() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let dir = program.parent()?;
    [
        "marketplace",
        "../share/dwcp/marketplace",
        "../../marketplace",
    ]
    .iter()
    .map(|place| dir.join(place))
    .find(|place| place.join("oci-layout").exists() && place.join("cosign.pub").exists())
    .and_then(|place| place.canonicalize().ok())
}

/// The machine's host name as far as it is a name, else `host`.
fn host_name() -> anyhow::Result<Name> {
    let text = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    let text: String = text
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let text = text.trim_matches('-');
    Name::new(text)
        .or_else(|_| Name::new(format!("host-{text}")))
        .or_else(|_| Name::new("host"))
        .context("The host's own name makes none for DWCP: set `name`")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn arguments(extra: &[&str]) -> Arguments {
        Arguments::parse_from(["dwcpd"].iter().chain(extra))
    }

    #[test]
    fn nothing_configured_is_enough() {
        let config = Config::read(&arguments(&[])).unwrap();
        assert!(config.node.api_listen.ip().is_loopback());
        assert!(config.node.peer_listen.ip().is_loopback());
        assert_eq!(config.node.region, config.node.name);
    }

    #[test]
    fn flags_win_over_the_file_and_unknown_keys_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dwcpd.toml");
        std::fs::write(
            &path,
            "name = \"left\"\nregion = \"north\"\n[capacity]\nmemory_mib = 512\nfork_shells = 0\n",
        )
        .unwrap();
        let given = path.to_str().unwrap();
        let config = Config::read(&arguments(&["--config", given, "--name", "right"])).unwrap();
        assert_eq!(config.node.name.as_str(), "right");
        assert_eq!(config.node.region.as_str(), "north");
        assert_eq!(config.node.memory_bytes, Some(512 << 20));
        assert_eq!(config.node.fork_shells, 0);
        std::fs::write(&path, "nmae = \"left\"\n").unwrap();
        let error = Config::read(&arguments(&["--config", given])).unwrap_err();
        assert!(format!("{error:#}").contains("nmae"), "{error:#}");
    }

    #[test]
    fn the_units_agree_on_the_launchers_socket() {
        let launcher = include_str!("../../launch/systemd/dwcp-launch.service");
        let daemon = include_str!("../../launch/systemd/dwcpd.service");
        let value = |unit: &'static str, key: &str| {
            let mut lines = unit.lines();
            lines
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .unwrap()
        };
        let mut words = value(launcher, "ExecStart").split_whitespace();
        words.find(|word| *word == "--socket").unwrap();
        let socket = Path::new(words.next().unwrap());
        let started = value(daemon, "ExecStart").split_whitespace();
        let config = Config::read(&Arguments::parse_from(started)).unwrap();
        assert_eq!(config.node.launch_socket, socket);
        let made = Path::new("/run").join(value(launcher, "RuntimeDirectory"));
        assert_eq!(socket.parent(), Some(made.as_path()));
        let state = Path::new("/var/lib").join(value(daemon, "StateDirectory"));
        assert_eq!(config.node.state_dir, state);
    }
}
