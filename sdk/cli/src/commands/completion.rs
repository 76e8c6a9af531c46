//! `dwcp completion`: completions for shells.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Which shell.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  dwcp completion bash > ~/.local/share/bash-completion/completions/dwcp
  dwcp completion zsh > ~/.zfunc/_dwcp")]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Prints them.
pub fn run(args: &CompletionArgs) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut crate::args::Cli::command(),
        "dwcp",
        &mut text,
    );
    std::io::Write::write_all(&mut std::io::stdout(), &text)?;
    Ok(())
}
