//! A copy of a disk's file that takes no more room than the original: as a clone where the file system can, else without
//! its holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use nix::errno::Errno;

/// Copies `from` into the empty file `to`. What is copied is not synced yet.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: plain system call on open descriptors.
    let cloned = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    if Errno::result(cloned).is_ok() {
        return Ok(());
    }
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while let Some(begin) = seek(from, at, libc::SEEK_DATA)?.filter(|begin| *begin < length) {
        // No further than it was long at first, whoever makes it longer.
        let end = seek(from, begin, libc::SEEK_HOLE)?
            .unwrap_or(length)
            .min(length);
        copy_range(from, to, begin, end)?;
        at = end;
    }
    Ok(())
}

/// Where data or a hole begins at or after an offset; nothing if there is none up to the end.
fn seek(file: &File, at: u64, what: libc::c_int) -> io::Result<Option<u64>> {
    let at = i64::try_from(at).map_err(io::Error::other)?;
    // SAFETY: plain system call on an open descriptor.
    match Errno::result(unsafe { libc::lseek64(file.as_raw_fd(), at, what) }) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn copy_range(mut from: &File, mut to: &File, begin: u64, end: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(begin))?;
    to.seek(SeekFrom::Start(begin))?;
    let copied = io::copy(&mut from.take(end - begin), &mut to)?;
    if copied < end - begin {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_is_equal_and_has_the_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let length = 64 << 20;
        from.set_len(length).unwrap();
        let places = [0, 4096, 5 << 20, 33 << 20, length - 512];
        for (number, at) in places.into_iter().enumerate() {
            from.write_all_at(&[number as u8 + 1; 512], at).unwrap();
        }
        copy(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), length);
        let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for at in (0..length).step_by(1 << 20) {
            from.read_exact_at(&mut one, at).unwrap();
            to.read_exact_at(&mut other, at).unwrap();
            assert!(one == other, "differs after {at}");
        }
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        assert!(blocks(&to) <= blocks(&from) + 16);
    }

    #[test]
    fn an_empty_file_and_one_that_is_a_hole_are_copied() {
        for length in [0, 8 << 20] {
            let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
            from.set_len(length).unwrap();
            copy(&from, &to).unwrap();
            assert_eq!(to.metadata().unwrap().len(), length);
            assert_eq!(to.metadata().unwrap().blocks(), 0);
        }
    }
}
