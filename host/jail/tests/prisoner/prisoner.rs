//! A confined process for the tests: does what its configuration says, with or without the filter.
//!
//! Configuration: words separated by spaces; `open` makes the call that the filter denies.

use dwcp_jail::{
    Condition, Inheritance, Kind, Scope, allow, confine, inherit, runtime_rules, thread_rules,
};

fn main() {
    let Inheritance {
        last_words,
        configuration,
        descriptors,
    } = match inherit() {
        Ok(inheritance) => inheritance,
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    };
    let orders = String::from_utf8_lossy(&configuration).into_owned();
    for order in orders.split(' ') {
        match order {
            "confine" => {
                let mut rules = runtime_rules();
                rules.extend(thread_rules());
                rules.push(allow(libc::SYS_ioctl).when(Condition::IntIs(1, libc::FIONREAD as u32)));
                if let Err(error) = confine(last_words, &rules, Scope::AllThreads) {
                    last_words.say(Kind::Error, &format!("{error}"));
                    std::process::exit(3);
                }
            }
            "confine-thread" => {
                let confined = std::thread::spawn(move || {
                    confine(last_words, &runtime_rules(), Scope::ThisThread).is_ok()
                });
                assert_eq!(confined.join().ok(), Some(true));
            }
            "confine-thread-and-open" => {
                let _ = std::thread::spawn(move || {
                    if confine(last_words, &runtime_rules(), Scope::ThisThread).is_ok() {
                        open();
                    }
                })
                .join();
            }
            "thread" => {
                let answer = std::thread::spawn(|| vec![7u8; 1 << 20].len()).join();
                assert_eq!(answer.ok(), Some(1 << 20));
            }
            "open" => open(),
            "ioctl-allowed" => ioctl(libc::FIONREAD),
            "ioctl-denied" => ioctl(libc::FIOCLEX),
            "executable-memory" => executable_memory(),
            // SAFETY: a system call with arguments that the kernel only looks at as numbers.
            "fork" => drop(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }),
            // SAFETY: as above; the number belongs to no call.
            "unheard-of" => drop(unsafe { libc::syscall(9999) }),
            "blocked" => block_signals(),
            "panic" => panic!("on purpose"),
            "count" => last_words.say(Kind::Error, &format!("{} descriptors", descriptors.len())),
            "handle-sigsys" => handle_sigsys(),
            "off" => last_words.say(Kind::Guest, "power-off"),
            "again" => last_words.say(Kind::Error, &format!("{:?}", inherit().map(drop))),
            "flood" => (0..4000).for_each(|_| last_words.say(Kind::Guest, "flood")),
            other => last_words.say(Kind::Error, &format!("unknown order {other}")),
        }
    }
}

/// Tries to take the handler away that reports denied calls.
fn handle_sigsys() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGSYS, libc::SIG_IGN) };
}

fn open() {
    let _ = std::fs::File::open("/");
}

fn ioctl(request: libc::Ioctl) {
    let mut count = 0i32;
    // SAFETY: both requests at most write an int, which is there.
    unsafe { libc::ioctl(dwcp_jail::LAST_WORDS_FD, request, &mut count) };
}

fn executable_memory() {
    // SAFETY: asks for a fresh private page, which nothing uses.
    unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
}

fn block_signals() {
    // SAFETY: the set is initialised before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}
