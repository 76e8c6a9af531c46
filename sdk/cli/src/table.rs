//! Tables and fact sheets for people: columns as wide as what is in them, nothing cut off.

use std::fmt::Write as _;

use crate::colour::Style;

/// Control characters do not reach the terminal, whoever made the text; lines stay.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect()
}

/// Rows under headings. A cell that is a state's word gets its colour.
pub fn table(style: Style, headings: &[&str], rows: Vec<Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| {
            row.iter()
                .map(|cell| plain(&cell.replace('\n', " ")))
                .collect()
        })
        .collect();
    let widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(column, heading)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(heading.chars().count())
        })
        .collect();
    let mut text = String::new();
    let headings: Vec<String> = headings.iter().map(ToString::to_string).collect();
    line(&mut text, &headings, &widths, |cell| style.strong(cell));
    for row in &rows {
        line(&mut text, row, &widths, |cell| style.state(cell));
    }
    text
}

fn line(text: &mut String, cells: &[String], widths: &[usize], paint: impl Fn(&str) -> String) {
    let last = cells.len().saturating_sub(1);
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        text.push_str(&paint(cell));
        if column < last {
            let gap = width.saturating_sub(cell.chars().count()) + 2;
            text.extend(std::iter::repeat_n(' ', gap));
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

/// Facts under each other: names to the left, values to the right; a value of several lines is indented.
pub fn facts(style: Style, facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for (name, value) in facts {
        if value.is_empty() {
            continue;
        }
        for (number, part) in value.lines().enumerate() {
            let name = if number == 0 { *name } else { "" };
            let padding = width - name.chars().count() + 2;
            let value = style.state(&plain(part));
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}{:padding$}{value}", style.strong(name), "");
        }
    }
    text
}

/// `k=v` pairs in one line.
pub fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let pairs: Vec<_> = pairs.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_are_gone() {
        let rows = vec![
            vec!["web".into(), "running".into(), "ä".into()],
            vec!["a-longer-name".into(), "\x1b[2Jx".into(), String::new()],
        ];
        let text = table(Style::on(false), &["NAME", "PHASE", "X"], rows);
        assert_eq!(
            text,
            "NAME           PHASE    X\nweb            running  ä\na-longer-name   [2Jx\n"
        );
    }
}
