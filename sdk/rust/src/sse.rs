//! Server-sent events (HTML standard, 9.2), as far as the API uses them: data in JSON and a number.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::transport::Client;

/// Longest line and longest event, bytes.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Takes events out of bytes as they come.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    data: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
            } else {
                self.end_of_line();
            }
            if self.line.len() > EVENT_BYTES_MAX || self.data.len() > EVENT_BYTES_MAX {
                return Err(Error::Answer(format!(
                    "an event is longer than {EVENT_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(())
    }

    fn end_of_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        if line.is_empty() {
            if !self.data.is_empty() {
                self.ready.push_back(std::mem::take(&mut self.data));
            }
        } else if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data
                .extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        }
    }
}

/// Records as they come.
#[derive(Debug)]
pub(crate) struct Records {
    client: Client,
    response: reqwest::Response,
    parser: Parser,
}

impl Records {
    pub(crate) fn new(client: Client, response: reqwest::Response) -> Self {
        Self {
            client,
            response,
            parser: Parser::default(),
        }
    }

    /// The next one; `None` when the host ended the stream.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(data) = self.parser.ready.pop_front() {
                let record = serde_json::from_slice(&data);
                return record
                    .map(Some)
                    .map_err(|error| Error::Answer(error.to_string()));
            }
            let piece: reqwest::Result<Option<Bytes>> = self.response.chunk().await;
            match piece.map_err(|error| self.client.unreachable(error.without_url()))? {
                Some(piece) => self.parser.push(&piece)?,
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_come_out_however_the_bytes_are_cut() {
        let text = b": sign of life\n\nid: 7\ndata: {\"a\":\ndata: 1}\n\ndata:2\r\n\r\n";
        for cut in 0..text.len() {
            let mut parser = Parser::default();
            parser.push(&text[..cut]).unwrap();
            parser.push(&text[cut..]).unwrap();
            let events: Vec<_> = parser.ready.iter().map(Vec::as_slice).collect();
            assert_eq!(events, [b"{\"a\":\n1}".as_slice(), b"2"], "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; 1 << 20];
        let refused = (0..6).any(|_| parser.push(&piece).is_err());
        assert!(refused);
    }
}
