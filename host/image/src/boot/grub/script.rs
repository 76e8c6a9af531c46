//! Enough of GRUB's script language: words, quotes, variables, braces.
//!
//! What always holds: any text is read, in time in proportion to its length and what its variables add; words, entries
//! and variables are bounded; what is beyond a bound is left out, and a command line that was cut so is still longer
//! than any that is taken. The language is described in GRUB's manual, chapter
//! "Writing full configuration files directly".

use std::collections::BTreeMap;

use crate::limits::{BOOT_ENTRIES_MAX, COMMAND_LINE_BYTES_MAX};

/// Most variables that are remembered.
const VARIABLES_MAX: usize = 512;
/// Longest word, variables replaced.
const WORD_BYTES_MAX: usize = 2 * COMMAND_LINE_BYTES_MAX;
/// Most words of one command. A command line of more is refused, for it is too long.
const WORDS_MAX: usize = COMMAND_LINE_BYTES_MAX;

/// A menu entry with a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MenuEntry {
    /// What the menu shows.
    pub(super) title: String,
    /// The kernel and its arguments.
    pub(super) linux: Vec<String>,
    /// The files of the initrd.
    pub(super) initrd: Vec<String>,
    /// Which file system the paths are in.
    pub(super) root_uuid: Option<String>,
}

/// A menu.
#[derive(Debug)]
pub(super) struct Menu {
    /// The entries that have a kernel, in order; those of submenus among them. At most [`BOOT_ENTRIES_MAX`].
    pub(super) entries: Vec<MenuEntry>,
    /// Whether there are more.
    pub(super) is_cut: bool,
}

/// Reads the menu of a file.
pub(super) fn read_menu(text: &str) -> Menu {
    let mut reader = Reader::default();
    let mut commands = Commands::new(text);
    while let Some(words) = commands.next(&reader.variables) {
        reader.take(words);
        if reader.entries.len() > BOOT_ENTRIES_MAX {
            break;
        }
    }
    let mut entries = reader.entries;
    let is_cut = entries.len() > BOOT_ENTRIES_MAX;
    entries.truncate(BOOT_ENTRIES_MAX);
    Menu { entries, is_cut }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    variables: BTreeMap<String, String>,
    /// The file system that was searched for outside of entries.
    root_uuid: Option<String>,
    /// How many braces are open.
    depth: usize,
    /// The entry that is open, and the depth at which it ends.
    open: Option<(usize, MenuEntry)>,
    entries: Vec<MenuEntry>,
}

impl Reader {
    fn take(&mut self, words: Vec<String>) {
        let Some((command, arguments)) = words.split_first() else {
            return;
        };
        match command.as_str() {
            "{" => self.depth += 1,
            "}" => self.close(),
            "menuentry" => self.open_entry(arguments),
            "set" => arguments.iter().for_each(|argument| self.set(argument)),
            "search" | "search.fs_uuid" => self.search(command, arguments),
            "linux" | "linux16" | "linuxefi" => {
                if let Some((_, entry)) = &mut self.open
                    && entry.linux.is_empty()
                {
                    entry.linux = arguments.to_vec();
                }
            }
            "initrd" | "initrd16" | "initrdefi" => {
                if let Some((_, entry)) = &mut self.open
                    && entry.initrd.is_empty()
                {
                    entry.initrd = arguments.to_vec();
                }
            }
            _ => {}
        }
        // A word of its own that opens a block: of a menu, a function.
        if command != "{" && arguments.last().is_some_and(|word| word == "{") {
            self.depth += 1;
        }
    }

    fn open_entry(&mut self, arguments: &[String]) {
        if self.open.is_none() {
            let entry = MenuEntry {
                title: arguments.first().cloned().unwrap_or_default(),
                root_uuid: self.root_uuid.clone(),
                ..MenuEntry::default()
            };
            self.open = Some((self.depth, entry));
        }
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        if let Some((depth, entry)) = self.open.take() {
            if depth < self.depth {
                self.open = Some((depth, entry));
            } else if !entry.linux.is_empty() {
                self.entries.push(entry);
            }
        }
    }

    fn set(&mut self, argument: &str) {
        let Some((name, value)) = argument.split_once('=') else {
            return;
        };
        if self.variables.len() < VARIABLES_MAX || self.variables.contains_key(name) {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }

    /// `search --fs-uuid --set=root UUID`, and the older `search.fs_uuid UUID root`.
    fn search(&mut self, command: &str, arguments: &[String]) {
        let mut plain = arguments.iter().filter(|word| !word.starts_with("--"));
        let by_uuid = command == "search.fs_uuid"
            || arguments
                .iter()
                .any(|word| word == "--fs-uuid" || word == "-u");
        // With hints as words of their own, the UUID is the last of a `search`.
        let uuid = match command {
            "search" => plain.next_back(),
            _ => plain.next(),
        };
        let Some(uuid) = uuid.filter(|_| by_uuid) else {
            return;
        };
        match &mut self.open {
            Some((_, entry)) => entry.root_uuid = Some(uuid.clone()),
            None => self.root_uuid = Some(uuid.clone()),
        }
    }
}

/// Divides a script into commands of words.
struct Commands<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
}

