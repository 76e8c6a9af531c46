//! Where results go: a table for people or JSON for programs, on standard output.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::colour::Style;
use crate::table;

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs; fields as in the API.
    Json,
}

/// Standard output, in the form that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The form.
    pub format: Format,
    /// Colours.
    pub style: Style,
}

impl Output {
    /// In a form.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            style: Style::on(std::io::stdout().is_terminal()),
        }
    }

    /// Whether JSON is wanted.
    pub fn json(self) -> bool {
        self.format == Format::Json
    }

    /// Writes text as it is.
    pub fn text(self, text: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Writes bytes as they are.
    pub fn bytes(self, bytes: &[u8]) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    /// Writes one JSON value, indented.
    pub fn value(self, value: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        Ok(self.text(&text)?)
    }

    /// Writes one JSON value in one line, for streams.
    pub fn line(self, value: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_string(value)?;
        text.push('\n');
        Ok(self.text(&text)?)
    }

    /// Shows a list.
    pub fn list<T: Serialize>(
        self,
        items: &[T],
        headings: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> anyhow::Result<()> {
        if self.json() {
            return self.value(&items);
        }
        let rows = items.iter().map(row).collect();
        Ok(self.text(&table::table(self.style, headings, rows))?)
    }

    /// Shows an object.
    pub fn object<T: Serialize>(
        self,
        object: &T,
        facts: impl Fn(&T) -> Vec<(&'static str, String)>,
    ) -> anyhow::Result<()> {
        if self.json() {
            return self.value(object);
        }
        Ok(self.text(&table::facts(self.style, &facts(object)))?)
    }

    /// Says what was done, to people only; programs get the object.
    pub fn done<T: Serialize>(self, object: &T, sentence: &str) -> anyhow::Result<()> {
        if self.json() {
            return self.value(object);
        }
        Ok(self.text(&format!("{sentence}\n"))?)
    }

    /// Says what was done where there is no object left to show.
    pub fn gone(self, sentence: &str) -> anyhow::Result<()> {
        if self.json() {
            return Ok(());
        }
        Ok(self.text(&format!("{sentence}\n"))?)
    }
}
