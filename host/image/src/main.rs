//! `dwcp-image`: looks into one disk image. Started by `dwcp-launch`, with descriptors and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    dwcp_image::process::run()
}
