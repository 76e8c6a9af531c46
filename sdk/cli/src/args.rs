//! The command line, as clap reads it. Each group of commands describes itself beside what it does.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand};
use dwcp_sdk::types::{CpuBaseline, RestartPolicy};

use crate::commands::{
    audit::AuditCommand, completion::CompletionArgs, decision::DecisionCommand,
    event::EventCommand, host::HostCommand, image::ImageCommand, migration::MigrationCommand,
    plugin::PluginCommand, policy::PolicyCommand, snapshot::SnapshotCommand,
    template::TemplateCommand, vm::VmCommand,
};
use crate::output::Format;

/// The command line of DWCP.
#[derive(Debug, Parser)]
#[command(
    name = "dwcp",
    version,
    about = "Virtual machines on DWCP hosts: create, run, migrate live, govern",
    max_term_width = 100,
    propagate_version = true,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Examples:
  dwcp vm create web --image ./debian.qcow2 --ssh-key ~/.ssh/id_ed25519.pub
  dwcp vm create web --kernel ./vmlinuz --initrd ./initrd --memory 1GiB --vcpus 2 --tag owner=me
  dwcp vm create web --template dwcp/worker --param memory_mib=512
  dwcp vm console web
  dwcp snapshot create before-upgrade --of web
  dwcp vm migrate web --to right
  dwcp event list --follow"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What all commands share.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Profile of the host to talk to, from ~/.config/dwcp/config.toml
    #[arg(
        long,
        global = true,
        env = "DWCP_PROFILE",
        value_name = "NAME",
        hide_env_values = true
    )]
    pub profile: Option<String>,
    /// Project that owns the machines
    #[arg(
        long,
        global = true,
        env = "DWCP_PROJECT",
        value_name = "NAME",
        default_value = "default",
        hide_env_values = true
    )]
    pub project: String,
    /// How results are shown: table, or json with the fields of the API
    #[arg(
        hide_possible_values = true,
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hosts: this one and those it was introduced to
    #[command(subcommand)]
    Host(HostCommand),
    /// Images: disks, kernels and initial RAM disks, by digest
    #[command(subcommand)]
    Image(ImageCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Snapshots of machines, to go back to or to make others from
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Migrations: how they go and went
    #[command(subcommand)]
    Migration(MigrationCommand),
    /// Plugins and the marketplace they come from
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Templates that machines are made from
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Policies and where they act
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Recorded decisions of plugins and policies
    #[command(subcommand)]
    Decision(DecisionCommand),
    /// What happened
    #[command(subcommand)]
    Event(EventCommand),
    /// The audit log, and its proof
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print completions for a shell
    Completion(CompletionArgs),
    /// Print the version
    Version,
}

/// Ends as clap does when it does not understand, for what it cannot tell by itself.
pub fn misunderstood(message: &str) -> ! {
    let kind = clap::error::ErrorKind::MissingRequiredArgument;
    Cli::command().error(kind, message).exit()
}

/// Reads `k=v`.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} should be written KEY=VALUE")),
    }
}

/// Reads the name of a CPU baseline.
pub fn baseline() -> impl TypedValueParser<Value = CpuBaseline> {
    let names = CpuBaseline::ALL.map(CpuBaseline::as_str);
    PossibleValuesParser::new(names).map(|name| {
        let named = |baseline: &CpuBaseline| baseline.as_str() == name;
        CpuBaseline::ALL.into_iter().find(named).unwrap_or_default()
    })
}

/// Reads the name of a restart policy.
pub fn restart_policy() -> impl TypedValueParser<Value = RestartPolicy> {
    let all = [
        RestartPolicy::Never,
        RestartPolicy::OnCrash,
        RestartPolicy::Always,
    ];
    PossibleValuesParser::new(all.map(RestartPolicy::as_str)).map(move |name| {
        let named = |policy: &RestartPolicy| policy.as_str() == name;
        all.into_iter().find(named).unwrap_or_default()
    })
}

/// Reads a SHA-256: 64 hexadecimal digits, `sha256:` before them and colons between them allowed.
pub fn digest(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix("sha256:").unwrap_or(text);
    let bare = bare.replace(':', "").to_ascii_lowercase();
    if bare.len() == 64 && bare.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(bare)
    } else {
        Err(format!(
            "{text:?} is not a SHA-256 of 64 hexadecimal digits"
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn pairs_and_digests_are_read() {
        assert_eq!(pair("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert_eq!(pair("a=").unwrap(), ("a".into(), String::new()));
        assert!(pair("a").is_err() && pair("=b").is_err());
        let hex = "AB".repeat(32);
        let colons: Vec<_> = (0..32).map(|_| "ab").collect();
        assert_eq!(digest(&hex).unwrap(), "ab".repeat(32));
        assert_eq!(
            digest(&format!("sha256:{}", colons.join(":"))).unwrap(),
            "ab".repeat(32)
        );
        assert!(digest("ab").is_err());
    }
}