impl<'a> Commands<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text.chars().peekable(),
        }
    }

    /// The words of the next command, variables replaced; none at the end of the text. Words beyond a bound are left
    /// out.
    fn next(&mut self, variables: &BTreeMap<String, String>) -> Option<Vec<String>> {
        let mut words = Vec::new();
        loop {
            match self.rest.peek() {
                None if words.is_empty() => return None,
                None => return Some(words),
                Some('\n' | ';') => {
                    self.rest.next();
                    if !words.is_empty() {
                        return Some(words);
                    }
                }
                Some('#') => self.skip_line(),
                Some(space) if space.is_whitespace() => {
                    self.rest.next();
                }
                Some('&' | '|') => {
                    self.rest.next();
                }
                // A brace ends a command; a closing one is a command of its own.
                Some('}') if !words.is_empty() => return Some(words),
                Some(&brace @ ('{' | '}')) => {
                    self.rest.next();
                    words.push(brace.to_string());
                    return Some(words);
                }
                Some(_) => {
                    if let Some(word) = self.word(variables)
                        && words.len() < WORDS_MAX
                    {
                        words.push(word);
                    }
                }
            }
        }
    }

    fn skip_line(&mut self) {
        while self.rest.peek().is_some_and(|next| *next != '\n') {
            self.rest.next();
        }
    }

    /// One word; none if it is nothing but a variable that is not set.
    fn word(&mut self, variables: &BTreeMap<String, String>) -> Option<String> {
        let mut word = String::new();
        let mut is_word = false;
        while let Some(&next) = self.rest.peek() {
            match next {
                _ if next.is_whitespace() || matches!(next, ';' | '&' | '|' | '{' | '}') => break,
                '\'' => {
                    self.rest.next();
                    is_word = true;
                    for inner in self.rest.by_ref().take_while(|inner| *inner != '\'') {
                        push(&mut word, inner);
                    }
                }
                '"' => {
                    self.rest.next();
                    is_word = true;
                    self.quoted(&mut word, variables);
                }
                '\\' => {
                    self.rest.next();
                    self.escaped(&mut word, |_| true);
                    is_word = true;
                }
                '$' => {
                    self.rest.next();
                    self.variable(&mut word, variables);
                }
                _ => {
                    self.rest.next();
                    push(&mut word, next);
                    is_word = true;
                }
            }
        }
        (is_word || !word.is_empty()).then_some(word)
    }

    /// The rest of a word in double quotes.
    fn quoted(&mut self, word: &mut String, variables: &BTreeMap<String, String>) {
        while let Some(next) = self.rest.next() {
            match next {
                '"' => return,
                '\\' => self.escaped(word, |next| matches!(next, '$' | '"' | '\\' | '\n')),
                '$' => self.variable(word, variables),
                _ => push(word, next),
            }
        }
    }

    /// What follows a backslash: as it is, or with the backslash when it takes nothing special from it.
    fn escaped(&mut self, word: &mut String, is_special: impl Fn(char) -> bool) {
        match self.rest.next() {
            Some('\n') | None => {}
            Some(next) => {
                if !is_special(next) {
                    push(word, '\\');
                }
                push(word, next);
            }
        }
    }

    /// The value of the variable whose name follows.
    fn variable(&mut self, word: &mut String, variables: &BTreeMap<String, String>) {
        let mut name = String::new();
        if self.rest.peek() == Some(&'{') {
            self.rest.next();
            for inner in self.rest.by_ref().take_while(|inner| *inner != '}') {
                push(&mut name, inner);
            }
        } else {
            while let Some(&next) = self.rest.peek() {
                if !(next.is_ascii_alphanumeric() || matches!(next, '_' | '?')) {
                    break;
                }
                self.rest.next();
                push(&mut name, next);
            }
        }
        let value = variables.get(&name).map_or("", String::as_str);
        // At once, and no more than there is room for: a file may name a long value many thousand times.
        let room = WORD_BYTES_MAX.saturating_sub(word.len());
        word.push_str(&value[..value.floor_char_boundary(room)]);
    }
}

