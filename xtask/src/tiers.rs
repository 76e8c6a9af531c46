//! Which test runs in which tier.
//!
//! What always holds: every test has exactly one tier; a test that no rule names is a unit test.
//!
//! What it must not know: how tests are run.

use std::time::Duration;

use clap::ValueEnum;

use crate::cargo::Executable;

/// The tiers, in the order in which they run: what is cheap and broken most often comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Tier {
    /// The build of the bundled plugins, templates and policies
    Plugins,
    /// What needs neither KVM nor root: library tests, codecs, documentation, architecture
    Unit,
    /// What starts real guests, processes and hosts on this machine's KVM
    Kvm,
    /// Linux under our VMM, on KVM nested in an emulated machine
    Nested,
    /// Kills and cuts at named steps of migrations
    Faults,
}

impl Tier {
    /// All tiers in their order.
    pub const ALL: [Tier; 5] = [
        Tier::Plugins,
        Tier::Unit,
        Tier::Kvm,
        Tier::Nested,
        Tier::Faults,
    ];

    /// The name in tables and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Plugins => "plugins",
            Tier::Unit => "unit",
            Tier::Kvm => "kvm",
            Tier::Nested => "nested",
            Tier::Faults => "faults",
        }
    }

    /// How long one test program of the tier may take before it is taken for hung.
    pub fn deadline(self) -> Duration {
        let minutes = match self {
            Tier::Plugins | Tier::Unit => 15,
            Tier::Kvm | Tier::Nested => 20,
            Tier::Faults => 30,
        };
        Duration::from_secs(minutes * 60)
    }

    /// True if its tests take so long that their output is worth seeing as it comes.
    pub fn streams(self) -> bool {
        matches!(self, Tier::Nested | Tier::Faults)
    }

    /// The tier of a test program.
    pub fn of(executable: &Executable) -> Tier {
        if executable.kind != "test" {
            return Tier::Unit;
        }
        match executable.package.as_str() {
            "dwcp-e2e" => of_everything(&executable.target),
            "dwcp-vmm" | "dwcp-launch" | "dwcp-node" | "dwcp-guest" | "dwcp-wan" | "dwcpd" => {
                Tier::Kvm
            }
            _ => Tier::Unit,
        }
    }
}

/// Property tests that feed hostile bytes to what a tier with guests tests: package and program. `soak` runs them for
/// longer with the unit tier's, without the rest of their tier.
pub const PROPERTIES: [(&str, &str); 2] = [("dwcp-vmm", "state_format"), ("dwcp-vmm", "protocol")];

/// Tests of everything together say in their names where they belong; most need whole hosts.
fn of_everything(target: &str) -> Tier {
    match target.split('_').next() {
        Some("architecture" | "docs") => Tier::Unit,
        Some("nested") => Tier::Nested,
        Some("faults") => Tier::Faults,
        _ => Tier::Kvm,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(package: &str, target: &str, kind: &str) -> Tier {
        Tier::of(&Executable {
            package: package.into(),
            target: target.into(),
            kind: kind.into(),
            test: true,
            path: "x".into(),
            folder: ".".into(),
        })
    }

    #[test]
    fn tests_of_everything_say_their_tier_in_their_names() {
        assert_eq!(tier("dwcp-e2e", "nested_linux", "test"), Tier::Nested);
        assert_eq!(tier("dwcp-e2e", "faults", "test"), Tier::Faults);
        assert_eq!(tier("dwcp-e2e", "architecture", "test"), Tier::Unit);
        assert_eq!(tier("dwcp-e2e", "flow", "test"), Tier::Kvm);
    }

    #[test]
    fn what_starts_guests_needs_kvm_and_the_rest_does_not() {
        assert_eq!(tier("dwcp-vmm", "life", "test"), Tier::Kvm);
        assert_eq!(tier("dwcp-vmm", "dwcp_vmm", "lib"), Tier::Unit);
        assert_eq!(tier("dwcp-wire", "codec", "test"), Tier::Unit);
        assert_eq!(tier("dwcp-plugins", "faults", "test"), Tier::Unit);
    }
}
