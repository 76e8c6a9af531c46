//! `dwcp image`: content that machines boot from, out of files and registries.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use dwcp_sdk::types::Image;

use crate::args::digest;
use crate::context::Context;
use crate::{oci, progress, units};

/// Commands about images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Add a disk image from a file or a registry, a kernel or an initial RAM disk
    #[command(
        after_help = "A registry is asked by this command and not by the host, with the login that `podman login` or `docker login`
has kept. What it fetches is in TMPDIR, else in /var/tmp, for as long as it takes.

Examples:
  dwcp image add ./debian-13-genericcloud-amd64.qcow2
  dwcp image add oci:quay.io/containerdisks/debian:13
  dwcp image add ./vmlinuz --label debian-13-cloud"
    )]
    Add {
        /// A file, oci:REGISTRY/NAME[:TAG|@DIGEST], or oci-layout:DIRECTORY[:TAG]
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// What it is called in lists; the file's name, or that in the registry, if absent
        #[arg(long)]
        label: Option<String>,
    },
    /// List stored images
    List,
    /// Delete an image that nothing uses
    #[command(visible_alias = "rm")]
    Remove {
        /// Its digest, whole
        #[arg(value_parser = digest)]
        digest: String,
    },
}

/// Does it.
pub async fn run(context: &Context, command: ImageCommand) -> anyhow::Result<()> {
    let (client, output) = (&context.client, context.output);
    match command {
        ImageCommand::Add { file, label } => {
            let image = add(context, &file, label).await?;
            output.done(&image, &stored(&image))
        }
        ImageCommand::List => {
            let images = client.image_list().all().await?;
            output.list(&images, &["DIGEST", "SIZE", "KIND", "LABEL", "STORED"], row)
        }
        ImageCommand::Remove { digest } => {
            client.image_delete(&digest).await?;
            output.gone(&format!("{digest} is gone"))
        }
    }
}

/// What there is to say of a stored image.
fn stored(image: &Image) -> String {
    let mut text = format!("{} is stored as {}", image.label, image.digest);
    if let Some(disk) = &image.disk {
        text += &format!("\n{} disk of {}", disk.format, units::size(disk.size_bytes));
        if let Some(kernel) = &disk.kernel {
            let what = match disk.initrd {
                Some(_) => "kernel and initial RAM disk were",
                None => "kernel was",
            };
            let short = kernel.get(..12).unwrap_or(kernel);
            text += &format!("\nits {what} found in it and stored too ({short})");
            text += &format!("\nkernel command line: {}", disk.cmdline);
        }
        for remark in &disk.remarks {
            text += &format!("\n{remark}");
        }
    }
    text
}

/// Uploads what a file, or something in a registry, holds.
pub async fn add(context: &Context, from: &Path, label: Option<String>) -> anyhow::Result<Image> {
    let Some(pulled) = oci::pull(from).await? else {
        return upload(context, from, label).await;
    };
    eprintln!("{} is {}", pulled.name, pulled.manifest);
    let label = label.unwrap_or_else(|| pulled.name.clone());
    upload(context, &pulled.path(), Some(label)).await
}

/// Uploads a file with a progress bar; one that the host has already is not sent again.
async fn upload(context: &Context, file: &Path, label: Option<String>) -> anyhow::Result<Image> {
    let label = label.unwrap_or_else(|| {
        let name = file.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    });
    let bar = progress::transfer(&label);
    let shown = bar.clone();
    let uploaded = context.client.image_upload(&label, file, move |uploaded| {
        shown.set_length(uploaded.total);
        shown.set_position(uploaded.sent);
    });
    let image = uploaded.await;
    bar.finish_and_clear();
    Ok(image?)
}

fn row(image: &Image) -> Vec<String> {
    vec![
        image.digest.clone(),
        units::size(image.size_bytes),
        match &image.disk {
            Some(disk) => format!("{} disk", disk.format),
            None => "file".into(),
        },
        image.label.clone(),
        units::moment(image.created_ms),
    ]
}
