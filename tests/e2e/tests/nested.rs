//! Linux is real here: Debian's own kernel boots under our VMM, is moved to a second process while it runs, hears its
//! power button, and powers off.
//!
//! The KVM of many a test machine cannot run an ordinary kernel at a useful speed. So this happens on the KVM of an
//! emulated AMD machine: the emulator boots the kernel, and our VMM in it boots the same kernel once more.
//!
//! What always holds: the guest's complaints fail the test as much as its silence; emulator and files are gone afterwards.

#![allow(clippy::unwrap_used)]

#[path = "nested/machine.rs"]
mod machine;
#[path = "nested/needs.rs"]
mod needs;

use std::time::Duration;

use dwcp_e2e::initramfs::Initramfs;
use dwcp_guest::Tick;
use machine::{Line, Machine, Settings};
use needs::Needs;

/// The one deadline. A run takes about a minute on a busy machine; nothing is measured with this.
const DEADLINE: Duration = Duration::from_secs(600);
/// Of the emulated machine, in MiB: the guest has 256 of them.
const MEMORY_MIB: u32 = 2048;
/// What a kernel prints when something is wrong with it.
const COMPLAINTS: [&str; 6] = [
    "BUG:",
    "Oops",
    "Call Trace",
    "cut here",
    "Kernel panic",
    "INNER log has",
];

#[test]
fn linux_boots_is_moved_hears_its_button_and_powers_off() {
    let needs = match Needs::find() {
        Ok(needs) => needs,
        Err(why) => {
            println!("SKIPPED linux_boots_is_moved_hears_its_button_and_powers_off: {why}");
            return;
        }
    };
    let scratch = tempfile::tempdir().unwrap();
    let initrd = scratch.path().join("outer");
    std::fs::write(&initrd, outer(&needs, scratch.path()).unwrap()).unwrap();
    let machine = Machine::start(&Settings {
        qemu: &needs.qemu,
        kernel: &needs.kernel(),
        initrd: &initrd,
        memory_mib: MEMORY_MIB,
    });
    let said = Said(machine.unwrap().run_to_end(DEADLINE).unwrap());
    let release = needs.release().unwrap();

    // The emulated machine is a KVM host, and the guest in it comes up with both its CPUs.
    let outer = said.after(0, &format!("OUTER up: Linux {release}"));
    let host = said.after(outer, "OUTER has KVM");
    let inner = said.after(host, &format!("INNER up: 2 CPUs, Linux {release}"));

    // It finds its devices: the disk keeps what it writes, and there is entropy.
    let wrote = said.after(inner, "INNER wrote ");
    let disk = said.after(wrote, "INNER disk of 8192 sectors, named disk-0");
    let inner = said.after(disk, "INNER entropy: 256 bytes");

    // Its second console speaks and listens, and it talks with its host over vsock, whoever begins.
    let says = said.after(inner, "INNER says this on its second console");
    let size = said.after(says, "INNER second console: 24 80");
    let reads = said.after(size, "INNER reads: typed on the console");
    let sent = said.after(reads, "vsock-echo: had back 1000000 bytes");
    said.after(sent, "boot-once: the guest sent back 1048576 bytes");
    let inner = said.after(sent, "vsock-echo: sent back 1048576 bytes");

    // It is moved, and goes on in the other process.
    let ready = said.after(inner, "INNER ready to be moved");
    let moved = said.after(ready, "boot-once: moved, ");
    said.after(moved, "boot-once: the balloon has 10000 pages");
    let on = said.after(moved, "INNER waits for the button");

    // It hears the button; its clock went forwards; its memory came along; both CPUs work.
    let heard = said.after(on, "INNER button presses: 1");
    let clock = said.after(heard, "INNER uptime before and after: ");
    let (before, after) = uptimes(&said.0[clock].text);
    assert!(before < after, "the clock went from {before} to {after}");
    let same = said.after(clock, "INNER memory is the same");
    // There it has less memory, connects again, and was told that it is another one.
    let free = said.after(same, "INNER free memory before and after: ");
    let (before, after) = free_kib(&said.0[free].text);
    assert!(after + 30_000 < before, "{before} KiB, then {after} KiB");
    let sent = said.after(free, "vsock-echo: had back 300000 bytes");
    let told = said.after(sent, "INNER generation: \\_SB_.VGEN, told 1 times");
    let same = said.after(told, "INNER disk is the same");
    let same = said.after(same, "INNER writes after the move");
    let first = said.after(same, "INNER works on CPU 0");
    let second = said.after(first, "INNER works on CPU 1");
    let clean = said.after(second, "INNER log is clean");

    // It powers off, which is how the VMM says that it ended.
    let off = said.after(clean, "boot-once: guest: power-off");
    let ended = said.after(off, "OUTER boot-once ended with 0");

    // What the guest wrote is what the host finds.
    let sum = said.0[wrote].text.rsplit(' ').next().unwrap();
    said.after(ended, &format!("OUTER finds {sum}"));

    // The demonstration's worker finds its memory as it wrote it, before it is moved and afterwards.
    let filled = said.after(ended, "guest: filled 4 MiB");
    let taken = said.after(filled, "boot-once: moved, ");
    let (earlier, later) = (said.ticks(filled, taken), said.ticks(taken, said.0.len()));
    assert!(
        !earlier.is_empty() && later.len() >= 3,
        "{earlier:?}, {later:?}"
    );
    for pair in earlier.iter().chain(&later).collect::<Vec<_>>().windows(2) {
        assert!(pair[0].checked < pair[1].checked && pair[0].pages < pair[1].pages);
    }
    assert!(earlier.iter().chain(&later).all(|tick| tick.bad == 0));
    said.after(taken, "OUTER worker ended with 0");
    for complaint in COMPLAINTS {
        let found = said.0.iter().find(|line| line.text.contains(complaint));
        assert!(found.is_none(), "a kernel complains: {found:?}");
    }

    let at = |line: usize| said.0[line].at.as_secs_f64();
    println!(
        "nested: the emulated machine was up after {:.1} s, the guest {:.1} s after its VMM was started, moved {:.1} s \
         later, off {:.1} s after that; {:.1} s in all",
        at(outer),
        at(inner) - at(host),
        at(moved) - at(inner),
        at(off) - at(moved),
        at(said.0.len() - 1)
    );
}

