//! A child for the tests: reports what it can see and do, then does what its configuration says.
//!
//! The last descriptor that it is given, before as many taps as its configuration says (`taps`), is a socket. It writes
//! one line of JSON to it, then obeys one order a line.

mod rogue;
mod taps;

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use dwcp_jail::{Inheritance, Kind, Scope, confine, inherit, runtime_rules};
use dwcp_launch::Client;
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, order, socket] = &arguments[..]
        && order == "connect"
    {
        let answer = match Client::connect(Path::new(socket)).and_then(|mut client| client.list()) {
            Ok(children) => format!("{} children", children.len()),
            Err(error) => format!("{error:?}"),
        };
        println!("{answer}");
        return;
    }
    let inheritance = match inherit() {
        Ok(inheritance) => inheritance,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    };
    let Inheritance {
        last_words,
        configuration,
        mut descriptors,
    } = inheritance;
    let config: Value = serde_json::from_slice(&configuration).unwrap_or_default();
    let taps = config["taps"].as_u64().unwrap_or(0) as usize;
    let taps = descriptors.split_off(descriptors.len().saturating_sub(taps));
    let Some(socket) = descriptors.pop() else {
        // Told nothing, it lives until it is killed.
        loop {
            std::thread::park();
        }
    };
    let mut socket = BufReader::new(UnixStream::from(socket));
    let mut report = report(&config, &descriptors, socket.get_ref().as_raw_fd());
    report["taps"] = taps.iter().map(taps::describe).collect();
    let _ = writeln!(socket.get_mut(), "{report}");
    let mut order = String::new();
    while socket.read_line(&mut order).is_ok_and(|count| count > 0) {
        let special = taps::obey(order.trim(), &taps);
        let special = special.or_else(|| rogue::obey(order.trim(), &descriptors));
        let answer = special.unwrap_or_else(|| obey(order.trim(), last_words, &descriptors));
        let _ = writeln!(socket.get_mut(), "{answer}");
        order.clear();
    }
}

fn obey(order: &str, last_words: dwcp_jail::LastWords, descriptors: &[OwnedFd]) -> Value {
    let words: Vec<&str> = order.split(' ').collect();
    match words[..] {
        ["exit", code] => std::process::exit(code.parse().unwrap_or(99)),
        ["say", text] => last_words.say(Kind::Guest, text),
        ["confine"] => {
            let mut rules = runtime_rules();
            rules.extend(
                [libc::SYS_read, libc::SYS_recvfrom, libc::SYS_sendto].map(dwcp_jail::allow),
            );
            return json!(confine(last_words, &rules, Scope::AllThreads).is_ok());
        }
        ["open"] => drop(File::open("/")),
        ["abort"] => std::process::abort(),
        ["panic"] => panic!("on purpose"),
        ["flood"] => (0..10_000).for_each(|_| last_words.say(Kind::Error, &"x".repeat(600))),
        ["poke", fd, byte] => {
            let (Ok(fd), Ok(byte)) = (fd.parse::<usize>(), byte.parse::<u8>()) else {
                return json!(null);
            };
            return json!(
                duplicate(&descriptors[fd])
                    .write_all_at(&[byte], 4096)
                    .is_ok()
            );
        }
        ["peek", fd] => {
            let mut byte = [0];
            let Ok(fd) = fd.parse::<usize>() else {
                return json!(null);
            };
            let read = duplicate(&descriptors[fd]).read_exact_at(&mut byte, 4096);
            return json!(read.ok().map(|()| byte[0]));
        }
        _ => return json!("unknown order"),
    }
    json!(null)
}

fn duplicate(fd: &OwnedFd) -> File {
    File::from(fd.try_clone().unwrap_or_else(|_| std::process::exit(98)))
}

