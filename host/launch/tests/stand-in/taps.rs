//! What the stand-in does with its taps: as a VMM's device would, frame by frame, each after a virtio-net header.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use serde_json::{Value, json};

const HEADER_BYTES: usize = 12;

/// What a tap is, as the kernel says it.
pub fn describe(tap: &OwnedFd) -> Value {
    let (mut header_bytes, fd) = (0 as libc::c_int, tap.as_raw_fd());
    // SAFETY: all-zero is a valid ifreq; the kernel fills it, and writes one int.
    let (flags, name, status) = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        libc::ioctl(fd, libc::TUNGETIFF, &raw mut request);
        libc::ioctl(fd, libc::TUNGETVNETHDRSZ, &raw mut header_bytes);
        let name: Vec<u8> = request.ifr_name.iter().map(|c| *c as u8).collect();
        (
            request.ifr_ifru.ifru_flags,
            name,
            libc::fcntl(fd, libc::F_GETFL),
        )
    };
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    json!({
        "name": String::from_utf8_lossy(name),
        "flags": flags as u16,
        "header_bytes": header_bytes,
        "non_blocking": status & libc::O_NONBLOCK != 0,
        "descriptor": fd,
    })
}

/// `send TAP HEX` answers whether the tap took it; `frames TAP` answers what has come; the rest are a VMM gone bad.
pub fn obey(order: &str, taps: &[OwnedFd]) -> Option<Value> {
    let words: Vec<&str> = order.split(' ').collect();
    let tap = |number: &str| taps.get(number.parse::<usize>().ok()?);
    Some(match words[..] {
        ["send", number, frame] => {
            let mut bytes = vec![0; HEADER_BYTES];
            bytes.extend(unhex(frame)?);
            json!(
                File::from(tap(number)?.try_clone().ok()?)
                    .write(&bytes)
                    .is_ok()
            )
        }
        ["frames", number] => json!(frames(tap(number)?)?),
        ["persist", number] => {
            // SAFETY: the argument is a number.
            let result = unsafe { libc::ioctl(tap(number)?.as_raw_fd(), libc::TUNSETPERSIST, 1) };
            json!(result == 0)
        }
        ["lower", number] => {
            let fewer = libc::c_ulong::from(libc::TUN_F_CSUM);
            // SAFETY: the argument is a number.
            let result =
                unsafe { libc::ioctl(tap(number)?.as_raw_fd(), libc::TUNSETOFFLOAD, fewer) };
            json!(result == 0)
        }
        _ => return None,
    })
}

fn frames(tap: &OwnedFd) -> Option<Vec<String>> {
    let mut file = File::from(tap.try_clone().ok()?);
    let mut buffer = vec![0; 70_000];
    let mut frames = Vec::new();
    while let Ok(count) = file.read(&mut buffer) {
        let frame = buffer.get(HEADER_BYTES..count)?;
        frames.push(frame.iter().map(|byte| format!("{byte:02x}")).collect());
    }
    Some(frames)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok())
        .collect()
}
