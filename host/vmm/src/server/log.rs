//! The serial log: a file that is opened for appending and never grows without bound.

use std::fs::File;
use std::io::Write;

/// At this length, in bytes, the log begins anew.
const LOG_BYTES_MAX: u64 = 4 << 20;

/// The log. A log that cannot be written is given up: the guest matters more.
#[derive(Debug)]
pub struct SerialLog {
    file: Option<File>,
    bytes: u64,
}

impl SerialLog {
    /// Takes a file that was opened with `O_APPEND`.
    pub fn new(file: File) -> Self {
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        Self {
            file: Some(file),
            bytes,
        }
    }

    /// Appends output; `recent` is what stays when the log begins anew, this output included.
    pub fn append(&mut self, output: &[u8], recent: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let is_full = self.bytes + output.len() as u64 > LOG_BYTES_MAX;
        let written = if is_full {
            let notice = format!(
                "[dwcp: {} bytes of older output were dropped]\n",
                self.bytes
            );
            let anew = [notice.as_bytes(), recent].concat();
            self.bytes = anew.len() as u64;
            file.set_len(0).and_then(|()| file.write_all(&anew))
        } else {
            self.bytes += output.len() as u64;
            file.write_all(output)
        };
        if written.is_err() {
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_log_begins_anew_when_it_is_full_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serial.log");
        let open = || {
            File::options()
                .append(true)
                .create(true)
                .open(&path)
                .unwrap()
        };
        let mut log = SerialLog::new(open());
        let output = vec![b'a'; 1 << 20];
        for _ in 0..4 {
            log.append(&output, b"unused");
        }
        assert_eq!(path.metadata().unwrap().len(), LOG_BYTES_MAX);
        // A new process goes on with the same file.
        let mut log = SerialLog::new(open());
        log.append(b"last", b"recent and last");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("[dwcp: 4194304 bytes of older output"),
            "{text}"
        );
        assert!(text.ends_with("recent and last"), "{text}");
        log.append(b" more", b"unused");
        assert!(
            std::fs::read_to_string(&path)
                .unwrap()
                .ends_with("last more")
        );
    }
}
