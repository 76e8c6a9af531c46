//! Colours, where there is a terminal to show them and nobody asked for none (`NO_COLOR`).

/// Whether to use colours.
#[derive(Clone, Copy, Debug)]
pub struct Style(bool);

impl Style {
    /// Colours on a terminal.
    pub fn on(terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(terminal && !refused)
    }

    /// For what is as it should be.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For what is on its way.
    pub fn busy(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// For what is wrong.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// For headings.
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A state's word in its colour.
    pub fn state(self, word: &str) -> String {
        match word.trim_end() {
            "running" | "done" | "yes" | "enforce" => self.good(word),
            "crashed" | "in-doubt" | "failed" | "no" | "fault" => self.bad(word),
            "starting" | "migrating" | "incoming" | "copying" | "handover" | "preparing" => {
                self.busy(word)
            }
            _ => word.to_owned(),
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
