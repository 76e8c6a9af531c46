//! Two hosts, *left* and *right*, each a region of its own in a network namespace of its own, joined by an emulated WAN.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use dwcp_sdk::types::HostAdd;
use dwcp_wan::{Link, LinkOptions, Namespace, Queue, RunId, Settings};

use crate::host::{HostOptions, TestHost};
use crate::programs::Programs;
use crate::steps::Steps;

/// What a bed is made with.
#[derive(Clone, Debug)]
pub struct BedOptions {
    /// What the link is like.
    pub link: Settings,
    /// Sockets at which the daemons announce steps: left, right.
    pub steps: [Option<PathBuf>; 2],
    /// What stands beside the usual in the daemons' configurations: left, right.
    pub config: [String; 2],
}

impl BedOptions {
    /// A link that nobody notices, for tests that are not about it.
    pub fn near() -> Self {
        let link = Settings {
            rate_mbit: 1000.0,
            rtt_ms: 2.0,
            loss: 0.0,
            queue: Queue::Ms(50.0),
        };
        Self {
            link,
            steps: [None, None],
            config: Default::default(),
        }
    }
}

/// Two hosts and their link.
#[derive(Debug)]
pub struct Bed {
    // Hosts go before the link and the namespaces, so that they can say goodbye.
    left: TestHost,
    right: TestHost,
    link: Option<Link>,
    run: RunId,
    dir: PathBuf,
}

impl Bed {
    /// A run id that no other run of this machine has: the process's id and a count.
    pub fn run_id() -> anyhow::Result<RunId> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Ok(RunId::new(&format!("{:x}-{count:x}", std::process::id()))?)
    }

    /// The directory of a run: where an ordinary user, as the daemons are, can reach it.
    pub fn run_dir(run: &RunId) -> PathBuf {
        std::env::temp_dir().join(format!("dwcp-{}", run.as_str()))
    }

    /// Two hosts near each other, the left one's daemon with steps to be caught at.
    pub async fn near_with_steps() -> anyhow::Result<(Self, Steps)> {
        let run = Self::run_id()?;
        let dir = Self::run_dir(&run);
        fs::create_dir_all(&dir)?;
        let steps = Steps::listen(&dir.join("steps.sock"))?;
        let options = BedOptions {
            steps: [Some(steps.path().to_owned()), None],
            ..BedOptions::near()
        };
        let bed = Self::start(&Programs::find()?, run, &options).await?;
        Ok((bed, steps))
    }

    /// Makes both hosts and their link, and introduces them to each other.
    pub async fn start(
        programs: &Programs,
        run: RunId,
        options: &BedOptions,
    ) -> anyhow::Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "Network namespaces and the launcher need root: run this as root"
        );
        let dir = Self::run_dir(&run);
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let made = Self::make(programs, &run, &dir, options);
        match made {
            Ok((left, right, link)) => {
                let bed = Self {
                    left,
                    right,
                    link: Some(link),
                    run,
                    dir,
                };
                bed.introduce().await?;
                Ok(bed)
            }
            Err(error) => {
                Namespace::remove_all(&run);
                let _ = fs::remove_dir_all(&dir);
                Err(error)
            }
        }
    }

    fn make(
        programs: &Programs,
        run: &RunId,
        dir: &Path,
        options: &BedOptions,
    ) -> anyhow::Result<(TestHost, TestHost, Link)> {
        let left = Namespace::create(run, "left")?;
        let right = Namespace::create(run, "right")?;
        let subnet = {
            // No other bed, of this program or another, finds the same one free meanwhile.
            let beds = fs::File::open(std::env::temp_dir())?;
            beds.lock()?;
            let subnet = free_subnet()?;
            connect(run, &left, subnet, 0)?;
            connect(run, &right, subnet, 1)?;
            subnet
        };
        let link = LinkOptions {
            program: programs.path("dwcp-wan"),
            control: dir.join("wan.sock"),
            left_address: "10.77.0.1/30".into(),
            right_address: "10.77.0.2/30".into(),
            settings: options.link,
            seed: 1,
        };
        let link = Link::start(&left, &right, &link)?;
        let host = |name: &str, namespace, side: u8| {
            let options = HostOptions {
                name: name.into(),
                api: format!("{}:4610", management(subnet, side, 2)),
                peer: format!("10.77.0.{}:4600", side + 1),
                uid_base: 1_879_048_192 + u32::from(side) * 256,
                steps: options.steps[usize::from(side)].clone(),
                config: options.config[usize::from(side)].clone(),
            };
            TestHost::start(programs, namespace, dir.join(name), options)
        };
        let left = host("left", left, 0)?;
        let right = host("right", right, 1)?;
        Ok((left, right, link))
    }

    async fn introduce(&self) -> anyhow::Result<()> {
        for (host, other) in [(&self.left, &self.right), (&self.right, &self.left)] {
            let about = other.client().host_this().await?;
            let add = HostAdd {
                name: other.name().into(),
                address: other.peer_address().into(),
                fingerprint: about.fingerprint,
            };
            host.client().host_add(&add).await?;
        }
        let seen = self.left.client().host_get("right").await?;
        ensure!(seen.reachable, "The hosts do not reach each other");
        Ok(())
    }

    /// The host on the left.
    pub fn left(&self) -> &TestHost {
        &self.left
    }

    /// The host on the right.
    pub fn right(&self) -> &TestHost {
        &self.right
    }

    /// One of them, 0 left or 1 right, to be killed and restarted.
    pub fn host_mut(&mut self, side: usize) -> &mut TestHost {
        if side == 0 {
            &mut self.left
        } else {
            &mut self.right
        }
    }

    /// The link between them.
    pub fn link(&mut self) -> anyhow::Result<&mut Link> {
        self.link.as_mut().context("The link is gone")
    }

    /// The run's id, which everything that was made carries.
    pub fn run(&self) -> &RunId {
        &self.run
    }

    /// The run's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.left.stop();
        self.right.stop();
        drop(self.link.take());
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Address of a management interface: side 0 or 1; 1 outside, 2 inside its namespace.
fn management(subnet: u8, side: u8, end: u8) -> String {
    format!("10.213.{subnet}.{}", side * 4 + end)
}

