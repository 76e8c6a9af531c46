//! `dwcpd`: reads its configuration, starts what it needs, serves until it is told to stop. Machines outlive it.

mod config;
mod privilege;
mod profile;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use dwcp_node::{HostKeys, Node, NodeConfig};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Arguments, Config};
use crate::profile::{Entry, Scribe};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dwcpd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::read(&arguments)?;
    if arguments.check {
        println!("{:#?}", config.node);
        return Ok(());
    }
    log();
    let node = config.node;
    check_ports(&node)?;
    if nix::unistd::geteuid().is_root() {
        let (uid, gid) = privilege::user(config.user.as_deref())?;
        // The profile is the invoking user's and everything else the daemon's user's: root itself writes nothing.
        let scribe = Scribe::start()?;
        privilege::give_state(&node.state_dir, uid, gid)?;
        privilege::start_launcher(&node.launch_socket, uid)?;
        privilege::drop_root(uid, gid)?;
        introduce(&node, |entry| scribe.add(entry))?;
    } else {
        introduce(&node, Entry::add)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let served = runtime.block_on(serve(node));
    // Threads that listen to movers and the launcher would wait for ever.
    runtime.shutdown_background();
    served
}

/// Messages go to standard error; `DWCP_LOG` filters them as `RUST_LOG` does elsewhere.
fn log() {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("DWCP_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}

/// Whether the ports are free, before a key is made or a profile written for a host that could not serve.
fn check_ports(node: &NodeConfig) -> anyhow::Result<()> {
    let api = std::net::TcpListener::bind(node.api_listen);
    let _api = api.with_context(|| {
        format!(
            "The API cannot listen on {}: does another dwcpd run here?",
            node.api_listen
        )
    })?;
    let peers = std::net::TcpListener::bind(node.peer_listen);
    peers.with_context(|| {
        format!(
            "The port for other hosts, {}, cannot be listened on",
            node.peer_listen
        )
    })?;
    Ok(())
}

/// Makes the host's keys if there are none, and tells the admin key this once: here, and to `keep`.
fn introduce(
    node: &NodeConfig,
    keep: impl FnOnce(&Entry) -> anyhow::Result<Option<(PathBuf, String)>>,
) -> anyhow::Result<()> {
    let dir = node.state_dir.join("identity");
    let (keys, first) = HostKeys::open(&dir, node.name.as_str(), node.api_listen.ip())?;
    let Some(first) = first else { return Ok(()) };
    println!(
        "This host is new. Its admin key, shown this once:\n\n    {}\n",
        first.admin_key
    );
    let entry = Entry {
        host: node.name.to_string(),
        address: format!("https://{}", node.api_listen),
        ca: keys.ca_pem,
        key: first.admin_key,
    };
    match keep(&entry) {
        Ok(Some((path, name))) => {
            println!(
                "It is kept for `dwcp` as profile {name} in {}",
                path.display()
            );
        }
        Ok(None) => println!("There is no home directory, so it is not kept for `dwcp`"),
        // The key is shown above: a profile file that cannot be written loses nothing.
        Err(error) => eprintln!("It is not kept for `dwcp`: {error:#}"),
    }
    Ok(())
}

async fn serve(config: NodeConfig) -> anyhow::Result<()> {
    let api = config.api_listen;
    let (name, region, peer) = (
        config.name.clone(),
        config.region.clone(),
        config.peer_listen,
    );
    let listener = tokio::net::TcpListener::bind(api)
        .await
        .with_context(|| format!("The API cannot listen on {api}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (node, _) = Node::open(config).await?;
    println!("Host {name} in region {region}");
    println!("  API            https://{api}");
    println!("  documentation  https://{api}/docs");
    println!("  other hosts    {peer}");
    // Whoever waits for these lines reads them through a pipe.
    std::io::stdout().flush()?;
    let tls = node.keys().api_tls.clone();
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let service: Arc<dyn dwcp_api::Service> = node;
    dwcp_api::serve(listener, tls, service, stop).await;
    tracing::info!("the daemon ends; machines go on");
    Ok(())
}
