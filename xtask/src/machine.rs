//! What this machine is: which KVM, how much of everything, who we are on it.
//!
//! What always holds: it only looks; nothing is changed or installed.
//!
//! What it must not know: what any command needs.

use std::fs;
use std::path::{Path, PathBuf};

/// Which kind of `/dev/kvm` this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// None that opens for us.
    None,
    /// KVM without hardware support (PVM): guests' ring 0 is interpreted.
    Pvm,
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// It opens, but neither its module nor the CPU's flags tell what is behind it.
    Unknown,
}

impl Kvm {
    /// True if an ordinary Linux kernel boots under it in seconds.
    pub fn runs_linux(self) -> bool {
        matches!(self, Kvm::Vmx | Kvm::Svm)
    }
}

impl std::fmt::Display for Kvm {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Kvm::None => "none (/dev/kvm does not open)",
            Kvm::Pvm => "kvm_pvm, without hardware support: our own test guest runs at full speed, Linux does not",
            Kvm::Vmx => "hardware (Intel VT-x)",
            Kvm::Svm => "hardware (AMD-V)",
            Kvm::Unknown => "of an unknown kind",
        })
    }
}

/// Looks which KVM is here.
pub fn kvm() -> Kvm {
    let opens = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    let module = |name: &str| Path::new("/sys/module").join(name).exists();
    kind(opens, module, &cpu_flags())
}

/// Decides the kind from whether the device opens, the loaded modules and the CPU's flags.
fn kind(opens: bool, module: impl Fn(&str) -> bool, flags: &[String]) -> Kvm {
    let flag = |name: &str| flags.iter().any(|one| one == name);
    if !opens {
        Kvm::None
    } else if module("kvm_pvm") {
        Kvm::Pvm
    } else if module("kvm_intel") || flag("vmx") {
        Kvm::Vmx
    } else if module("kvm_amd") || flag("svm") {
        Kvm::Svm
    } else {
        Kvm::Unknown
    }
}

/// True if this process is root.
pub fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// True if a userfaultfd can be had with root's powers.
pub fn userfaultfd() -> bool {
    Path::new("/dev/userfaultfd").exists()
}

/// The number of processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The CPU's model name, as the kernel gives it.
pub fn model() -> String {
    cpu_line("model name").unwrap_or_else(|| "unknown CPU".into())
}

/// The kernel's release.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// Total and available memory in MiB.
pub fn memory_mib() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok())
            .map_or(0, |kib| kib / 1024)
    };
    (field("MemTotal:"), field("MemAvailable:"))
}

/// Free disk space in MiB for an ordinary user where `path` is.
pub fn free_disk_mib(path: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(path).ok()?;
    Some(found.blocks_available() * found.fragment_size() / (1024 * 1024))
}

/// Where a program of this name is on `PATH` (or in `/usr/sbin`, where an ordinary user does not look).
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// One line that names this machine beside a figure.
pub fn one_line() -> String {
    let (total, _) = memory_mib();
    format!(
        "{} x {}, {} GiB, Linux {}, KVM {}",
        processors(),
        model(),
        total.div_ceil(1024),
        kernel(),
        match kvm() {
            Kvm::None => "none",
            Kvm::Pvm => "kvm_pvm",
            Kvm::Vmx => "vmx",
            Kvm::Svm => "svm",
            Kvm::Unknown => "unknown",
        }
    )
}

fn cpu_flags() -> Vec<String> {
    cpu_line("flags")
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .unwrap_or_default()
}

fn cpu_line(name: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_kvm_follows_module_and_flags() {
        let svm = vec!["svm".to_owned()];
        assert_eq!(kind(false, |_| true, &svm), Kvm::None);
        assert_eq!(kind(true, |name| name == "kvm_pvm", &svm), Kvm::Pvm);
        assert_eq!(kind(true, |name| name == "kvm_intel", &[]), Kvm::Vmx);
        assert_eq!(kind(true, |_| false, &svm), Kvm::Svm);
        assert_eq!(kind(true, |_| false, &[]), Kvm::Unknown);
    }

    #[test]
    fn pvm_does_not_boot_linux_in_seconds() {
        assert!(!Kvm::Pvm.runs_linux());
        assert!(Kvm::Svm.runs_linux());
    }
}
