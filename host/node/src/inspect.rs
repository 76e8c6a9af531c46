//! What is in an image that is a disk: read by a process without any right, for whoever made the image may have made it
//! to attack its reader.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use dwcp_api::service::Answer;
use dwcp_channel::Channel;
use dwcp_control::records::{DiskFormat, DiskImage, Image};
use dwcp_image::disk::{Expected, Format};
use dwcp_image::protocol::{self, Inspection, Job, Task};
use dwcp_store::TypedError;

use crate::errors::{chain, internal, invalid, record};
use crate::node::Node;

/// How long a reader may take.
const DEADLINE: Duration = Duration::from_secs(300);

impl Node {
    /// Records an image whose content is stored, with what is in it. Of one that is refused nothing stays, unless it was
    /// known before.
    pub(crate) async fn keep_image(&self, mut image: Image) -> Answer<Image> {
        let _alone = self.image_changes.lock().await;
        let known = self.records.images.get(&image.digest).await;
        let known = known.map_err(record)?.map(|known| known.value);
        let whole = |disk: &DiskImage| {
            let mut parts = disk.kernel.iter().chain(&disk.initrd);
            parts.all(|digest| self.images.has(digest))
        };
        if let Some(known) = known.filter(|known| known.disk.as_ref().is_some_and(whole)) {
            return Ok(known);
        }
        match self.inspect(&image).await {
            Ok(disk) => image.disk = disk,
            Err(fault) => {
                let known = self.records.images.get(&image.digest).await;
                if known.map_err(record)?.is_none() {
                    self.images.delete(&image.digest).await?;
                }
                return Err(fault);
            }
        }
        let kept = self.records.images.put(&image.digest, &image).await;
        kept.map_err(record)?;
        Ok(image)
    }

    /// What a stored image is, if it looks like a disk; what it boots is stored beside it.
    pub(crate) async fn inspect(&self, image: &Image) -> Answer<Option<DiskImage>> {
        let path = self.images.path(&image.digest)?;
        let file = File::open(path).map_err(internal)?;
        if !looks_like_a_disk(&file).map_err(internal)? {
            return Ok(None);
        }
        let kernel = self.images.temporary().map_err(internal)?;
        let initrd = self.images.temporary().map_err(internal)?;
        let outputs = Some((kernel.file(), initrd.file()));
        match self.read_image(Job::Boot, &file, outputs).await? {
            protocol::Answer::Booted(inspection, boot) => {
                let keep = |what: &str| format!("{what} of {}", image.label);
                let kernel = self.keep_found(kernel, &keep("kernel")).await?;
                let initrd = match boot.initrd_bytes {
                    0 => None,
                    _ => Some(self.keep_found(initrd, &keep("initial RAM disk")).await?),
                };
                Ok(Some(DiskImage {
                    kernel: Some(kernel),
                    initrd,
                    cmdline: boot.command_line,
                    remarks: boot.remarks,
                    ..described(&inspection)
                }))
            }
            protocol::Answer::Refused(why) => {
                // It may still be a disk for data.
                match self.read_image(Job::Inspect, &file, None).await? {
                    protocol::Answer::Inspected(inspection) => Ok(Some(DiskImage {
                        remarks: vec![why],
                        ..described(&inspection)
                    })),
                    protocol::Answer::Refused(why) => Err(invalid(why)),
                    protocol::Answer::Booted(..) => Err(invalid(why)),
                }
            }
            protocol::Answer::Inspected(_) => Err(invalid("The image's reader answered in vain")),
        }
    }

