//! Builds the guest in `guest/` with the compiler that builds everything else.
//!
//! `core` for the host's target is enough for a freestanding program: no target is added, and none of the workspace's
//! flags apply.

use std::env;
use std::path::Path;
use std::process::{Command, exit};

fn main() {
    println!("cargo:rerun-if-changed=guest");
    let (Ok(rustc), Ok(out), Ok(here)) = (
        env::var("RUSTC"),
        env::var("OUT_DIR"),
        env::var("CARGO_MANIFEST_DIR"),
    ) else {
        fail("cargo did not say where things are");
    };
    let source = Path::new(&here).join("guest");
    let script = source.join("guest.ld");
    let status = Command::new(rustc)
        .args(["--edition=2024", "--crate-type=bin", "--crate-name=guest"])
        .args(["--target=x86_64-unknown-linux-gnu", "-Dwarnings"])
        .args([
            "-Copt-level=3",
            "-Cpanic=abort",
            "-Crelocation-model=static",
        ])
        .args([
            "-Ctarget-feature=+crt-static",
            "-Cstrip=symbols",
            "-Ccodegen-units=1",
        ])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib"])
        .args([
            "-Clink-arg=-Wl,--build-id=none",
            "-Clink-arg=-Wl,-z,max-page-size=4096",
        ])
        .arg(format!("-Clink-arg=-Wl,-T,{}", script.display()))
        .arg("-o")
        .arg(Path::new(&out).join("guest.elf"))
        .arg(source.join("main.rs"))
        .env_remove("RUSTFLAGS")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!("the compiler ended with {status}")),
        Err(error) => fail(&format!("the compiler could not be started: {error}")),
    }
}

fn fail(why: &str) -> ! {
    println!("cargo:error=The test guest could not be built: {why}");
    exit(1)
}
