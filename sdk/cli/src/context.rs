//! What every command works with: the client, the project, the output. The client is made when it is first needed.

use crate::args::Global;
use crate::config::{self, Overrides};
use crate::output::Output;

/// What a command works with.
#[derive(Clone, Debug)]
pub struct Context {
    /// Talks to the host.
    pub client: dwcp_sdk::Client,
    /// Name of the profile in use.
    pub profile: String,
    /// The project.
    pub project: String,
    /// Where results go.
    pub output: Output,
}

impl Context {
    /// From the flags that all commands share.
    pub fn new(global: &Global) -> anyhow::Result<Self> {
        let overrides = Overrides::from_environment(global.profile.clone());
        let chosen = config::choose(&overrides, &config::path()?)?;
        Ok(Self {
            client: dwcp_sdk::Client::new(chosen.profile)?,
            profile: chosen.name,
            project: global.project.clone(),
            output: Output::new(global.output),
        })
    }
}
