//! What the demonstration prints.

use crate::bed::Bed;
use crate::programs::Programs;

/// A step begins.
pub(crate) fn step(number: u32, title: &str) {
    println!("\n[{number}/7] {title}");
}

/// A result.
pub(crate) fn line(text: impl std::fmt::Display) {
    println!("      {text}");
}

/// Something that succeeded.
pub(crate) fn done(text: impl std::fmt::Display) {
    println!("    ✓ {text}");
}

/// Bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// How to look further.
pub(crate) fn further(bed: &Bed, programs: &Programs) {
    println!("\nTo look further, run with --keep, and from another terminal:");
    for host in [bed.left(), bed.right()] {
        line(format!(
            "{:<6} API documentation  https://{}/docs",
            host.name(),
            host.api()
        ));
    }
    line(format!(
        "export XDG_CONFIG_HOME={}",
        bed.right().profile_dir().display()
    ));
    let dwcp = programs.path("dwcp");
    for command in [
        "vm list",
        "vm console worker",
        "decision list",
        "audit verify",
    ] {
        line(format!("{} {command}", dwcp.display()));
    }
}