fn report(config: &Value, descriptors: &[OwnedFd], socket: i32) -> Value {
    let described: Vec<Value> = descriptors.iter().map(describe).collect();
    json!({
        "config": config,
        "argv": std::env::args().collect::<Vec<_>>(),
        "environment": std::env::vars_os().count(),
        "pid": std::process::id(),
        "uids": ids(libc::SYS_getresuid),
        "gids": ids(libc::SYS_getresgid),
        // SAFETY: with a size of zero nothing is written.
        "groups": unsafe { libc::getgroups(0, std::ptr::null_mut()) },
        "capabilities": capabilities(),
        "bounding": (0..64).filter(|cap| prctl(libc::PR_CAPBSET_READ, *cap) == 1).count(),
        "no_new_privs": prctl(libc::PR_GET_NO_NEW_PRIVS, 0),
        "open": (0..4096).filter(|fd| is_open(*fd)).collect::<Vec<i32>>(),
        "socket": socket,
        "null": (0..3).map(is_null).collect::<Vec<bool>>(),
        "root": std::fs::read_dir("/").map(|entries| entries.count()).ok(),
        "root_writable": std::fs::create_dir("/x").is_ok(),
        "interfaces": interfaces(),
        "hostname": nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()),
        "descriptors": described,
        "can_be_root": nix::unistd::setuid(nix::unistd::Uid::from_raw(0)).is_ok(),
        "can_mount": nix::mount::mount(
            None::<&str>, "/", Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>,
        ).is_ok(),
        "can_signal_others": kill_all(),
        "blocked_signals": blocked_signals(),
    })
}

fn describe(fd: &OwnedFd) -> Value {
    let file = duplicate(fd);
    let (length, device) = file
        .metadata()
        .map(|found| (found.len(), found.rdev()))
        .unwrap_or_default();
    // SAFETY: plain system calls on an open descriptor; KVM_GET_API_VERSION (0xAE00) takes no argument.
    let (seals, kvm) = unsafe {
        (
            libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS),
            libc::ioctl(file.as_raw_fd(), 0xAE00, 0),
        )
    };
    json!({
        "length": length,
        "device": [libc::major(device), libc::minor(device)],
        "seals": seals,
        "kvm": kvm,
        "writable": maps_writable(&file),
    })
}

fn maps_writable(file: &File) -> bool {
    // SAFETY: a fresh mapping, which nothing touches.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    address != libc::MAP_FAILED
}

fn ids(call: libc::c_long) -> [u32; 3] {
    let mut ids = [u32::MAX; 3];
    let [real, effective, saved] = &mut ids;
    // SAFETY: the kernel writes three ids.
    unsafe { libc::syscall(call, real, effective, saved) };
    ids
}

fn capabilities() -> [u32; 6] {
    let header = [0x2008_0522u32, 0];
    let mut data = [u32::MAX; 6];
    // SAFETY: version 3 of the structures is two and six words long.
    unsafe { libc::syscall(libc::SYS_capget, &header, &mut data) };
    data
}

fn prctl(option: i32, argument: libc::c_ulong) -> i32 {
    // SAFETY: only options that read are asked for.
    unsafe { libc::prctl(option, argument, 0, 0, 0) }
}

fn is_open(fd: i32) -> bool {
    // SAFETY: plain system call on a number.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

fn is_null(fd: i32) -> bool {
    // SAFETY: the kernel fills the structure, or it stays zero.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        libc::fstat(fd, &mut found) == 0
            && (libc::major(found.st_rdev), libc::minor(found.st_rdev)) == (1, 3)
    }
}

fn interfaces() -> Vec<String> {
    (1..64)
        .filter_map(|index| {
            let mut name = [0 as libc::c_char; libc::IF_NAMESIZE];
            // SAFETY: the buffer is as long as a name can be.
            let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
            let name: Vec<u8> = name
                .iter()
                .map(|c| *c as u8)
                .take_while(|c| *c != 0)
                .collect();
            (!found.is_null()).then(|| {
                CString::new(name)
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned()
            })
        })
        .collect()
}

/// Signal 0 to everybody: succeeds if there is anybody else to see.
fn kill_all() -> bool {
    // SAFETY: signal 0 does nothing to its receiver.
    unsafe { libc::kill(-1, 0) == 0 }
}

fn blocked_signals() -> usize {
    let set = nix::sys::signal::SigSet::thread_get_mask();
    set.map(|set| set.iter().count()).unwrap_or(usize::MAX)
}
