//! A program for a Linux guest that talks to its host over vsock: `vsock-echo listen PORT` takes one connection and
//! sends back what comes, to its end; `vsock-echo connect PORT BYTES` sends so many bytes to the host and has them back.
//!
//! Ends with 0 if all bytes came back as they were sent.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, socket,
};

const HOST: u32 = 2;
const ANY: u32 = u32::MAX;
const PIECE_BYTES: usize = 64 << 10;

fn main() -> ExitCode {
    match run() {
        Ok(text) => {
            println!("vsock-echo: {text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("vsock-echo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["listen", port] => echo(port.parse()?),
        ["connect", port, bytes] => send(port.parse()?, bytes.parse()?),
        _ => bail!("Usage: vsock-echo listen PORT | connect PORT BYTES"),
    }
}

fn new_socket() -> Result<OwnedFd> {
    let made = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    );
    made.context("There is no vsock")
}

fn echo(port: u32) -> Result<String> {
    let listener = new_socket()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(ANY, port))?;
    listen(&listener, Backlog::new(1)?)?;
    println!("vsock-echo: listens on port {port}");
    let taken = accept(listener.as_raw_fd()).context("No connection came")?;
    // SAFETY: a descriptor that was just made, and is nobody else's.
    let taken = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(taken) };
    let mut stream = File::from(taken);
    let mut buffer = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(format!("sent back {bytes} bytes"));
        }
        stream.write_all(&buffer[..count])?;
        bytes += count;
    }
}

fn send(port: u32, bytes: usize) -> Result<String> {
    let socket = new_socket()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, port)).context("The host refused")?;
    let mut stream = File::from(socket);
    let mut sender = stream.try_clone()?;
    let pattern = |at: usize| (at ^ (at >> 8) ^ (at >> 16)) as u8;
    let writer = std::thread::spawn(move || {
        let all: Vec<u8> = (0..bytes).map(pattern).collect();
        sender.write_all(&all)
    });
    let mut back = vec![0; bytes];
    stream.read_exact(&mut back)?;
    ensure!(
        writer.join().is_ok_and(|sent| sent.is_ok()),
        "Not all was sent"
    );
    ensure!(
        (0..bytes).all(|at| back[at] == pattern(at)),
        "Other bytes came back"
    );
    Ok(format!("had back {bytes} bytes"))
}