/// A third number of the management addresses that no interface of this machine uses.
fn free_subnet() -> anyhow::Result<u8> {
    let taken = ip(&["-4", "-o", "address", "show"])?;
    (0..=255u8)
        .find(|n| !taken.contains(&format!("10.213.{n}.")))
        .context("No management address is free on this machine")
}

/// The end outside of a host's management interface; at most 15 characters, as the kernel wants it.
pub(crate) fn outside_interface(run: &RunId, side: u8) -> String {
    let short = run.as_str().replace('-', "");
    let short = &short[..short.len().min(10)];
    format!("dw{short}{}", if side == 0 { "l" } else { "r" })
}

/// A pair of interfaces between this namespace and a host's, over which its API is reached. It goes with the namespace.
fn connect(run: &RunId, namespace: &Namespace, subnet: u8, side: u8) -> anyhow::Result<()> {
    let outside = outside_interface(run, side);
    let inside = "api0";
    ip(&[
        "link",
        "add",
        &outside,
        "type",
        "veth",
        "peer",
        "name",
        inside,
        "netns",
        namespace.name(),
    ])?;
    let address = |end| format!("{}/30", management(subnet, side, end));
    ip(&["address", "add", &address(1), "dev", &outside])?;
    ip(&["link", "set", &outside, "up"])?;
    ip(&[
        "-n",
        namespace.name(),
        "address",
        "add",
        &address(2),
        "dev",
        inside,
    ])?;
    ip(&["-n", namespace.name(), "link", "set", inside, "up"])?;
    Ok(())
}

fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("`ip` does not start: install the package iproute2")?;
    if !output.status.success() {
        bail!(
            "`ip {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