/// What was printed.
struct Said(Vec<Line>);

impl Said {
    /// Where the first line is, from line `from` on, that contains `text`.
    fn after(&self, from: usize, text: &str) -> usize {
        (from..self.0.len())
            .find(|&n| self.0[n].text.contains(text))
            .unwrap_or_else(|| {
                let from = self.0.get(from).map_or("the start", |line| &line.text);
                panic!("nothing printed after {from:?} contains {text:?}")
            })
    }

    /// What a worker said between two lines.
    fn ticks(&self, from: usize, to: usize) -> Vec<Tick> {
        let lines = self.0[from..to].iter();
        lines.filter_map(|line| Tick::parse(&line.text)).collect()
    }
}

/// The last two numbers of a line, in seconds.
fn uptimes(line: &str) -> (f64, f64) {
    let mut words = line.rsplit(' ');
    let mut number = || words.next().unwrap().parse().unwrap();
    let after = number();
    (number(), after)
}

/// The two numbers of a line before its unit, in KiB.
fn free_kib(line: &str) -> (u64, u64) {
    let mut words = line.rsplit(' ').skip(1);
    let mut number = || words.next().unwrap().parse().unwrap();
    let after = number();
    (number(), after)
}

/// The initramfs of the emulated machine: our programs, and all that the guest in it boots from.
fn outer(needs: &Needs, scratch: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    let mut archive = Initramfs::new();
    archive.program("init", include_bytes!("nested/outer-init.sh"));
    archive.program("bin/busybox", &needs.busybox);
    archive.program("bin/dwcp-vmm", &needs::program("dwcp-vmm", scratch)?);
    let boot_once = needs::program("examples/boot-once", scratch)?;
    archive.program("bin/boot-once", &boot_once);
    archive.directory("modules");
    for (name, path) in [
        ("irqbypass", "virt/lib/irqbypass.ko"),
        ("kvm", "arch/x86/kvm/kvm.ko"),
        ("kvm-amd", "arch/x86/kvm/kvm-amd.ko"),
    ] {
        archive.program(&format!("modules/{name}.ko"), &needs.module(path)?);
    }
    archive.program("vmlinuz", &std::fs::read(needs.kernel())?);
    archive.program("inner", &inner(needs, scratch)?);
    let worker = needs::program("dwcp-linux-worker", scratch)?;
    archive.program("worker", &Initramfs::of_worker(&worker));
    Ok(archive.finish())
}

/// The guest's own initramfs.
fn inner(needs: &Needs, scratch: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    let mut archive = Initramfs::new();
    archive.program("init", include_bytes!("nested/inner-init.sh"));
    archive.program("bin/busybox", &needs.busybox);
    archive.program("button.ko", &needs.module("drivers/acpi/button.ko")?);
    let echo = needs::program("examples/vsock-echo", scratch)?;
    archive.program("bin/vsock-echo", &echo);
    archive.directory("modules");
    for (name, path) in [
        ("virtio", "drivers/virtio"),
        ("virtio_ring", "drivers/virtio"),
        ("virtio_pci_modern_dev", "drivers/virtio"),
        ("virtio_pci_legacy_dev", "drivers/virtio"),
        ("virtio_pci", "drivers/virtio"),
        ("virtio_blk", "drivers/block"),
        ("virtio-rng", "drivers/char/hw_random"),
        ("virtio_balloon", "drivers/virtio"),
        ("virtio_console", "drivers/char"),
        ("vsock", "net/vmw_vsock"),
        ("vmw_vsock_virtio_transport_common", "net/vmw_vsock"),
        ("vmw_vsock_virtio_transport", "net/vmw_vsock"),
    ] {
        let module = needs.module(&format!("{path}/{name}.ko"))?;
        archive.program(&format!("modules/{name}.ko"), &module);
    }
    Ok(archive.finish())
}