    async fn read_image(
        &self,
        job: Job,
        image: &File,
        outputs: Option<(&File, &File)>,
    ) -> Answer<protocol::Answer> {
        let task = Task {
            job,
            images: vec![Expected::Detect],
        };
        let (ours, theirs) = UnixStream::pair().map_err(internal)?;
        ours.set_read_timeout(Some(DEADLINE)).map_err(internal)?;
        let own = |file: &File| file.try_clone().map_err(internal);
        let mut descriptors: Vec<OwnedFd> = vec![theirs.into(), own(image)?.into()];
        let mut kept = None;
        if let Some((kernel, initrd)) = outputs {
            descriptors.push(own(kernel)?.into());
            descriptors.push(own(initrd)?.into());
            kept = Some((own(kernel)?, own(initrd)?));
        }
        let id = format!("image-{}", uuid::Uuid::now_v7());
        let config = serde_json::to_value(&task).map_err(internal)?;
        self.launcher.spawn_reader(&id, config, descriptors).await?;
        let answer = tokio::task::spawn_blocking(move || {
            let outputs = kept.as_ref().map(|(kernel, initrd)| (kernel, initrd));
            protocol::receive(&mut Channel::new(ours), &task, outputs)
        });
        let answer = answer.await.map_err(internal)?;
        let words = self.reader_words(&id).await;
        self.launcher.end(&id).await?;
        answer.map_err(|error| {
            let words = words.map_or(String::new(), |words| format!(" ({words})"));
            invalid(format!(
                "The image could not be read: {}{words}",
                chain(&error)
            ))
        })
    }

    /// What a reader said last, if it has ended.
    async fn reader_words(&self, id: &str) -> Option<String> {
        let children = self.launcher.list().await.ok()?;
        let child = children.into_iter().find(|child| child.id.as_str() == id)?;
        match child.state {
            dwcp_launch::protocol::ChildState::Exited { last_words, .. } => last_words,
            dwcp_launch::protocol::ChildState::Running => None,
        }
    }

    /// Stores what was found in an image.
    async fn keep_found(&self, found: crate::images::Found, label: &str) -> Answer<String> {
        let image = self.images.adopt(found, label).await?;
        self.record_image(&image).await?;
        Ok(image.digest)
    }

    /// Records an image whose content is stored, unless it is known already, perhaps with more than this.
    pub(crate) async fn record_image(&self, image: &Image) -> Answer<()> {
        let images = &self.records.images;
        match images.create(&image.digest, image).await {
            Ok(_) | Err(TypedError::Conflict(_)) => Ok(()),
            Err(error) => Err(record(error)),
        }
    }

    /// At the start: content that no record names came while the host, or whoever brought it, went. Nobody can use it.
    pub(crate) async fn drop_unrecorded_images(&self) -> Answer<()> {
        for digest in self.images.all().map_err(internal)? {
            let known = self.records.images.get(&digest).await;
            if known.map_err(record)?.is_none() {
                tracing::warn!("image {digest} was never recorded: its content is dropped");
                self.images.delete(&digest).await?;
            }
        }
        Ok(())
    }
}

fn described(inspection: &Inspection) -> DiskImage {
    let top = inspection.layers.first().map(|layer| layer.format);
    DiskImage {
        format: match top {
            Some(Format::Qcow2) => DiskFormat::Qcow2,
            _ => DiskFormat::Raw,
        },
        size_bytes: inspection.virtual_bytes / 512 * 512,
        kernel: None,
        initrd: None,
        cmdline: String::new(),
        remarks: Vec::new(),
    }
}

/// Whether a file begins as disks do: qcow2, a partition table, a file system. A Linux kernel carries the mark of an
/// old boot sector too, and one of its own.
fn looks_like_a_disk(file: &File) -> std::io::Result<bool> {
    let mut head = Vec::new();
    let mut reader = file;
    std::io::Seek::seek(&mut reader, std::io::SeekFrom::Start(0))?;
    reader.take(4096).read_to_end(&mut head)?;
    let at = |offset: usize, mark: &[u8]| head.get(offset..offset + mark.len()) == Some(mark);
    let is_kernel = at(0x202, b"HdrS") || at(0, b"\x7fELF");
    let is_ext = at(1080, b"\x53\xef");
    let is_table = at(512, b"EFI PART") || at(510, b"\x55\xaa");
    Ok(at(0, b"QFI\xfb") || (!is_kernel && (is_ext || is_table)))
}
