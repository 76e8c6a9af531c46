//! `cargo run -p dwcp-fuzz --example seeds`: writes the seeds that are made from real messages into `corpus/`, one file
//! each, named for what it is. Run it again when a format has changed.
//!
//! What always holds: a seed is small, and written by the code that writes such messages where there is such code.

mod devices;
mod files;
mod messages;
mod snapshots;
mod transfers;

use std::path::Path;

type Made<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A target's name, a seed's name, its bytes.
type Seed = (&'static str, &'static str, Vec<u8>);

fn main() -> Made {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let seeds = [
        messages::seeds()?,
        transfers::seeds()?,
        files::seeds()?,
        snapshots::seeds()?,
        devices::seeds(),
    ]
    .concat();
    for (target, name, bytes) in &seeds {
        let folder = corpus.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)?;
    }
    println!("{} seeds in {}", seeds.len(), corpus.display());
    Ok(())
}
