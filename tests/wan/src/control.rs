//! The control socket: one line asks, one line of JSON answers.
//!
//! `cut`, `restore`, `stats`, `reset-stats`, `set rate-mbit=… rtt-ms=… loss=… queue-ms=… queue-bytes=…`. Every answer
//! is the counts (for `reset-stats` as they were before), or `{"error": "…"}`.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use dwcp_wan::{Changes, Direction, Stats};
use serde_json::json;

use crate::forward::{Shared, lock};

/// Longest line, in bytes.
const LINE_BYTES_MAX: u64 = 512;
/// Most clients at a time; more wait to be accepted.
const CLIENTS_MAX: usize = 8;

/// What is controlled.
#[derive(Debug)]
pub struct Controlled {
    /// Settings and the cut.
    pub shared: Shared,
    /// Counts from left to right.
    pub left_to_right: Mutex<Direction>,
    /// Counts from right to left.
    pub right_to_left: Mutex<Direction>,
}

impl Controlled {
    fn obey(&self, line: &str) -> Result<Stats, String> {
        let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
        match order {
            "stats" => {}
            "cut" => self.shared.set_cut(true),
            "restore" => self.shared.set_cut(false),
            "reset-stats" => {
                let before = self.stats();
                *lock(&self.left_to_right) = Direction::default();
                *lock(&self.right_to_left) = Direction::default();
                return Ok(before);
            }
            "set" => {
                let changes: Changes = rest.parse().map_err(|error| format!("{error}"))?;
                let mut settings = lock(&self.shared.settings);
                *settings = changes
                    .apply(*settings)
                    .map_err(|error| error.to_string())?;
            }
            _ => return Err("Say cut, restore, stats, reset-stats or set NAME=VALUE …".to_owned()),
        }
        Ok(self.stats())
    }

    fn stats(&self) -> Stats {
        Stats {
            left_to_right: *lock(&self.left_to_right),
            right_to_left: *lock(&self.right_to_left),
            cut: self.shared.is_cut(),
        }
    }
}

/// Serves clients for ever, each in a thread of its own, at most [`CLIENTS_MAX`] at a time.
pub fn serve(listener: &UnixListener, controlled: &Arc<Controlled>) {
    for client in listener.incoming() {
        // One reference is the main thread's, one ours, two the directions'.
        let busy = Arc::strong_count(controlled) >= CLIENTS_MAX + 4;
        if let (Ok(client), false) = (client, busy) {
            let controlled = Arc::clone(controlled);
            std::thread::spawn(move || serve_client(client, &controlled));
        }
    }
}

fn serve_client(mut client: UnixStream, controlled: &Controlled) {
    let Ok(reader) = client.try_clone() else {
        return;
    };
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = String::new();
        match reader.by_ref().take(LINE_BYTES_MAX).read_line(&mut line) {
            Ok(count) if count > 0 && line.ends_with('\n') => {}
            _ => return,
        }
        let answer = match controlled.obey(line.trim()) {
            Ok(stats) => json!(stats),
            Err(error) => json!({ "error": error }),
        };
        if writeln!(client, "{answer}").is_err() {
            return;
        }
    }
}
