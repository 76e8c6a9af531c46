//! An initial RAM disk for a Linux guest: files in the `newc` form of cpio that the kernel unpacks.

use std::io::Write;

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    entries: u32,
}

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Initramfs {
    /// An empty archive with what every init needs: `/dev/console`, and places to mount on.
    pub fn new() -> Self {
        let mut archive = Self::default();
        for directory in ["dev", "proc", "sys", "tmp", "bin"] {
            archive.directory(directory);
        }
        archive.entry("dev/console", CHARACTER_DEVICE | 0o600, (5, 1), &[]);
        archive
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds an executable file.
    pub fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, FILE | 0o755, (0, 0), content);
    }

    /// What the demonstration's Linux guest boots from: its work as the only program, and no other file.
    pub fn of_worker(worker: &[u8]) -> Vec<u8> {
        let mut archive = Self::new();
        archive.program("init", worker);
        archive.finish()
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, time, size, device (of the file, then of what it stands for), name, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            path.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            // Writing to a vector does not fail.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
