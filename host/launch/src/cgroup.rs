//! Control groups for children, where the machine has them: memory and number of tasks, processors and disks.
//!
//! Version 2 if the launcher's own group offers `memory` and `pids`, with `cpu` and `io` if it offers them too; else the
//! version 1 hierarchies of these, whichever are mounted; else none. A VM's child gets as much processor time as its
//! guest has processors, and a little for its devices; of disks no child has a most. When processors or disks are short,
//! each child gets the same share, however many threads it has. All children together weigh as much as one ordinary
//! thread on every processor. Groups lie in one directory that carries the launcher's process id, below the
//! group it was started in; directories of launchers that are gone are removed at the start.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::sandbox::TASKS_MAX;

const PREFIX: &str = "dwcp-launch.";
/// The launcher's own group, when it must leave the one it was started in.
const OWN: &str = "launcher";
/// Says which controllers the groups below have.
const CONTROL: &str = "cgroup.subtree_control";
/// What the groups of children have; in version 2 all or none.
const LIMITED: [&str; 2] = ["memory", "pids"];
/// What they have where it is there, by its name in version 2.
const SHARED: [&str; 3] = ["cpu", "hugetlb", "io"];
/// Both, by their names in version 1.
const OLD: [&str; 5] = ["memory", "pids", "cpu", "blkio", "hugetlb"];
/// Lists a group's processes; writing to it moves one.
const PROCESSES: &str = "cgroup.procs";
/// Lists an old group's threads. A thread that writes 0 moves itself, and unlike a whole process at once: for that the
/// kernel waits until every processor has seen that nothing is forked meanwhile, some 10 ms.
const THREADS: &str = "tasks";

/// What a child needs beyond guest memory, at least, in bytes: page tables, buffers, the kernel's own records.
const OVERHEAD_BYTES: u64 = 256 << 20;

/// Processor time is given out in periods of so many microseconds.
const PERIOD_US: u64 = 100_000;

/// What one child may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Guest memory that it works on.
    pub memory_bytes: u64,
    /// Whether that is of huge pages, which are not counted with other memory.
    pub huge_pages: bool,
    /// As much processor time as so many processors have; all there is if none.
    pub processors: Option<u32>,
}

/// How children are limited on this machine.
#[derive(Debug)]
pub enum Groups {
    /// The unified hierarchy.
    Unified {
        /// Children's groups are made in this directory.
        directory: PathBuf,
        /// The launcher's group at its start, if it had to leave that for one below.
        left: Option<PathBuf>,
    },
    /// One directory for each old hierarchy there is.
    Old(Vec<PathBuf>),
    /// Nothing; the reason, for the log.
    None(&'static str),
}

/// The group of one child, removed when dropped, if it is empty by then.
#[derive(Debug)]
pub struct Group {
    directories: Vec<PathBuf>,
    unified: Option<OwnedFd>,
    old: Vec<OwnedFd>,
}

impl Groups {
    /// Finds what there is, makes the launcher's directory in it, and removes those of launchers that are gone.
    pub fn find() -> Self {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let name = format!("{PREFIX}{}", std::process::id());
        if let Some(base) = unified_base(&mounts, &own) {
            match prepare_unified(&base, &name) {
                Ok((directory, left)) => return Self::Unified { directory, left },
                Err(error) => eprintln!(
                    "dwcp-launch: The control group {} cannot be divided ({error}); start the launcher in a group of \
                     its own (systemd: Delegate=yes)",
                    base.display()
                ),
            }
        }
        let mut directories = Vec::new();
        for controller in OLD {
            let base = old_base(&mounts, &own, controller);
            directories.extend(base.and_then(|base| prepare_old(&base, &name)));
        }
        if directories.is_empty() {
            return Self::None("no hierarchy with memory, pids, cpu or blkio can be written to");
        }
        Self::Old(directories)
    }

    /// In one line, for the log.
    pub fn describe(&self) -> String {
        match self {
            Self::Unified { directory, .. } => {
                format!("control groups (v2) in {}", directory.display())
            }
            Self::Old(directories) => {
                let directories = directories.iter().map(|one| one.display().to_string());
                let directories: Vec<_> = directories.collect();
                format!("control groups (v1) in {}", directories.join(" and "))
            }
            Self::None(reason) => format!("no control groups: {reason}"),
        }
    }

