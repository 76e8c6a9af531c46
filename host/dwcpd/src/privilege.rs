//! What is done while the daemon is still root: the state directory given to its user, the launcher started, and then
//! root given up for good.

use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::unistd::{Gid, Uid};

use crate::config::UID_DEFAULT;

/// How long a launcher may take to answer after it was started.
const LAUNCHER_START: Duration = Duration::from_secs(10);

/// The user to become: by name, by number, or the default.
pub(crate) fn user(asked: Option<&str>) -> anyhow::Result<(Uid, Gid)> {
    let found = match asked {
        None => by_name("dwcp").unwrap_or((UID_DEFAULT, UID_DEFAULT)),
        Some(text) => match text.parse::<u32>() {
            Ok(number) => (number, number),
            Err(_) => by_name(text).with_context(|| {
                format!("There is no user {text} in /etc/passwd: make one, or give a number")
            })?,
        },
    };
    if found.0 == 0 {
        bail!("The daemon does not run as root: name another user with --user");
    }
    Ok((Uid::from_raw(found.0), Gid::from_raw(found.1)))
}

/// User and group of a name in `/etc/passwd`. Not by the C library, whose name service needs shared objects that a
/// static program must not load; a user from elsewhere is given by number.
fn by_name(name: &str) -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then_some(())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some((uid, gid))
    })
}

/// Makes the state directory and gives it to the daemon's user: the directory itself, by its descriptor, and nothing in
/// it. Whoever owns a directory decides what its names lead to, so root must not follow them.
pub(crate) fn give_state(dir: &Path, uid: Uid, gid: Gid) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("The state directory {} cannot be made", dir.display()))?;
    let opened = std::fs::File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(dir)
        .with_context(|| format!("The state directory {} is no directory", dir.display()))?;
    let owner = opened.metadata()?.uid();
    if owner != 0 && owner != uid.as_raw() {
        bail!(
            "The state directory {} belongs to user {owner}, and the daemon is to run as user {uid}: name that user with --user, or another directory with --state",
            dir.display()
        );
    }
    nix::unistd::fchown(&opened, Some(uid), Some(gid))?;
    opened.set_permissions(std::fs::Permissions::from_mode(0o700))?;
    Ok(())
}

/// Starts the launcher beside this program, unless one answers already.
pub(crate) fn start_launcher(socket: &Path, uid: Uid) -> anyhow::Result<()> {
    if dwcp_launch::Client::connect(socket).is_ok() {
        return Ok(());
    }
    let program = std::env::current_exe()?.with_file_name("dwcp-launch");
    let mut child = Command::new(&program)
        .arg("--socket")
        .arg(socket)
        .arg("--allow-uid")
        .arg(uid.to_string())
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("The launcher {} cannot be started", program.display()))?;
    let deadline = Instant::now() + LAUNCHER_START;
    while dwcp_launch::Client::connect(socket).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("The launcher ended at once ({status}); its message is above");
        }
        if Instant::now() > deadline {
            bail!("The launcher does not answer at {}", socket.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Becomes the user for good.
pub(crate) fn drop_root(uid: Uid, gid: Gid) -> anyhow::Result<()> {
    nix::unistd::setgroups(&[])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    // SAFETY: plain system calls without pointers.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    if nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
        bail!("Root could not be given up");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn users_are_found_by_name_and_root_is_refused() {
        assert_eq!(by_name("root"), Some((0, 0)));
        assert_eq!(by_name("no-such-user"), None);
        assert!(user(Some("root")).is_err());
        assert!(user(Some("0")).is_err());
        assert!(user(Some("64100")).is_ok_and(|(uid, _)| uid.as_raw() == 64_100));
        assert!(user(None).is_ok());
    }

    #[test]
    fn only_the_state_directory_itself_is_given_and_no_link_is_followed() {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIPPED privilege: only root gives a directory away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (uid, gid) = (Uid::from_raw(64_100), Gid::from_raw(64_100));
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join("inside"), "").unwrap();
        give_state(&state, uid, gid).unwrap();
        let about = std::fs::metadata(&state).unwrap();
        assert_eq!(
            (about.uid(), about.gid(), about.mode() & 0o777),
            (64_100, 64_100, 0o700)
        );
        assert_eq!(std::fs::metadata(state.join("inside")).unwrap().uid(), 0);
        // Again, as at every start.
        give_state(&state, uid, gid).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&state, &link).unwrap();
        assert!(give_state(&link, uid, gid).is_err());
        let stranger = Uid::from_raw(64_101);
        let refused = give_state(&state, stranger, gid).unwrap_err();
        assert!(refused.to_string().contains("64100"), "{refused}");
    }
}
