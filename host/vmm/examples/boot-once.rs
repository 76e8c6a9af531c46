//! Boots one kernel to its end, without the launcher: `boot-once KERNEL [--initrd FILE] [--cmdline TEXT] [--memory MIB]
//! [--vcpus N]`.
//!
//! The guest's serial output goes to standard output; afterwards one line on standard error says how long it took and
//! how the guest ended. Finds `dwcp-vmm` beside itself or one directory up. Needs `/dev/kvm` and a writable `/tmp`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dwcp_memory::MemorySize;
use dwcp_vmm::config::{Boot, VmConfig};
use dwcp_vmm::spawn::{GuestFiles, Plan, spawn};

/// A guest that has not ended by itself after this long is ended.
const DEADLINE: Duration = Duration::from_secs(600);

struct Arguments {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
    memory: MemorySize,
    vcpus: u8,
}

fn main() -> ExitCode {
    match boot() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Answers whether the guest ended in good order.
fn boot() -> Result<bool> {
    let arguments = parse()?;
    let started = Instant::now();
    let config = VmConfig {
        id: "boot-once".to_owned(),
        vcpus: arguments.vcpus,
        memory_bytes: arguments.memory.bytes(),
        boot: Boot::Fresh {
            cmdline: arguments.cmdline,
            initrd: arguments.initrd.is_some(),
        },
    };
    let open = |path: &Path| File::open(path).with_context(|| path.display().to_string());
    let initrd = arguments.initrd.as_deref().map(open).transpose()?;
    let guest = GuestFiles::new(arguments.memory)?;
    let directory = std::env::temp_dir();
    let vmm = spawn(Plan {
        program: &program()?,
        directory: &directory,
        config: &config,
        guest: &guest,
        kernel: Some((open(&arguments.kernel)?, initrd)),
    })
    .context("The VMM could not be started")?;
    let show = vmm.client().and_then(|mut client| {
        let console = client.console()?;
        client.run(1)?;
        Ok(console)
    });
    if let Ok(mut console) = show {
        let mut buffer = [0; 4096];
        let mut out = std::io::stdout().lock();
        while let Ok(count @ 1..) = console.read(&mut buffer) {
            out.write_all(&buffer[..count])?;
            out.flush()?;
        }
    }
    let ended = vmm.wait(DEADLINE)?;
    let words = ended.words.unwrap_or_else(|| ended.status.to_string());
    eprintln!(
        "boot-once: {words} after {} ms",
        started.elapsed().as_millis()
    );
    Ok(words == "guest: power-off" || words == "guest: reset")
}

fn program() -> Result<PathBuf> {
    let here = std::env::current_exe().context("Where this program is")?;
    let candidates = here.ancestors().skip(1).take(2);
    let mut programs = candidates.map(|directory| directory.join("dwcp-vmm"));
    programs
        .find(|program| program.is_file())
        .context("dwcp-vmm is neither beside this program nor one directory up")
}

fn parse() -> Result<Arguments> {
    let mut words = std::env::args().skip(1);
    let kernel = words.next().context(
        "Usage: boot-once KERNEL [--initrd FILE] [--cmdline TEXT] [--memory MIB] [--vcpus N]",
    )?;
    let mut arguments = Arguments {
        kernel: kernel.into(),
        initrd: None,
        cmdline: "console=ttyS0 reboot=t panic=-1".to_owned(),
        memory: MemorySize::mib(256)?,
        vcpus: 1,
    };
    while let Some(word) = words.next() {
        let value = words
            .next()
            .with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--initrd" => arguments.initrd = Some(value.into()),
            "--cmdline" => arguments.cmdline = value,
            "--memory" => arguments.memory = MemorySize::mib(value.parse()?)?,
            "--vcpus" => arguments.vcpus = value.parse()?,
            _ => bail!("{word} is unknown"),
        }
    }
    Ok(arguments)
}
