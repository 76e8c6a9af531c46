//! Precompiled components on disk.
//!
//! Precompiled code is native code: who can write this directory could run anything inside the daemon. So always:
//! a file is believed only if its HMAC-SHA256 under a key that only the daemon can read covers its header and its
//! code, and the header names this engine (version, settings, processor) and this component (SHA-256). Anything else
//! is compiled again and replaced, never loaded. A file is read whole before it is checked, so what was checked is
//! what runs. Never: an error that stops a plugin; without a usable cache, compiling just takes longer.

use hmac::{Hmac, Mac};
use nix::unistd::geteuid;
use sha2::Sha256;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

const MAGIC: &[u8; 8] = b"DWCPCODE";
const FORMAT: u32 = 1;
/// Magic, format, length of code, engine, digest.
const SIGNED_HEADER: usize = 8 + 4 + 8 + 32 + 32;
const TAG: usize = 32;
const HEADER: usize = SIGNED_HEADER + TAG;
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 30;

/// Why the cache's directory or key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A system call failed.
    #[error(
        "The cache of compiled plugins at {path} cannot be used. Check that the daemon's user owns it."
    )]
    Io {
        /// What was touched.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The directory is another user's, or not a directory.
    #[error(
        "{path} is not a directory of the daemon's own user. Move it away; it will be made again."
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
}

/// The directory, and the key for it.
#[derive(Debug)]
pub(crate) struct CodeCache {
    dir: PathBuf,
    key: [u8; 32],
    /// SHA-256 of everything that compiled code depends on.
    engine: [u8; 32],
    max_bytes: u64,
    temporary: AtomicU64,
}

impl CodeCache {
    /// Opens or makes the directory (0700) and the key (0600).
    pub(crate) fn open(
        dir: &Path,
        key_file: &Path,
        engine: [u8; 32],
        max_bytes: u64,
    ) -> Result<CodeCache, CacheError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| CacheError::Io { path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(at(dir))?;
        let meta = fs::symlink_metadata(dir).map_err(at(dir))?;
        if !meta.is_dir() || meta.uid() != geteuid().as_raw() {
            return Err(CacheError::NotOurs {
                path: dir.to_owned(),
            });
        }
        if meta.mode() & 0o077 != 0 {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(at(dir))?;
        }
        let key = read_or_make_key(key_file).map_err(at(key_file))?;
        Ok(CodeCache {
            dir: dir.to_owned(),
            key,
            engine,
            max_bytes,
            temporary: AtomicU64::new(0),
        })
    }

    /// Where the code of the component with this digest is kept.
    pub(crate) fn path(&self, digest: &[u8; 32]) -> PathBuf {
        self.dir.join(format!(
            "{}-{}.code",
            hex::encode(digest),
            hex::encode(&self.engine[..8])
        ))
    }

    fn tag(&self, header: &[u8], code: &[u8]) -> Hmac<Sha256> {
        // HMAC pads a short key with zeros to the hash's block; done here, no key length is left to be wrong.
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.key);
        let mut mac = <Hmac<Sha256> as Mac>::new(&block.into());
        mac.update(header);
        mac.update(code);
        mac
    }

    /// The authenticated file content, whose code begins at [`CodeCache::CODE_AT`]; none if there is none to be believed.
    pub(crate) fn load(&self, digest: &[u8; 32]) -> Option<Vec<u8>> {
        let path = self.path(digest);
        let bytes = match read_file(&path, MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cached plugin code cannot be read; compiling again");
                return None;
            }
        };
        if self.authentic(&bytes, digest) {
            Some(bytes)
        } else {
            tracing::warn!(path = %path.display(), "cached plugin code does not authenticate; compiling again");
            None
        }
    }

    /// Where the code begins in what [`CodeCache::load`] gives.
    pub(crate) const CODE_AT: usize = HEADER;

    fn header(&self, digest: &[u8; 32], code_bytes: usize) -> Vec<u8> {
        let mut header = Vec::with_capacity(SIGNED_HEADER);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&FORMAT.to_le_bytes());
        header.extend_from_slice(&(code_bytes as u64).to_le_bytes());
        header.extend_from_slice(&self.engine);
        header.extend_from_slice(digest);
        header
    }

    fn authentic(&self, bytes: &[u8], digest: &[u8; 32]) -> bool {
        let Some((header, rest)) = bytes.split_at_checked(SIGNED_HEADER) else {
            return false;
        };
        let Some((tag, code)) = rest.split_at_checked(TAG) else {
            return false;
        };
        header == self.header(digest, code.len())
            && self.tag(header, code).verify_slice(tag).is_ok()
    }

    /// Keeps code; a failure is logged and costs only time later.
    pub(crate) fn store(&self, digest: &[u8; 32], code: &[u8]) {
        let path = self.path(digest);
        if let Err(error) = self.try_store(digest, code, &path) {
            tracing::warn!(path = %path.display(), %error, "compiled plugin code cannot be kept");
        }
    }

    fn try_store(&self, digest: &[u8; 32], code: &[u8], path: &Path) -> io::Result<()> {
        let header = self.header(digest, code.len());
        let tag = self.tag(&header, code).finalize().into_bytes();
        let number = self.temporary.fetch_add(1, Relaxed);
        let temporary = self.dir.join(format!(".{}-{number}", std::process::id()));
        let written = (|| {
            // Nothing is synced: a torn file does not authenticate.
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&header)?;
            file.write_all(&tag)?;
            file.write_all(code)?;
            fs::rename(&temporary, path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written.and_then(|()| self.prune(path))
    }

    /// Takes away the oldest files until the rest fits; never the one just written.
    fn prune(&self, keep: &Path) -> io::Result<()> {
        let mut files = Vec::new();
        let mut total = 0;
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_file() {
                total += meta.len();
                files.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        files.sort();
        for (_, bytes, path) in files {
            if total <= self.max_bytes {
                break;
            }
            if path != keep {
                fs::remove_file(&path)?;
                total -= bytes;
            }
        }
        Ok(())
    }
}

fn read_file(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "the file is larger than any we write",
        ));
    }
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    file.take(max).read_to_end(&mut content)?;
    Ok(content)
}