    /// Makes the group of a child.
    pub fn make(&self, name: &str, limits: &Limits) -> io::Result<Group> {
        let memory_bytes = limits.memory_bytes;
        let huge_max = if limits.huge_pages { memory_bytes } else { 0 }.to_string();
        let quota_us = limits
            .processors
            .map(|processors| u64::from(processors) * PERIOD_US);
        let memory_max = memory_bytes
            .saturating_add(memory_bytes / 8)
            .saturating_add(OVERHEAD_BYTES)
            .to_string();
        let tasks_max = TASKS_MAX.to_string();
        let mut group = Group {
            directories: Vec::new(),
            unified: None,
            old: Vec::new(),
        };
        match self {
            Self::Unified { directory, .. } => {
                let directory = group.add(directory, name)?;
                fs::write(directory.join("memory.max"), &memory_max)?;
                fs::write(directory.join("pids.max"), tasks_max)?;
                // What is swapped out is not counted there.
                write_if_there(&directory.join("memory.swap.max"), &memory_max)?;
                write_if_there(&directory.join("hugetlb.2MB.max"), &huge_max)?;
                if let Some(quota_us) = quota_us {
                    let most = format!("{quota_us} {PERIOD_US}");
                    write_if_there(&directory.join("cpu.max"), &most)?;
                }
                group.unified = Some(File::open(directory)?.into());
            }
            Self::Old(bases) => {
                for base in bases {
                    let directory = group.add(base, name)?;
                    // What is swapped out is counted with the rest, in a limit that must not be less than the first.
                    for file in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
                        write_if_there(&directory.join(file), &memory_max)?;
                    }
                    write_if_there(&directory.join("pids.max"), &tasks_max)?;
                    write_if_there(&directory.join("hugetlb.2MB.limit_in_bytes"), &huge_max)?;
                    if let Some(quota_us) = quota_us {
                        let period = PERIOD_US.to_string();
                        write_if_there(&directory.join("cpu.cfs_period_us"), &period)?;
                        write_if_there(&directory.join("cpu.cfs_quota_us"), &quota_us.to_string())?;
                    }
                    let threads = File::options().write(true).open(directory.join(THREADS))?;
                    group.old.push(threads.into());
                }
            }
            Self::None(_) => {}
        }
        Ok(group)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        match self {
            Self::Unified { directory, left } => {
                let _ = fs::remove_dir(directory);
                // As it was found: another launcher may be started in the same group.
                if let Some(base) = left {
                    for controller in LIMITED.iter().chain(&SHARED) {
                        let _ = fs::write(base.join(CONTROL), format!("-{controller}"));
                    }
                    let _ = fs::write(base.join(PROCESSES), std::process::id().to_string());
                    let _ = fs::remove_dir(base.join(OWN));
                }
            }
            Self::Old(directories) => {
                for directory in directories {
                    let _ = fs::remove_dir(directory);
                }
            }
            Self::None(_) => {}
        }
    }
}

impl Group {
    /// The unified group, for a child to be born in.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// What a child with one thread writes 0 to, to move into the old groups.
    pub fn old(&self) -> &[OwnedFd] {
        &self.old
    }

    fn add(&mut self, base: &Path, name: &str) -> io::Result<PathBuf> {
        let directory = base.join(name);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.directories.push(directory.clone()),
        }
        Ok(directory)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for directory in &self.directories {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// The launcher's own group in the unified hierarchy, if that has both controllers.
fn unified_base(mounts: &str, own: &str) -> Option<PathBuf> {
    let mount = mount_point(mounts, "cgroup2", None)?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let base = inside(&mount, path);
    let controllers = fs::read_to_string(base.join("cgroup.controllers")).ok()?;
    let has = |name| controllers.split_whitespace().any(|word| word == name);
    (has("memory") && has("pids")).then_some(base)
}

/// Makes room: a group that has processes of its own cannot give controllers to groups below it, unless it is the
/// root of the hierarchy; so the launcher moves into one of its own first.
fn prepare_unified(base: &Path, name: &str) -> io::Result<(PathBuf, Option<PathBuf>)> {
    remove_stale(base);
    let limited = LIMITED.map(|controller| format!("+{controller}")).join(" ");
    let control = base.join(CONTROL);
    let mut left = None;
    if fs::write(&control, &limited).is_err() {
        let own = base.join(OWN);
        fs::create_dir_all(&own)?;
        fs::write(own.join(PROCESSES), std::process::id().to_string())?;
        left = Some(base.to_owned());
        fs::write(&control, &limited)?;
    }
    let directory = base.join(name);
    fs::create_dir(&directory)?;
    fs::write(directory.join(CONTROL), limited)?;
    for controller in SHARED.map(|controller| format!("+{controller}")) {
        if let Err(error) = fs::write(&control, &controller)
            .and_then(|()| fs::write(directory.join(CONTROL), &controller))
        {
            eprintln!("dwcp-launch: Children have no share of their own ({controller}): {error}");
        }
    }
    weigh(&directory);
    Ok((directory, left))
}

/// Makes the launcher's directory in an old hierarchy. None if it is there: two of its controllers are mounted together.
fn prepare_old(base: &Path, name: &str) -> Option<PathBuf> {
    remove_stale(base);
    let directory = base.join(name);
    fs::create_dir(&directory).ok()?;
    weigh(&directory);
    Some(directory)
}

/// Gives all children together the weight of one ordinary thread on every processor: a group's weight is divided among
/// the processors that it uses. Without it they would share one thread's.
fn weigh(directory: &Path) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for (file, one, most) in [("cpu.weight", 100, 10_000), ("cpu.shares", 1024, 262_144)] {
        let weight = (processors * one).min(most).to_string();
        if let Err(error) = write_if_there(&directory.join(file), &weight) {
            eprintln!("dwcp-launch: {file} of children cannot be set: {error}");
        }
    }
}

/// Writes to a file of a group, if its controller is there and has that file.
fn write_if_there(file: &Path, text: &str) -> io::Result<()> {
    match fs::write(file, text) {
        // No file can be made in a group, whoever asks.
        Err(_) if !file.exists() => Ok(()),
        result => result,
    }
}

/// The launcher's own group in the old hierarchy of `controller`.
fn old_base(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let mount = mount_point(mounts, "cgroup", Some(controller))?;
    let path = own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let ours = controllers.split(',').any(|word| word == controller);
        ours.then_some(path)
    })?;
    Some(inside(&mount, path))
}

