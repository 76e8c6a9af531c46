//! The seed's disk as the tools of a guest see it.
//!
//! What always holds: `fsck.fat` finds nothing to mend, and `mcopy` and `blkid` find what was put in.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use dwcp_image::seed::{Seed, make};
use support::*;

#[test]
fn the_tools_of_a_guest_read_the_seed() {
    let name = "the_tools_of_a_guest_read_the_seed";
    if !has_tools(name, &["fsck.fat", "mcopy", "blkid"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("seed.img");
    let long = format!("#!/bin/sh\n{}", "true # and so on\n".repeat(20_000));
    for user_data in [None, Some(long.as_str())] {
        let seed = Seed {
            instance_id: "vm-1",
            hostname: "web",
            user_data,
            network: Some("version: 2\n"),
            ..Seed::default()
        };
        fs::write(&disk, make(&seed).unwrap()).unwrap();
        run("fsck.fat", &["-n", "-V", text(&disk)], "");
        let tags = run("blkid", &["-p", "-o", "export", text(&disk)], "");
        assert!(
            tags.contains("LABEL=cidata\n") && tags.contains("TYPE=vfat\n"),
            "{tags}"
        );
        let read = |name: &str| run("mcopy", &["-i", text(&disk), &format!("::{name}"), "-"], "");
        assert_eq!(
            read("user-data"),
            user_data.unwrap_or("#cloud-config\n{}\n")
        );
        assert_eq!(read("network-config"), "version: 2\n");
        assert!(read("meta-data").contains("local-hostname: \"web\"\n"));
    }
}
