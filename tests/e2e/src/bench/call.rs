//! Rows 9 and 10: the sandbox beside bare wasmtime, measured by the sandbox's own example, here in release.

// The example `call-bench` of dwcp-plugins is this file under a `main` of its own.
#[path = "../../../../host/plugins/examples/call-bench/measure.rs"]
mod measure;

use anyhow::{Context, anyhow};

use super::figure::Figure;

pub async fn measure(target: u32) -> anyhow::Result<Vec<Figure>> {
    let figures =
        tokio::task::spawn_blocking(|| measure::run().map_err(|error| anyhow!("{error}")))
            .await
            .context("The measuring thread panicked")??;
    let figures = figures
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<Vec<Figure>, _>>()
        .context("The sandbox's example printed a figure that is none")?;
    Ok(figures
        .into_iter()
        .filter(|figure| figure.target == target)
        .collect())
}