/// Adds a character to a word that is not too long yet.
fn push(word: &mut String, next: char) {
    if word.len() < WORD_BYTES_MAX {
        word.push(next);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::limits::CONFIG_BYTES_MAX;
    use proptest::prelude::*;

    #[test]
    fn words_are_what_grub_makes_of_them() {
        let variables = BTreeMap::from([
            ("a".to_owned(), "one two".to_owned()),
            ("b_2".to_owned(), "x".to_owned()),
        ]);
        let mut commands = Commands::new(
            "linux 'a b'\"c $a \\\"\"d\\ e $b_2/$none ${none} ''\\\n f # comment\n; set x=y}\nmenuentry t {u",
        );
        let mut all = Vec::new();
        while let Some(words) = commands.next(&variables) {
            all.push(words);
        }
        assert_eq!(
            all,
            [
                vec!["linux", "a bc one two \"d e", "x/", "", "f"],
                vec!["set", "x=y"],
                vec!["}"],
                vec!["menuentry", "t", "{"],
                vec!["u"],
            ]
        );
    }

    /// The shape of Ubuntu's file: a function, both branches of an `if`, a submenu.
    #[test]
    fn the_first_kernel_of_each_entry_counts() {
        let entries = read_menu(
            r#"
            function gfxmode {
                set gfxpayload="${1}"
                if [ "${1}" = "keep" ]; then
                    set vt_handoff=vt.handoff=7
                else
                    set vt_handoff=
                fi
            }
            if [ x$feature_all_video_module = xy ]; then
                insmod all_video
            fi
            search --no-floppy --fs-uuid --set=root 1111-2222
            menuentry 'Ubuntu' --class ubuntu $menuentry_id_option 'gnulinux-simple' {
                gfxmode $linux_gfx_mode
                search --no-floppy --fs-uuid --set=root  AAAA-bbbb
                if [ "${initrdfail}" = 1 ]; then
                    linux /vmlinuz-6.8 root=PARTUUID=1 ro  console=tty1 $vt_handoff
                    initrd /microcode.cpio /initrd.img-6.8
                else
                    linux /vmlinuz-6.8 root=PARTUUID=1 ro panic=-1
                fi
                initrdfail
            }
            submenu 'Advanced' $menuentry_id_option 'advanced' {
                menuentry 'old' { linux16 /vmlinuz-5 x }
            }
            menuentry 'UEFI Firmware Settings' { fwsetup }
            menuentry 'no end' { linux /late
            "#,
        )
        .entries;
        assert_eq!(entries.len(), 2, "{entries:?}");
        assert_eq!(entries[0].title, "Ubuntu");
        assert_eq!(
            entries[0].linux,
            ["/vmlinuz-6.8", "root=PARTUUID=1", "ro", "console=tty1"]
        );
        assert_eq!(entries[0].initrd, ["/microcode.cpio", "/initrd.img-6.8"]);
        assert_eq!(entries[0].root_uuid.as_deref(), Some("AAAA-bbbb"));
        assert_eq!(entries[1].linux, ["/vmlinuz-5", "x"]);
        assert_eq!(entries[1].root_uuid.as_deref(), Some("1111-2222"));
    }

    #[test]
    fn what_has_no_bound_in_the_file_has_one_here() {
        for (count, is_cut) in [(BOOT_ENTRIES_MAX, false), (BOOT_ENTRIES_MAX * 3, true)] {
            let menu = read_menu(&"menuentry a { linux /k\n }\n".repeat(count));
            assert_eq!(
                (menu.entries.len(), menu.is_cut),
                (BOOT_ENTRIES_MAX, is_cut)
            );
        }
        let growing = format!(
            "set a=x\n{}menuentry t {{ linux /k $a\n}}",
            "set a=$a$a\n".repeat(100)
        );
        let entries = read_menu(&growing).entries;
        assert_eq!(entries[0].linux[1].len(), WORD_BYTES_MAX - 2);
        // Words that are left out leave too many.
        let many = format!("menuentry t {{ linux /k{}\n}}", " x".repeat(5000));
        let options = read_menu(&many).entries[0].linux[1..].join(" ");
        assert!(options.len() > COMMAND_LINE_BYTES_MAX);
    }

    /// The largest file there may be, made of one long value. Letter by letter that is a thousand million steps.
    #[test]
    fn a_value_that_is_named_often_is_not_walked_each_time() {
        let value = "x".repeat(WORD_BYTES_MAX - 2);
        let often = CONFIG_BYTES_MAX as usize / 3;
        let start = Instant::now();
        for (pieces, length) in [("$a ", value.len()), ("$a", WORD_BYTES_MAX)] {
            let text = format!(
                "set a={value}\nmenuentry t {{ linux /k {}\n}}",
                pieces.repeat(often)
            );
            assert_eq!(read_menu(&text).entries[0].linux[1].len(), length);
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read(
            text in "(?s)(menuentry|set|linux|initrd|search|\\{|\\}|[$'\"\\\\;#\n a=/-]|.){0,80}",
        ) {
            prop_assert!(read_menu(&text).entries.len() <= BOOT_ENTRIES_MAX);
        }
    }
}