/// Where a hierarchy is mounted, from the text of `/proc/mounts`.
fn mount_point(mounts: &str, kind: &str, option: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, point, found) = (words.next()?, words.next()?, words.next()?);
        let mut options = words.next()?.split(',');
        let fits = found == kind && option.is_none_or(|wanted| options.any(|word| word == wanted));
        fits.then(|| PathBuf::from(point))
    })
}

/// A group's directory. In a container only the part below the container's own root is mounted.
fn inside(mount: &Path, path: &str) -> PathBuf {
    let whole = mount.join(path.trim_start_matches('/'));
    if whole.is_dir() {
        whole
    } else {
        mount.to_owned()
    }
}

/// Removes directories of launchers that are gone. Groups with processes in them stay: they cannot be removed.
fn remove_stale(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        if Path::new("/proc").join(pid).exists() {
            continue;
        }
        for child in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(child.path());
        }
        let _ = fs::remove_dir(entry.path());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MOUNTS: &str = "tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0\n\
         cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
         cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
         cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";

    #[test]
    fn hierarchies_are_found_by_their_controllers() {
        let memory = mount_point(MOUNTS, "cgroup", Some("memory"));
        assert_eq!(memory, Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(mount_point(MOUNTS, "cgroup", Some("pids")), None);
        let unified = mount_point(MOUNTS, "cgroup2", None);
        assert_eq!(unified, Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn a_launcher_finds_its_own_group() {
        let own = "8:pids:/\n4:memory:/not-there\n0::/\n";
        let memory = old_base(MOUNTS, own, "memory");
        assert_eq!(memory, Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(old_base(MOUNTS, own, "pids"), None);
    }

    #[test]
    fn a_unified_group_is_divided_and_limited() {
        // Made up: what is written to it stays as it is.
        let base = tempfile::tempdir().unwrap();
        let read = |file: &str| fs::read_to_string(base.path().join(file)).unwrap();
        let (directory, left) = prepare_unified(base.path(), "dwcp-launch.7").unwrap();
        assert_eq!((directory, left), (base.path().join("dwcp-launch.7"), None));
        // The last of what was asked for.
        assert_eq!(read("dwcp-launch.7/cgroup.subtree_control"), "+io");
        let weight: usize = read("dwcp-launch.7/cpu.weight").parse().unwrap();
        assert!(weight >= 100 && weight.is_multiple_of(100));
        let groups = Groups::Unified {
            directory: base.path().join("dwcp-launch.7"),
            left: None,
        };
        let limits = Limits {
            memory_bytes: 64 << 20,
            huge_pages: false,
            processors: Some(3),
        };
        let group = groups.make("vm-1", &limits).unwrap();
        assert!(group.unified().is_some() && group.old().is_empty());
        for file in ["memory.max", "memory.swap.max"] {
            let bytes = (72 << 20) + OVERHEAD_BYTES;
            let file = format!("dwcp-launch.7/vm-1/{file}");
            assert_eq!(read(&file), bytes.to_string(), "{file}");
        }
        assert_eq!(read("dwcp-launch.7/vm-1/pids.max"), TASKS_MAX.to_string());
        assert_eq!(read("dwcp-launch.7/vm-1/cpu.max"), "300000 100000");
        assert_eq!(read("dwcp-launch.7/vm-1/hugetlb.2MB.max"), "0");
    }
}
