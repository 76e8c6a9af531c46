//! Sockets of every kind, and whom they reach.

use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use serde_json::Value;

use super::{Report, at, call, outcome};

/// Kinds that reach beyond a network namespace, or that nothing here is for: number, type, protocol.
const KINDS: [(&str, i32, i32, i32); 9] = [
    ("AF_NETLINK", libc::AF_NETLINK, libc::SOCK_RAW, 0),
    ("AF_PACKET", libc::AF_PACKET, libc::SOCK_RAW, 0x300),
    ("AF_VSOCK", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    ("AF_ALG", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
    ("AF_BLUETOOTH", libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
    ("AF_CAN", libc::AF_CAN, libc::SOCK_RAW, 1),
    ("AF_TIPC", libc::AF_TIPC, libc::SOCK_SEQPACKET, 0),
    ("AF_XDP", libc::AF_XDP, libc::SOCK_RAW, 0),
    ("raw IP", libc::AF_INET, libc::SOCK_RAW, 1),
];

/// Everything; `name` is an abstract socket of the host's, which listens on `port` of all `hosts` too.
pub fn all(launcher: &str, name: &str, port: u16, hosts: &[&str]) -> Report {
    let mut report = Report::new();
    for (name, family, kind, protocol) in KINDS {
        let made = socket(family, kind, protocol);
        report.insert(format!("socket {name}"), outcome(made));
    }
    for host in hosts {
        for (kind, number) in [("tcp", libc::SOCK_STREAM), ("udp", libc::SOCK_DGRAM)] {
            let connected = host.parse().map_err(|_| Errno::EINVAL);
            let connected = connected.and_then(|host| connect(host, port, number));
            report.insert(format!("{kind} {host}"), outcome(connected));
        }
    }
    report.insert("unix launcher".into(), unix(launcher.as_bytes()));
    let hidden = [b"\0", name.as_bytes()].concat();
    report.insert("unix abstract".into(), unix(&hidden));
    report
}

fn socket(family: i32, kind: i32, protocol: i32) -> Result<usize, Errno> {
    let arguments = [family as usize, kind as usize, protocol as usize];
    call(libc::SYS_socket, arguments).map(|fd| fd as usize)
}

fn connect(host: IpAddr, port: u16, kind: i32) -> Result<i64, Errno> {
    let address = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(host, port));
    let (family, length) = match host {
        IpAddr::V4(_) => (libc::AF_INET, size_of::<libc::sockaddr_in>()),
        IpAddr::V6(_) => (libc::AF_INET6, size_of::<libc::sockaddr_in6>()),
    };
    let fd = socket(family, kind, 0)?;
    let result = call(libc::SYS_connect, [fd, at(&address), length]);
    let _ = call(libc::SYS_close, [fd]);
    result
}

/// Connects to a socket with a name.
fn unix(name: &[u8]) -> Value {
    let mut address = [0u8; 110];
    address[0] = libc::AF_UNIX as u8;
    let length = 2 + name.len().min(107);
    address[2..length].copy_from_slice(&name[..length - 2]);
    // A path ends with a zero.
    let length = length + usize::from(name.first() != Some(&0));
    let result = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)
        .and_then(|fd| call(libc::SYS_connect, [fd, at(&address), length]));
    outcome(result)
}
