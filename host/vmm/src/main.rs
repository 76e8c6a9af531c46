//! `dwcp-vmm`: one virtual machine. Started by `dwcp-launch`, with descriptors and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    dwcp_vmm::process::run()
}
