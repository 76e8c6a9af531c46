//! Named steps of a migration, at which a fault test stops a daemon to kill it or to cut its link.
//!
//! With `DWCP_STEPS` naming a Unix socket, each step is announced there and waits for one line back. Unset, as always
//! in production, a step costs one look at an empty cell.

use std::sync::OnceLock;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

static SOCKET: OnceLock<Option<String>> = OnceLock::new();

/// Announces `name` and waits to be let on. A harness that is gone lets everything on.
pub(crate) async fn step(name: &str) {
    let socket = SOCKET.get_or_init(|| std::env::var("DWCP_STEPS").ok());
    if let Some(path) = socket {
        let _ = announce(path, name).await;
    }
}

async fn announce(path: &str, name: &str) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    Ok(())
}
