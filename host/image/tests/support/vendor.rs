//! What vendors' images share, and what comes out of one.

#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::Path;

use dwcp_image::boot::Boot;
use dwcp_image::disk::Expected;
use dwcp_image::protocol::{Answer, Inspection};
use dwcp_image::task;

use super::output;

pub const EXT4: &[&str] = &["mkfs.ext4"];
pub const DISK: &[&str] = &["mkfs.ext4", "mkfs.vfat", "mcopy", "sfdisk", "qemu-img"];

pub const ROOT_TYPE: &str = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
pub const ESP_TYPE: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
pub const BOOT_TYPE: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";
pub const LINUX_TYPE: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

pub const ROOT_UUID: &str = "9c3e58bd-3a7e-4b63-9c6c-7f5a2b0f6f10";
pub const BOOT_UUID: &str = "0b6ad15e-57a5-4bd1-8ba5-1a4b5d6cb7a1";
pub const ROOT_PART: &str = "6d3f5f2e-8f3a-4f0e-9a53-1f1b2b3c4d5e";
pub const ESP_PART: &str = "11111111-2222-3333-4444-555555555555";
pub const BOOT_PART: &str = "22222222-3333-4444-5555-666666666666";

/// What came out of an image.
pub struct Out {
    pub inspection: Inspection,
    pub boot: Boot,
    pub kernel: Vec<u8>,
    pub initrd: Vec<u8>,
}

pub fn boot(chain: Vec<(File, Expected)>, folder: &Path) -> Result<Out, String> {
    let (kernel, initrd) = (folder.join("out-kernel"), folder.join("out-initrd"));
    match task::boot(chain, output(&kernel), output(&initrd)) {
        Answer::Booted(inspection, boot) => {
            let out = Out {
                inspection,
                boot,
                kernel: fs::read(kernel).unwrap(),
                initrd: fs::read(initrd).unwrap(),
            };
            assert_eq!(out.boot.kernel_bytes, out.kernel.len() as u64);
            assert_eq!(out.boot.initrd_bytes, out.initrd.len() as u64);
            Ok(out)
        }
        Answer::Refused(reason) => Err(reason),
        other => panic!("{other:?}"),
    }
}

pub fn refused(chain: Vec<(File, Expected)>, folder: &Path) -> String {
    match boot(chain, folder) {
        Ok(out) => panic!("booted: {:?}", out.boot),
        Err(reason) => reason,
    }
}