/// Reads the key; makes a new one when there is none, it is torn, or others could have read or written it.
fn read_or_make_key(path: &Path) -> io::Result<[u8; 32]> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    match OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
    {
        Ok(mut file) => match good_key(&mut file)? {
            Some(key) => return Ok(key),
            None => {
                tracing::warn!(path = %path.display(), "the key of the code cache is torn or was readable by others; making a new one");
                fs::remove_file(path)?;
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&key)?;
    file.sync_all()?;
    Ok(key)
}

fn good_key(file: &mut File) -> io::Result<Option<[u8; 32]>> {
    let meta = file.metadata()?;
    if !meta.is_file()
        || meta.len() != 32
        || meta.mode() & 0o077 != 0
        || meta.uid() != geteuid().as_raw()
    {
        return Ok(None);
    }
    let mut key = [0; 32];
    file.read_exact(&mut key)?;
    Ok(Some(key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn cache(dir: &Path, engine: u8) -> CodeCache {
        CodeCache::open(&dir.join("c"), &dir.join("key"), [engine; 32], 1 << 20).unwrap()
    }

    #[test]
    fn what_is_stored_is_loaded_by_the_same_engine_only() {
        let dir = tempfile::tempdir().unwrap();
        let digest = [7; 32];
        cache(dir.path(), 1).store(&digest, b"code");
        assert_eq!(
            &cache(dir.path(), 1).load(&digest).unwrap()[CodeCache::CODE_AT..],
            b"code"
        );
        assert_eq!(cache(dir.path(), 2).load(&digest), None);
        // Even under the other engine's file name.
        fs::rename(
            cache(dir.path(), 1).path(&digest),
            cache(dir.path(), 2).path(&digest),
        )
        .unwrap();
        assert_eq!(cache(dir.path(), 2).load(&digest), None);
    }

    #[test]
    fn a_file_moved_to_another_component_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(dir.path(), 1);
        cache.store(&[1; 32], b"code");
        fs::rename(cache.path(&[1; 32]), cache.path(&[2; 32])).unwrap();
        assert_eq!(cache.load(&[2; 32]), None);
    }

    #[test]
    fn a_new_key_invalidates_and_an_exposed_key_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = cache(dir.path(), 1);
        first.store(&[1; 32], b"code");
        let key_file = dir.path().join("key");
        assert_eq!(fs::metadata(&key_file).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o644)).unwrap();
        let second = cache(dir.path(), 1);
        assert_ne!(first.key, second.key);
        assert_eq!(second.load(&[1; 32]), None);
        assert_eq!(
            fs::metadata(dir.path().join("c")).unwrap().mode() & 0o777,
            0o700
        );
    }

    #[test]
    fn the_oldest_code_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let cache = CodeCache::open(
            &dir.path().join("c"),
            &dir.path().join("key"),
            [1; 32],
            2_000,
        )
        .unwrap();
        for number in 0..4 {
            cache.store(&[number; 32], &[number; 800]);
        }
        let kept: Vec<u8> = (0..4).filter(|n| cache.load(&[*n; 32]).is_some()).collect();
        assert_eq!(kept.len(), 2);
        assert!(kept.contains(&3));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_or_cut_is_noticed(code in proptest::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<bool>()) {
            let dir = tempfile::tempdir().unwrap();
            let cache = cache(dir.path(), 1);
            cache.store(&[9; 32], &code);
            let path = cache.path(&[9; 32]);
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at); } else { bytes[at] ^= 1 << bit; }
            fs::write(&path, bytes).unwrap();
            prop_assert_eq!(cache.load(&[9; 32]), None);
        }
    }
}
